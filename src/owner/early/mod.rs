//! Early lookup: the owner of a flow at its first packet, while its socket lives.
//!
//! The lookup takes a first packet, queries the kernel for the socket, and searches the candidate processes.
//! A cache keeps the owner until the capture's batch brings the flow.

mod candidates;
mod lookup;
mod owner_cache;
mod search;

pub(super) use candidates::End;
pub use candidates::Side;
pub use lookup::{EarlyLookup, EarlyLookupStats, Opening};
pub use owner_cache::{EarlyOwner, EarlyOwnerCache};
