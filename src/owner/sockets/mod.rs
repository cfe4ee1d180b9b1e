//! Sockets of a flow: an exact query of sock_diag(7), or else the tables of `/proc/net`, with the joined
//! groups.
//!
//! A source of sockets takes a flow's endpoints and returns the inode and user of the socket, which `holders`
//! takes.

mod groups;
mod index;
mod sock_diag;
mod table;
mod tables;

pub(super) use groups::Groups;
pub(super) use sock_diag::SockDiag;
#[cfg(test)]
pub(super) use table::tests::{HEADING, render};
pub use table::{SocketRow, parse_table};
#[cfg(test)]
pub(super) use tables::NAMES;
pub(super) use tables::Tables;
