//! The bytes, flows and times that the socket eBPF programs have counted and one session has not taken yet.

use super::accounts::shrink_spare;
use super::cgroups::Cgroups;
use super::flow::{Delivered, flow, is_flow};
use super::records::*;
use super::task::CgroupPaths;
use super::{Clocks, Credit};
use crate::model::{Connections, Identity, Owner, Quality, Unowned};
use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet};

/// The maximum number of processes for which bytes are kept until the session takes them. Each session takes
/// them once a second.
const CREDIT_LIMIT: usize = 65_536;

/// The maximum number of ended flows that are kept until the session takes them.
const ENDED_LIMIT: usize = 65_536;

/// The time for which bytes of network namespaces outside the session's selection are kept. A namespace may
/// be selected by a path that appears later than the namespace, and the session looks for such paths once a
/// second.
const SELECTION_TIMEOUT_NS: u64 = 2_000_000_000;

type Map<K, V> = HashMap<K, V, RandomState>;

/// The kernel's knowledge of a process when it uses a socket.
#[derive(Clone, Copy)]
pub(super) struct OwnerIdentity {
    pub(super) name: [u8; TASK_COMM_LEN],
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) cgroup: u64,
}

/// The bytes that a process is newly credited with for a socket.
pub(super) struct Increment {
    pub(super) cookie: u64,
    pub(super) process: Process,
    pub(super) quality: Quality,
    pub(super) netns: u32,
    pub(super) identity: OwnerIdentity,
    pub(super) counts: Counts,
}

impl Increment {
    /// Returns the increment for a process's share of a socket.
    pub(super) fn of_share(key: &ShareKey, share: &Share, quality: Quality, counts: Counts) -> Increment {
        let &Share { name, uid, gid, cgroup, netns, .. } = share;
        let identity = OwnerIdentity { name, uid, gid, cgroup };
        Increment { cookie: key.cookie, process: key.owner, quality, netns, identity, counts }
    }
}

/// The record of a socket as it was read.
pub(super) struct Observation<'a> {
    pub(super) cookie: u64,
    pub(super) record: &'a SocketRecord,
    /// The bytes and packets that have passed through the socket.
    pub(super) total: Counts,
    pub(super) quality: Quality,
    /// The time of the last change of its counts.
    pub(super) changed_ns: u64,
    pub(super) is_over: bool,
    /// Set if the socket has been over for so long that no more packets arrive.
    pub(super) is_final: bool,
    /// Set if a listener made the socket and no process has used it yet.
    pub(super) is_unused: bool,
}

/// The selection and the handler of a session.
pub(super) struct DrainScope<'a> {
    /// The network namespaces that are counted in, or `None` for all.
    pub(super) namespaces: Option<&'a HashSet<u64>>,
    pub(super) cgroups: Option<&'a Cgroups>,
    pub(super) ticks_per_second: u64,
    pub(super) take: &'a mut dyn FnMut(Credit<'_>),
}

impl DrainScope<'_> {
    fn includes(&self, netns: u32) -> bool {
        self.namespaces.is_none_or(|chosen| chosen.contains(&netns.into()))
    }
}

/// The subscription of one session.
pub(super) struct Subscriber {
    credits: Map<(Process, u32, Quality), PendingBytes>,
    /// Bytes without an owner, by reason and network namespace.
    lost: Map<(Unowned, u32), Lost>,
    /// Bytes of each socket that had arrived before the subscription and were not credited by then.
    before: Map<u64, Counts>,
    /// `None` if the session does not request flows.
    flows: Option<SocketFlows>,
    /// Bytes that wait for the first use of their socket, or for a read, as of the session's last reading.
    pub(super) pending: u64,
    /// The number of records of ended flows that were not kept.
    pub(super) flows_lost: u64,
}

/// Bytes that wait for the session to take them.
struct PendingBytes {
    counts: Counts,
    identity: OwnerIdentity,
    since_ns: u64,
}

/// Bytes without an owner that wait likewise.
#[derive(Default)]
struct Lost {
    counts: Counts,
    since_ns: u64,
}

/// Returns true while bytes of a network namespace outside the selection are kept. `since_ns` is the time
/// since which they are kept, in nanoseconds since boot. It is 0 until the session reads for the first time.
fn is_kept(since_ns: &mut u64, clocks: Clocks) -> bool {
    if *since_ns == 0 {
        *since_ns = clocks.now_ns;
    }
    since_ns.saturating_add(SELECTION_TIMEOUT_NS) > clocks.now_ns
}

#[derive(Default)]
struct SocketFlows {
    delivered: Map<u64, Delivered>,
    ended: Vec<ClosedSocket>,
    times: Map<Process, Buckets>,
}

/// The last record of a socket.
struct ClosedSocket {
    cookie: u64,
    record: SocketRecord,
    total: Counts,
    quality: Quality,
    changed_ns: u64,
}

impl Subscriber {
    pub(super) fn new(flows: bool) -> Subscriber {
        Subscriber {
            credits: Map::default(),
            lost: Map::default(),
            before: Map::default(),
            flows: flows.then(SocketFlows::default),
            pending: 0,
            flows_lost: 0,
        }
    }

    pub(super) fn wants_flows(&self) -> bool {
        self.flows.is_some()
    }

    /// Leaves out the bytes that have passed through a socket so far. `waiting` is the part that is not
    /// credited yet.
    pub(super) fn begin(&mut self, observation: &Observation<'_>, waiting: &Counts) {
        if *waiting != Counts::default() {
            self.before.insert(observation.cookie, *waiting);
        }
        if let Some(flows) = &mut self.flows {
            // A socket that a listener made counts as accepted once a process uses it.
            let record = (!observation.is_unused).then_some(observation.record);
            flows.delivered.insert(observation.cookie, Delivered::from(record, observation.total));
        }
    }

    /// Drops everything that waits for the session.
    pub(super) fn discard(&mut self) {
        self.credits.clear();
        self.lost.clear();
        if let Some(flows) = &mut self.flows {
            flows.ended.clear();
            flows.times.clear();
        }
    }

    pub(super) fn credit(&mut self, increment: &Increment) {
        let mut counts = increment.counts;
        if let Some(before) = self.before.get_mut(&increment.cookie) {
            counts = increment.counts.beyond(before);
            *before = before.beyond(&increment.counts);
        }
        if counts == Counts::default() {
            return;
        }
        let key = (increment.process, increment.netns, increment.quality);
        if self.credits.len() >= CREDIT_LIMIT && !self.credits.contains_key(&key) {
            self.count_lost(Unowned::QueueFull, increment.netns, &counts);
            return;
        }
        let new = PendingBytes { counts: Counts::default(), identity: increment.identity, since_ns: 0 };
        let kept = self.credits.entry(key).or_insert(new);
        kept.counts = kept.counts.plus(&counts);
    }

    /// Counts bytes without an owner.
    pub(super) fn count_lost(&mut self, reason: Unowned, netns: u32, counts: &Counts) {
        if *counts != Counts::default() {
            let lost = self.lost.entry((reason, netns)).or_default();
            lost.counts = lost.counts.plus(counts);
        }
    }

    pub(super) fn add_times(&mut self, process: &Process, news: &Buckets) {
        if let Some(flows) = &mut self.flows {
            let sum = flows.times.entry(*process).or_default();
            *sum = sum.plus(news);
        }
    }

    /// Keeps the last record of a socket until the session reads.
    pub(super) fn keep_ended(&mut self, observation: &Observation<'_>) {
        self.before.remove(&observation.cookie);
        let Some(flows) = &mut self.flows else { return };
        if flows.ended.len() >= ENDED_LIMIT {
            flows.delivered.remove(&observation.cookie);
            self.flows_lost += 1;
            return;
        }
        let &Observation { cookie, record, total, quality, changed_ns, .. } = observation;
        flows.ended.push(ClosedSocket { cookie, record: *record, total, quality, changed_ns });
    }

    /// Releases the state of a socket that has no further records.
    pub(super) fn release(&mut self, cookie: u64) {
        self.before.remove(&cookie);
        if let Some(flows) = &mut self.flows {
            flows.delivered.remove(&cookie);
        }
    }

    /// Reports the flow and the calls in a record. `waiting` is the part of its bytes that is not credited
    /// yet.
    pub(super) fn observe(
        &mut self,
        observation: &Observation<'_>,
        waiting: &Counts,
        clocks: Clocks,
        view: &mut DrainScope<'_>,
    ) {
        let Observation { cookie, record, quality, is_over, is_final, .. } = *observation;
        if !view.includes(record.tuple.netns) {
            return;
        }
        let before = self.before.get(&cookie).copied().unwrap_or_default();
        let waiting = waiting.beyond(&before);
        self.pending += waiting.sent.bytes + waiting.received.bytes;
        let Some(flows) = self.flows.as_mut().filter(|_| !observation.is_unused) else { return };
        let delivered = flows.delivered.entry(cookie).or_default();
        let process = record.owner.id(view.ticks_per_second);
        let news = delivered.news(record);
        if let Some(process) = process.filter(|_| news != Connections::default()) {
            (view.take)(Credit::Connections(process, news));
        }
        if is_flow(record) && (!is_over || is_final && !delivered.is_delivered) {
            delivered.is_delivered = is_over;
            let owner = process.map(|process| Owner { process, quality });
            let total = observation.total.beyond(&delivered.before);
            (view.take)(Credit::Flow(flow(cookie, record, &total, owner, observation.changed_ns, clocks)));
        }
    }

    /// Reports the last records of sockets that another session's reading has removed from the kernel.
    pub(super) fn deliver_ended(&mut self, clocks: Clocks, view: &mut DrainScope<'_>) {
        let Some(flows) = &mut self.flows else { return };
        for ClosedSocket { cookie, record, total, quality, changed_ns } in std::mem::take(&mut flows.ended) {
            let observation = Observation {
                cookie,
                record: &record,
                total,
                quality,
                changed_ns,
                is_over: true,
                is_final: true,
                is_unused: false,
            };
            self.observe(&observation, &Counts::default(), clocks, view);
            self.release(cookie);
        }
    }

    /// Reports bytes and times.
    pub(super) fn deliver(&mut self, clocks: Clocks, view: &mut DrainScope<'_>) {
        let ticks_per_second = view.ticks_per_second;
        let held = self.credits.len();
        self.credits.retain(|(process, netns, quality), kept| {
            if !view.includes(*netns) {
                return is_kept(&mut kept.since_ns, clocks);
            }
            let traffic = kept.counts.traffic();
            let identity = || identity(&kept.identity, view.cgroups);
            (view.take)(match process.id(ticks_per_second) {
                Some(process) => Credit::Owned(Owner { process, quality: *quality }, &identity, traffic),
                None => Credit::Unowned(Unowned::NoHolder, traffic),
            });
            false
        });
        self.lost.retain(|(reason, netns), lost| {
            if !view.includes(*netns) {
                return is_kept(&mut lost.since_ns, clocks);
            }
            (view.take)(Credit::Unowned(*reason, lost.counts.traffic()));
            false
        });
        shrink_spare(&mut self.credits, held);
        if let Some(flows) = &mut self.flows {
            let held = flows.delivered.len();
            shrink_spare(&mut flows.delivered, held);
        }
        for (process, buckets) in self.flows.iter_mut().flat_map(|flows| flows.times.drain()) {
            let mut news = Connections::default();
            news.response.0 = buckets.0;
            if let Some(process) = process.id(ticks_per_second) {
                (view.take)(Credit::Connections(process, news));
            }
        }
    }
}

/// Returns the kernel's knowledge of a process, without the names of user and group.
pub(super) fn identity(identity: &OwnerIdentity, cgroups: Option<&Cgroups>) -> Identity {
    let length = identity.name.iter().position(|&byte| byte == 0).unwrap_or(identity.name.len());
    let name = identity.name.get(..length).unwrap_or_default().to_vec();
    let cgroup = cgroups.and_then(|cgroups| cgroups.path(identity.cgroup)).unwrap_or_default();
    Identity { name, uid: identity.uid, gid: identity.gid, cgroup, ..Identity::default() }
}
