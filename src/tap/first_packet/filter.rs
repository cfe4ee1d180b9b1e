//! The classic BPF filter that passes only packets that may be the first of a flow whose owner is to be
//! looked up.
//!
//! It runs on a packet socket of type `SOCK_DGRAM`, so that offset 0 is the IP header. The fields below IP
//! come from the ancillary loads of linux/filter.h (Documentation/networking/filter.rst, "BPF extensions").

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K,
    BPF_LD, BPF_LDX, BPF_MSH, BPF_RET, BPF_ST, BPF_W, sock_filter,
};

/// The maximum number of local ports that a filter excludes: a conditional jump reaches 255 instructions.
pub(in crate::tap) const MAX_PORTS: usize = 160;

/// Bytes of a packet that are delivered: IPv4 or IPv6, and TCP up to the flags.
pub(in crate::tap) const SNAPLEN: u32 = 128;

/// The selection of packets that a filter passes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::tap) struct Choice {
    /// Local UDP ports whose packets are excluded.
    pub ports: Vec<u16>,
    /// The random share of TCP's opening packets that passes, in units of 1 in 2^32.
    pub openings: u32,
    /// The random share of the selected datagrams that passes, in units of 1 in 2^32.
    pub datagrams: u32,
}

const AD_PROTOCOL: u32 = ancillary(libc::SKF_AD_PROTOCOL);
const AD_PACKET_TYPE: u32 = ancillary(libc::SKF_AD_PKTTYPE);
const AD_HARDWARE: u32 = ancillary(libc::SKF_AD_HATYPE);
const AD_RANDOM: u32 = ancillary(libc::SKF_AD_RANDOM);

const fn ancillary(which: i32) -> u32 {
    (libc::SKF_AD_OFF + which) as u32
}

const OUTGOING: u32 = libc::PACKET_OUTGOING as u32;
const LOOPBACK: u32 = libc::ARPHRD_LOOPBACK as u32;
const IPV4: u32 = libc::ETH_P_IP as u32;
const IPV6: u32 = libc::ETH_P_IPV6 as u32;
const TCP: u32 = libc::IPPROTO_TCP as u32;
const UDP: u32 = libc::IPPROTO_UDP as u32;
/// The flag byte's SYN and ACK (RFC 9293, 3.1).
const SYN: u32 = 0x02;
const SYN_ACK: u32 = 0x12;

/// The target of a jump in the filter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Loopback,
    Version4,
    Version6,
    Protocol,
    Datagram,
    Ip,
    Pass,
    Drop,
}

/// Instructions whose jumps name labels until all positions are known.
#[derive(Default)]
struct Assembler {
    code: Vec<(u16, u32, To, To)>,
    labels: Vec<(To, usize)>,
}

impl Assembler {
    fn label(&mut self, label: To) {
        self.labels.push((label, self.code.len()));
    }

    fn op(&mut self, code: u32, k: u32) {
        self.code.push((code as u16, k, To::Next, To::Next));
    }

    fn jump(&mut self, test: u32, k: u32, yes: To, no: To) {
        self.code.push(((BPF_JMP | test | BPF_K) as u16, k, yes, no));
    }

    fn assemble(self) -> Vec<sock_filter> {
        let labels = self.labels;
        let offset = |at: usize, to: To| {
            let place = labels.iter().find(|(label, _)| *label == to).map_or(at + 1, |(_, place)| *place);
            // No filter is so long that this does not fit; see MAX_PORTS.
            u8::try_from(place.saturating_sub(at + 1)).unwrap_or(u8::MAX)
        };
        let instructions = self.code.iter().enumerate();
        instructions
            .map(|(at, &(code, k, yes, no))| sock_filter { code, jt: offset(at, yes), jf: offset(at, no), k })
            .collect()
    }
}

/// Returns the filter. It passes TCP's SYN without ACK, leaving or arriving, and UDP that leaves, except from
/// the ports of `choice`. Loopback shows each packet twice; there the arriving copy stands for both.
pub(in crate::tap) fn program(choice: &Choice) -> Vec<sock_filter> {
    let mut a = Assembler::default();
    a.op(BPF_LD | BPF_W | BPF_ABS, AD_HARDWARE);
    a.jump(BPF_JEQ, LOOPBACK, To::Loopback, To::Next);
    // M[0] holds the packet type, which states the direction of the packet.
    a.op(BPF_LD | BPF_W | BPF_ABS, AD_PACKET_TYPE);
    a.op(BPF_ST, 0);
    a.jump(BPF_JEQ, OUTGOING, To::Ip, To::Ip);
    a.label(To::Loopback);
    a.op(BPF_LD | BPF_W | BPF_ABS, AD_PACKET_TYPE);
    a.jump(BPF_JEQ, OUTGOING, To::Drop, To::Next);
    a.op(BPF_LD | BPF_IMM, OUTGOING);
    a.op(BPF_ST, 0);
    a.label(To::Ip);
    a.op(BPF_LD | BPF_W | BPF_ABS, AD_PROTOCOL);
    a.jump(BPF_JEQ, IPV4, To::Version4, To::Next);
    a.jump(BPF_JEQ, IPV6, To::Version6, To::Drop);
    a.label(To::Version4);
    // Later fragments have no ports.
    a.op(BPF_LD | BPF_H | BPF_ABS, 6);
    a.jump(BPF_JSET, 0x1fff, To::Drop, To::Next);
    a.op(BPF_LDX | BPF_MSH | BPF_B, 0);
    a.op(BPF_LD | BPF_B | BPF_ABS, 9);
    a.jump(BPF_JEQ, TCP, To::Protocol, To::Protocol);
    a.label(To::Version6);
    // Packets with extension headers are left to the batch.
    a.op(BPF_LDX | BPF_IMM, 40);
    a.op(BPF_LD | BPF_B | BPF_ABS, 6);
    a.label(To::Protocol);
    a.jump(BPF_JEQ, UDP, To::Datagram, To::Next);
    a.jump(BPF_JEQ, TCP, To::Next, To::Drop);
    a.op(BPF_LD | BPF_B | BPF_IND, 13);
    a.op(BPF_ALU | BPF_AND | BPF_K, SYN_ACK);
    a.jump(BPF_JEQ, SYN, To::Next, To::Drop);
    a.op(BPF_LD | BPF_W | BPF_ABS, AD_RANDOM);
    a.jump(BPF_JGT, choice.openings, To::Drop, To::Pass);
    a.label(To::Datagram);
    a.op(BPF_LD | libc::BPF_MEM, 0);
    a.jump(BPF_JEQ, OUTGOING, To::Next, To::Drop);
    a.op(BPF_LD | BPF_W | BPF_ABS, AD_RANDOM);
    a.jump(BPF_JGT, choice.datagrams, To::Drop, To::Next);
    a.op(BPF_LD | BPF_H | BPF_IND, 0);
    for &port in choice.ports.iter().take(MAX_PORTS) {
        a.jump(BPF_JEQ, port.into(), To::Drop, To::Next);
    }
    a.label(To::Pass);
    a.op(BPF_RET | BPF_K, SNAPLEN);
    a.label(To::Drop);
    a.op(BPF_RET | BPF_K, 0);
    a.assemble()
}
