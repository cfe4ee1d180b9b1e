//! The IP header and the headers between it and the transport: addresses, fragment, protocol.

use super::link::Network;
use crate::model::{Address, Fragment, Undecoded};

/// The maximum number of IPv6 extension headers in a packet; RFC 8200, 4.1 lets each of the ten kinds occur
/// once, one twice.
pub const MAX_EXTENSIONS: usize = 16;

/// Protocol numbers that are extension headers (IANA "IPv6 Extension Header Types").
mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HOST_IDENTITY: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// The option type of the jumbo payload length (RFC 2675, 2).
const JUMBO_OPTION: u8 = 0xc2;

/// An IP datagram without its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Datagram<'a> {
    pub source: Address,
    pub destination: Address,
    pub protocol: u8,
    pub fragment: Fragment,
    /// The captured part of the transport header and its payload, without link padding.
    pub payload: &'a [u8],
    /// The length of `payload`, captured or not, by the datagram's own length; `usize::MAX` if the datagram
    /// does not state it.
    pub len: usize,
}

// With two callers the compiler would not inline this on its own, and every packet would pay for the rarely
// used one.
#[inline(always)]
pub(super) fn datagram(network: Network<'_>) -> Result<Datagram<'_>, Undecoded> {
    match network {
        Network::V4(data) => v4(data),
        Network::V6(data) => v6(data),
    }
}

/// Parses an IPv4 header (RFC 791, 3.1).
#[inline(always)]
fn v4(data: &[u8]) -> Result<Datagram<'_>, Undecoded> {
    let (header, _) = data.split_first_chunk::<20>().ok_or(Undecoded::Truncated)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // 0 marks a datagram too large for the field, which the device has yet to segment (BIG TCP, segmentation
    // offload).
    let unknown_len = total_len == 0;
    if header[0] >> 4 != 4 || header_len < 20 || (total_len < header_len && !unknown_len) {
        return Err(Undecoded::Malformed);
    }
    let place = u16::from_be_bytes([header[6], header[7]]);
    let fragment =
        place_of(place & 0x1fff != 0, place & 0x2000 != 0, u16::from_be_bytes([header[4], header[5]]).into());

    let data = if unknown_len { data } else { within(data, total_len) };
    let mut protocol = header[9];
    let mut payload = data.get(header_len..).unwrap_or_default();
    let mut len = if unknown_len { usize::MAX } else { total_len - header_len };
    if protocol == extension::AUTHENTICATION && !matches!(fragment, Fragment::Later { .. }) {
        let authenticated = payload.len();
        (protocol, payload) = pass_authentication(payload)?;
        len -= authenticated - payload.len();
    }
    Ok(Datagram {
        source: Address::v4([header[12], header[13], header[14], header[15]]),
        destination: Address::v4([header[16], header[17], header[18], header[19]]),
        protocol,
        fragment,
        payload,
        len,
    })
}

/// Returns the length of the IP header, including extension headers and options, as far as it was captured.
pub(super) fn header_len(network: Network<'_>, datagram: &Datagram<'_>) -> usize {
    let (len, data) = own_len(network);
    let measured = if len == 0 { data } else { within(data, len) };
    network.bytes().len() - data.len() + measured.len() - datagram.payload.len()
}

/// Returns the length of the hop-by-hop header with the jumbo option by which Linux marks a TCP frame that is
/// too long for the length field of IPv6 (RFC 2675, 2); 0 for every other datagram.
pub(super) fn jumbo_option_len(network: Network<'_>) -> usize {
    let (len, data) = own_len(network);
    match (network, data) {
        (Network::V6(header), [_, 0, JUMBO_OPTION, 4, ..])
            if len == 0 && header.get(6) == Some(&extension::HOP_BY_HOP) =>
        {
            8
        }
        _ => 0,
    }
}

/// Returns the length that a datagram states, 0 if it is too large for the field, and the bytes that it
/// covers: in IPv4 all of them, in IPv6 those after the first header.
fn own_len(network: Network<'_>) -> (usize, &[u8]) {
    let number = |data: &[u8], at: usize| {
        data.get(at..)
            .and_then(<[u8]>::first_chunk)
            .map_or(0, |bytes| usize::from(u16::from_be_bytes(*bytes)))
    };
    match network {
        Network::V4(data) => (number(data, 2), data),
        Network::V6(data) => (number(data, 4), data.get(40..).unwrap_or_default()),
    }
}

/// Parses an IPv6 header (RFC 8200, 3 and 4).
#[inline(always)]
fn v6(data: &[u8]) -> Result<Datagram<'_>, Undecoded> {
    let (header, rest) = data.split_first_chunk::<40>().ok_or(Undecoded::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(Undecoded::Malformed);
    }
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // 0 marks a jumbogram (RFC 2675) or, as in IPv4, a datagram that is not yet segmented.
    let unknown_len = payload_len == 0;
    let rest = if unknown_len { rest } else { within(rest, payload_len) };
    let (addresses, _) = header[8..].as_chunks::<16>();
    let (source, destination) = (addresses[0], addresses[1]);
    let (protocol, fragment, payload) = pass_extensions(header[6], rest)?;
    let len = if unknown_len { usize::MAX } else { payload_len - (rest.len() - payload.len()) };
    Ok(Datagram {
        source: Address::v6(source),
        destination: Address::v6(destination),
        protocol,
        fragment,
        payload,
        len,
    })
}

/// Returns the part of `data` that belongs to the datagram by its own length: the link pads short frames, and
/// padding must not be read as a header. A datagram that was captured in part is returned as it is.
#[inline]
fn within(data: &[u8], len: usize) -> &[u8] {
    data.get(..len).unwrap_or(data)
}

#[inline]
fn place_of(has_offset: bool, more: bool, id: u32) -> Fragment {
    match (has_offset, more) {
        (false, false) => Fragment::Whole,
        (false, true) => Fragment::First { id },
        (true, _) => Fragment::Later { id },
    }
}

/// Follows the chain of extension headers to the protocol that ends it.
#[inline]
fn pass_extensions(mut next: u8, mut data: &[u8]) -> Result<(u8, Fragment, &[u8]), Undecoded> {
    let mut fragment = Fragment::Whole;
    let mut fragment_seen = false;
    for _ in 0..=MAX_EXTENSIONS {
        (next, data) = match next {
            extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::DESTINATION
            | extension::MOBILITY
            | extension::HOST_IDENTITY
            | extension::SHIM6 => {
                let (header, _) = data.split_first_chunk::<2>().ok_or(Undecoded::Truncated)?;
                (header[0], after(data, (usize::from(header[1]) + 1) * 8))
            }
            extension::AUTHENTICATION => pass_authentication(data)?,
            // Two fragment headers would mean a fragment of a fragment, which no host sends.
            extension::FRAGMENT if fragment_seen => return Err(Undecoded::Malformed),
            extension::FRAGMENT => {
                let (header, rest) = data.split_first_chunk::<8>().ok_or(Undecoded::Truncated)?;
                let place = u16::from_be_bytes([header[2], header[3]]);
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                // No offset and no more fragments: an atomic fragment, which is a whole datagram (RFC 6946).
                fragment = place_of(place & 0xfff8 != 0, place & 1 != 0, id);
                fragment_seen = true;
                if matches!(fragment, Fragment::Later { .. }) {
                    return Ok((header[0], fragment, rest));
                }
                (header[0], rest)
            }
            _ => return Ok((next, fragment, data)),
        };
    }
    Err(Undecoded::Malformed)
}

/// Skips an authentication header (RFC 4302, 2): its length is counted in 32-bit words less two, also in
/// IPv6.
#[inline]
fn pass_authentication(data: &[u8]) -> Result<(u8, &[u8]), Undecoded> {
    let (header, _) = data.split_first_chunk::<2>().ok_or(Undecoded::Truncated)?;
    Ok((header[0], after(data, (usize::from(header[1]) + 2) * 4)))
}

/// Returns the data after a header of `len` bytes, or nothing if the header itself is cut.
#[inline]
fn after(data: &[u8], len: usize) -> &[u8] {
    data.get(len..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an IPv4 header of 20 bytes, from 192.0.2.1 to 198.51.100.2, with identification 0x1234.
    fn v4_header(version_and_length: u8, total_len: u16, place: u16, protocol: u8) -> Vec<u8> {
        let mut header = vec![version_and_length, 0];
        header.extend_from_slice(&total_len.to_be_bytes());
        header.extend_from_slice(&[0x12, 0x34]);
        header.extend_from_slice(&place.to_be_bytes());
        header.extend_from_slice(&[64, protocol, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2]);
        header
    }

    fn v6_header(payload_len: u16, next: u8) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend_from_slice(&payload_len.to_be_bytes());
        header.extend_from_slice(&[next, 64]);
        header.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        header.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        header
    }

    #[test]
    fn ipv4_addresses_and_options() {
        let plain = [v4_header(0x45, 24, 0, 17), vec![1, 2, 3, 4]].concat();
        let read = v4(&plain).unwrap();
        assert_eq!(read.source, Address::v4([192, 0, 2, 1]));
        assert_eq!(read.destination, Address::v4([198, 51, 100, 2]));
        assert_eq!((read.protocol, read.fragment, read.payload), (17, Fragment::Whole, &[1, 2, 3, 4][..]));

        let options = [v4_header(0x4f, 64, 0, 6), vec![1; 40], vec![1, 2, 3, 4]].concat();
        assert_eq!(v4(&options).unwrap().payload, &[1, 2, 3, 4]);
    }

    #[test]
    fn ipv4_lengths_that_cannot_be() {
        for version_and_length in [0x35, 0x55, 0x65, 0x44, 0x40] {
            assert_eq!(v4(&v4_header(version_and_length, 20, 0, 6)), Err(Undecoded::Malformed));
        }
        assert_eq!(v4(&v4_header(0x45, 19, 0, 6)), Err(Undecoded::Malformed));
        assert_eq!(v4(&v4_header(0x46, 20, 0, 6)), Err(Undecoded::Malformed));
        assert_eq!(v4(&v4_header(0x45, 20, 0, 6)[..19]), Err(Undecoded::Truncated));
    }

    #[test]
    fn a_length_of_zero_or_beyond_the_capture_takes_what_there_is_and_padding_is_left_out() {
        for (total_len, expected) in [(0, 6), (1500, 6), (26, 6), (22, 2), (20, 0)] {
            let frame = [v4_header(0x45, total_len, 0, 6), vec![7; 6]].concat();
            assert_eq!(v4(&frame).unwrap().payload.len(), expected, "total length {total_len}");
        }
        for (payload_len, expected) in [(0, 6), (1500, 6), (6, 6), (2, 2)] {
            let frame = [v6_header(payload_len, 6), vec![7; 6]].concat();
            assert_eq!(v6(&frame).unwrap().payload.len(), expected, "payload length {payload_len}");
        }
    }

    #[test]
    fn ipv4_fragments() {
        let place_in_header = |place| v4(&v4_header(0x45, 20, place, 17)).unwrap().fragment;
        assert_eq!(place_in_header(0x0000), Fragment::Whole);
        assert_eq!(place_in_header(0x4000), Fragment::Whole, "don't fragment");
        assert_eq!(place_in_header(0x8000), Fragment::Whole, "the reserved bit");
        assert_eq!(place_in_header(0x2000), Fragment::First { id: 0x1234 });
        assert_eq!(place_in_header(0x2001), Fragment::Later { id: 0x1234 });
        assert_eq!(place_in_header(0x1000), Fragment::Later { id: 0x1234 });
        assert_eq!(place_in_header(0x1fff), Fragment::Later { id: 0x1234 });
    }

    #[test]
    fn ipv6_addresses_and_version() {
        let frame = [v6_header(4, 17), vec![1, 2, 3, 4]].concat();
        let read = v6(&frame).unwrap();
        assert_eq!(format!("{:?} {:?}", read.source, read.destination), "2001:db8::1 2001:db8::2");
        assert_eq!((read.protocol, read.fragment, read.payload), (17, Fragment::Whole, &[1, 2, 3, 4][..]));
        assert_eq!(v6(&frame[..39]), Err(Undecoded::Truncated));
        assert_eq!(v6(&v4_header(0x45, 60, 0, 6).repeat(2)), Err(Undecoded::Malformed));
    }

    #[test]
    fn extension_headers_are_passed_by_their_own_lengths() {
        // Hop-by-hop of 8 bytes, routing of 24, destination of 16, authentication of 24, then UDP.
        let chain = [
            [vec![43, 0], vec![0; 6]].concat(),
            [vec![60, 2], vec![0; 22]].concat(),
            [vec![51, 1], vec![0; 14]].concat(),
            [vec![17, 4], vec![0; 22]].concat(),
            vec![1, 2, 3, 4],
        ]
        .concat();
        assert_eq!(pass_extensions(0, &chain), Ok((17, Fragment::Whole, &[1, 2, 3, 4][..])));
        for next in [135, 139, 140] {
            let mobile = [vec![59, 0], vec![0; 6]].concat();
            assert_eq!(pass_extensions(next, &mobile), Ok((59, Fragment::Whole, &[][..])));
        }
        // ESP, "no next header" and the experimental numbers end the chain.
        for end in [50, 59, 253, 254, 255] {
            assert_eq!(pass_extensions(end, &[9]), Ok((end, Fragment::Whole, &[9][..])));
        }
    }

    #[test]
    fn ipv6_fragments() {
        let header =
            |place: u16| [vec![17, 0], place.to_be_bytes().to_vec(), vec![0xde, 0xad, 0xbe, 0xef]].concat();
        let id = 0xdead_beef;
        assert_eq!(pass_extensions(44, &header(0)), Ok((17, Fragment::Whole, &[][..])), "atomic");
        assert_eq!(pass_extensions(44, &header(0x0006)), Ok((17, Fragment::Whole, &[][..])), "reserved bits");
        assert_eq!(pass_extensions(44, &header(0x0001)), Ok((17, Fragment::First { id }, &[][..])));
        assert_eq!(pass_extensions(44, &header(0x0009)), Ok((17, Fragment::Later { id }, &[][..])));
        assert_eq!(pass_extensions(44, &header(0xfff8)), Ok((17, Fragment::Later { id }, &[][..])));
        assert_eq!(pass_extensions(44, &header(1)[..7]), Err(Undecoded::Truncated));
    }

    #[test]
    fn nothing_is_read_as_a_header_after_the_header_of_a_later_fragment() {
        let data = [60, 0, 0, 8, 0, 0, 0, 1];
        assert_eq!(pass_extensions(44, &data), Ok((60, Fragment::Later { id: 1 }, &[][..])));
        let authenticated = [v4_header(0x45, 24, 0x0001, 51), vec![6, 4, 0, 0]].concat();
        assert_eq!(v4(&authenticated).unwrap().protocol, 51);
    }

    #[test]
    fn the_authentication_header_of_ipv4_is_passed_too() {
        let frame = [v4_header(0x45, 48, 0, 51), vec![6, 4], vec![0; 22], vec![1, 2, 3, 4]].concat();
        let read = v4(&frame).unwrap();
        assert_eq!((read.protocol, read.payload), (6, &[1, 2, 3, 4][..]));
        assert_eq!(v4(&frame[..21]), Err(Undecoded::Truncated));
    }

    #[test]
    fn chains_are_bounded() {
        let chain = |headers: usize| {
            [[60, 0, 0, 0, 0, 0, 0, 0].repeat(headers), vec![6, 0, 0, 0, 0, 0, 0, 0]].concat()
        };
        assert_eq!(pass_extensions(60, &chain(MAX_EXTENSIONS - 1)), Ok((6, Fragment::Whole, &[][..])));
        assert_eq!(pass_extensions(60, &chain(MAX_EXTENSIONS)), Err(Undecoded::Malformed));
        let twice = [[44, 0, 0, 0, 0, 0, 0, 1], [17, 0, 0, 1, 0, 0, 0, 1]].concat();
        assert_eq!(pass_extensions(44, &twice), Err(Undecoded::Malformed));
    }
}
