//! Traffic to measure with: keys, the order in which flows get their packets, and a floor for decoding.

#![allow(dead_code, reason = "every bench uses a part of it")]

use capture::internals::model::{Address, Endpoint, FlowKey, Namespace, Protocol};

/// Returns the key of flow `number`: a client anywhere in the IPv4 Internet, connected to one local server.
pub fn key(number: u32) -> FlowKey {
    // An odd factor permutes the numbers, so that consecutive numbers do not give adjacent addresses.
    let [a, b, c, d] = number.wrapping_mul(0x9e37_79b1).to_be_bytes();
    FlowKey {
        local: Endpoint::new(Address::v4([192, 0, 2, 1]), 443),
        remote: Endpoint::new(Address::v4([a, b, c, d]), 40_000),
        protocol: Protocol::TCP,
        namespace: Namespace::HOME,
    }
}

/// xorshift64 (Marsaglia 2003): yields the same numbers in every run.
pub fn random() -> impl FnMut() -> u64 {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// The order in which flows get their packets.
#[derive(Clone, Copy)]
pub enum Order {
    /// One flow after the other: a prefetcher can fetch the next ones ahead of time.
    Sequential,
    /// Random: in a large table, the flow of a packet is in no cache.
    Random,
}

impl Order {
    /// Both orders with their names.
    pub const ALL: [(&'static str, Order); 2] =
        [("sequential", Order::Sequential), ("random", Order::Random)];

    /// Returns the flow of packet `number`.
    pub fn flow(self, number: usize, flows: usize, random: &mut impl FnMut() -> u64) -> usize {
        match self {
            Order::Sequential => number % flows,
            Order::Random => (random() >> 20) as usize % flows,
        }
    }
}

/// Reads both endpoints of an untagged Ethernet frame with an IPv4 header without options at their fixed
/// offsets, with a single bounds check: the minimum that any decoder must do.
#[inline]
pub fn fixed_offsets(frame: &[u8]) -> Option<(Endpoint, Endpoint)> {
    let header = frame.first_chunk::<38>()?;
    let address = |at: usize| Address::v4([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Some((Endpoint::new(address(26), port(34)), Endpoint::new(address(30), port(36))))
}
