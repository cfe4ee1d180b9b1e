//! Sessions: the only place that starts threads, and where bytes meet process samples.

mod ledger;
mod packets;
mod thread;
