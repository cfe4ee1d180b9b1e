//! Chooses the owner of a flow among the processes that hold its sockets.

use super::source::{CandidateSocket, Held, Holder, Match, Sharing, Wanted};
use crate::model::{Owner, Quality, Unowned};
use std::time::Duration;

/// The result of weighing the holders of a flow's sockets.
pub(super) enum Decision {
    /// An owner, and the way in which it holds a socket.
    Owner(Owner, Holder),
    /// No owner, for this reason.
    None(Unowned),
    /// The budget is used up; the lookup can be retried after this time.
    Busy(Duration),
}

/// Returns the owner of a flow by the holders of all sockets that match it. Each socket receives a copy of a
/// group's packets, so the youngest of their processes stands for all of them.
pub(super) fn decide(
    by: Match,
    is_group: bool,
    candidates: &[CandidateSocket],
    wanted: &[Wanted],
) -> Decision {
    let mut owner: Option<Holder> = None;
    let (mut is_contested, mut is_shared, mut with_init) = (false, false, false);
    for candidate in candidates {
        let at = wanted.binary_search_by_key(&candidate.inode, |wanted| wanted.socket.inode);
        let held = at.ok().and_then(|at| wanted.get(at)).map_or(Held::Unknown, |wanted| wanted.held);
        let holder = match held {
            Held::By(holder) => holder,
            Held::Busy(after) => return Decision::Busy(after),
            Held::Nobody(_) | Held::Unknown if is_group && candidates.len() > 1 => continue,
            Held::Nobody(reason) => return Decision::None(reason),
            Held::Unknown => return Decision::None(Unowned::NoHolder),
        };
        is_contested |= owner.is_some_and(|first| first.process != holder.process);
        is_shared |= holder.sharing == Sharing::Several;
        with_init |= holder.sharing == Sharing::WithInit;
        let age = |holder: &Holder| (holder.process.start_ticks, holder.process.pid);
        owner = owner.into_iter().chain([holder]).max_by_key(age);
    }
    let Some(holder) = owner else { return Decision::None(Unowned::NoHolder) };
    let is_of_several = is_contested || is_shared && candidates.len() > 1;
    if is_of_several && !is_group {
        return Decision::None(Unowned::Ambiguous);
    }
    let quality = match by {
        _ if is_shared || is_contested => Quality::Shared,
        Match::Indirect | Match::Listening => Quality::Guessed,
        _ if with_init => Quality::Shared,
        Match::Own => Quality::Exact,
        Match::Bound => Quality::Guessed,
    };
    Decision::Owner(Owner { process: holder.process, quality }, holder)
}
