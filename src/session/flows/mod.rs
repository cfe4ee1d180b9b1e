//! Records of flows, for sessions that ask for them, and the notices of sockets that have closed.
//!
//! The capture thread has a [`Recorder`]. It notices flows that end, waits a moment for their owner and for the kernel's
//! notice of the end, and leaves the last record in the [`FlowMailbox`], where the update takes it. Of the flows that live
//! it makes records when the update asks for them through its [`FlowView`], which adds what the kernel knows of the sockets.

mod closed_sockets;
mod mailbox;
mod record;
mod recorder;
mod tcp_reader;
mod view;

#[cfg(test)]
mod tests;

pub use closed_sockets::{Carried, Connection, EndedQueue, EndedReader};
pub use mailbox::{FlowMailbox, NamespacedRecord, SocketEnd};
pub use recorder::Recorder;
pub use tcp_reader::TcpReader;
pub use view::FlowView;
