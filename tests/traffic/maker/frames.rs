//! UDP that no UDP socket has sent: whole frames, put on the link by a packet socket (packet(7)).

use super::bulk::{DATAGRAM, paced};
use super::{Moved, Orders, Outcome, Report, say, wait_for_line};
use std::io::{Error, Result};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

/// The two ends of the link as the tests make them, and the device.
const TO: [u8; 6] = [2, 0, 0, 0, 0, 2];
const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];
const FROM_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const DEVICE: &std::ffi::CStr = c"veth0";

/// A port that no process has bound and that the kernel never assigns.
const FROM_PORT: u16 = 9;

/// Sends frames with datagrams to the address.
pub fn source(orders: &Orders) -> Outcome<Report> {
    let to: SocketAddrV4 = orders.address.parse()?;
    let from = SocketAddrV4::new(FROM_ADDRESS, FROM_PORT);
    let link = Link::open()?;
    say("ready")?;
    wait_for_line()?;
    let began = Instant::now();
    let sent = paced(orders, DATAGRAM, |payload| link.send(&frame(from, to, payload)))?;
    Ok(Report::own(Moved { connections: 1, sent, received: 0 }, began))
}

/// Returns a frame of Ethernet, IPv4 and UDP without a checksum, which IPv4 permits (RFC 768).
pub fn frame(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp_length = (8 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    // No identification, don't fragment, 64 hops, UDP, and the place of the checksum.
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(from.ip().octets());
    ip.extend(to.ip().octets());
    let checksum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&checksum);
    let mut frame = [&TO[..], &FROM, &[8, 0], &ip].concat();
    for number in [from.port(), to.port(), udp_length, 0] {
        frame.extend(number.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

/// Returns the complement of the sum of all pairs of bytes (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let pairs = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = pairs.sum::<u32>();
    !((sum >> 16) + (sum & 0xffff)) as u16
}

/// A packet socket that only sends.
pub struct Link {
    socket: OwnedFd,
    address: libc::sockaddr_ll,
}

impl Link {
    pub fn open() -> Result<Link> {
        // With protocol 0 it receives nothing.
        // SAFETY: the call takes no pointers.
        let descriptor = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if descriptor < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the call has just returned the descriptor, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        // SAFETY: the name ends with NUL, and the call only reads it.
        let device = unsafe { libc::if_nametoindex(DEVICE.as_ptr()) };
        if device == 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: zeros are a valid value of each of its fields.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = device as i32;
        Ok(Link { socket, address })
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let length = size_of_val(&self.address) as libc::socklen_t;
        let (socket, address) = (self.socket.as_raw_fd(), (&raw const self.address).cast());
        // SAFETY: both pointers are to memory of the given lengths, which the call only reads.
        let sent = unsafe { libc::sendto(socket, frame.as_ptr().cast(), frame.len(), 0, address, length) };
        if sent < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }
}
