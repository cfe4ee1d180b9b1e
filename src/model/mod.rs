//! Plain data that the other rooms exchange, without I/O and without policy.

mod address;
mod bits;
mod connection;
mod flow;
mod frame;
mod local_addresses;
mod networks;
mod packet;
mod probes;
mod proc_id;
mod process;
pub mod tcp_state;
mod traffic;

pub use address::{Address, Endpoint};
pub use connection::{
    CloseReason, Connections, FlowPhase, FlowRecord, FlowValidity, Histogram, ResponseTimes, Role,
};
pub use flow::{FlowKey, Namespace, Owner, Quality, Unowned};
pub use frame::{Frame, LinkType, Passage, Timestamp};
pub use local_addresses::LocalAddresses;
pub use networks::Networks;
pub use packet::{Fragment, Packet, Protocol, TcpFlags, Undecoded};
pub use probes::{ProbeState, ProgramSet};
pub use proc_id::ProcId;
pub use process::{
    Identity, NAME_BYTES, ProcessRecord, ProcessSample, SampleSet, Selection, Validity, last_part,
};
pub use traffic::{Direction, Traffic, WireSize};
