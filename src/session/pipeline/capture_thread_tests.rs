//! Tests of the capture thread on savefiles, in which the test controls the resolver.

use super::*;
use crate::error::Code;
use crate::model::{SampleSet, Unowned};
use crate::namespace::Known;
use crate::owner::{Budget, Finder, ThreadMeter};
use crate::proc::ProcRoot;
use crate::session::lookup::{IdentityCache, Resolver};
use capture_test_support::frames::{Carries, Packet, Wire};
use capture_test_support::proc_tree::{ProcTree, UNCONNECTED};
use capture_test_support::savefile::{Format, Record, link_type, savefile};
use std::io::Write;
use std::thread::JoinHandle;

/// Limit of the open requests.
const QUESTIONS: usize = 4096;

/// With less room, a savefile is not read on: the reserved part, and half of the rest.
const ROOM: usize = QUESTIONS / 4 + QUESTIONS * 3 / 4 / 2;

/// Far longer than anything here takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A capture of a savefile without a resolver behind its queue.
struct ReplayFixture {
    shared: Arc<CaptureShared>,
    poll: Arc<Readiness>,
    thread: JoinHandle<()>,
}

impl ReplayFixture {
    fn start(bytes: &[u8]) -> ReplayFixture {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let tap = Tap::savefile(file.path(), None).unwrap();
        let limits = FlowLimits { held: 1 << 18, ended: 1, questions: QUESTIONS };
        let (shared, packets) =
            (Arc::new(CaptureShared::new(limits).unwrap()), Arc::new(PacketQueue::new(0)));
        shared.barrier.set_waker(tap.waker());
        let pipeline = FramePipeline::new(limits, &[], Arc::clone(&packets)).unwrap();
        let poll = Arc::new(Readiness::new(None));
        let capture = CaptureThread::new(
            Box::new(tap),
            Box::new(pipeline),
            TIMEOUT,
            Arc::clone(&shared),
            packets,
            Arc::clone(&poll),
            Arc::default(),
        );
        let thread = std::thread::spawn(|| capture.run());
        ReplayFixture { shared, poll, thread }
    }

    fn wait(&self, until: impl Fn(&CaptureShared) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !until(&self.shared) {
            assert!(Instant::now() < deadline, "nothing happens");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Answers requests until the capture has ended.
    fn resolve(self, tree: &ProcTree) {
        let shared = Arc::clone(&self.shared);
        let root = Arc::new(ProcRoot::open(tree.path()).unwrap());
        let resolver = std::thread::spawn(move || {
            let budget = Budget::new(1.0, TIMEOUT, Box::new(ThreadMeter));
            let finder = Finder::new(Arc::clone(&root), budget, Arc::default());
            let identity_cache = IdentityCache::new(root, SampleSet::ALL);
            Resolver::new(finder, Arc::default(), identity_cache, Known::default()).run(
                &shared.lookup_queue,
                &shared.ledger,
                &shared.barrier,
            );
        });
        self.wait(|shared| shared.barrier.has_ended());
        self.shared.lookup_queue.stop();
        resolver.join().unwrap();
        self.thread.join().unwrap();
    }

    fn stop(self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.barrier.wake();
        self.thread.join().unwrap();
    }
}

/// Returns datagrams from this number of clients to a port of this host.
fn datagrams(clients: u32) -> Vec<Record> {
    let mut packet = Packet::new(Carries::Udp, "198.51.100.1:1", "127.0.0.1:53", 0);
    let frames = (0..clients).map(|client| {
        let [_, b, c, d] = client.to_be_bytes();
        packet.from = std::net::SocketAddr::from(([100, b, c, d], 1024));
        Record::whole(Wire::Ethernet.frame(&packet.bytes()))
    });
    frames.collect()
}

fn saved(records: &[Record]) -> Vec<u8> {
    savefile(Format::Little, link_type(Wire::Ethernet), records)
}

#[test]
fn a_savefile_is_read_no_faster_than_owners_can_be_asked_for() {
    const CLIENTS: u32 = 2 * QUESTIONS as u32;
    let tree = ProcTree::new();
    tree.process(1, "init", 1, &[]);
    tree.process(53, "server", 1, &[530]);
    tree.socket("udp", "0.0.0.0:53", "0.0.0.0:0", UNCONNECTED, 530);
    let records = datagrams(CLIENTS);
    let replay = ReplayFixture::start(&saved(&records));
    replay.wait(|shared| shared.lookup_queue.room() < ROOM);
    // Time enough to read on, if the capture did not wait.
    std::thread::sleep(Duration::from_millis(200));
    let shared = Arc::clone(&replay.shared);
    assert!(shared.lookup_queue.waiting() <= QUESTIONS && !shared.barrier.has_ended());
    replay.resolve(&tree);
    let totals = shared.ledger.lock().totals();
    let bytes: u64 = records.iter().map(|record| u64::from(record.wire_len)).sum();
    assert_eq!((totals.owned.iter().sum::<u64>(), totals.unowned), (bytes, [0; Unowned::COUNT]));
}

#[test]
fn a_replay_ends_when_its_questions_are_answered_also_when_the_file_is_damaged() {
    let tree = ProcTree::new();
    for cut in [0, 5] {
        let whole = saved(&datagrams(3));
        let replay = ReplayFixture::start(&whole[..whole.len() - cut]);
        let expected = if cut == 0 { 3 } else { 2 };
        replay.wait(|shared| shared.counts.lock().frames.frames == expected);
        replay.wait(|shared| shared.lookup_queue.waiting() as u64 == expected);
        assert!(!replay.shared.barrier.has_ended());
        let (shared, poll) = (Arc::clone(&replay.shared), Arc::clone(&replay.poll));
        replay.resolve(&tree);
        assert_eq!(shared.ledger.lock().totals().unowned[Unowned::Pending as usize], 0);
        let failure = shared.failure.lock().take().map(|error| error.code);
        assert_eq!(failure, (cut > 0).then_some(Code::Savefile));
        assert!(is_readable(&poll));
    }
}

#[test]
fn a_replay_can_be_stopped_at_any_time() {
    let many = saved(&datagrams(2 * QUESTIONS as u32));
    ReplayFixture::start(&many).stop();
    let full = ReplayFixture::start(&many);
    full.wait(|shared| shared.lookup_queue.room() < ROOM);
    full.stop();
    let unanswered = ReplayFixture::start(&saved(&datagrams(3)));
    unanswered.wait(|shared| shared.lookup_queue.waiting() == 3);
    unanswered.stop();
}

fn is_readable(poll: &Arc<Readiness>) -> bool {
    use crate::session::session_fd::SessionFd;
    use nix::poll::{PollFd, PollFlags, PollTimeout};
    let descriptor = SessionFd::new(Arc::clone(poll));
    let mut fds = [PollFd::new(descriptor.get().unwrap(), PollFlags::POLLIN)];
    nix::poll::poll(&mut fds, PollTimeout::from(10_000u16)).unwrap() == 1
}
