//! Parser of the rows of the kernel's socket tables, `/proc/net/{tcp,udp,udplite,raw,icmp}` and their IPv6
//! siblings. Pure: no I/O.

use crate::model::{Address, Endpoint};
use crate::proc::parse::decimal;

/// One row of a socket table.
///
/// All the tables share their first ten columns (proc_pid_net(5); `get_tcp4_sock` in net/ipv4/tcp_ipv4.c,
/// `udp4_format_sock` in net/ipv4/udp.c, `__ip6_dgram_sock_seq_show` in net/ipv6/datagram.c).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketRow {
    /// The endpoint that the socket is bound to. In the raw tables the port is the IP protocol number, in the
    /// ICMP tables the echo identifier.
    pub local: Endpoint,
    /// The peer it is connected to; a wildcard address and port 0 if it is not connected.
    pub remote: Endpoint,
    /// The state's number ([`crate::model::tcp_state`]).
    pub state: u8,
    /// The user whose process created the socket.
    pub uid: u32,
    /// The socket's inode number; 0 if no process has it: TIME_WAIT, SYN_RECV, not yet accepted, orphaned.
    pub inode: u64,
}

/// Passes every row of `text` to `each`, and returns the number of lines that were neither a row nor a
/// table's heading.
///
/// The width of the addresses distinguishes IPv4 and IPv6 rows. A malformed line does not affect others.
pub fn parse_table(text: &[u8], mut each: impl FnMut(SocketRow)) -> u64 {
    let mut malformed = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        match parse_row(line) {
            Some(row) => each(row),
            None if is_heading(line) => {}
            None => malformed += 1,
        }
    }
    malformed
}

fn is_heading(line: &[u8]) -> bool {
    let text = line.trim_ascii_start();
    text.is_empty() || text.starts_with(b"sl ")
}

fn parse_row(line: &[u8]) -> Option<SocketRow> {
    let mut fields = RowFields(line);
    fields.next()?.strip_suffix(b":")?;
    let local = fields.next()?;
    let remote = fields.next()?;
    if local.len() != remote.len() {
        return None;
    }
    let local = parse_endpoint(local)?;
    let remote = parse_endpoint(remote)?;
    let &[high, low] = fields.next()? else { return None };
    let state = nibble(high)? << 4 | nibble(low)?;
    // Queues, timer, retransmissions.
    for _ in 0..3 {
        fields.next()?;
    }
    let uid = u32::try_from(decimal(fields.next()?)?).ok()?;
    fields.next()?;
    let inode = decimal(fields.next()?)?;
    Some(SocketRow { local, remote, state, uid, inode })
}

/// The fields of a line, separated by any number of spaces.
struct RowFields<'a>(&'a [u8]);

impl<'a> Iterator for RowFields<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let start = self.0.iter().position(|&byte| byte != b' ')?;
        let text = self.0.get(start..)?;
        let end = text.iter().position(|&byte| byte == b' ').unwrap_or(text.len());
        let (field, rest) = text.split_at(end);
        self.0 = rest;
        Some(field)
    }
}

/// Parses `0100007F:1F90`, or four such words before the colon. The kernel prints each 32-bit word of the
/// address, which is in network order, as a number of the host: its bytes in host order are the address.
#[inline]
fn parse_endpoint(field: &[u8]) -> Option<Endpoint> {
    let (address, port) = field.split_last_chunk::<4>()?;
    let address = address.strip_suffix(b":")?;
    let address = match address.as_chunks::<8>() {
        ([word], []) => Address::v4(hex_word(word)?.to_ne_bytes()),
        ([a, b, c, d], []) => {
            let mut bytes = [0; 16];
            for (four, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip([a, b, c, d]) {
                *four = hex_word(word)?.to_ne_bytes();
            }
            Address::v6(bytes)
        }
        _ => return None,
    };
    let mut number = 0;
    for digit in port {
        number = number << 4 | u16::from(nibble(*digit)?);
    }
    Some(Endpoint::new(address, number))
}

#[inline]
pub(in crate::owner) fn hex_word(digits: &[u8; 8]) -> Option<u32> {
    let mut number = 0;
    for &digit in digits {
        number = number << 4 | u32::from(nibble(digit)?);
    }
    Some(number)
}

#[inline]
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
pub(in crate::owner) mod tests {
    use super::*;
    use crate::model::tcp_state::LISTEN;
    use proptest::prelude::*;
    use std::net::{IpAddr, SocketAddr};

    pub const HEADING: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn rows(text: &str) -> (Vec<SocketRow>, u64) {
        let mut rows = Vec::new();
        let malformed = parse_table(text.as_bytes(), |row| rows.push(row));
        (rows, malformed)
    }

    fn endpoint(text: &str) -> Endpoint {
        let socket: SocketAddr = text.parse().unwrap();
        Endpoint::new(socket.ip().into(), socket.port())
    }

    /// Returns an endpoint as the kernel prints it. An IPv4 endpoint can have the IPv6 form too.
    pub fn render_endpoint(endpoint: Endpoint, v6: bool) -> String {
        let (words, _) = endpoint.address.bytes().as_chunks::<4>();
        let shown = if v6 { words } else { &words[3..] };
        let address: String = shown.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect();
        format!("{address}:{:04X}", endpoint.port)
    }

    /// Returns a row as the kernel prints it.
    pub fn render(row: &SocketRow, v6: bool) -> String {
        let SocketRow { local, remote, state, uid, inode } = row;
        let (local, remote) = (render_endpoint(*local, v6), render_endpoint(*remote, v6));
        format!(
            "{:>4}: {local} {remote} {state:02X} 00000000:00000000 00:00000000 00000000 {uid:5} {:8} {inode} 1 00000000e791a100 100 0 0 10 0\n",
            7, 0
        )
    }

    // The lines below are from a little-endian machine, on which the kernel prints the bytes of each word
    // reversed.
    #[cfg(target_endian = "little")]
    #[test]
    fn rows_as_kernels_printed_them() {
        let (found, malformed) = rows(concat!(
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     \n",
            "   0: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1520 1 00000000e791a100 100 0 0 10 0                      \n",
            "   1: 0100007F:D306 0100007F:B291 01 00000000:00000000 00:00000000 00000000  1000        0 14979 2 0000000018a0e729 20 0 0 10 -1                     \n",
            "11933: 00000000:E8B0 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 14980 2 00000000e9f5199c 0         \n",
            "   1: 0000000000000000FFFF00000100007F:B291 0000000000000000FFFF00000100007F:D306 01 00000000:00000000 00:00000000 00000000     0        0 0 1 00000000a7f4c319 20 0 0 10 -1\n",
            "   5: B80D01200000000000000000DEC0ADDE:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000 65534        0 4294967295 2 0 0\n",
        ));
        let row = |local, remote, state, uid, inode| SocketRow {
            local: endpoint(local),
            remote: endpoint(remote),
            state,
            uid,
            inode,
        };
        assert_eq!(malformed, 0);
        assert_eq!(
            found,
            [
                row("0.0.0.0:2024", "0.0.0.0:0", LISTEN, 0, 1520),
                row("127.0.0.1:54022", "127.0.0.1:45713", 1, 1000, 14979),
                row("0.0.0.0:59568", "0.0.0.0:0", 7, 0, 14980),
                row("127.0.0.1:45713", "127.0.0.1:54022", 1, 0, 0),
                row("[2001:db8::dead:c0de]:53", "[::]:0", 7, 65534, 4294967295),
            ]
        );
    }

    #[test]
    fn one_odd_row_loses_nothing_else() {
        let good = render(
            &SocketRow {
                local: endpoint("10.0.0.1:1"),
                remote: endpoint("10.0.0.2:2"),
                state: 1,
                uid: 0,
                inode: 9,
            },
            false,
        );
        let cut = good.split_at(40).0;
        let odd = [
            good.replace(" 01 ", " 0x01 "),
            good.replacen(':', "", 1),
            good.replace(":0002", ":00G2"),
            good.replace(" 9 1 ", " -9 1 "),
            good.replace(" 9 1 ", " 99999999999999999999 1 "),
            format!("{cut}\n"),
            "slot\n".to_string(),
        ];
        for odd in odd {
            assert_ne!(odd, good);
            let (found, malformed) = rows(&format!("{HEADING}{good}{odd}\n{good}"));
            assert_eq!((found.len(), malformed), (2, 1), "{odd}");
        }
        assert_eq!(rows(good.trim_end()).0.len(), 1, "the last line need not end");
    }

    fn any_endpoint(v6: bool) -> impl Strategy<Value = Endpoint> {
        (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(bytes, port)| {
            let address = if v6 { Address::v6(bytes) } else { Address::v4(*bytes.first_chunk().unwrap()) };
            Endpoint::new(address, port)
        })
    }

    fn any_row() -> impl Strategy<Value = (SocketRow, bool)> {
        any::<bool>().prop_flat_map(|v6| {
            (any_endpoint(v6), any_endpoint(v6), any::<u8>(), any::<u32>(), any::<u64>()).prop_map(
                move |(local, remote, state, uid, inode)| {
                    (SocketRow { local, remote, state, uid, inode }, v6)
                },
            )
        })
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_read_back(expected in proptest::collection::vec(any_row(), 0..20)) {
            let text: String = expected.iter().map(|(row, v6)| render(row, *v6)).collect();
            let (found, malformed) = rows(&format!("{HEADING}{text}"));
            prop_assert_eq!(malformed, 0);
            prop_assert_eq!(found, expected.into_iter().map(|(row, _)| row).collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_do_harm(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut count = 0;
            let malformed = parse_table(&text, |_| count += 1);
            prop_assert!(count + malformed <= text.iter().filter(|&&byte| byte == b'\n').count() as u64 + 1);
        }

        #[test]
        fn no_damage_does_harm((row, v6) in any_row(), at in 0usize..200, byte in any::<u8>()) {
            let mut text = render(&row, v6).into_bytes();
            let at = at % text.len();
            text[at] = byte;
            parse_table(&text, |_| ());
        }
    }

    #[test]
    fn families_differ_by_address_not_by_table() {
        let mapped = SocketRow {
            local: endpoint("192.0.2.1:80"),
            remote: endpoint("192.0.2.2:81"),
            state: 1,
            uid: 0,
            inode: 1,
        };
        assert_eq!(rows(&render(&mapped, true)).0, rows(&render(&mapped, false)).0);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(rows(&render(&mapped, true)).0[0].local.address, Address::from(address));
    }
}
