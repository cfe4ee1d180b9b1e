//! The names that processes have been given since the task probes were loaded: a process that is given one after a walk and
//! ends before the next has it here alone.

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

/// The tracepoint that a thread passes when it gets another name.
pub(super) const RENAME: &str = "task_rename";

// SAFETY: it is made of integers, with no padding, so that every pattern of bits is a value.
unsafe impl Pod for GivenName {}

const _: () = assert!(size_of::<GivenName>() == 24);

/// Reads the names that the program has recorded.
pub(super) struct GivenNames(MapData);

impl GivenNames {
    /// Attaches the program of an object that records names.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn attach(object: &mut LoadedObject, types: &KernelTypes) -> Result<GivenNames, Fault> {
        attach_to_tracepoint(object, "capture_rename", RENAME, types)?;
        let map = object.take_map("names").filter(|map| HashMap::<_, u32, GivenName>::try_from(map).is_ok());
        match map {
            Some(Map::LruHashMap(names)) => Ok(GivenNames(names)),
            _ => Err(Fault { state: ProbeState::NotSupported, text: "the map of names is missing".into() }),
        }
    }

    /// The last one of the process with this number.
    pub(super) fn last(&self, pid: u32) -> Option<GivenName> {
        lookup(self.0.fd().as_fd(), &pid)
    }
}
