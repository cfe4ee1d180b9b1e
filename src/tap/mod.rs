//! Where frames come from: live devices and savefiles, and the list of interfaces kept current.
//!
//! One thread owns a [`Tap`] and calls it; the threads that are started here open and close devices, and nothing else.
//! Nothing here decodes a packet or knows of flows. Between the kernel's ring and the owner's handler a frame is neither
//! copied nor allocated for, and no lock is taken.
//!
//! Of live capture the tap promises that a packet is shown once, though it may pass several devices on its way
//! through the machine. See the `plan` module for how.

mod before;
mod beside;
mod common;
mod device;
mod filter;
mod first;
mod first_filter;
mod frames;
mod live;
mod local;
mod loss;
mod news;
mod open;
mod options;
mod pcapng;
mod plan;
mod report;
mod ring;
mod route;
mod savefile;
mod site;
mod source;
mod wake;

pub use first::{FirstPacket, FirstPackets, Thinning};
pub use frames::FrameHandler;
pub use options::TapOptions;
pub use report::{Note, TapError, TapStats};
pub use source::{Progress, Tap};
pub use wake::Waker;
