//! A savefile as a source of frames.

use super::Progress;
use super::waker::{WaitSet, Waker};
use crate::error::{Code, Error, Result};
use crate::model::{Frame, LinkType, LocalAddresses, Timestamp};
use pcap::{Capture, Offline, Precision};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// An open savefile.
pub(super) struct SavefileTap {
    path: PathBuf,
    capture: Capture<Offline>,
    link: LinkType,
    ended: bool,
    wait_set: WaitSet,
    local: Arc<LocalAddresses>,
}

impl SavefileTap {
    pub(super) fn open(path: &Path, filter: Option<&str>) -> Result<SavefileTap> {
        let shown = path.display();
        let mut capture = Capture::from_file_with_precision(path, Precision::Nano).map_err(|error| {
            Error::system(Code::Savefile, format_args!("opening the savefile {shown}"), error)
        })?;
        let dlt = capture.get_datalink();
        let link = LinkType::from_dlt(dlt.0).ok_or_else(|| {
            let name = dlt.get_name().unwrap_or_else(|_| dlt.0.to_string());
            Error::new(
                Code::Savefile,
                format!("the savefile {shown} has link type {name}, which is not decoded"),
            )
        })?;
        if let Some(filter) = filter {
            capture.filter(filter, true).map_err(|error| {
                Error::system(Code::CompileFilter, format_args!("compiling the filter \"{filter}\""), error)
            })?;
        }
        let (wait_set, local) = (WaitSet::new()?, Arc::default());
        Ok(SavefileTap { path: path.to_owned(), capture, link, ended: false, wait_set, local })
    }

    pub(super) fn wait(&mut self, most: Duration) -> Result<()> {
        if self.ended { self.wait_set.wait(most) } else { Ok(()) }
    }

    pub(super) fn read(&mut self, limit: usize, handler: &mut impl FnMut(&Frame<'_>)) -> Result<Progress> {
        for _ in 0..limit {
            match self.capture.next_packet() {
                Ok(packet) => handler(&frame(&packet, self.link)),
                Err(pcap::Error::NoMorePackets) => {
                    self.ended = true;
                    return Ok(Progress { more: false, ended: true });
                }
                Err(error) => {
                    self.ended = true;
                    let tried = format_args!("reading the savefile {}", self.path.display());
                    return Err(Error::system(Code::Savefile, tried, error));
                }
            }
        }
        Ok(Progress { more: true, ended: false })
    }

    pub(super) fn local_addresses(&self) -> &Arc<LocalAddresses> {
        &self.local
    }

    pub(super) fn waker(&self) -> Waker {
        self.wait_set.waker()
    }
}

/// A packet of libpcap, captured with nanosecond precision: `tv_usec` then holds nanoseconds.
#[inline]
pub(super) fn frame<'a>(packet: &pcap::Packet<'a>, link: LinkType) -> Frame<'a> {
    let header = packet.header;
    let seconds = u64::try_from(header.ts.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(header.ts.tv_usec).unwrap_or_default();
    let time = Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds));
    Frame { time, wire_len: header.len, link, data: packet.data }
}
