//! Makes flow records from the entries of the flow table and the tcp_info of their sockets.

use super::mailbox::SocketEnd;
use crate::flow::{Binding, Departed, Flow, FlowId, FlowMetrics, FlowState};
use crate::model::{
    CloseReason, FlowKey, FlowPhase, FlowRecord, FlowValidity, Owner, Protocol, Role, Timestamp, Traffic,
};
use crate::netlink::TcpInfo;

/// The flow table's data of a flow that is in the table or has just left it.
pub struct TableFlow<'a> {
    pub id: FlowId,
    pub key: &'a FlowKey,
    pub state: FlowState,
    pub first: Timestamp,
    pub last: Timestamp,
    pub totals: Traffic,
    pub owner: Option<Owner>,
    pub detail: &'a FlowMetrics,
}

impl<'a> TableFlow<'a> {
    /// Returns the data of a flow that is in the table.
    pub fn held(id: FlowId, flow: &'a Flow, detail: &'a FlowMetrics) -> TableFlow<'a> {
        TableFlow {
            id,
            key: flow.key(),
            state: flow.state(),
            first: flow.first(),
            last: flow.last(),
            totals: flow.totals(),
            owner: owner(flow.binding()).or(detail.owner()),
            detail,
        }
    }

    /// Returns the data of a flow that has left the table.
    pub fn departed(departed: &'a Departed, detail: &'a FlowMetrics) -> TableFlow<'a> {
        let &Departed { id, ref key, binding, totals, first, last, state, .. } = departed;
        TableFlow { id, key, state, first, last, totals, owner: owner(binding).or(detail.owner()), detail }
    }

    /// Returns the flow's record at the time `now`, in the namespace with this inode; 0 if the inode is
    /// unknown.
    pub fn record(&self, inode: u64, now: Timestamp) -> FlowRecord {
        let FlowKey { local, remote, protocol, .. } = *self.key;
        let detail = self.detail;
        let mut record = FlowRecord::unknown(self.id.number(), protocol, local, remote);
        let valid = &mut record.valid;
        *valid |= FlowValidity::TRAFFIC | FlowValidity::RESPONSE;
        (record.last, record.traffic, record.response) = (self.last, self.totals, detail.response());
        record.owner = self.owner;
        record.phase = phase(self.state);
        record.namespace_inode = inode;
        if inode != 0 {
            *valid |= FlowValidity::NAMESPACE;
        }
        record.role = detail.role();
        if record.role != Role::Unknown {
            *valid |= FlowValidity::ROLE;
        }
        if let Some(established) = detail.established() {
            record.established = established;
            *valid |= FlowValidity::ESTABLISHED;
        }
        if detail.saw_opening() {
            record.opened = self.first;
            record.duration_ns = detail.end().map_or(now, |(when, _)| when).since(self.first);
            *valid |= FlowValidity::OPENED | FlowValidity::DURATION;
            if let Some(answered) = detail.answered() {
                record.connect_latency_ns = answered.since(self.first);
                *valid |= FlowValidity::CONNECT_LATENCY;
            }
        }
        record
    }

    /// Returns the flow's last record, with the last tcp_info of its socket if the kernel reported it.
    pub fn last_record(&self, inode: u64, end: Option<&SocketEnd>) -> FlowRecord {
        // A flow whose end was not seen ended with its latest packet.
        let mut record = self.record(inode, self.last);
        record.phase = FlowPhase::Ended;
        if let Some(SocketEnd { cookie, info, .. }) = end {
            complete(&mut record, *cookie, info);
        }
        if let Some((_, reason)) = self.detail.end()
            && reason != CloseReason::Unknown
        {
            record.reason = reason;
            record.errno = errno(reason);
            record.valid |= FlowValidity::REASON | FlowValidity::ERRNO;
        }
        record
    }
}

/// Adds the kernel's tcp_info to a record that does not have it yet.
pub fn complete(record: &mut FlowRecord, cookie: u64, info: &TcpInfo) {
    if record.protocol != Protocol::TCP || record.valid.has(FlowValidity::COOKIE) {
        return;
    }
    record.cookie = cookie;
    record.tcp_state = info.state;
    record.retransmits = info.retransmits.into();
    record.valid |= FlowValidity::COOKIE | FlowValidity::TCP_STATE | FlowValidity::RETRANSMITS;
    if info.round_trip_us != 0 {
        record.smoothed_rtt_ns = u64::from(info.round_trip_us) * 1_000;
        record.valid |= FlowValidity::SMOOTHED_RTT;
    }
}

fn owner(binding: Binding) -> Option<Owner> {
    match binding {
        Binding::Owned(owner) => Some(owner),
        Binding::Unasked | Binding::Asked | Binding::Unowned(_) => None,
    }
}

fn phase(state: FlowState) -> FlowPhase {
    match state {
        FlowState::SendOnly | FlowState::ReceiveOnly | FlowState::SynSent | FlowState::SynReceived => {
            FlowPhase::Opening
        }
        FlowState::TwoWay | FlowState::Established | FlowState::Midstream => FlowPhase::Open,
        FlowState::FinSent | FlowState::FinReceived | FlowState::Closed | FlowState::Reset => {
            FlowPhase::Closing
        }
    }
}

/// Returns the error that a call on the socket fails with.
fn errno(reason: CloseReason) -> i32 {
    match reason {
        CloseReason::Reset => libc::ECONNRESET,
        CloseReason::TimedOut => libc::ETIMEDOUT,
        CloseReason::Refused => libc::ECONNREFUSED,
        CloseReason::Unknown | CloseReason::Orderly | CloseReason::Aborted => 0,
    }
}
