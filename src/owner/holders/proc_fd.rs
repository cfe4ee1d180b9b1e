//! The system calls of a descriptor scan, without allocation: numbered entries of a directory, the inode
//! behind a descriptor, and the two facts of `/proc/<pid>/stat` that distinguish processes.

use crate::blocking::progress;
use crate::model::ProcId;
use crate::owner::sockets::decimal;
use crate::proc::{PidPath, ProcRoot};
use nix::errno::Errno;
use std::ffi::CStr;
use std::io::Write as _;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Buffer size for the entries of one getdents64 call: about 1,300 descriptors.
pub(in crate::owner) const ENTRIES: usize = 32 * 1024;

/// Calls `each` with the name and number of every entry of `directory` whose name is a number, until it
/// fails.
pub(in crate::owner) fn for_each_number(
    directory: BorrowedFd<'_>,
    entries: &mut [u8],
    mut each: impl FnMut(&CStr, i32) -> nix::Result<()>,
) -> nix::Result<()> {
    loop {
        let filled = get_entries(directory, entries)?;
        if filled.is_empty() {
            return Ok(());
        }
        let mut rest = filled;
        // struct linux_dirent64, getdents64(2): inode and offset of 8 bytes each, length of 2, type of 1,
        // name.
        while let Some(&length) = rest.get(16..).and_then(<[u8]>::first_chunk) {
            let length = usize::from(u16::from_ne_bytes(length));
            let Some((entry, after)) = rest.split_at_checked(length.max(1)) else { break };
            rest = after;
            let Some(name) = entry.get(19..).and_then(|name| CStr::from_bytes_until_nul(name).ok()) else {
                continue;
            };
            if let Some(number) = decimal(name.to_bytes()).and_then(|number| i32::try_from(number).ok()) {
                each(name, number)?;
            }
        }
    }
}

fn get_entries<'b>(directory: BorrowedFd<'_>, entries: &'b mut [u8]) -> nix::Result<&'b [u8]> {
    // SAFETY: the kernel writes at most `entries.len()` bytes to `entries`, which is exclusively borrowed for
    // the length of the call; the descriptor is open as long as its borrow lasts.
    let count = unsafe {
        libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), entries.as_mut_ptr(), entries.len())
    };
    progress();
    let count = usize::try_from(Errno::result(count)?).unwrap_or(0);
    Ok(entries.get(..count).unwrap_or_default())
}

/// Returns the inode of the socket behind the descriptor link at `path`; `None` if it is something else.
///
/// The link's text is read and never followed: a `stat` of its target can hang on a dead network file system.
pub(in crate::owner) fn socket_inode(directory: BorrowedFd<'_>, path: &CStr) -> nix::Result<Option<u64>> {
    let mut text = [0u8; 40];
    // SAFETY: `path` ends with NUL and the kernel writes at most `text.len()` bytes to `text`, both alive for
    // the length of the call; the descriptor is open as long as its borrow lasts.
    let count = unsafe {
        libc::readlinkat(directory.as_raw_fd(), path.as_ptr(), text.as_mut_ptr().cast(), text.len())
    };
    progress();
    let count = usize::try_from(Errno::result(count)?).unwrap_or(0);
    Ok(text.get(..count).and_then(parse_socket_link))
}

/// Parses `socket:[123]`, as `sockfs_dname` in net/socket.c prints it.
fn parse_socket_link(text: &[u8]) -> Option<u64> {
    decimal(text.strip_prefix(b"socket:[")?.strip_suffix(b"]")?)
}

/// Returns the inode of the socket behind one descriptor of a process.
pub(in crate::owner) fn socket_of(root: &ProcRoot, pid: i32, descriptor: i32) -> nix::Result<Option<u64>> {
    let mut name = [0u8; 16];
    let mut rest = &mut name[..];
    // "fd/" and a descriptor number that is not negative have at most 13 characters, so this always fits.
    let _ = write!(rest, "fd/{descriptor}");
    let left = rest.len();
    let name = name.get(..16 - left).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
    root.guarded(pid, || socket_inode(root.directory(), PidPath::new(pid).file(name)))
}

/// The identity and the parent of a process, from `/proc/<pid>/stat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::owner) struct Kin {
    pub id: ProcId,
    pub parent: i32,
}

/// Reads the identity of the process that has this pid now; `None` if it has ended or its `stat` is
/// malformed.
pub(in crate::owner) fn kin(root: &ProcRoot, pid: i32, buffer: &mut Vec<u8>) -> Option<Kin> {
    let text = root.read_of(pid, "stat", buffer).ok()?;
    let (parent, start_ticks) = parse_stat(text)?;
    Some(Kin { id: ProcId { pid, start_ticks }, parent })
}

/// Parses parent and start time, fields 4 and 22 of proc_pid_stat(5). The name before them may contain spaces
/// and parentheses, so only the last `)` ends it.
fn parse_stat(text: &[u8]) -> Option<(i32, u64)> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let mut fields = text.get(end + 2..)?.split(|&byte| byte == b' ').skip(1);
    let parent = i32::try_from(decimal(fields.next()?)?).ok()?;
    let start_ticks = decimal(fields.nth(17)?.trim_ascii_end())?;
    Some((parent, start_ticks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::os::fd::AsFd;
    use std::path::Path;

    #[test]
    fn links_of_sockets_and_others() {
        assert_eq!(parse_socket_link(b"socket:[14979]"), Some(14979));
        for other in
            ["", "socket:[]", "socket:[1", "socket:[-1]", "pipe:[1]", "/tmp/socket:[1]", "socket:[1] "]
        {
            assert_eq!(parse_socket_link(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_directory_of_many_numbers_is_read_in_several_calls() {
        let tree = tempfile::tempdir().unwrap();
        for number in 0..300 {
            std::fs::write(tree.path().join(number.to_string()), "").unwrap();
        }
        std::fs::write(tree.path().join("12x"), "").unwrap();
        std::fs::write(tree.path().join("99999999999"), "").unwrap();
        let root = ProcRoot::open(tree.path()).unwrap();
        let directory = crate::proc::open_directory(root.directory(), c".").unwrap();
        let mut seen = BTreeSet::new();
        for_each_number(directory.as_fd(), &mut [0; 512], |name, number| {
            assert_eq!(name.to_str().unwrap(), number.to_string());
            seen.insert(number);
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, (0..300).collect());
    }

    #[test]
    fn a_name_full_of_traps_ends_at_the_last_parenthesis() {
        let stat = b"77 (a) b (c\n) S 41 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3\n";
        assert_eq!(parse_stat(stat), Some((41, 987654)));
        assert_eq!(parse_stat(b"77 (a) S 41"), None);
        assert_eq!(parse_stat(b"77 (a)"), None);
    }

    #[test]
    fn this_process_is_who_it_is() {
        let root = ProcRoot::open(Path::new("/proc")).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let pid = std::process::id() as i32;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode = socket_of(&root, pid, socket.as_raw_fd()).unwrap().unwrap();
        assert_eq!(link.to_str().unwrap(), format!("socket:[{inode}]"));
        let kin = kin(&root, pid, &mut Vec::new()).unwrap();
        assert_eq!(kin.parent, std::os::unix::process::parent_id() as i32);
        let stat = procfs::process::Process::new(pid).unwrap().stat().unwrap();
        assert_eq!(kin.id, ProcId { pid, start_ticks: stat.starttime });
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse_stat(&text);
            parse_socket_link(&text);
        }
    }
}
