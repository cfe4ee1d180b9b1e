//! Owners of flows: the resolver thread and the early lookup thread, their queues, and the identities of the
//! owners.
//!
//! The pipeline puts requests into the resolver's queue and takes its answers there. The early lookup thread
//! works at the first packets of flows and leaves the owners it finds for the resolver. Identities of owners
//! go to the ledger.

mod early_lookup;
mod identity_cache;
mod kernel_owners;
mod latest_identities;
mod lookup_queue;
mod resolver;
mod throttle;

pub use early_lookup::{EarlyLookupThread, open_events};
pub use identity_cache::IdentityCache;
pub use kernel_owners::KernelOwners;
pub use latest_identities::{LatestIdentities, follow_identities};
pub use lookup_queue::{Answer, LookupQueue, Request};
pub use resolver::Resolver;
pub use throttle::FirstPacketThrottle;
