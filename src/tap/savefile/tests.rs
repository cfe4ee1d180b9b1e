//! Tests of savefiles built byte by byte from their specifications, whole, damaged and hostile.

use super::*;
use crate::model::Timestamp;
use proptest::prelude::*;
use std::io::Write;

/// A frame as it was written: seconds, fraction of a second in the file's unit, wire length, captured bytes.
type WrittenFrame<'a> = (u32, u32, u32, &'a [u8]);

/// A frame as it was read: nanoseconds, wire length, captured bytes.
type ReadFrame = (u64, u32, Vec<u8>);

#[derive(Clone, Copy, Debug)]
struct Format {
    big_endian: bool,
    nanoseconds: bool,
    link: u32,
}

const ETHERNET: Format = Format { big_endian: false, nanoseconds: false, link: 1 };

impl Format {
    fn u32(self, value: u32) -> [u8; 4] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn u16(self, value: u16) -> [u8; 2] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    /// Returns a file in the format of pcap-savefile(5).
    fn pcap(self, records: &[WrittenFrame<'_>]) -> Vec<u8> {
        let mut file = self.u32(if self.nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).to_vec();
        file.extend(self.u16(2));
        file.extend(self.u16(4));
        for word in [0, 0, 65_535, self.link] {
            file.extend(self.u32(word));
        }
        for &(seconds, fraction, wire_len, data) in records {
            for word in [seconds, fraction, data.len() as u32, wire_len] {
                file.extend(self.u32(word));
            }
            file.extend(data);
        }
        file
    }

    /// Returns a file in the format of draft-ietf-opsawg-pcapng: a section header, an interface, and enhanced
    /// packet blocks.
    fn pcapng(self, records: &[WrittenFrame<'_>]) -> Vec<u8> {
        let mut section = self.u32(0x1a2b_3c4d).to_vec();
        section.extend(self.u16(1));
        section.extend(self.u16(0));
        section.extend([0xff; 8]);
        let mut interface = self.u16(self.link as u16).to_vec();
        interface.extend(self.u16(0));
        interface.extend(self.u32(65_535));
        if self.nanoseconds {
            // if_tsresol (9): 10^-9; opt_endofopt.
            interface.extend([self.u16(9), self.u16(1)].concat());
            interface.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        }
        let mut file = self.block(0x0a0d_0d0a, &section);
        file.extend(self.block(1, &interface));
        let unit = if self.nanoseconds { 1_000_000_000 } else { 1_000_000 };
        for &(seconds, fraction, wire_len, data) in records {
            let time = u64::from(seconds) * unit + u64::from(fraction);
            let mut packet = self.u32(0).to_vec();
            for word in [(time >> 32) as u32, time as u32, data.len() as u32, wire_len] {
                packet.extend(self.u32(word));
            }
            packet.extend(data);
            packet.resize(packet.len().next_multiple_of(4), 0);
            file.extend(self.block(6, &packet));
        }
        file
    }

    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let length = self.u32(body.len() as u32 + 12);
        [&self.u32(kind)[..], &length, body, &length].concat()
    }
}

const RECORDS: [WrittenFrame<'_>; 3] =
    [(1_700_000_000, 999_999, 60, &[1; 60]), (0, 0, 65_000, &[2; 10]), (i32::MAX as u32, 1, 1, &[3])];

fn expected(records: &[WrittenFrame<'_>], nanoseconds: bool) -> Vec<ReadFrame> {
    let unit = if nanoseconds { 1 } else { 1000 };
    let seen = |&(seconds, fraction, wire_len, data): &WrittenFrame<'_>| {
        (u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * unit, wire_len, data.to_vec())
    };
    records.iter().map(seen).collect()
}

fn write(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Reads a file to its end. Returns the frames, and the error if there was one, which is reported once.
fn read_all(bytes: &[u8], filter: Option<&str>) -> Result<(Vec<ReadFrame>, Option<Error>)> {
    let file = write(bytes);
    let mut replay = Replay::open(file.path(), filter)?;
    let (mut seen, mut failure) = (Vec::new(), None);
    while !replay.ended() {
        let read = replay.read(2, |frame: Frame<'_>| {
            assert!(frame.data.len() as u64 <= u64::from(frame.wire_len));
            let Timestamp(time) = frame.time;
            seen.push((time, frame.wire_len, frame.data.to_vec()));
        });
        if let Err(error) = read {
            assert!(replay.ended() && failure.is_none(), "one error, and it is the end");
            failure = Some(error);
        }
    }
    assert_eq!(replay.read(2, |_| panic!("a frame after the end")), Ok(0));
    assert_eq!(replay.frames(), seen.len() as u64);
    Ok((seen, failure))
}

#[test]
fn both_formats_byte_orders_and_units() {
    for (big_endian, nanoseconds) in [(false, false), (false, true), (true, false), (true, true)] {
        let format = Format { big_endian, nanoseconds, link: 1 };
        let expected = (expected(&RECORDS, nanoseconds), None);
        assert_eq!(read_all(&format.pcap(&RECORDS), None).unwrap(), expected, "{format:?}");
        assert_eq!(read_all(&format.pcapng(&RECORDS[..2]), None).unwrap().0, expected.0[..2], "{format:?}");
    }
}

#[test]
fn a_file_cut_anywhere_gives_what_is_whole() {
    for (whole, header) in [(ETHERNET.pcap(&RECORDS), 24), (ETHERNET.pcapng(&RECORDS), 28 + 20)] {
        // The ends of the frames, found by writing fewer of them.
        let ends: Vec<usize> = (0..=3)
            .map(|count| match header {
                24 => ETHERNET.pcap(&RECORDS[..count]).len(),
                _ => ETHERNET.pcapng(&RECORDS[..count]).len(),
            })
            .collect();
        for length in 0..whole.len() {
            let read = read_all(&whole[..length], None);
            if length < header {
                assert_eq!(read.unwrap_err().code, Code::Savefile, "cut at {length}");
                continue;
            }
            let (seen, failure) = read.unwrap();
            let complete = ends.iter().filter(|&&end| end <= length).count() - 1;
            assert_eq!(seen, expected(&RECORDS[..complete], false), "cut at {length}");
            assert_eq!(failure.is_some(), !ends.contains(&length), "cut at {length}");
            if let Some(error) = failure {
                assert_eq!(error.code, Code::Savefile);
                assert!(error.text.contains(&format!("beyond {complete} frames")), "{error}");
            }
        }
    }
}

/// Interfaces that differ in link type, snapshot length and unit of time are read, in two sections of
/// different byte order, among blocks that contain no frames.
#[test]
fn interfaces_of_pcapng_may_differ() {
    let mut file = Vec::new();
    let mut expected = Vec::new();
    for big_endian in [false, true] {
        let format = Format { big_endian, nanoseconds: false, link: 1 };
        let whole = format.pcapng(&RECORDS[..1]);
        let raw = Format { nanoseconds: true, link: 101, ..format }.pcapng(&[]);
        file.extend(&whole);
        expected.push((1_700_000_000_999_999_000, 60, vec![1; 60]));
        // The second interface, after the section header of 28 bytes, and a block of an unknown type.
        file.extend(&raw[28..]);
        file.extend(format.block(0x0bad_beef, &[9; 40]));
        let mut packet = format.u32(1).to_vec();
        for word in [0, 5, 3, 70] {
            packet.extend(format.u32(word));
        }
        packet.extend([0x45, 2, 3, 0]);
        file.extend(format.block(6, &packet));
        expected.push((5, 70, vec![0x45, 2, 3]));
        // A simple packet block belongs to the first interface and states no time.
        file.extend(format.block(3, &[&format.u32(5)[..], &[7; 8]].concat()));
        expected.push((0, 5, vec![7; 5]));
    }
    assert_eq!(read_all(&file, None).unwrap(), (expected.clone(), None));
    let large =
        [&file[..], &Format { big_endian: true, ..ETHERNET }.block(0x0bad_beef, &vec![9; 3 << 20])].concat();
    assert_eq!(read_all(&large, None).unwrap(), (expected, None), "a block larger than the buffer");
}

#[test]
fn an_interface_that_is_not_decoded_is_named_at_its_first_frame() {
    let mut file = ETHERNET.pcapng(&RECORDS[..2]);
    file.extend(&Format { link: 127, ..ETHERNET }.pcapng(&[])[28..]);
    assert_eq!(read_all(&file, None).unwrap(), (expected(&RECORDS[..2], false), None));
    let packet = [1u32, 0, 0, 0, 0].map(u32::to_le_bytes).concat();
    file.extend(ETHERNET.block(6, &packet));
    let (seen, failure) = read_all(&file, None).unwrap();
    assert_eq!(seen.len(), 2);
    let error = failure.unwrap();
    assert!(error.text.contains("beyond 2 frames") && error.text.contains("IEEE802_11_RADIO"), "{error}");
    // A frame of an interface that was not described, and one of the format's first draft.
    for (kind, cause) in [(6, "interface 7"), (2, "first draft")] {
        let packet = [7u32, 0, 0, 0, 0].map(u32::to_le_bytes).concat();
        let file = [ETHERNET.pcapng(&[]), ETHERNET.block(kind, &packet)].concat();
        let error = read_all(&file, None).unwrap().1.unwrap();
        assert!(error.text.contains(cause), "{error}");
    }
}

#[test]
fn a_wire_length_below_the_captured_one_is_raised() {
    let (seen, failure) = read_all(&ETHERNET.pcap(&[(1, 0, 3, &[7; 20])]), None).unwrap();
    assert_eq!((seen, failure), (vec![(1_000_000_000, 20, vec![7; 20])], None));
}

#[test]
fn an_unknown_link_type_is_refused_by_name() {
    let error = read_all(&Format { link: 127, ..ETHERNET }.pcap(&RECORDS), None).unwrap_err();
    assert_eq!(error.code, Code::Savefile);
    assert!(error.text.contains("IEEE802_11_RADIO (127)"), "{error}");
    for (link, known) in
        [(0, true), (101, true), (108, true), (113, true), (276, true), (228, true), (105, false)]
    {
        let read = read_all(&Format { link, ..ETHERNET }.pcap(&RECORDS), None);
        assert_eq!(read.is_ok(), known, "link type {link}");
    }
}

#[test]
fn what_is_no_savefile_is_refused_by_path() {
    let cases: [(&str, &str); 4] = [
        ("/nonexistent/file.pcap", "No such file"),
        ("/tmp", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("/proc/self/stat", "unknown file format"),
    ];
    for (path, why) in cases {
        let error = Replay::open(Path::new(path), None).err().unwrap();
        assert_eq!(error.code, Code::Savefile);
        assert!(error.text.contains(path) && error.text.contains(why), "{error}");
    }
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_other_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(Replay::open(&path, None).err().unwrap().text.contains("not a regular file"));
}

#[test]
fn a_path_need_not_be_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.pcap"));
    std::fs::write(&path, ETHERNET.pcap(&RECORDS)).unwrap();
    assert_eq!(Replay::open(&path, None).unwrap().read(10, |_| {}), Ok(3));
}

#[test]
fn failed_openings_leave_no_descriptor_behind() {
    // Counts the descriptors of this path only, since other tests open files meanwhile.
    let file = write(b"neither pcap nor pcapng, but long enough to be looked at");
    for _ in 0..20 {
        assert!(Replay::open(file.path(), None).is_err());
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let left = open.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link == file.path()));
    assert_eq!(left.count(), 1, "only the test's own");
}

/// Returns Ethernet, IPv4 without options, UDP between these ports.
fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([source.to_be_bytes(), destination.to_be_bytes(), [0, 8], [0, 0]].concat());
    frame
}

#[test]
fn the_filter_selects() {
    let (one, other) = (udp(1000, 53), udp(1000, 54));
    let file = ETHERNET.pcap(&[(1, 0, 42, &one), (2, 0, 42, &other), (3, 0, 42, &one)]);
    let (seen, failure) = read_all(&file, Some("udp dst port 53")).unwrap();
    assert_eq!(seen.iter().map(|frame| frame.0 / 1_000_000_000).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(failure, None);
    let error = read_all(&file, Some("udp dst port")).unwrap_err();
    assert_eq!(error.code, Code::CompileFilter);
    assert!(error.text.contains("udp dst port") && error.text.contains("syntax error"), "{error}");
    assert_eq!(read_all(&file, Some("udp\0")).unwrap_err().code, Code::InvalidArgument);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read_all(&bytes, None);
    }

    #[test]
    fn damage_is_survived(ng: bool, big_endian: bool, at in 0usize..300, bytes in any::<[u8; 4]>(), count in 1usize..5) {
        let format = Format { big_endian, ..ETHERNET };
        let mut file = if ng { format.pcapng(&RECORDS) } else { format.pcap(&RECORDS) };
        for (place, byte) in file.iter_mut().skip(at).zip(bytes).take(count) {
            *place = byte;
        }
        let _ = read_all(&file, Some("udp"));
    }
}

#[test]
fn link_types_have_names() {
    assert_eq!(link_name(pcap::Linktype(127)), "the link type IEEE802_11_RADIO (127)");
    assert_eq!(link_name(pcap::Linktype(99_999)), "the link type unknown (99999)");
}
