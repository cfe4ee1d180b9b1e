//! Live capture: the devices of all captured network namespaces, opened, read and closed concurrently.
//!
//! A live capture follows the namespaces. In each, a plan chooses the devices, workers open their packet
//! sockets, and the frames in their rings go to the caller's handler.

mod before;
mod common;
mod device;
mod follow_plan;
mod live_capture;
mod local;
mod loss;
mod namespace_capture;
mod news;
mod opener;
mod packet_socket;
mod plan;
mod ring;

pub(super) use live_capture::Live;
pub(super) use packet_socket::bind_to;
