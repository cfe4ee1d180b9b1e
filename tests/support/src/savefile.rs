//! Savefiles written byte by byte, according to pcap-savefile(5) and the pcapng specification.

use crate::frames::Wire;

/// Returns the LINKTYPE_ value of a link.
pub fn link_type(wire: Wire) -> u32 {
    match wire {
        Wire::Null => 0,
        Wire::Ethernet | Wire::Tagged | Wire::DoublyTagged => 1,
        Wire::RawIp => 101,
        Wire::Loop => 108,
        Wire::Cooked1 => 113,
        Wire::Cooked2 => 276,
    }
}

/// A record of a savefile: the captured bytes and the length of the frame.
#[derive(Clone, Debug)]
pub struct Record {
    pub data: Vec<u8>,
    /// The frame's length on the wire.
    pub wire_len: u32,
}

impl Record {
    /// Returns the record of a frame that was captured in full.
    pub fn whole(data: Vec<u8>) -> Record {
        Record { wire_len: data.len() as u32, data }
    }
}

/// A savefile format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// pcap-savefile(5), little-endian, microseconds.
    Little,
    /// pcap-savefile(5), big-endian, microseconds.
    Big,
    /// pcap-savefile(5), little-endian, nanoseconds.
    Nanoseconds,
    /// A pcapng section with one interface and enhanced packet blocks.
    Pcapng,
}

impl Format {
    pub const ALL: [Format; 4] = [Format::Little, Format::Big, Format::Nanoseconds, Format::Pcapng];
}

/// Length of a pcap file's header, in bytes; [`RECORD_HEADER`] is that of each record's header.
pub const FILE_HEADER: usize = 24;
/// See [`FILE_HEADER`].
pub const RECORD_HEADER: usize = 16;

/// Returns a savefile of records that are a millisecond apart.
pub fn savefile(format: Format, link_type: u32, records: &[Record]) -> Vec<u8> {
    let words = |words: &[u32]| -> Vec<u8> {
        let order = if format == Format::Big { u32::to_be_bytes } else { u32::to_le_bytes };
        words.iter().flat_map(|&word| order(word)).collect()
    };
    // Two 16-bit fields of one word have the same order in the file in either byte order.
    let pair = |first: u32, second: u32| match format {
        Format::Big => first << 16 | second,
        _ => second << 16 | first,
    };
    let mut file = match format {
        Format::Little | Format::Big => words(&[0xa1b2_c3d4, pair(2, 4), 0, 0, 262_144, link_type]),
        Format::Nanoseconds => words(&[0xa1b2_3c4d, pair(2, 4), 0, 0, 262_144, link_type]),
        Format::Pcapng => {
            let mut blocks = words(&[0x0a0d_0d0a, 28, 0x1a2b_3c4d, pair(1, 0), !0, !0, 28]);
            blocks.extend(words(&[1, 20, pair(link_type, 0), 262_144, 20]));
            blocks
        }
    };
    for (number, Record { data, wire_len }) in records.iter().enumerate() {
        let (milliseconds, length) = (number as u32, data.len() as u32);
        let (seconds, fraction) = (1_700_000_000 + milliseconds / 1000, milliseconds % 1000);
        match format {
            Format::Little | Format::Big => {
                file.extend(words(&[seconds, fraction * 1000, length, *wire_len]));
                file.extend(data);
            }
            Format::Nanoseconds => {
                file.extend(words(&[seconds, fraction * 1_000_000, length, *wire_len]));
                file.extend(data);
            }
            Format::Pcapng => {
                let time = u64::from(seconds) * 1_000_000 + u64::from(fraction) * 1000;
                let padded = length.next_multiple_of(4);
                let (high, low) = ((time >> 32) as u32, time as u32);
                file.extend(words(&[6, 32 + padded, 0, high, low, length, *wire_len]));
                file.extend(data);
                file.resize(file.len() + (padded - length) as usize, 0);
                file.extend(words(&[32 + padded]));
            }
        }
    }
    file
}
