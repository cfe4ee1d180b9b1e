//! Leaving the descriptor table that the threads of a process share.

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};

/// Gives the calling thread a descriptor table of its own that contains none of the host's descriptors.
///
/// # Errors
/// Fails with the error of unshare(2) if close_range(2) has failed as well. A filter of system calls refuses
/// both.
pub(super) fn leave_host_table() -> nix::Result<()> {
    leave_by_close_range().or_else(|_| leave_by_unshare())?;
    occupy_standard_streams();
    Ok(())
}

/// Creates an empty table. Nothing is copied, so nothing has to be closed. Closing would flush data that the
/// host has written to files on network file systems. Requires Linux 5.9.
fn leave_by_close_range() -> nix::Result<()> {
    // SAFETY: the call takes only numbers. Nothing uses the descriptors of the calling thread's new table.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    Errno::result(result).map(drop)
}

/// Copies the host's table and closes the copies.
fn leave_by_unshare() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_FILES)?;
    let listed = std::fs::read_dir("/proc/thread-self/fd").map(|entries| {
        let numbers = entries.flatten().map(|entry| entry.file_name());
        numbers.filter_map(|name| name.to_str()?.parse().ok()).collect::<Vec<RawFd>>()
    });
    let limit = || {
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
        nix::Result::Ok((0..RawFd::try_from(soft).unwrap_or(RawFd::MAX)).collect())
    };
    for number in listed.or_else(|_| limit())? {
        // SAFETY: the new table belongs to this thread alone, and contains no descriptors of the library yet.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Keeps later descriptors off the numbers of the standard streams, since the C library and libpcap may write
/// to these.
fn occupy_standard_streams() {
    for _ in 0..3 {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        if let Ok(placeholder) = EventFd::from_flags(flags) {
            // Open as long as the table exists.
            let _ = OwnedFd::from(placeholder).into_raw_fd();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, read_dir};
    use std::os::fd::AsRawFd;

    /// Leaves the table on a thread of its own. Returns the number of descriptors in the new table.
    fn left_by(way: fn() -> nix::Result<()>) -> usize {
        let listed = std::thread::spawn(move || {
            way().unwrap();
            // The listing itself has one descriptor.
            read_dir("/proc/thread-self/fd").unwrap().count() - 1
        });
        listed.join().unwrap()
    }

    #[test]
    fn the_new_table_has_nothing_of_the_hosts_which_keeps_its_own() {
        let (reader, writer) = std::io::pipe().unwrap();
        let file = File::open("/etc/passwd").unwrap();
        let number = file.as_raw_fd();
        assert_eq!(left_by(leave_by_close_range), 0);
        assert_eq!(left_by(leave_by_unshare), 0);
        assert_eq!(left_by(leave_host_table), 3);
        assert!(std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap().ends_with("passwd"));
        // No copy of the pipe's write end is left.
        drop(writer);
        assert_eq!(std::io::read_to_string(reader).unwrap(), "");
    }
}
