//! Keeps the age of flows when the clock that stamps their packets is set.

use super::table::FlowTable;
use crate::model::Timestamp;

impl FlowTable {
    /// Moves the times that flows age by with a clock that was set forward by `step` nanoseconds (back if
    /// negative) and now shows `now`. Packets that were stamped before and after the step cannot be told
    /// apart. Therefore no time is moved beyond `now`, and none is moved back, so that a flow can only seem
    /// younger than it is.
    ///
    /// This visits the whole table. A clock is rarely set.
    pub fn step_clock(&mut self, step: i64, now: Timestamp) {
        let forward = step.max(0);
        for flow in self.slots.iter_mut().filter(|flow| flow.is_held()) {
            flow.mend_clock(forward, now);
        }
        for (_, since) in &mut self.ended {
            *since = since.moved(forward).min(now);
        }
        self.late.step_clock(step);
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
