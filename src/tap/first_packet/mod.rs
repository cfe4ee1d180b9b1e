//! First packets of flows: a packet socket that wakes its reader at once, with a filter in the kernel.
//!
//! The early-lookup thread reads first packets here; the frames that are counted come by `live`.

mod filter;
mod socket;

pub use socket::{FirstPacket, FirstPacketSocket, SamplingRate};
