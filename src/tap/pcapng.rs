//! Savefiles in the format pcapng, whose interfaces may differ in link type, snapshot length and unit of
//! time.
//!
//! libpcap reads the format, but rejects a file at the first interface that differs from the one before.

use super::filter::Filter;
use super::savefile::link_name;
use crate::error::{Code, Error, Result};
use crate::model::{Frame, LinkType, Namespace, Passage, Timestamp};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, InterfaceDescriptionBlock, PcapBlockOwned, PcapError, PcapNGReader};
use std::fs::File;

/// The first four bytes of a pcapng file, in either byte order.
pub(super) const MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// The initial size of the read buffer in bytes.
const BUFFER: usize = 256 << 10;
/// The size in bytes up to which the buffer grows for a large block.
const MAX_BLOCK: usize = 16 << 20;
/// The packet block of the format's first draft.
const OBSOLETE_PACKET: u32 = 2;

/// The settings for reading the frames of one interface.
struct PcapngInterface {
    link: LinkType,
    snaplen: u32,
    filter: Option<Filter>,
    clock: Clock,
}

/// The unit and offset of an interface's time stamps.
struct Clock {
    /// Units in a second.
    resolution: u64,
    /// Seconds to add.
    offset: i64,
}

/// An open pcapng file.
pub(super) struct Pcapng {
    reader: PcapNGReader<File>,
    capacity: usize,
    /// The length of the last block read, which is skipped before the next.
    read: usize,
    expression: Option<String>,
    /// The interfaces of the section, or the reason why one cannot be read.
    interfaces: Vec<Result<PcapngInterface>>,
}

/// The result of reading one block.
enum BlockResult {
    Frame,
    Nothing,
    End,
}

impl Pcapng {
    /// Reads a file up to its first interface.
    ///
    /// # Errors
    /// Fails with `Savefile` if the file is damaged before its first interface or that interface's link type
    /// is not decoded. Fails with `CompileFilter` if the filter does not compile.
    pub(super) fn open(file: File, expression: Option<&str>) -> Result<Pcapng> {
        let reader = PcapNGReader::new(BUFFER, file).map_err(|error| damage(&error))?;
        let expression = expression.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let mut file = Pcapng { reader, capacity: BUFFER, read: 0, expression, interfaces: Vec::new() };
        while file.interfaces.is_empty() {
            if let BlockResult::End = file.step(&mut |_| ())? {
                return Err(Error::new(Code::Savefile, "it ends before the description of an interface"));
            }
        }
        match file.interfaces.pop() {
            Some(Ok(first)) => file.interfaces.push(Ok(first)),
            Some(Err(error)) => return Err(error),
            None => {}
        }
        Ok(file)
    }

    /// Hands at most `limit` frames to `each`, or all that are available if fewer. Returns their number, and
    /// the error that ended the reading, if any.
    pub(super) fn read(&mut self, limit: usize, mut each: impl FnMut(Frame<'_>)) -> (usize, Option<Error>) {
        let mut count = 0;
        while count < limit {
            match self.step(&mut each) {
                Ok(BlockResult::Frame) => count += 1,
                Ok(BlockResult::Nothing) => {}
                Ok(BlockResult::End) => return (count, None),
                Err(error) => return (count, Some(error)),
            }
        }
        (count, None)
    }

    /// Reads one block.
    fn step(&mut self, each: &mut impl FnMut(Frame<'_>)) -> Result<BlockResult> {
        self.reader.consume(std::mem::take(&mut self.read));
        match self.reader.next() {
            Ok((length, PcapBlockOwned::NG(block))) => {
                // This stands before the call of the handler, which may panic.
                self.read = length;
                return take_block(&block, &mut self.interfaces, self.expression.as_deref(), each);
            }
            Ok((length, _)) => {
                self.read = length;
                return Ok(BlockResult::Nothing);
            }
            Err(PcapError::Eof) => return Ok(BlockResult::End),
            Err(PcapError::Incomplete(_)) => {}
            Err(PcapError::BufferTooSmall) if self.capacity < MAX_BLOCK => {
                self.capacity *= 2;
                if !self.reader.grow(self.capacity) {
                    return Err(Error::new(Code::Savefile, "out of memory for a large block"));
                }
            }
            Err(error) => return Err(damage(&error)),
        }
        self.reader.refill().map_err(|error| damage(&error))?;
        Ok(BlockResult::Nothing)
    }
}

fn take_block(
    block: &Block<'_>,
    interfaces: &mut Vec<Result<PcapngInterface>>,
    expression: Option<&str>,
    each: &mut impl FnMut(Frame<'_>),
) -> Result<BlockResult> {
    match block {
        Block::SectionHeader(_) => interfaces.clear(),
        Block::InterfaceDescription(description) => {
            let number = interfaces.len();
            interfaces.push(interface(description, number, expression));
        }
        Block::EnhancedPacket(packet) => {
            let interface = find(interfaces, packet.if_id)?;
            let time = u64::from(packet.ts_high) << u32::BITS | u64::from(packet.ts_low);
            let data = packet.packet_data();
            return Ok(hand_on(interface, interface.clock.time(time), packet.origlen, data, each));
        }
        Block::SimplePacket(packet) => {
            let interface = find(interfaces, 0)?;
            // The block states only the length on the wire. The file holds that length up to the snapshot
            // length.
            let limit = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
            let kept = packet.packet_data();
            let data = kept.get(..limit as usize).unwrap_or(kept);
            return Ok(hand_on(interface, Timestamp::default(), packet.origlen, data, each));
        }
        Block::Unknown(unknown) if unknown.block_type == OBSOLETE_PACKET => {
            let text = "it has packet blocks of the format's first draft, which are unsupported";
            return Err(Error::new(Code::Savefile, text));
        }
        _ => {}
    }
    Ok(BlockResult::Nothing)
}

fn hand_on(
    interface: &PcapngInterface,
    time: Timestamp,
    length: u32,
    data: &[u8],
    each: &mut impl FnMut(Frame<'_>),
) -> BlockResult {
    // A damaged savefile may claim a wire length below the captured one.
    let wire_len = length.max(u32::try_from(data.len()).unwrap_or(u32::MAX));
    if interface.filter.as_ref().is_some_and(|filter| !filter.matches(data, wire_len)) {
        return BlockResult::Nothing;
    }
    let (link, namespace, passage) = (interface.link, Namespace::HOME, Passage::Unknown);
    // No format states the MTU of the device that the frames were recorded on.
    let frame = Frame { time, wire_len, packet_limit: u32::MAX, link, namespace, passage, data };
    each(Frame { passage: frame.stated_passage(), ..frame });
    BlockResult::Frame
}

/// Returns the interface of a frame.
///
/// # Errors
/// Fails with `Savefile` if the file does not describe the interface, and with the interface's own error if
/// it cannot be read.
fn find(interfaces: &[Result<PcapngInterface>], number: u32) -> Result<&PcapngInterface> {
    match interfaces.get(number as usize) {
        Some(Ok(interface)) => Ok(interface),
        Some(Err(error)) => Err(error.clone()),
        None => {
            let text = format!("a frame is of interface {number}, which the file does not describe");
            Err(Error::new(Code::Savefile, text))
        }
    }
}

fn interface(
    description: &InterfaceDescriptionBlock<'_>,
    number: usize,
    expression: Option<&str>,
) -> Result<PcapngInterface> {
    let dlt = pcap::Linktype(description.linktype.0);
    let link = LinkType::from_dlt(dlt.0).ok_or_else(|| {
        let text = format!("{} of interface {number} is not decoded", link_name(dlt));
        Error::new(Code::Savefile, text)
    })?;
    let filter = expression.map(|expression| Filter::compile(expression, link)).transpose()?;
    let resolution = description.ts_resolution().ok_or_else(|| {
        let text = format!("the time resolution of interface {number} is too fine");
        Error::new(Code::Savefile, text)
    })?;
    let clock = Clock { resolution, offset: description.if_tsoffset };
    Ok(PcapngInterface { link, snaplen: description.snaplen, filter, clock })
}

impl Clock {
    /// Converts a time stamp in the interface's units.
    fn time(&self, units: u64) -> Timestamp {
        let nanoseconds = u128::from(units) * 1_000_000_000 / u128::from(self.resolution.max(1));
        let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        let offset = self.offset.unsigned_abs().saturating_mul(1_000_000_000);
        Timestamp(match self.offset {
            0.. => nanoseconds.saturating_add(offset),
            _ => nanoseconds.saturating_sub(offset),
        })
    }
}

/// Converts a reader's error to one that states what is wrong with the file.
fn damage<I>(error: &PcapError<I>) -> Error {
    let text = match error {
        PcapError::UnexpectedEof | PcapError::Incomplete(_) | PcapError::Eof => {
            "it ends within a block".into()
        }
        PcapError::BufferTooSmall => format!("a block is larger than {MAX_BLOCK} bytes"),
        PcapError::ReadError => "it could not be read".into(),
        _ => "a block is inconsistent with itself or its section".into(),
    };
    Error::new(Code::Savefile, text)
}
