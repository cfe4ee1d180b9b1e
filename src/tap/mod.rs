//! Sources of frames: live devices and savefiles, and the current list of interfaces.
//!
//! One thread owns a [`Tap`] and calls it. The threads that this module starts open and close devices and do
//! nothing else. The module decodes no packets and knows no flows. Between the kernel's ring and the caller's
//! handler a frame is neither copied nor allocated for, and no lock is taken.
//!
//! Live capture delivers each packet once, even if it passes several devices on its way through the machine.
//! The module `live::plan` explains the rules.

mod filter;
mod first_packet;
mod frames;
mod live;
mod open_savefile;
mod options;
mod pcapng;
mod poller;
mod report;
mod savefile;
mod source;

pub use first_packet::{FirstPacket, FirstPacketSocket, SamplingRate};
pub use frames::FrameHandler;
pub use options::TapOptions;
pub use poller::Waker;
pub use report::{Note, TapError, TapStats};
pub use source::{Progress, Tap};
