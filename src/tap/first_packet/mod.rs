//! First packets of flows: a packet socket that wakes its reader at once, with a filter in the kernel.
//!
//! The early lookup thread reads first packets here. The frames that are counted arrive through `live`.

mod filter;
mod socket;

pub use socket::{FirstPacket, FirstPacketSocket, SamplingRate};
