//! Records of flows, for sessions that ask for them: made by the capture thread from what it has counted, completed by
//! the update with what the kernel knows of the sockets.
//!
//! The capture thread has a [`Recorder`]. It notices flows that end, waits a moment for their owner and for the kernel's
//! notice of the end, and leaves the last record at the [`FlowDesk`], where it waits to be taken. Of the flows that live
//! it makes records when the update asks for them through its [`FlowView`].

mod desk;
mod kernel;
mod record;
mod recorder;
mod view;

#[cfg(test)]
mod tests;

pub use desk::{FlowDesk, Seen, SocketEnd};
pub use kernel::TcpReader;
pub use recorder::Recorder;
pub use view::FlowView;
