//! Records of flows, for sessions that request them, and the notices of closed sockets.
//!
//! The capture thread has a [`Recorder`]. It detects flows that end, waits a moment for their owner and for
//! the kernel's notice of the end, and leaves the last record in the [`FlowMailbox`], where the update takes
//! it. It makes records of living flows when the update requests them through its [`FlowView`], which adds
//! the kernel's tcp_info of their sockets.

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
