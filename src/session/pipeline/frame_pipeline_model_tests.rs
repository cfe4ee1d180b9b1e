//! Tests with random traffic, answers, ends of processes and pauses: every byte is counted once, and for no
//! process that it does not belong to.

use super::*;
use proptest::prelude::*;

/// A step of a test on a pipeline.
#[derive(Clone, Debug)]
enum TrafficStep {
    /// A packet from one of the endpoints to another.
    Packet { carries: Carries, from: usize, to: usize, payload: usize, part: Option<Part> },
    /// The end of a batch, with this much room for requests.
    Publish { room: usize },
    /// The answer to one of the requests at the end of this batch; it may be given another time, too.
    Answer { which: prop::sample::Index, again: bool },
    /// A process is delivered as removed.
    End { pid: i32 },
    /// The accounts are drained.
    Fetch,
    /// No packet for this number of seconds.
    Pause { seconds: u64 },
}

const ENDPOINTS: [&str; 9] = [
    "192.0.2.1:1",
    "192.0.2.1:2",
    "127.0.0.1:3",
    "127.0.0.1:4",
    "198.51.100.1:5",
    "198.51.100.1:6",
    "198.51.100.2:7",
    "203.0.113.1:8",
    "224.0.0.1:9",
];

fn step() -> impl Strategy<Value = TrafficStep> {
    let flags = prop::sample::select(vec![0x02, 0x12, 0x10, 0x11, 0x04]);
    let carries = prop_oneof![flags.prop_map(Carries::Tcp), Just(Carries::Udp), Just(Carries::Echo)];
    let part = (0u16..3, 0u16..3, any::<bool>());
    let part = part.prop_map(|(id, offset, more)| Part { id, offset: offset * 64, more });
    let part = prop_oneof![9 => Just(None), 1 => part.prop_map(Some)];
    let packet = (carries, 0..ENDPOINTS.len(), 0..ENDPOINTS.len(), 0usize..900, part);
    prop_oneof![
        12 => packet.prop_map(|(carries, from, to, payload, part)| {
            TrafficStep::Packet { carries, from, to, payload, part }
        }),
        3 => prop_oneof![Just(0usize), 1usize..4, Just(100)].prop_map(|room| TrafficStep::Publish { room }),
        4 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, again)| {
            TrafficStep::Answer { which, again }
        }),
        1 => (1i32..5).prop_map(|pid| TrafficStep::End { pid }),
        1 => Just(TrafficStep::Fetch),
        1 => (1u64..200).prop_map(|seconds| TrafficStep::Pause { seconds }),
    ]
}

/// Returns the owner of a key by its local port: a process, shared or not, or a reason for having none.
fn owner_of(key: &FlowKey) -> std::result::Result<Owner, Unowned> {
    match i32::from(key.local.port) {
        port @ 1..=3 => exact(port),
        4 => Ok(Owner { process: ProcId { pid: 4, start_ticks: 1 }, quality: Quality::Shared }),
        _ => Err(Unowned::NoSocket),
    }
}

/// The bytes of the steps' packets by the rule alone: at every end on this host, those of others, and for
/// every process the maximum that it can have sent and received.
#[derive(Default)]
struct Worth {
    at_ends: u64,
    of_others: u64,
    most: BTreeMap<i32, (u64, u64)>,
}

impl Worth {
    fn add(&mut self, packet: &Packet, bytes: u64) {
        let is_here = |ip: IpAddr| ip.is_loopback() || ip == HOST.parse::<IpAddr>().unwrap();
        let sends = is_here(packet.from.ip());
        let receives = is_here(packet.to.ip()) || (!sends && packet.to.ip().is_multicast());
        self.at_ends += bytes * (u64::from(sends) + u64::from(receives));
        if !sends && !receives {
            self.of_others += bytes;
        }
        if sends {
            self.most.entry(packet.from.port().into()).or_default().0 += bytes;
        }
        if receives {
            self.most.entry(packet.to.port().into()).or_default().1 += bytes;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_byte_is_counted_once(steps in prop::collection::vec(step(), 1..120), limit in 1usize..6) {
        let mut bench = PipelineFixture::new(limit);
        let (mut worth, mut strays) = (Worth::default(), 0);
        let (mut due, mut ended) = (Vec::new(), Vec::new());
        let mut answered = Vec::new();
        for step in steps {
            match step {
                TrafficStep::Packet { carries, from, to, payload, part } => {
                    // An echo has one identifier for both its ends; later parts have no ports at all.
                    let mut packet = Packet::new(carries, ENDPOINTS[from], ENDPOINTS[to], payload);
                    if carries == Carries::Echo {
                        packet.to.set_port(packet.from.port());
                    }
                    packet.part = part;
                    let before = bench.pipeline.without_flow[Unowned::Fragment as usize];
                    let bytes = bench.packet(packet);
                    let stray = bench.pipeline.without_flow[Unowned::Fragment as usize] - before;
                    prop_assert!(stray == 0 || (stray == bytes && part.is_some_and(|part| part.offset > 0)));
                    strays += stray;
                    if part.is_some_and(|part| part.offset > 0) && stray == 0 {
                        // The ports are those of the first part, which the sums over ports cannot know.
                        let mut unknown = Worth::default();
                        unknown.add(&packet, bytes);
                        worth.at_ends += unknown.at_ends;
                        worth.of_others += unknown.of_others;
                        for port in 1..10 {
                            let most = worth.most.entry(port).or_default();
                            *most = (most.0 + bytes, most.1 + bytes);
                        }
                    } else if stray == 0 {
                        worth.add(&packet, bytes);
                    }
                }
                TrafficStep::Publish { room } => {
                    let answers = std::mem::take(&mut due);
                    let mut fresh = std::mem::take(&mut bench.asked);
                    bench.publish(&answers, room);
                    prop_assert!(bench.asked.len() <= room);
                    fresh.append(&mut bench.asked);
                    bench.asked = fresh;
                    prop_assert_eq!(bench.accounted(), worth.at_ends + worth.of_others + strays);
                    prop_assert_eq!(bench.unowned(Unowned::NotLocal), worth.of_others);
                    prop_assert_eq!(bench.unowned(Unowned::Fragment), strays);
                }
                TrafficStep::Answer { which, again } => {
                    if again && !answered.is_empty() {
                        let request: &Request = which.get(&answered);
                        due.push(answer_by(request, owner_of));
                    } else if !bench.asked.is_empty() {
                        let request = bench.asked.remove(which.index(bench.asked.len()));
                        due.push(answer_by(&request, owner_of));
                        answered.push(request);
                    }
                }
                TrafficStep::End { pid } => {
                    bench.fetch();
                    bench.ledger.lock().close(ProcId { pid, start_ticks: 1 }, std::time::Instant::now());
                    ended.push((pid, bench.credited(pid)));
                }
                TrafficStep::Fetch => bench.fetch(),
                TrafficStep::Pause { seconds } => {
                    bench.now += seconds * 1_000_000_000;
                    bench.pipeline.set_time(&bench.clocks());
                }
            }
        }
        let asked = std::mem::take(&mut bench.asked);
        due.extend(asked.iter().map(|request| answer_by(request, owner_of)));
        bench.publish(&due, usize::MAX);
        bench.answer_all(owner_of);
        prop_assert_eq!(bench.accounted(), worth.at_ends + worth.of_others + strays);
        prop_assert_eq!(bench.unowned(Unowned::Pending), 0, "every question was answered");
        prop_assert!(bench.pipeline.departures.is_empty());
        bench.fetch();
        let owned: u64 = bench.ledger.lock().totals().owned.iter().sum();
        let credited: u64 = bench.fetched.values().map(Traffic::bytes).sum();
        prop_assert_eq!(owned, credited);
        for pid in 1..10 {
            let (credited, most) = (bench.credited(pid), worth.most.get(&pid).copied().unwrap_or_default());
            prop_assert!(credited.0 <= most.0 && credited.1 <= most.1, "{}: {:?} of {:?}", pid, credited, most);
        }
        for (pid, then) in ended {
            prop_assert_eq!(bench.credited(pid), then, "nothing more after the end");
        }
    }
}
