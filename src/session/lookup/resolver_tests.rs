//! Tests of the queue and of the resolver thread, on `/proc` fixtures.

use super::*;
use crate::flow::FlowTable;
use crate::model::{
    Address, Direction, Endpoint, FlowKey, Namespace, Owner, ProcId, Protocol, SampleSet, TcpFlags, Timestamp,
};
use crate::owner::Budget;
use crate::proc::ProcRoot;
use capture_test_support::proc_tree::{ESTABLISHED, ProcTree, UNCONNECTED};

/// Limit of the open requests.
const QUEUE_LIMIT: usize = 65_536;

/// Far longer than any lookup here takes.
const TIMEOUT: Duration = Duration::from_secs(60);

fn endpoint(text: &str) -> Endpoint {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    Endpoint::new(Address::from(socket.ip()), socket.port())
}

/// Returns requests about flows with these local ports.
fn requests(ports: impl IntoIterator<Item = u16>) -> Vec<Request> {
    let mut table = FlowTable::new(1 << 10).unwrap();
    let remote = endpoint("198.51.100.1:2");
    let ends = ports.into_iter().map(|port| Endpoint::new(Address::v4([192, 0, 2, 1]), port));
    let keys =
        ends.map(|local| FlowKey { local, remote, protocol: Protocol::UDP, namespace: Namespace::HOME });
    keys.map(|key| {
        let flow = table.record(&key, Direction::Send, 1, TcpFlags::default(), Timestamp(1));
        Request {
            flow,
            key,
            first: Timestamp(1),
            is_over: false,
            is_answered: true,
            local_end: LocalEnd::Own,
        }
    })
    .collect()
}

/// A resolver at work behind a queue, until this is dropped.
struct Office {
    queue: Arc<LookupQueue>,
    ledger: Arc<Ledger>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Office {
    fn open(tree: &ProcTree) -> Office {
        let (queue, ledger) = (Arc::new(LookupQueue::new(QUEUE_LIMIT)), Arc::new(Ledger::default()));
        let root = Arc::new(ProcRoot::open(tree.path()).unwrap());
        let (its_queue, its_ledger) = (Arc::clone(&queue), Arc::clone(&ledger));
        let work = move || {
            let finder = Finder::new(Arc::clone(&root), Budget::default(), Arc::default());
            Resolver::new(finder, Arc::default(), IdentityCache::new(root, SampleSet::ALL), Known::default())
                .run(&its_queue, &its_ledger, &DrainBarrier::default())
        };
        Office { queue, ledger, thread: Some(std::thread::spawn(work)) }
    }

    fn wait(&self, until: impl Fn(&LookupQueue) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !until(&self.queue) {
            assert!(Instant::now() < deadline, "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        self.queue.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn room_is_what_is_not_waiting() {
    let queue = LookupQueue::new(QUEUE_LIMIT);
    assert_eq!(
        (queue.room(), queue.waiting(), queue.handed_in(), queue.is_idle()),
        (QUEUE_LIMIT, 0, 0, true)
    );
    queue.ask(&mut Vec::new());
    let mut asked = requests(1..4);
    queue.ask(&mut asked);
    assert!(asked.is_empty());
    assert_eq!((queue.room(), queue.waiting()), (QUEUE_LIMIT - 3, 3));
    assert!((queue.handed_in(), queue.tried()) == (3, 0) && !queue.is_idle());
    let many = requests([1])[0];
    queue.ask(&mut vec![many; QUEUE_LIMIT + 5]);
    assert_eq!(queue.room(), 0);
}

#[test]
fn questions_are_taken_in_order_and_in_bounds() {
    let queue = LookupQueue::new(QUEUE_LIMIT);
    queue.ask(&mut requests(1..6));
    let take = |most| {
        let taken = queue.take_requests(Some(Instant::now()), most)?;
        Some(taken.iter().map(|(request, _)| request.key.local.port).collect::<Vec<_>>())
    };
    assert_eq!(
        (take(2), take(2), take(2), take(2)),
        (Some(vec![1, 2]), Some(vec![3, 4]), Some(vec![5]), Some(vec![]))
    );
    queue.ask(&mut requests(1..2));
    queue.stop();
    assert_eq!(take(1), None, "a closed queue takes nothing on");
}

#[test]
fn answers_come_with_owners_and_who_they_are() {
    let tree = ProcTree::new();
    tree.process(1, "init", 1, &[]);
    tree.process(70, "seventy", 5, &[700]);
    tree.socket("udp", "192.0.2.1:10", "198.51.100.1:2", ESTABLISHED, 700);
    tree.socket("udp", "0.0.0.0:20", "0.0.0.0:0", UNCONNECTED, 700);
    tree.socket("udp", "192.0.2.1:30", "198.51.100.1:2", ESTABLISHED, 999);
    let office = Office::open(&tree);
    let asked = requests([10, 20, 30, 40]);
    office.queue.ask(&mut asked.clone());
    office.wait(|queue| queue.waiting() == 0);
    assert!(!office.queue.is_idle(), "nobody has fetched the answers");
    let answers = office.queue.take_answers();
    assert!(office.queue.tried() == 4 && office.queue.is_idle());
    assert_eq!(office.queue.room(), QUEUE_LIMIT);
    let process = ProcId { pid: 70, start_ticks: 5 };
    let expected = [
        Ok(Owner { process, quality: Quality::Exact }),
        Ok(Owner { process, quality: Quality::Guessed }),
        Err(Unowned::NoHolder),
        Err(Unowned::NoSocket),
    ];
    assert_eq!(answers.len(), asked.len());
    for (request, expected) in asked.iter().zip(expected) {
        let answer = answers.iter().find(|answer| answer.flow == request.flow).unwrap();
        assert_eq!(answer.owner, expected, "{:?}", request.key);
    }
    let introduced: Vec<_> = office.ledger.lock().drain().collect();
    assert_eq!((introduced.len(), introduced[0].0), (1, process));
    assert_eq!(introduced[0].1.identity.as_ref().unwrap().name, b"seventy");
}

#[test]
fn questions_are_tried_before_they_are_answered() {
    let tree = ProcTree::new();
    let office = Office::open(&tree);
    office.queue.ask(&mut requests([10]));
    // No socket is found at first; the lookup is retried before that is final.
    office.wait(|queue| queue.tried() == queue.handed_in());
    office.wait(|queue| queue.waiting() == 0);
    assert!(!office.queue.is_idle());
    assert_eq!(office.queue.take_answers()[0].owner, Err(Unowned::NoSocket));
    assert!(office.queue.is_idle());
}
