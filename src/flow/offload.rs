//! What is kept of flows whose packets are captured as frames of many (GSO, TSO, GRO): how large their segments can be,
//! and how much of their traffic is an estimate.

use super::entry::{Flow, FlowId};
use super::state::FlowState;
use super::table::FlowTable;
use crate::model::{Direction, Traffic, WireSize};
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// By slot, for the flows of which there is something to keep.
pub(super) type Offloads = HashMap<u32, Offload, RandomState>;

/// What is kept of a flow whose packets are captured as frames of many (GSO, TSO, GRO).
#[derive(Default)]
pub(super) struct Offload {
    /// The estimated part of the traffic of a TCP connection that may be whole.
    estimated: Traffic,
    /// The largest TCP segment that both ends accept, if that is less than the MTU allows.
    segment: Option<u16>,
}

impl FlowTable {
    /// Records the largest segment that an end of a TCP connection accepts, as its SYN says; the smaller of both is kept. A SYN on
    /// a connection that is open already agrees on nothing (RFC 9293, 3.10.7.4): anybody may have sent it.
    pub fn limit_segments(&mut self, id: FlowId, limit: u16) {
        let is_opening = |flow: &Flow| matches!(flow.state(), FlowState::SynSent | FlowState::SynReceived);
        if self.get(id).is_some_and(is_opening) {
            let known = &mut self.offloads.entry(id.index).or_default().segment;
            *known = Some(known.map_or(limit, |known| known.min(limit)));
        }
    }

    /// The largest segment that both ends of a TCP connection accept, as recorded.
    pub fn segment_limit(&self, id: FlowId) -> Option<u16> {
        self.get(id).and_then(|_| self.offloads.get(&id.index)?.segment)
    }

    /// Records how much of what a flow has just counted was estimated.
    pub fn record_estimate(&mut self, id: FlowId, direction: Direction, estimated: WireSize) {
        if self.get(id).is_some_and(Flow::may_be_whole) {
            self.offloads.entry(id.index).or_default().estimated.count(direction, estimated);
        }
    }

    /// All traffic of a flow with each frame counted as it was captured, without what was estimated. Right only for a TCP
    /// connection that was seen from its opening on, and no longer once [`Flow::take_whole`] has been called and another
    /// frame counted.
    pub fn captured(&self, id: FlowId) -> Traffic {
        let mut captured = self.get(id).map(Flow::totals).unwrap_or_default();
        if let Some(offload) = self.offloads.get(&id.index) {
            captured -= offload.estimated;
        }
        captured
    }
}
