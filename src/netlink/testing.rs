//! Testing support for sockets: inode and cookie of a socket.

use std::os::fd::AsRawFd;

/// Returns the inode that `/proc` shows.
pub(super) fn inode(socket: &impl AsRawFd) -> u64 {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    let text = link.to_str().unwrap();
    text.strip_prefix("socket:[").unwrap().strip_suffix(']').unwrap().parse().unwrap()
}

/// Returns the cookie that the socket itself reports (`SO_COOKIE`).
pub(super) fn cookie(socket: &impl AsRawFd) -> u64 {
    let (mut value, mut length) = (0u64, 8);
    // SAFETY: SO_COOKIE writes 8 bytes to a value of 8 bytes; value and length are live throughout the call.
    let status = unsafe {
        let fd = socket.as_raw_fd();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut value).cast(), &raw mut length)
    };
    assert_eq!(status, 0);
    value
}
