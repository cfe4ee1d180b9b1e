//! Compares the library's figures with the truth.
//!
//! The truth is the bytes that nftables counted on the wire or on the watched host (see `stage`): every
//! packet of the scenario's port or protocol, with 14 bytes of link header each. If a single process made all
//! of them, they are that process's truth. If many processes made them, no counter separates their bytes on
//! the wire. Each process then gets a share according to its connections, by its own count or its parent's,
//! of all connections, which all carry the same payload. Connections differ by a few acknowledgements, so
//! that up to a tenth more than the share counts as the process's own. All processes together never get more
//! right than nftables counted.

use capture_test_support::lab::Moved;
use std::collections::{BTreeMap, HashMap};

/// The tolerated deviation of a process's connections from the average. A connection that retransmits
/// deviates more: bytes beyond the tolerance are another process's only as far as others lack them.
const TOLERANCE: f64 = 0.1;

/// Bytes sent and received.
pub type Bytes = (u64, u64);

/// The processes at one end, and the total of their bytes.
pub struct End {
    pub truth: Bytes,
    /// The processes' connections, by pid.
    pub connections: HashMap<i32, u64>,
}

impl End {
    /// Returns the end of these processes. The kernel reuses pids; processes with the same pid share an
    /// account.
    pub fn of<'r>(truth: Bytes, processes: impl IntoIterator<Item = &'r Moved>) -> End {
        let mut connections = HashMap::new();
        for own in processes.into_iter().filter(|own| own.connections > 0) {
            *connections.entry(own.pid).or_default() += own.connections;
        }
        End { truth, connections }
    }
}

/// The bytes that were credited to a process.
#[derive(Clone, Copy, Default)]
pub struct Credit {
    pub bytes: Bytes,
    /// The part that was flagged as uncertain, in both directions.
    pub flagged: u64,
}

/// The result, in bytes of both directions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    pub truth: u64,
    /// Bytes credited to the right process.
    pub right: u64,
    /// Bytes credited to another process, or beyond the process's own.
    pub wrong: u64,
    /// The part of `wrong` that was not flagged.
    pub wrong_unflagged: u64,
    /// The smallest share that is right of an end's bytes, 0-100.
    pub least_right: f64,
}

/// Returns the bytes by which the credited bytes and those without an owner together exceed the true bytes.
/// These were counted twice.
pub fn surplus(verdict: &Verdict, without_owner: u64) -> u64 {
    (verdict.right + verdict.wrong + without_owner).saturating_sub(verdict.truth)
}

/// Compares the ends on the watched host with the figures of the processes there.
pub fn judge(ends: &[End], said: &BTreeMap<i32, Credit>) -> Verdict {
    let mut verdict = Verdict { least_right: 100.0, ..Verdict::default() };
    let mut strangers = said.clone();
    for end in ends {
        let all: u64 = end.connections.values().sum();
        let credits: Vec<(u64, Credit)> = end
            .connections
            .iter()
            .map(|(pid, &connections)| (connections, strangers.remove(pid).unwrap_or_default()))
            .collect();
        let lacking = |truth: u64, of: fn(&Credit) -> u64| -> u64 {
            let all_lack = credits.iter().map(|(connections, credit)| {
                share_of(truth, *connections, all, 1.0 - TOLERANCE).saturating_sub(of(credit))
            });
            all_lack.sum()
        };
        let mut lack =
            (lacking(end.truth.0, |credit| credit.bytes.0), lacking(end.truth.1, |credit| credit.bytes.1));
        let mut right = (0, 0);
        for (connections, credit) in &credits {
            let (sent, sent_wrong) = split(credit.bytes.0, end.truth.0, *connections, all, &mut lack.0);
            let (received, received_wrong) =
                split(credit.bytes.1, end.truth.1, *connections, all, &mut lack.1);
            right = (right.0 + sent, right.1 + received);
            verdict.add_wrong(sent_wrong + received_wrong, credit.flagged);
        }
        // Bytes beyond the whole that the tolerance admitted are not right either.
        let capped = right.0.min(end.truth.0) + right.1.min(end.truth.1);
        verdict.add_wrong(right.0 + right.1 - capped, 0);
        let truth = end.truth.0 + end.truth.1;
        verdict.truth += truth;
        verdict.right += capped;
        verdict.least_right = verdict.least_right.min(percent(capped, truth));
    }
    strangers.values().for_each(|credit| verdict.add_wrong(credit.bytes.0 + credit.bytes.1, credit.flagged));
    verdict
}

impl Verdict {
    fn add_wrong(&mut self, bytes: u64, flagged: u64) {
        self.wrong += bytes;
        self.wrong_unflagged += bytes.saturating_sub(flagged);
    }

    /// Returns the true bytes that were credited to no process.
    pub fn unowned(&self) -> u64 {
        self.truth.saturating_sub(self.right + self.wrong)
    }
}

/// Splits the bytes that were credited to a process into those that can be its own and those that cannot. Of
/// the bytes beyond the tolerance, at most as many are wrong as others lack; they are subtracted from `lack`.
fn split(credited: u64, truth: u64, connections: u64, all: u64, lack: &mut u64) -> (u64, u64) {
    let beyond = credited.saturating_sub(share_of(truth, connections, all, 1.0 + TOLERANCE));
    let wrong = if connections == all { beyond } else { beyond.min(*lack) };
    *lack = lack.saturating_sub(wrong);
    (credited - wrong, wrong)
}

/// Returns the share of `connections` in the bytes of all connections, times a tolerance.
fn share_of(truth: u64, connections: u64, all: u64, tolerance: f64) -> u64 {
    match connections == all {
        true => truth,
        false => (truth as f64 * connections as f64 / all as f64 * tolerance) as u64,
    }
}

/// Returns a share in percent; 100 if the whole is 0.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 100.0 } else { part as f64 * 100.0 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credit(sent: u64, received: u64, flagged: u64) -> Credit {
        Credit { bytes: (sent, received), flagged }
    }

    fn end(truth: Bytes, connections: &[(i32, u64)]) -> End {
        End { truth, connections: connections.iter().copied().collect() }
    }

    #[test]
    fn one_process_has_all_and_no_more_than_all() {
        let ends = [end((1000, 3000), &[(7, 5)])];
        let verdict = judge(&ends, &BTreeMap::from([(7, credit(1100, 2000, 0))]));
        let expected =
            Verdict { truth: 4000, right: 3000, wrong: 100, wrong_unflagged: 100, least_right: 75.0 };
        assert_eq!(verdict, expected);
        assert_eq!(verdict.unowned(), 900);
    }

    #[test]
    fn a_stranger_has_nothing_right_and_a_flag_excuses_so_many_bytes() {
        let ends = [end((1000, 0), &[(7, 1)])];
        let verdict = judge(&ends, &BTreeMap::from([(7, credit(500, 0, 0)), (8, credit(300, 0, 200))]));
        assert_eq!((verdict.right, verdict.wrong, verdict.wrong_unflagged), (500, 300, 100));
    }

    #[test]
    fn many_processes_share_by_connections_with_a_tolerance() {
        let ends = [end((3000, 0), &[(1, 1), (2, 2)])];
        let verdict = judge(&ends, &BTreeMap::from([(1, credit(1050, 0, 0)), (2, credit(1950, 0, 0))]));
        assert_eq!((verdict.right, verdict.wrong), (3000, 0));
        let verdict = judge(&ends, &BTreeMap::from([(1, credit(3000, 0, 0))]));
        assert_eq!((verdict.right, verdict.wrong), (1200, 1800));
        // One of many processes has retransmitted, and no other process lacks the additional bytes.
        let many: Vec<(i32, u64)> = (1..=20).map(|pid| (pid, 1)).collect();
        let said = |first: u64, second: u64| -> BTreeMap<i32, Credit> {
            let bytes = |pid| {
                if pid == 1 {
                    first
                } else if pid == 2 {
                    second
                } else {
                    1000
                }
            };
            (1..=20).map(|pid| (pid, credit(bytes(pid), 0, 0))).collect()
        };
        let verdict = judge(&[end((20_500, 0), &many)], &said(1500, 1000));
        assert_eq!((verdict.right, verdict.wrong), (20_500, 0));
        let verdict = judge(&[end((20_000, 0), &many)], &said(1500, 500));
        assert_eq!((verdict.right, verdict.wrong), (19_600, 400));
        let verdict = judge(&ends, &BTreeMap::from([(1, credit(1100, 0, 0)), (2, credit(2100, 0, 0))]));
        assert_eq!((verdict.right, verdict.wrong), (3000, 200));
    }

    #[test]
    fn what_is_beyond_the_truth_was_counted_twice() {
        let verdict = judge(&[end((500, 500), &[(7, 1)])], &BTreeMap::from([(7, credit(500, 400, 0))]));
        assert_eq!((surplus(&verdict, 100), surplus(&verdict, 103)), (0, 3));
        let verdict = judge(&[end((500, 500), &[(7, 1)])], &BTreeMap::from([(7, credit(1000, 500, 0))]));
        assert_eq!(surplus(&verdict, 0), 500);
    }

    #[test]
    fn each_end_is_compared_for_itself() {
        let ends = [end((100, 300), &[(1, 1)]), end((300, 100), &[(2, 1)])];
        let verdict = judge(&ends, &BTreeMap::from([(1, credit(100, 300, 0)), (2, credit(300, 0, 0))]));
        assert_eq!((verdict.truth, verdict.right, verdict.least_right), (800, 700, 75.0));
    }
}
