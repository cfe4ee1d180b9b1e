//! Keeps flows as old as they are when the clock is set by which their packets are stamped.

use super::table::FlowTable;
use crate::model::Timestamp;

impl FlowTable {
    /// Moves the times that flows age by with a clock that was set forward by `step` nanoseconds, back if negative, and shows
    /// `now`. Packets that were stamped before the step and after it cannot be told apart: no time is moved beyond `now`, and
    /// none is moved back, so that a flow can only seem younger than it is.
    ///
    /// It looks at the whole table. A clock is rarely set.
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
