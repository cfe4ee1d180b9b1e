//! Holders of a socket: the processes that have a descriptor of it, read from `/proc/<pid>/fd`.
//!
//! A source of holders takes sockets and returns processes. A table keeps the holdings that were seen, and
//! suggests where to read first.

mod descriptors;
mod holder_table;
pub(super) mod proc_fd;
mod scan;
mod thread_tables;

pub(super) use descriptors::Descriptors;
pub(super) use holder_table::{HolderTable, Holding};
