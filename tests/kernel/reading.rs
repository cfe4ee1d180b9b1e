//! Bytes that have arrived and that no process has read are pending until they are read in whatever way, or
//! until the socket ends.

use crate::lab::{Host, Lab, Maker};
use crate::watching::{
    B, Done, Watch, count_all, options, said_until, truth, user, with_lab, without_offloads,
};
use capture::internals::config::Engine;
use capture::internals::model::Unowned;

/// Ways to read, as in `user/reading.rs`.
const NOT_AT_ALL: u64 = 0;
const RECV: u64 = 1;
const SPLICE: u64 = 2;
const TRUNCATED: u64 = 3;
const RECVMMSG: u64 = 4;
const AFTER_A_LOOK: u64 = 5;
const MAPPED: u64 = 6;
const ONLY_A_LOOK: u64 = 7;

/// Bytes in fewer packets than make a socket busy (64), and in more.
const FEW: u64 = 20_000;
const MANY: u64 = 1_000_000;

fn read(lab: &Lab, way: u64, bytes: u64, is_tcp: bool) -> (Maker, Done) {
    let numbers = [("way", way), ("bytes", bytes), ("tcp", is_tcp.into())];
    let mut reader = user(lab, Host::A, "reading", &format!("{B}:7700"), &numbers);
    reader.start();
    let done = said_until(&mut reader, "done");
    (reader, done[0])
}

/// Checks that the bytes read are credited to the reader while it holds the socket and does nothing more with
/// it.
fn is_the_readers(ways: &[u64], sizes: &[u64], is_tcp: bool) {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let _peer = user(lab, Host::B, "drain", &format!("{B}:7700"), &[("segment", 1448)]);
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        for &way in ways {
            for &bytes in sizes {
                let before = truth(lab);
                let (reader, done) = read(lab, way, bytes, is_tcp);
                assert_eq!(done.received, bytes);
                let after = truth(lab);
                watch.until(&format!("way {way}, {bytes} bytes, TCP {is_tcp}"), |watch| {
                    let found = watch.traffic(done.pid);
                    (found.send_bytes, found.receive_bytes) == (after.0 - before.0, after.1 - before.1)
                });
                assert_eq!(watch.unowned(Unowned::Pending), 0, "way {way}, {bytes} bytes");
                drop(reader);
            }
        }
    });
}

#[test]
fn a_stream_that_was_read_in_any_way_is_the_readers_root() {
    is_the_readers(&[RECV, TRUNCATED, RECVMMSG, AFTER_A_LOOK], &[FEW, MANY], true);
}

/// No call reports these ways to read. On a busy socket, the next reading of its counters shows how much is
/// still unread.
#[test]
fn a_busy_stream_that_was_spliced_or_mapped_is_the_readers_root() {
    is_the_readers(&[SPLICE, MAPPED], &[MANY], true);
}

/// On other sockets, this shows when the next packet arrives, or at the end. Until then fewer than 64 packets
/// are pending, for at most ten seconds.
#[test]
fn a_few_packets_that_were_spliced_are_the_readers_after_all_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let _peer = user(lab, Host::B, "drain", &format!("{B}:7700"), &[("segment", 1448)]);
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        for (way, ends) in [(SPLICE, true), (MAPPED, true), (SPLICE, false)] {
            let (before, sums) = (truth(lab), watch.sums());
            let (mut reader, _) = read(lab, way, FEW, true);
            watch.update();
            assert!(watch.unowned(Unowned::Pending) < 64 * 1_514);
            if ends {
                reader.end();
            }
            watch.until("all is the reader's", |watch| {
                let (found, after) = (watch.sums(), truth(lab));
                let ended = watch.unowned(Unowned::OwnerEnded);
                found.0 + found.1 + ended == sums.0 + sums.1 + after.0 - before.0 + after.1 - before.1
                    && ended < 1_000
                    && watch.unowned(Unowned::Pending) == 0
            });
        }
    });
}

#[test]
fn datagrams_that_were_read_in_any_way_are_the_readers_root() {
    is_the_readers(&[RECV, TRUNCATED, RECVMMSG, AFTER_A_LOOK], &[FEW, MANY], false);
}

/// Bytes that are never read are pending for at most ten seconds. They are then credited to the process that
/// has the socket, or that had it when it ends.
#[test]
fn what_nobody_reads_is_pending_for_some_seconds_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let _peer = user(lab, Host::B, "drain", &format!("{B}:7700"), &[("segment", 1448)]);
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        let ended = [(NOT_AT_ALL, true), (ONLY_A_LOOK, true), (NOT_AT_ALL, false), (ONLY_A_LOOK, false)];
        let living = [(ONLY_A_LOOK, true), (NOT_AT_ALL, false)];
        let all = ended.map(|way| (way, true)).into_iter().chain(living.map(|way| (way, false)));
        for ((way, is_tcp), ends) in all {
            let (before, sums) = (truth(lab), watch.sums());
            let (mut reader, done) = read(lab, way, FEW, is_tcp);
            watch.until("it is pending", |watch| watch.unowned(Unowned::Pending) >= FEW);
            let of_process = watch.traffic(done.pid).receive_bytes;
            assert!(of_process < 2_000, "way {way}, TCP {is_tcp}: {of_process}");
            if ends {
                reader.end();
            }
            watch.until("nothing is pending any more", |watch| watch.unowned(Unowned::Pending) == 0);
            if !ends {
                assert!(watch.traffic(done.pid).receive_bytes >= FEW, "way {way}, TCP {is_tcp}");
                reader.end();
                watch.until("its last packets are told", |watch| {
                    watch.sums().0 - sums.0 + 2_000 >= truth(lab).0 - before.0
                });
            }
            let after = truth(lab);
            let ended = watch.unowned(Unowned::OwnerEnded);
            let found = watch.sums();
            let (sent, received) = (found.0 - sums.0, found.1 - sums.1);
            // The last packets may arrive after the process was reported as ended.
            let slack = 2_000;
            assert!(
                sent + slack >= after.0 - before.0 && sent <= after.0 - before.0,
                "{sent} {after:?} {ended}"
            );
            assert!(
                received + slack >= after.1 - before.1 && received <= after.1 - before.1,
                "{received} {after:?} {ended}"
            );
        }
    });
}
