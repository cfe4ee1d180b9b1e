//! A savefile as a source of frames, replayed as fast as it can be read.

use super::frames::{FrameOrigin, drain, words};
use super::open_savefile::{self, Savefile};
use super::options::check_filter;
use super::pcapng::Pcapng;
use crate::error::{Code, Error, Result};
use crate::model::{Frame, LinkType, Namespace};
use pcap::{Capture, Offline};
use std::path::{Path, PathBuf};

/// An open savefile.
pub(super) struct Replay {
    path: PathBuf,
    /// The file; `None` once it was read to its end or to damage.
    file: Option<OpenFile>,
    frames: u64,
}

enum OpenFile {
    Pcap(Capture<Offline>, LinkType),
    Pcapng(Box<Pcapng>),
}

impl Replay {
    /// Opens a pcap or pcapng file of any byte order and time stamp resolution.
    ///
    /// # Errors
    /// Fails with `Savefile` if the file cannot be opened, is in neither format, or has a link type that is
    /// not decoded. Fails with `CompileFilter`, `SetFilter` or `InvalidArgument` if the filter is rejected.
    pub(super) fn open(path: &Path, filter: Option<&str>) -> Result<Replay> {
        filter.map_or(Ok(()), check_filter)?;
        let file = match open_savefile::savefile(path)? {
            Savefile::Pcapng(file) => {
                let file = Pcapng::open(file, filter).map_err(|error| {
                    let text = format!("opening the savefile {}: {}", path.display(), error.text);
                    Error::new(error.code, text)
                })?;
                OpenFile::Pcapng(Box::new(file))
            }
            Savefile::Pcap(mut capture) => {
                let dlt = capture.get_datalink();
                let link = LinkType::from_dlt(dlt.0).ok_or_else(|| {
                    let text = format!("the savefile {}: {} is not decoded", path.display(), link_name(dlt));
                    Error::new(Code::Savefile, text)
                })?;
                if let Some(filter) = filter {
                    open_savefile::set_filter(&mut capture, filter)?;
                }
                OpenFile::Pcap(capture, link)
            }
        };
        Ok(Replay { path: path.into(), file: Some(file), frames: 0 })
    }

    /// Returns true if the file was read to its end or to damage.
    pub(super) fn ended(&self) -> bool {
        self.file.is_none()
    }

    /// Returns the number of frames delivered so far.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Delivers at most `limit` frames and returns their number.
    ///
    /// # Errors
    /// Fails with `Savefile`, once, if the file is damaged. The frames before the damage have been delivered.
    pub(super) fn read(&mut self, limit: usize, mut handler: impl FnMut(Frame<'_>)) -> Result<usize> {
        let Some(file) = &mut self.file else { return Ok(0) };
        let frames = &mut self.frames;
        let handler = |frame: Frame<'_>| {
            *frames += 1;
            handler(frame);
        };
        let (count, error) = match file {
            OpenFile::Pcap(capture, link) => {
                // No format states the MTU of the device that the frames were recorded on.
                let origin = FrameOrigin { link: *link, namespace: Namespace::HOME, packet_limit: u32::MAX };
                let (count, error) = drain(capture, origin, limit, handler);
                (count, error.map(words))
            }
            OpenFile::Pcapng(file) => {
                let (count, error) = file.read(limit, handler);
                (count, error.map(|error| error.text))
            }
        };
        if count < limit {
            self.file = None;
        }
        match error {
            None => Ok(count),
            Some(why) => {
                let (path, frames) = (self.path.display(), self.frames);
                let text = format!("the savefile {path} cannot be read beyond {frames} frames: {why}");
                Err(Error::new(Code::Savefile, text))
            }
        }
    }
}

/// Returns libpcap's name of a link type, with its number.
pub(super) fn link_name(link: pcap::Linktype) -> String {
    let name = link.get_name().unwrap_or_else(|_| "unknown".into());
    format!("the link type {name} ({})", link.0)
}

#[cfg(test)]
mod tests;
