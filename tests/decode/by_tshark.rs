//! The packet that tshark decodes from a frame.

use capture::internals::model::{Fragment, LinkType, Packet, Protocol};
use std::io::Write;
use std::net::IpAddr;
use std::process::Command;

/// A packet in the terms in which tshark shows it.
#[derive(PartialEq, Eq, Debug)]
pub struct Reading {
    source: IpAddr,
    destination: IpAddr,
    vlan: u16,
    /// True if it is a part of a larger datagram, true if it is a later part, and the datagram's
    /// identification.
    fragment: (bool, bool, u32),
    /// The name in tshark's list of the frame's protocols, the ports and the TCP flags; `None` in
    /// later fragments.
    transport: Option<(&'static str, u16, u16, u8)>,
}

/// Protocol number, tshark's name, and the fields that hold the two ports; for ICMP both fields name
/// the identifier.
const TRANSPORTS: &[(u8, &str, [&str; 2])] = &[
    (6, "tcp", ["tcp.srcport", "tcp.dstport"]),
    (17, "udp", ["udp.srcport", "udp.dstport"]),
    (136, "udplite", ["udp.srcport", "udp.dstport"]),
    (132, "sctp", ["sctp.srcport", "sctp.dstport"]),
    (33, "dccp", ["dccp.srcport", "dccp.dstport"]),
    (1, "icmp", ["icmp.ident", "icmp.ident"]),
    (58, "icmpv6", ["icmpv6.echo.identifier", "icmpv6.echo.identifier"]),
];

const OTHER_FIELDS: [&str; 17] = [
    "frame.protocols",
    "ip.src",
    "ip.dst",
    "ip.flags.mf",
    "ip.frag_offset",
    "ip.id",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.fraghdr.more",
    "ipv6.fraghdr.offset",
    "ipv6.fraghdr.ident",
    "tcp.flags",
    "icmp.type",
    "icmpv6.type",
    "vlan.id",
    "ieee8021ad.id",
    "ieee8021ad.svid",
];

/// Returns the reason if tshark is unavailable.
pub fn missing() -> Option<String> {
    match Command::new("tshark").arg("--version").output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("tshark --version ended with {}", output.status)),
        Err(error) => Some(format!("tshark cannot be run: {error}")),
    }
}

impl Reading {
    pub fn of(packet: &Packet) -> Reading {
        let fragment = match packet.fragment {
            Fragment::Whole => (false, false, 0),
            Fragment::First { id } => (true, false, id),
            Fragment::Later { id } => (true, true, id),
        };
        let transport = TRANSPORTS.iter().find(|row| Protocol(row.0) == packet.protocol && !fragment.1);
        Reading {
            source: packet.source.address.ip(),
            destination: packet.destination.address.ip(),
            vlan: packet.vlan,
            fragment,
            transport: transport
                .map(|row| (row.1, packet.source.port, packet.destination.port, packet.tcp_flags.0)),
        }
    }

    /// Parses one line of tshark's output, whose columns are the fields in the order of `columns`.
    fn parse(line: &str, columns: &[&str]) -> Reading {
        let values: Vec<&str> = line.split('\t').collect();
        let text = |name: &str| values[columns.iter().position(|column| *column == name).unwrap()];
        let number = |name: &str| {
            let text = text(name);
            match text.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
                None => {
                    if text.is_empty() {
                        0
                    } else {
                        text.parse().unwrap()
                    }
                }
            }
        };
        let (v4, v6) = (["ip.src", "ip.dst"], ["ipv6.src", "ipv6.dst"]);
        let names: Vec<&str> = text("frame.protocols").split(':').collect();
        let is_v6 = names.iter().find(|name| matches!(**name, "ip" | "ipv6")) == Some(&"ipv6");
        let [source, destination] = if is_v6 { v6 } else { v4 }.map(|name| text(name).parse().unwrap());
        let (more, offset, id) = match is_v6 {
            true => ("ipv6.fraghdr.more", "ipv6.fraghdr.offset", "ipv6.fraghdr.ident"),
            false => ("ip.flags.mf", "ip.frag_offset", "ip.id"),
        };
        let later = number(offset) != 0;
        let fragmented = later || number(more) != 0;
        // An ICMP error quotes another packet, and IP in IP carries one. The names are listed from the
        // outside inwards.
        let inner = names.iter().skip_while(|name| !matches!(**name, "ip" | "ipv6")).skip(1);
        let transport = inner
            .take_while(|name| !matches!(**name, "ip" | "ipv6" | "data"))
            .find_map(|name| TRANSPORTS.iter().find(|row| row.1 == *name))
            .filter(|_| !later);
        Reading {
            source,
            destination,
            vlan: match names.iter().find(|name| matches!(**name, "vlan" | "ieee8021ad")) {
                Some(&"vlan") => number("vlan.id") as u16,
                // The first of two service tags has a separate field.
                Some(_) if number("ieee8021ad.svid") != 0 => number("ieee8021ad.svid") as u16,
                Some(_) => number("ieee8021ad.id") as u16,
                None => 0,
            },
            fragment: (fragmented, later, if fragmented { number(id) } else { 0 }),
            transport: transport.map(|row| {
                let [mut from, mut to] = row.2.map(|name| number(name) as u16);
                // In an exchange by identifier, the requesting end has the identifier as its port.
                match (row.1, number("icmp.type"), number("icmpv6.type")) {
                    ("icmp", 8 | 13 | 15 | 17 | 42, _) | ("icmpv6", _, 128 | 160) => to = 0,
                    ("icmp", ..) | ("icmpv6", ..) => from = 0,
                    _ => {}
                }
                let flags = if row.1 == "tcp" { number("tcp.flags") as u8 } else { 0 };
                (row.1, from, to, flags)
            }),
        }
    }
}

/// Decodes these frames with tshark, each by itself: nothing is reassembled.
pub fn read(link: LinkType, frames: &[Vec<u8>]) -> Vec<Reading> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&savefile(link, frames)).unwrap();
    let mut columns: Vec<&str> =
        OTHER_FIELDS.into_iter().chain(TRANSPORTS.iter().flat_map(|row| row.2)).collect();
    // Tshark fills only one column of a field that is requested twice.
    columns.sort_unstable();
    columns.dedup();
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file.path());
    for preference in ["ip.defragment", "ipv6.defragment", "tcp.desegment_tcp_streams"] {
        command.args(["-o", &format!("{preference}:FALSE")]);
    }
    command.args(["-T", "fields", "-E", "separator=/t", "-E", "occurrence=f"]);
    for column in &columns {
        command.args(["-e", column]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| Reading::parse(line, &columns)).collect()
}

/// Returns a savefile in the format of pcap-savefile(5), with the LINKTYPE_ value of the link type.
fn savefile(link: LinkType, frames: &[Vec<u8>]) -> Vec<u8> {
    let link = match link {
        LinkType::Null => 0u32,
        LinkType::Ethernet => 1,
        LinkType::RawIp | LinkType::Bare(_) => 101,
        LinkType::Loop => 108,
        LinkType::Cooked1 => 113,
        LinkType::Cooked2 => 276,
    };
    let header = [0xa1b2_c3d4u32, 2 | 4 << 16, 0, 0, 262_144, link];
    let mut file: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    for frame in frames {
        let length = frame.len() as u32;
        file.extend([0, 0, length, length].iter().flat_map(|word| word.to_le_bytes()));
        file.extend_from_slice(frame);
    }
    file
}
