//! Live capture on several devices at once, which may come and go.

use super::addresses::local_addresses;
use super::device::{Device, Read};
use super::interfaces::{Interface, interfaces};
use super::options::TapOptions;
use super::plan::{vlans_above, wanted};
use super::waker::{WaitSet, Waker};
use super::{Progress, TapStats};
use crate::error::{Code, Error, Result};
use crate::model::{Frame, LocalAddresses};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use pcap::{Capture, Linktype};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// After how many refreshes a device that could not be opened is tried again.
const RETRY_AFTER: u32 = 10;

/// Notes kept for the log between two takings.
const NOTE_LIMIT: usize = 256;

/// The open devices and what is known of the others.
pub(super) struct LiveTap {
    options: TapOptions,
    devices: Vec<Device>,
    /// Devices that could not be opened, by index: refreshes left until the next try.
    refused: HashMap<u32, u32>,
    wait_set: WaitSet,
    local: Arc<LocalAddresses>,
    stats: TapStats,
    /// Losses of devices that were closed: in the kernel, and in the device.
    lost_before: (u64, u64),
    notes: Vec<String>,
}

impl LiveTap {
    pub(super) fn open(options: TapOptions) -> Result<LiveTap> {
        options.check()?;
        check_permission()?;
        if let Some(filter) = &options.filter {
            check_filter(filter)?;
        }
        let mut tap = LiveTap {
            options,
            devices: Vec::new(),
            refused: HashMap::new(),
            wait_set: WaitSet::new()?,
            local: Arc::default(),
            stats: TapStats::default(),
            lost_before: (0, 0),
            notes: Vec::new(),
        };
        let interfaces = interfaces()
            .map_err(|errno| Error::system(Code::NoDevice, "listing the network devices", errno))?;
        tap.check_names(&interfaces)?;
        let first_error = tap.adjust(&interfaces);
        tap.refresh_addresses();
        match first_error {
            // Devices that are not up yet are waited for; but where none of those that are up can be used, somebody
            // should know.
            Some(error) if tap.devices.is_empty() => Err(error),
            _ => Ok(tap),
        }
    }

    fn check_names(&self, interfaces: &[Interface]) -> Result<()> {
        if self.options.every_device() {
            return Ok(());
        }
        let unknown = |name: &&String| !interfaces.iter().any(|interface| interface.name == **name);
        match self.options.devices.iter().find(unknown) {
            None => Ok(()),
            Some(name) => {
                let known: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
                let text = format!("there is no device {name:?}; there are: {}", known.join(", "));
                Err(Error::new(Code::NoDevice, text))
            }
        }
    }

    pub(super) fn wait(&mut self, most: Duration) -> Result<()> {
        self.wait_set.wait(most)
    }

    pub(super) fn read(&mut self, limit: usize, handler: &mut impl FnMut(&Frame<'_>)) -> Progress {
        let mut progress = Progress::default();
        let mut index = 0;
        while let Some(device) = self.devices.get_mut(index) {
            match device.read(limit, handler) {
                Read::Drained => {}
                Read::More => progress.more = true,
                Read::Closed(reason) => {
                    let text = format!("the device {} is no longer captured: {reason}", device.name);
                    self.note(text);
                    self.close(index);
                    continue;
                }
            }
            index += 1;
        }
        progress
    }

    pub(super) fn refresh(&mut self) {
        match interfaces() {
            Ok(interfaces) => {
                self.adjust(&interfaces);
            }
            Err(errno) => self.note(format!("listing the network devices: {errno}")),
        }
        self.refresh_addresses();
        self.refresh_stats();
    }

    pub(super) fn local_addresses(&self) -> &Arc<LocalAddresses> {
        &self.local
    }

    pub(super) fn stats(&self) -> TapStats {
        self.stats
    }

    pub(super) fn waker(&self) -> Waker {
        self.wait_set.waker()
    }

    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Opens and closes devices so that those wanted now are captured. Returns the first reason for which one could
    /// not be opened.
    fn adjust(&mut self, interfaces: &[Interface]) -> Option<Error> {
        let wanted = wanted(interfaces, &self.options);
        let is_wanted = |device: &Device| {
            wanted.iter().any(|interface| interface.index == device.index && interface.name == device.name)
        };
        for index in (0..self.devices.len()).rev() {
            if self.devices.get(index).is_some_and(|device| !is_wanted(device)) {
                self.close(index);
            }
        }
        self.refused.retain(|index, left| {
            *left = left.saturating_sub(1);
            *left > 0 && wanted.iter().any(|interface| interface.index == *index)
        });
        let mut first_error = None;
        for interface in &wanted {
            let is_open = self.devices.iter().any(|device| device.index == interface.index);
            if is_open || self.refused.contains_key(&interface.index) {
                continue;
            }
            if let Err(error) = self.open_device(interface) {
                self.note(format!("the device {} is not captured: {error}", interface.name));
                self.refused.insert(interface.index, RETRY_AFTER);
                first_error = first_error.or(Some(error));
            }
        }
        let captured: Vec<&Interface> = wanted
            .into_iter()
            .filter(|interface| self.devices.iter().any(|device| device.index == interface.index))
            .collect();
        for device in &mut self.devices {
            device.vlans_above = vlans_above(device.index, &captured);
        }
        self.refresh_stats();
        first_error
    }

    fn open_device(&mut self, interface: &Interface) -> Result<()> {
        let taken = self.devices.iter().map(|device| u64::from(device.buffer_bytes)).sum();
        let buffer_bytes = self.options.next_buffer(taken);
        let device = Device::open(interface.index, &interface.name, &self.options, buffer_bytes)?;
        self.wait_set.add(device.descriptor()).map_err(|errno| {
            Error::system(
                Code::SystemResource,
                format_args!("waiting for the device {}", interface.name),
                errno,
            )
        })?;
        self.note(format!("capturing on the device {}", interface.name));
        self.devices.push(device);
        Ok(())
    }

    fn close(&mut self, index: usize) {
        let mut device = self.devices.swap_remove(index);
        let (in_kernel, in_device) = device.losses();
        self.lost_before.0 += in_kernel;
        self.lost_before.1 += in_device;
        self.note(format!("capture on the device {} has ended", device.name));
    }

    fn refresh_addresses(&mut self) {
        match local_addresses() {
            Ok(local) if local != *self.local => self.local = Arc::new(local),
            Ok(_) => {}
            Err(errno) => self.note(format!("listing the addresses of the devices: {errno}")),
        }
    }

    fn refresh_stats(&mut self) {
        let (mut in_kernel, mut in_device) = self.lost_before;
        for device in &mut self.devices {
            let losses = device.losses();
            in_kernel += losses.0;
            in_device += losses.1;
        }
        self.stats = TapStats {
            dropped_by_kernel: in_kernel,
            dropped_by_device: in_device,
            devices_open: self.devices.len() as u32,
        };
    }

    fn note(&mut self, text: String) {
        if self.notes.len() < NOTE_LIMIT {
            self.notes.push(text);
        }
    }
}

/// Whether this thread may capture at all (packet(7)).
fn check_permission() -> Result<()> {
    match socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None) {
        Err(Errno::EPERM | Errno::EACCES) => {
            let text = "capturing packets is not permitted; the capability CAP_NET_RAW would bring it";
            Err(Error::new(Code::NotPermitted, text))
        }
        Err(errno) => Err(Error::system(Code::OpenDevice, "opening a packet socket", errno)),
        Ok(_) => Ok(()),
    }
}

/// Whether the filter compiles for any of the link types that are usual here.
fn check_filter(filter: &str) -> Result<()> {
    let compiled = |link| Capture::dead(link).and_then(|dead| dead.compile(filter, true));
    match compiled(Linktype::ETHERNET).or_else(|error| compiled(Linktype(DLT_RAW)).map_err(|_| error)) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Error::system(Code::CompileFilter, format_args!("compiling the filter \"{filter}\""), error))
        }
    }
}

/// `DLT_RAW` of a live capture on Linux.
const DLT_RAW: i32 = 12;
