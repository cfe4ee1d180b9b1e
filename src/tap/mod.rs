//! Where frames come from: live devices and savefiles, and the list of interfaces kept current.
//!
//! One thread owns a [`Tap`] and calls it; the threads that are started here open and close devices, and nothing else.
//! Nothing here decodes a packet or knows of flows. Between the kernel's ring and the owner's handler a frame is neither
//! copied nor allocated for, and no lock is taken.
//!
//! Of live capture the tap promises that a packet is shown once, though it may pass several devices on its way
//! through the machine. See the module `live::plan` for how.

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
