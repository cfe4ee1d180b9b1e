//! Damaged savefiles: everything before the damage is counted, the damage is reported once, and nothing
//! else goes wrong.

use super::machine;
use super::replay::{accounted, bytes, file, options, replay};
use capture::internals::error::Code;
use capture::internals::session::Session;
use capture_test_support::frames::{Carries, Packet, Wire};
use capture_test_support::proc_tree::ProcTree;
use capture_test_support::savefile::{FILE_HEADER, Format, RECORD_HEADER, Record, link_type, savefile};
use proptest::prelude::*;

const SMALL: [Wire; 2] = [Wire::Ethernet, Wire::Cooked2];

/// Returns a few small packets of both address families.
fn packets() -> Vec<Packet> {
    let new = |carries, from, to| Packet::new(carries, from, to, 6);
    vec![
        new(Carries::Tcp(0x18), "192.0.2.1:80", "198.51.100.7:40000"),
        new(Carries::Tcp(0x10), "[2001:db8:f::1]:443", "[2001:db8::3]:50000"),
        new(Carries::Tcp(0x10), "127.0.0.5:6000", "127.0.0.6:7000"),
        new(Carries::Udp, "192.0.2.2:53", "198.51.100.53:1234"),
        new(Carries::Tcp(0x11), "198.51.100.7:40000", "192.0.2.1:80"),
    ]
}

fn records(wire: Wire) -> Vec<Record> {
    packets().iter().map(|packet| Record::whole(wire.frame(&packet.bytes()))).collect()
}

/// Returns the number of whole records before this offset of a pcap file, and true if one of them ends there.
fn whole_before(records: &[Record], place: usize) -> (usize, bool) {
    let ends = records.iter().scan(FILE_HEADER, |end, record| {
        *end += RECORD_HEADER + record.data.len();
        Some(*end)
    });
    let ends: Vec<usize> = ends.collect();
    let before = ends.iter().filter(|&&end| end <= place).count();
    (before, place == FILE_HEADER || ends.contains(&place))
}

/// Opens a session on a damaged file; returns `None` if the file is refused as no savefile.
fn open(file_bytes: &[u8], tree: &ProcTree) -> Option<Session> {
    match replay(options(file(file_bytes).path(), tree)) {
        Ok(session) => Some(session),
        Err(error) => {
            assert_eq!(error.code, Code::Savefile, "{error}");
            None
        }
    }
}

#[test]
fn a_file_cut_anywhere_counts_up_to_the_cut() {
    let tree = machine::tree();
    for wire in SMALL {
        let (packets, records) = (packets(), records(wire));
        let whole = savefile(Format::Little, link_type(wire), &records);
        for length in 0..=whole.len() {
            let session = open(&whole[..length], &tree);
            assert_eq!(session.is_some(), length >= FILE_HEADER, "cut at {length}");
            let Some(mut session) = session else { continue };
            let (count, is_between) = whole_before(&records, length);
            let health = || session.health();
            if is_between {
                health().unwrap();
            } else {
                assert_eq!(health().unwrap_err().code, Code::Savefile, "cut at {length}");
                health().unwrap();
            }
            session.update().unwrap();
            let carried = machine::on_link(wire, &records[..count]);
            let expected = machine::expected(machine::ends(&packets[..count], &carried));
            assert_eq!(bytes(session.processes()), expected, "cut at {length}");
            assert_eq!(session.stats_reader().read().frames, count as u64);
            session.update().unwrap();
            assert!(session.has_ended() && session.take_removed().is_empty());
            session.health().unwrap();
        }
    }
}

#[test]
fn no_savefile_at_all_is_refused() {
    let tree = machine::tree();
    for bytes in [&b""[..], b"x", &[0; 4096], b"\xd4\xc3\xb2\xa1", &[0xff; 100]] {
        assert!(open(bytes, &tree).is_none());
    }
    for path in [tree.path(), &tree.path().join("missing")] {
        assert_eq!(replay(options(path, &tree)).err().unwrap().code, Code::Savefile);
    }
    // LINKTYPE_USB_LINUX, which the library cannot decode.
    let unknown = savefile(Format::Little, 189, &[]);
    let error = replay(options(file(&unknown).path(), &tree)).err().unwrap();
    assert!(error.code == Code::Savefile && error.text.contains("USB"), "{error}");
}

#[test]
fn a_file_without_records_is_whole() {
    let tree = machine::tree();
    for format in Format::ALL {
        let mut session = open(&savefile(format, 1, &[]), &tree).unwrap();
        session.health().unwrap();
        session.update().unwrap();
        assert_eq!(accounted(&session), 0);
    }
}

/// The places where a file is changed with the new bytes, and the place where it is then cut, if it is.
type Damage = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>);

fn damage() -> impl Strategy<Value = Damage> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    (prop::collection::vec(change, 1..6), prop::option::of(any::<prop::sample::Index>()))
}

/// Damages the file; returns the offset of the first byte that differs.
fn make(damage: &Damage, file: &mut Vec<u8>) -> usize {
    let whole = file.clone();
    for (at, byte) in &damage.0 {
        let at = at.index(file.len());
        file[at] = *byte;
    }
    if let Some(cut) = &damage.1 {
        file.truncate(cut.index(file.len()));
    }
    whole.iter().zip(&*file).take_while(|(before, after)| before == after).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damage_anywhere_spares_what_stands_before_it(damage in damage(), format in 0usize..4, wire in 0usize..2) {
        let tree = machine::tree();
        let (format, records) = (Format::ALL[format], records(SMALL[wire]));
        let mut bytes = savefile(format, link_type(SMALL[wire]), &records);
        let first = make(&damage, &mut bytes);
        let Some(mut session) = open(&bytes, &tree) else { return Ok(()) };
        if let Err(error) = session.health() {
            prop_assert_eq!(error.code, Code::Savefile, "{}", error);
        }
        prop_assert!(session.health().is_ok());
        session.update().unwrap();
        let stats = session.stats_reader().read();
        if format != Format::Pcapng {
            let spared = &records[..whole_before(&records, first).0];
            let spared_bytes: u64 = spared.iter().map(|record| u64::from(record.wire_len)).sum();
            prop_assert!(stats.frames >= spared.len() as u64 && stats.frame_bytes >= spared_bytes);
        }
        // The delivered bytes are those that have an owner according to the statistics.
        let delivered: u64 = session.processes().map(|record| record.traffic.bytes()).sum();
        prop_assert_eq!(delivered, stats.bytes.owned.iter().sum::<u64>());
        prop_assert!(accounted(&session) <= 2 * stats.frame_bytes);
        session.update().unwrap();
    }
}
