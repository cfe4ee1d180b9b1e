//! State of flows whose packets are captured in frames of several packets (GSO, TSO, GRO): the largest
//! possible segment, and the estimated part of their traffic.

use super::entry::{Flow, FlowId};
use super::state::FlowState;
use super::table::FlowTable;
use crate::model::{Direction, Traffic, WireSize};
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Offload state by slot, for the flows that have any.
pub(super) type Offloads = HashMap<u32, Offload, RandomState>;

/// Offload state of a flow whose packets are captured in frames of several packets (GSO, TSO, GRO).
#[derive(Default)]
pub(super) struct Offload {
    /// The estimated part of the traffic of a TCP connection that may be whole.
    estimated: Traffic,
    /// The largest TCP segment that is sent and received, if that is less than the MTU allows.
    sent_segment: Option<u16>,
    received_segment: Option<u16>,
}

/// The largest segment that every host accepts by default (RFC 9293, 3.7.1).
const DEFAULT_SEGMENT: u16 = 536;

/// The smallest segment that Linux sends (`TCP_MIN_SND_MSS`, include/net/tcp.h).
const MIN_SEGMENT: u16 = 48;

impl FlowTable {
    /// Records the largest segment that an end of a TCP connection accepts, as its SYN says, which passed in
    /// this direction. Usually an end neither sends nor accepts larger ones, so the smaller of both ends' limits
    /// is kept. The other end is not believed that it sends less than every host accepts, since its own segments
    /// could count as more than they are. A SYN on a connection that is already open is ignored: it agrees on
    /// nothing (RFC 9293, 3.10.7.4) and may be forged.
    pub fn limit_segments(&mut self, id: FlowId, direction: Direction, limit: u16) {
        let is_opening = |flow: &Flow| matches!(flow.state(), FlowState::SynSent | FlowState::SynReceived);
        if self.get(id).is_some_and(is_opening) {
            let limit = limit.max(MIN_SEGMENT);
            let lower =
                |known: &mut Option<u16>| *known = Some(known.map_or(limit, |known| known.min(limit)));
            let offload = self.offloads.entry(id.index).or_default();
            lower(&mut offload.sent_segment);
            if direction == Direction::Send || limit >= DEFAULT_SEGMENT {
                lower(&mut offload.received_segment);
            }
            self.min_segment = self.min_segment.min(limit);
        }
    }

    /// Returns a lower bound of the recorded limits; the largest number if there are none.
    #[inline]
    pub fn min_segment(&self) -> u16 {
        self.min_segment
    }

    /// Returns the largest segment that passes a TCP connection in a direction, as recorded.
    pub fn segment_limit(&self, id: FlowId, direction: Direction) -> Option<u16> {
        let offload = self.get(id).and_then(|_| self.offloads.get(&id.index))?;
        match direction {
            Direction::Send => offload.sent_segment,
            Direction::Receive => offload.received_segment,
        }
    }

    /// Records the estimated part of the traffic that a flow has just counted.
    pub fn record_estimate(&mut self, id: FlowId, direction: Direction, estimated: WireSize) {
        if self.get(id).is_some_and(Flow::may_be_whole) {
            self.offloads.entry(id.index).or_default().estimated.count(direction, estimated);
        }
    }

    /// Returns all traffic of a flow with each frame counted as it was captured, without estimates. This is
    /// correct only for a TCP connection that was seen from its opening on, and no longer once
    /// [`Flow::take_whole`] was called and another frame was counted.
    pub fn captured(&self, id: FlowId) -> Traffic {
        let mut captured = self.get(id).map(Flow::totals).unwrap_or_default();
        if let Some(offload) = self.offloads.get(&id.index) {
            captured -= offload.estimated;
        }
        captured
    }
}
