//! The names that processes have been given since the task eBPF programs were loaded. If a process is given a
//! name after a walk and ends before the next one, no other source has that name.

use super::Fault;
use super::batch::lookup;
use super::load::attach_to_tracepoint;
use super::object::LoadedObject;
use super::task::GivenName;
use super::types::KernelTypes;
use crate::model::ProbeState;
use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use std::os::fd::AsFd;

/// The tracepoint that a thread passes when its name changes.
pub(super) const RENAME: &str = "task_rename";

// SAFETY: it consists of integers without padding, so that every bit pattern is a value.
unsafe impl Pod for GivenName {}

const _: () = assert!(size_of::<GivenName>() == 24);

/// Reads the names that the eBPF program has recorded.
pub(super) struct GivenNames(MapData);

impl GivenNames {
    /// Attaches an object's eBPF program that records names.
    ///
    /// # Errors
    /// Fails if the kernel rejects it.
    pub(super) fn attach(object: &mut LoadedObject, types: &KernelTypes) -> Result<GivenNames, Fault> {
        attach_to_tracepoint(object, "capture_rename", RENAME, types)?;
        let map =
            object.take_map("given_names").filter(|map| HashMap::<_, u32, GivenName>::try_from(map).is_ok());
        match map {
            Some(Map::LruHashMap(names)) => Ok(GivenNames(names)),
            _ => Err(Fault { state: ProbeState::NotSupported, text: "the map of names is missing".into() }),
        }
    }

    /// Returns the last name that the process with this number was given.
    pub(super) fn last(&self, pid: u32) -> Option<GivenName> {
        lookup(self.0.fd().as_fd(), &pid)
    }
}
