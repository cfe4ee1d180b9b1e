//! Keeping a device's ring to this process: a forked child would keep it, and with it the packet socket, after the closing.

use nix::sys::stat::fstat;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Leaves the mappings of a packet socket out of children that are forked from now on. libpcap does not tell where it has
/// mapped the ring, but the kernel does.
pub(super) fn keep_from_children(socket: BorrowedFd<'_>) {
    let Ok(stat) = fstat(socket) else { return };
    let Ok(maps) = std::fs::File::open("/proc/thread-self/maps") else { return };
    let end = format!(" socket:[{}]", stat.st_ino);
    let lines = BufReader::new(maps).split(b'\n').map_while(Result::ok);
    for line in lines.filter(|line| line.ends_with(end.as_bytes())) {
        let Some((start, length)) = range_of(&line) else { continue };
        // SAFETY: the range is a mapping of this socket, which is ours and stays mapped; only what a fork does with it changes.
        // It fails only if the range is not mapped.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), length, libc::MADV_DONTFORK) };
    }
}

/// The beginning and length of a mapping (proc_pid_maps(5)).
fn range_of(line: &[u8]) -> Option<(usize, usize)> {
    let range = std::str::from_utf8(line.split(|&byte| byte == b' ').next()?).ok()?;
    let (start, end) = range.split_once('-')?;
    let [start, end] = [start, end].map(|number| usize::from_str_radix(number, 16));
    let (start, end) = (start.ok()?, end.ok()?);
    Some((start, end.checked_sub(start)?))
}

/// Has a packet socket take no more packets. A child that was forked just as the ring was mapped has that all the same.
pub(super) fn silence(socket: impl AsFd) {
    // BPF_RET | BPF_K, 0: no byte of any packet.
    let mut instruction = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut instruction };
    // SAFETY: the program is one instruction long and outlives the call, which copies it. Where it fails the socket is closed
    // as it is.
    unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_tells_the_range() {
        let line = b"7f385e7fc000-7f385effc000 rw-s 00000000 00:08 35009904   socket:[35009904]";
        assert_eq!(range_of(line), Some((0x7f38_5e7f_c000, 0x80_0000)));
        assert_eq!(range_of(b"odd line"), None);
    }
}
