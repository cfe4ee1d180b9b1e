//! Packets queued for delivery: the capture thread fills the queue batch by batch, and the update takes from
//! it. It is limited in bytes; if it is full, the oldest packets are evicted and counted.

use crate::model::{Frame, Packet, Timestamp};
use crate::sync::Mutex;
use std::collections::VecDeque;
use std::ops::Range;

/// One packet of a batch.
#[derive(Clone, Debug)]
pub struct PacketEntry {
    /// Capture time.
    pub time: Timestamp,
    /// Its length on the wire.
    pub wire_len: u32,
    /// The decoded packet.
    pub packet: Packet,
    /// Position of its captured bytes in the batch.
    bytes: Range<usize>,
}

/// Packets gathered together, with their bytes in one buffer.
#[derive(Clone, Debug, Default)]
pub struct PacketBatch {
    data: Vec<u8>,
    entries: VecDeque<PacketEntry>,
}

impl PacketBatch {
    /// Adds a copy of a packet.
    pub fn push(&mut self, frame: &Frame<'_>, packet: &Packet) {
        let start = self.data.len();
        self.data.extend_from_slice(frame.data);
        self.entries.push_back(PacketEntry {
            time: frame.time,
            wire_len: frame.wire_len,
            packet: *packet,
            bytes: start..self.data.len(),
        });
    }

    /// Returns the packets with their captured bytes, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (&PacketEntry, &[u8])> {
        self.entries.iter().map(|entry| (entry, self.data.get(entry.bytes.clone()).unwrap_or_default()))
    }

    /// Passes each packet with its captured bytes to `show`, oldest first.
    pub fn for_each_mut(&mut self, mut show: impl FnMut(&PacketEntry, &mut [u8])) {
        for entry in &self.entries {
            show(entry, self.data.get_mut(entry.bytes.clone()).unwrap_or_default());
        }
    }

    /// Returns the number of packets.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if there is no packet.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the memory that counts against the limit.
    fn weight(&self) -> usize {
        self.data.len() + self.entries.len() * size_of::<PacketEntry>()
    }

    /// Splits off the first `count` packets with a copy of their bytes. The bytes of the rest stay in place.
    fn split_front(&mut self, count: usize) -> PacketBatch {
        let rest = self.entries.split_off(count.min(self.entries.len()));
        let mut front = PacketBatch { data: Vec::new(), entries: std::mem::replace(&mut self.entries, rest) };
        for entry in &mut front.entries {
            let start = front.data.len();
            front.data.extend_from_slice(self.data.get(entry.bytes.clone()).unwrap_or_default());
            entry.bytes = start..front.data.len();
        }
        front
    }
}

/// The queue between the capture thread and the update.
pub struct PacketQueue {
    limit: usize,
    held: Mutex<QueuedPackets>,
}

#[derive(Default)]
struct QueuedPackets {
    batches: VecDeque<PacketBatch>,
    weight: usize,
    lost: u64,
}

impl PacketQueue {
    /// Returns a queue of at most `limit` bytes; with 0 it holds no packets.
    pub fn new(limit: usize) -> PacketQueue {
        PacketQueue { limit, held: Mutex::default() }
    }

    /// Returns true if packets are wanted at all.
    pub fn wants_packets(&self) -> bool {
        self.limit > 0
    }

    /// Returns true if a batch that is being filled should be pushed now. Then an eviction never costs more
    /// than a part of the queue.
    pub fn is_full_batch(&self, batch: &PacketBatch) -> bool {
        batch.weight() >= self.limit / 16
    }

    /// Adds a batch and leaves an empty one in its place.
    pub fn push(&self, batch: &mut PacketBatch) {
        if batch.is_empty() {
            return;
        }
        let batch = std::mem::take(batch);
        let mut held = self.held.lock();
        held.weight += batch.weight();
        held.batches.push_back(batch);
        while held.weight > self.limit
            && let Some(oldest) = held.batches.pop_front()
        {
            held.weight -= oldest.weight();
            held.lost += oldest.len() as u64;
        }
    }

    /// Takes at most `count` packets, oldest first.
    pub fn take(&self, count: usize) -> Vec<PacketBatch> {
        let mut held = self.held.lock();
        let mut taken = Vec::new();
        let mut left = count;
        while left > 0
            && let Some(mut batch) = held.batches.pop_front()
        {
            held.weight -= batch.weight();
            if batch.len() > left {
                taken.push(batch.split_front(left));
                held.weight += batch.weight();
                held.batches.push_front(batch);
                break;
            }
            left -= batch.len();
            taken.push(batch);
        }
        taken
    }

    /// Returns true if packets are queued.
    pub fn has_packets(&self) -> bool {
        !self.held.lock().batches.is_empty()
    }

    /// Returns the number of packets that were lost because the caller did not take them in time.
    pub fn lost(&self) -> u64 {
        self.held.lock().lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Endpoint, Fragment, LinkType, Namespace, Passage, Protocol, TcpFlags};

    fn fill(batch: &mut PacketBatch, numbers: Range<u8>) {
        let endpoint = Endpoint::new(Address::UNSPECIFIED_V4, 0);
        let packet = Packet {
            protocol: Protocol::UDP,
            source: endpoint,
            destination: endpoint,
            tcp_flags: TcpFlags::default(),
            has_payload: true,
            fragment: Fragment::Whole,
            vlan: 0,
        };
        for number in numbers {
            let data = [number; 100];
            let (link, namespace) = (LinkType::Ethernet, Namespace::HOME);
            let (wire_len, packet_limit) = (1500, u32::MAX);
            let frame = Frame {
                time: Timestamp(1),
                wire_len,
                packet_limit,
                link,
                namespace,
                passage: Passage::Unknown,
                data: &data,
            };
            batch.push(&frame, &packet);
        }
    }

    fn numbers(batches: &[PacketBatch]) -> Vec<u8> {
        batches.iter().flat_map(PacketBatch::iter).map(|(_, bytes)| bytes[0]).collect()
    }

    #[test]
    fn packets_come_out_in_order_and_in_the_number_asked_for() {
        let queue = PacketQueue::new(1 << 20);
        let mut batch = PacketBatch::default();
        fill(&mut batch, 0..5);
        queue.push(&mut batch);
        fill(&mut batch, 5..8);
        queue.push(&mut batch);
        assert_eq!(numbers(&queue.take(2)), [0, 1]);
        assert_eq!(numbers(&queue.take(4)), [2, 3, 4, 5]);
        assert_eq!(numbers(&queue.take(usize::MAX)), [6, 7]);
        assert!(!queue.has_packets());
        assert_eq!(queue.lost(), 0);
        assert_eq!(queue.held.lock().weight, 0);
    }

    #[test]
    fn the_oldest_make_room_and_are_counted() {
        let queue = PacketQueue::new(10_000);
        let mut batch = PacketBatch::default();
        for number in 0..100 {
            fill(&mut batch, number..number + 1);
            queue.push(&mut batch);
        }
        assert!(queue.held.lock().weight <= 10_000);
        let kept = numbers(&queue.take(usize::MAX));
        assert_eq!(kept.last(), Some(&99));
        assert_eq!(queue.lost() + kept.len() as u64, 100);
        assert!(kept.len() > 20, "{}", kept.len());
    }
}
