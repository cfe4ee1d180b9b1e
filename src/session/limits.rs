//! The limits of a session for flows and for requests for their owners; lower ones if a control group limits
//! the memory.

use super::memory::memory_limit;
use crate::config::Options;

/// Minimum of each limit that is derived from the memory; a lower one would be of little use.
const LEAST: usize = 2048;

/// Bytes that a flow takes in its table.
const HELD_BYTES: u64 = 200;
/// Additional bytes per flow if flows are recorded: its metrics and its record, twice while living flows are
/// delivered.
const HELD_RECORDED_BYTES: u64 = 850;
/// Bytes of the record of an ended flow, including records on their way.
const ENDED_BYTES: u64 = 500;
/// Bytes of a request on its way through the resolver, including its answer and the tables' entries for both.
const QUESTION_BYTES: u64 = 700;
/// Additional bytes for the metrics and the record of a flow that has left the table with an open request.
const QUESTION_RECORDED_BYTES: u64 = 500;

/// The limits of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowLimits {
    /// Flows in the table.
    pub held: usize,
    /// Records of ended flows that wait to be delivered.
    pub ended: usize,
    /// Requests for owners without a final answer, and flows that have left the table with such a request.
    pub questions: usize,
}

impl Default for FlowLimits {
    /// Returns the limits without a memory limit.
    fn default() -> FlowLimits {
        FlowLimits { held: 1_000_000, ended: 65_536, questions: 65_536 }
    }
}

impl FlowLimits {
    /// Returns the limits of the options; an unset one is chosen to suit the memory that this process may
    /// have.
    pub fn of(options: &Options) -> FlowLimits {
        FlowLimits::within(options, memory_limit())
    }

    fn within(options: &Options, memory: Option<u64>) -> FlowLimits {
        let recorded = |bytes| if options.flows { bytes } else { 0 };
        let fit = |part: u64, bytes: u64, usual: usize| {
            let fit = memory.map_or(usual, |memory| usize::try_from(memory / part / bytes).unwrap_or(usual));
            fit.clamp(LEAST, usual)
        };
        let usual = FlowLimits::default();
        let held = || fit(4, HELD_BYTES + recorded(HELD_RECORDED_BYTES), usual.held);
        let ended = || fit(16, ENDED_BYTES, usual.ended);
        FlowLimits {
            held: options.flow_limit.unwrap_or_else(held),
            ended: options.ended_flow_limit.unwrap_or_else(ended),
            questions: fit(8, QUESTION_BYTES + recorded(QUESTION_RECORDED_BYTES), usual.questions),
        }
    }

    /// Returns the part of the requests that is reserved for answered flows; unanswered ones may use only the
    /// rest.
    pub fn reserved(&self) -> usize {
        self.questions / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(options: &Options, megabytes: Option<u64>) -> (usize, usize, usize) {
        let FlowLimits { held, ended, questions } =
            FlowLimits::within(options, megabytes.map(|megabytes| megabytes << 20));
        (held, ended, questions)
    }

    #[test]
    fn little_memory_means_fewer_flows_unless_a_limit_was_chosen() {
        let usual = Options::default();
        assert_eq!(limits(&usual, None), (1_000_000, 65_536, 65_536));
        assert_eq!(limits(&usual, Some(1 << 20)), (1_000_000, 65_536, 65_536));
        assert_eq!(limits(&usual, Some(64)), (83_886, 8388, 11_983));
        assert_eq!(limits(&Options { flows: true, ..Options::default() }, Some(64)), (15_978, 8388, 6990));
        assert_eq!(limits(&usual, Some(0)), (LEAST, LEAST, LEAST));
        let chosen = Options { flow_limit: Some(7), ended_flow_limit: Some(8), ..Options::default() };
        assert_eq!(limits(&chosen, Some(64)), (7, 8, 11_983));
    }
}
