//! The format of netlink messages (netlink(7), linux/netlink.h): headers, attributes, and numbers in host
//! order.

use nix::errno::Errno;

/// Bytes of a `struct nlmsghdr`.
pub(crate) const MESSAGE_HEADER: usize = size_of::<libc::nlmsghdr>();
/// Bytes of a `struct nlattr`.
pub(crate) const ATTRIBUTE_HEADER: usize = 4;
/// The mask that removes the flags that the kernel sets in an attribute's type (`NLA_TYPE_MASK`).
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// One message of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request which the message answers.
    pub sequence: u32,
    /// The bytes after the header.
    pub payload: &'a [u8],
}

/// Writes a message header to the start of `message`, whose length becomes that of the message.
pub(crate) fn begin(message: &mut [u8], kind: u16, flags: i32, sequence: u32) {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let header = [(0, length), (8, sequence)];
    for (at, value) in header {
        put(message, at, &value.to_ne_bytes());
    }
    put(message, 4, &kind.to_ne_bytes());
    put(message, 6, &(flags as u16).to_ne_bytes());
}

/// Copies `bytes` to offset `at` of `message`, as far as there is room.
pub(crate) fn put(message: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in message.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Returns the messages of a datagram. A malformed message ends them with `EBADMSG`.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = nix::Result<Message<'_>>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let message = first_message(datagram);
        let length = message.map_or(datagram.len(), |message| MESSAGE_HEADER + message.payload.len());
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message.ok_or(Errno::EBADMSG))
    })
}

fn first_message(datagram: &[u8]) -> Option<Message<'_>> {
    let length = u32_at(datagram, 0)? as usize;
    let (header, payload) = datagram.get(..length)?.split_at_checked(MESSAGE_HEADER)?;
    let (kind, flags, sequence) = (u16_at(header, 4)?, u16_at(header, 6)?, u32_at(header, 8)?);
    Some(Message { kind, flags, sequence, payload })
}

/// Returns the error number that a message states as a negative value.
pub(crate) fn errno_of(negative: u32) -> Errno {
    Errno::from_raw((negative as i32).wrapping_neg())
}

/// Returns the attributes in `bytes` with their types, up to the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & ATTRIBUTE_TYPE;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns a string attribute without its NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// Returns two bytes at an offset as a number in host order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

/// Returns four bytes at an offset as a number in host order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// Returns eight bytes at an offset as a number in host order.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let mut datagram = vec![0; MESSAGE_HEADER + 5];
        begin(&mut datagram, 20, libc::NLM_F_REQUEST, 7);
        put(&mut datagram, MESSAGE_HEADER, b"hello");
        datagram.resize(MESSAGE_HEADER + 8, 0);
        let mut second = vec![0; MESSAGE_HEADER];
        begin(&mut second, 21, 0, 8);
        datagram.extend(second);
        let found: Vec<_> = messages(&datagram).collect();
        let first = Message { kind: 20, flags: libc::NLM_F_REQUEST as u16, sequence: 7, payload: b"hello" };
        assert_eq!(found, [Ok(first), Ok(Message { kind: 21, flags: 0, sequence: 8, payload: b"" })]);
    }

    #[test]
    fn a_message_longer_than_its_datagram_is_an_error() {
        let mut datagram = vec![0; MESSAGE_HEADER];
        begin(&mut datagram, 1, 0, 1);
        datagram[0] += 1;
        assert_eq!(messages(&datagram).collect::<Vec<_>>(), [Err(Errno::EBADMSG)]);
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
