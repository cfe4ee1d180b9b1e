//! Everything that can happen to sockets, at random and at the same time, while the session reads.

use crate::lab::{Host, Maker};
use crate::maps::growing;
use crate::watching::{
    B, TIMEOUT, Watch, count_all, options, said_until, truth, user, with_lab, without_offloads,
};
use capture::internals::config::Engine;
use capture::internals::model::Unowned;
use std::time::{Duration, Instant};

const PORT: u16 = 7950;
const TIME: Duration = Duration::from_secs(15);

/// Eight processes with eight threads each share three datagram sockets and two connections. They send, read,
/// connect to other peers, fork short-lived children that use the sockets, pass sockets on, and open, close
/// and reset their own. Every byte is credited once to one process, and nothing is left in the tables at the
/// end.
///
/// Regression: single figures came near 2^64, bytes were counted twice if sockets changed hands, and records
/// stayed for ever.
#[test]
fn all_is_counted_once_whatever_happens_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let peer = |port: u16| user(lab, Host::B, "drain", &format!("{B}:{port}"), &[("segment", 1_000)]);
        let _peers: Vec<Maker> = (PORT..PORT + 4).map(peer).collect();
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        let before = watch.stats().bytes.unowned;
        let numbers = [("milliseconds", TIME.as_millis() as u64), ("seed", 7)];
        let mut hammer = user(lab, Host::A, "hammer", &format!("{B}:{PORT}"), &numbers);
        hammer.start();
        let done = std::thread::scope(|scope| {
            let said = scope.spawn(|| said_until(&mut hammer, "done"));
            while !said.is_finished() {
                watch.update();
                // An impossible figure fails the test at once.
                let (sent, received) = watch.sums();
                assert!(sent < 1 << 40 && received < 1 << 40, "{:?}", watch.all());
                std::thread::sleep(Duration::from_millis(50));
            }
            said.join().unwrap()
        });
        assert_eq!(done.len(), 8);
        hammer.end();
        // Waits until the last connections have ended.
        let deadline = Instant::now() + TIMEOUT + TIMEOUT;
        loop {
            watch.update();
            let left = growing(lab, Host::A);
            if left.values().all(|&count| count == 0) {
                break;
            }
            assert!(Instant::now() < deadline, "entries of sockets that are gone: {left:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        let truth = truth(lab);
        assert!(truth.0 > 1_000_000 && truth.1 > 1_000_000, "{truth:?}");
        let after = watch.stats().bytes.unowned;
        let without = |reason: Unowned| after[reason as usize] - before[reason as usize];
        let (sent, received) = watch.sums();
        let ended = without(Unowned::OwnerEnded);
        println!(
            "  {} processes, sent {sent} received {received} of {truth:?}, {ended} of ended ones, {}, {}",
            watch.all().len(),
            without(Unowned::NoHolder),
            without(Unowned::QueueFull)
        );
        assert_eq!((without(Unowned::QueueFull), watch.unowned(Unowned::Pending)), (0, 0));
        assert!(sent <= truth.0 && received <= truth.1);
        // The bytes of no process are counted as such, together with those of other namespaces. Only nftables
        // counts the packets that arrive for a socket that no longer exists.
        let missing = truth.0.saturating_sub(sent + ended);
        let unowned = without(Unowned::NoHolder) + without(Unowned::NoPorts);
        assert!(missing <= unowned, "{missing} are counted nowhere");
    });
}
