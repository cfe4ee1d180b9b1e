//! Every process is credited with its own bytes, for every link type and savefile format.

use super::machine::{self, Bytes};
use super::replay::{accounted, at_once, bytes, file, options, replay, wait};
use capture::internals::config::Options;
use capture::internals::model::{Quality, Selection, Undecoded, Unowned, Validity};
use capture::internals::session::{Session, Stats};
use capture_test_support::frames::Wire;
use capture_test_support::savefile::{Format, Record, link_type, savefile};
use std::collections::BTreeMap;

/// Returns the bytes of the packets that have no owner, and of those that are not this host's.
fn ownerless(records: &[Record]) -> (u64, u64) {
    let [.., nobody, forwarded] = records else { panic!("too few records") };
    (nobody.wire_len.into(), forwarded.wire_len.into())
}

#[test]
fn every_process_gets_its_bytes_over_every_link() {
    let tree = machine::tree();
    let packets = machine::packets();
    at_once(Wire::ALL, |wire| {
        let mut records = machine::records(wire, &packets);
        // A frame merged by offloading is longer than its captured part.
        records[0].wire_len = 64_000;
        let carried = machine::on_link(wire, &records);
        let (nobody, forwarded) = ownerless(&carried);
        let expected = machine::expected(machine::ends(&packets, &carried));
        let arp = wire.arp().map(Record::whole);
        records.extend(arp.clone());
        let saved = file(&savefile(Format::Little, link_type(wire), &records));
        let mut session = replay(options(saved.path(), &tree)).unwrap();
        session.update().unwrap();
        assert_eq!(bytes(session.processes()), expected, "{wire:?}");
        assert!(session.processes().all(|record| record.valid.has(Validity::NETWORK)));
        let stats = session.stats_reader().read();
        assert_eq!(stats.frames, records.len() as u64, "{wire:?}");
        assert_eq!(stats.frame_bytes, records.iter().map(|record| u64::from(record.wire_len)).sum::<u64>());
        assert_eq!(stats.undecoded[Undecoded::NotIp as usize], u64::from(arp.is_some()), "{wire:?}");
        assert_eq!(stats.undecoded.iter().sum::<u64>(), u64::from(arp.is_some()), "{wire:?}");
        let mut unowned = [0; Unowned::COUNT];
        unowned[Unowned::NoSocket as usize] = nobody;
        unowned[Unowned::NotLocal as usize] = forwarded;
        assert_eq!(stats.bytes.unowned, unowned, "{wire:?}");
        session.health().unwrap();
    });
}

/// The processes of a savefile may have ended, and others may use their ports now.
#[test]
fn no_owner_is_looked_up_unless_it_is_requested() {
    let tree = machine::tree();
    let records = machine::records(Wire::Ethernet, &machine::packets());
    let forwarded: u64 = ownerless(&records).1;
    let saved = file(&savefile(Format::Little, link_type(Wire::Ethernet), &records));
    let mut session = replay(Options { replay_owners: false, ..options(saved.path(), &tree) }).unwrap();
    session.update().unwrap();
    assert!(bytes(session.processes()).values().all(|bytes| *bytes == (0, 0)));
    let totals = session.stats_reader().read().bytes;
    let mut unowned = [0; Unowned::COUNT];
    unowned[Unowned::NoSocket as usize] = accounted(&session) - forwarded;
    unowned[Unowned::NotLocal as usize] = forwarded;
    assert_eq!((totals.owned, totals.unowned), ([0; Quality::COUNT], unowned));
    assert!(unowned[Unowned::NoSocket as usize] > 0);
}

#[test]
fn the_quality_of_an_owner_follows_its_socket() {
    let tree = machine::tree();
    let packets = machine::packets();
    let records = machine::records(Wire::Ethernet, &packets);
    let expected = machine::expected(machine::ends(&packets, &records));
    let saved = file(&savefile(Format::Little, link_type(Wire::Ethernet), &records));
    let mut session = replay(options(saved.path(), &tree)).unwrap();
    session.update().unwrap();
    let total = |pids: &[i32]| pids.iter().map(|pid| expected[pid].0 + expected[pid].1).sum::<u64>();
    let owned = session.stats_reader().read().bytes.owned;
    assert_eq!(owned[Quality::Exact as usize], total(&[101, 103, 105, 106, 109, 110]));
    assert_eq!(owned[Quality::Shared as usize], total(&[108]));
    // Ping sockets and unconnected UDP sockets do not name the other endpoint.
    assert_eq!(owned[Quality::Guessed as usize], total(&[102, 104, 111, 113, 114]));
    for record in session.processes() {
        let (pid, all) = (record.sample.id.pid, record.traffic.bytes());
        let uncertain = if matches!(pid, 101 | 103 | 105 | 106 | 109 | 110) { 0 } else { all };
        assert_eq!(record.uncertain_bytes, uncertain, "{pid}");
    }
}

#[test]
fn the_form_of_the_file_makes_no_difference_and_neither_does_a_second_replay() {
    let tree = machine::tree();
    let records = machine::records(Wire::Ethernet, &machine::packets());
    let figures = at_once(Format::ALL.into_iter().chain(Format::ALL), |format| {
        let saved = file(&savefile(format, link_type(Wire::Ethernet), &records));
        let mut session = replay(options(saved.path(), &tree)).unwrap();
        session.update().unwrap();
        let stats = Stats { update_ns: 0, sampled_ns: [0; 2], ..session.stats_reader().read() };
        (format, bytes(session.processes()), stats)
    });
    let (_, bytes, stats) = &figures[0];
    for (format, of_this, stats_of_this) in &figures {
        assert_eq!((bytes, stats), (of_this, stats_of_this), "{format:?}");
    }
}

#[test]
fn a_filter_lets_through_what_it_says() {
    let tree = machine::tree();
    let packets = machine::packets();
    let records = machine::records(Wire::Ethernet, &packets);
    let saved = file(&savefile(Format::Little, link_type(Wire::Ethernet), &records));
    let mut filtered = options(saved.path(), &tree);
    filtered.capture.filter = Some("host 192.0.2.1 or host 192.0.2.9".into());
    let mut session = replay(filtered).unwrap();
    session.update().unwrap();
    let mut expected = machine::expected(machine::ends(&packets, &records));
    let passed: u64 = [101, 109].iter().map(|pid| expected[pid].0 + expected[pid].1).sum();
    for (pid, bytes) in &mut expected {
        if !matches!(pid, 101 | 109) {
            *bytes = (0, 0);
        }
    }
    assert_eq!(bytes(session.processes()), expected);
    let stats = session.stats_reader().read();
    assert_eq!((stats.frames, stats.frame_bytes), (6, passed));
    let mut wrong = options(saved.path(), &tree);
    wrong.capture.filter = Some("nonsense here".into());
    assert_eq!(Session::open(wrong).err().unwrap().code, capture::internals::error::Code::CompileFilter);
}

#[test]
fn a_process_that_ended_after_its_traffic_is_delivered_once_with_all_of_it() {
    let tree = machine::tree();
    let packets = machine::packets();
    let records = machine::records(Wire::Ethernet, &packets);
    let expected = machine::expected(machine::ends(&packets, &records));
    let saved = file(&savefile(Format::Little, link_type(Wire::Ethernet), &records));
    let mut session = replay(options(saved.path(), &tree)).unwrap();
    // No update has seen the process yet; another process takes its pid.
    tree.process(101, "newcomer", 9000, &[]);
    session.update().unwrap();
    let removed = session.take_removed();
    assert_eq!(removed.len(), 1);
    assert_eq!((removed[0].sample.id.pid, removed[0].sample.id.start_ticks), (101, 500));
    assert_eq!(removed[0].identity.name, b"web");
    assert_eq!(removed[0].identity.command_line, b"/bin/web\0-x\0");
    assert_eq!(bytes(removed.iter())[&101], expected[&101]);
    let living = bytes(session.processes());
    assert_eq!(living[&101], (0, 0));
    assert!(expected.iter().all(|(pid, bytes)| *pid == 101 || living[pid] == *bytes));
    // A process that an update has seen.
    tree.end(103);
    session.update().unwrap();
    let removed = session.take_removed();
    assert_eq!(bytes(removed.iter()), BTreeMap::from([(103, expected[&103])]));
    session.update().unwrap();
    assert!(session.take_removed().is_empty());
    assert!(bytes(session.processes()).iter().all(|(pid, bytes)| *pid == 101 || expected[pid] == *bytes));
}

#[test]
fn packets_are_handed_out_as_they_were_captured() {
    let tree = machine::tree();
    let packets = machine::packets();
    let records = machine::records(Wire::Cooked1, &packets);
    let saved = file(&savefile(Format::Little, link_type(Wire::Cooked1), &records));
    let mut session =
        replay(capture::internals::config::Options { packet_bytes: 1 << 20, ..options(saved.path(), &tree) })
            .unwrap();
    let mut taken = 0;
    for count in [5, usize::MAX] {
        for batch in session.take_packets(count) {
            for (entry, data) in batch.iter() {
                let (record, packet) = (&records[taken], &packets[taken]);
                assert_eq!((data, entry.wire_len), (&record.data[..], record.wire_len));
                let source = entry.packet.source;
                assert_eq!((source.address.ip(), source.port), (packet.from.ip(), packet.from.port()));
                taken += 1;
            }
        }
        assert_eq!(taken, count.min(records.len()));
    }
    assert_eq!(session.stats_reader().read().lost_packets, 0);
}

#[test]
fn only_the_selected_processes_are_delivered() {
    let tree = machine::tree();
    let packets = machine::packets();
    let records = machine::records(Wire::Ethernet, &packets);
    let expected = machine::expected(machine::ends(&packets, &records));
    let saved = file(&savefile(Format::Little, link_type(Wire::Ethernet), &records));
    let selection = Selection { names: vec![b"web".to_vec(), b"ping six".to_vec()], ..Selection::default() };
    let mut session =
        replay(capture::internals::config::Options { selection, ..options(saved.path(), &tree) }).unwrap();
    session.update().unwrap();
    let wanted = [101, 113].map(|pid| (pid, expected[&pid]));
    assert_eq!(bytes(session.processes()), BTreeMap::from(wanted));
    let all: u64 = records.iter().map(|record| u64::from(record.wire_len)).sum();
    let loopback: u64 = expected[&105].0 + expected[&105].1;
    assert_eq!(accounted(&session), all + loopback, "both ends of loopback packets count");
}

#[test]
fn an_update_in_the_midst_of_a_replay_takes_nothing_away() {
    let tree = machine::tree();
    let packets = machine::packets();
    let once = machine::records(Wire::Ethernet, &packets);
    let expected = machine::expected(machine::ends(&packets, &once));
    const TIMES: u64 = 3_000;
    let records: Vec<Record> = (0..TIMES).flat_map(|_| once.clone()).collect();
    let saved = file(&savefile(Format::Little, link_type(Wire::Ethernet), &records));
    let mut session = Session::open(options(saved.path(), &tree)).unwrap();
    let mut before = BTreeMap::new();
    while !session.has_ended() {
        session.update().unwrap();
        let now = bytes(session.processes());
        let is_behind = |(pid, bytes): (&i32, &Bytes)| now[pid].0 < bytes.0 || now[pid].1 < bytes.1;
        assert!(!before.iter().any(is_behind), "{before:?} {now:?}");
        before = now;
    }
    wait(&session);
    session.update().unwrap();
    let expected = expected.into_iter().map(|(pid, (send, receive))| (pid, (send * TIMES, receive * TIMES)));
    assert_eq!(bytes(session.processes()), expected.collect());
}
