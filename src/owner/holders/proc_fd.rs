//! The reads by which a holding is verified, without allocation: the socket behind a descriptor, and the
//! facts of `/proc/<pid>/stat` that distinguish processes.

use crate::model::ProcId;
use crate::proc::{PidPath, ProcRoot, parse, socket_at};
use std::io::Write as _;

/// Returns the inode of the socket behind one descriptor of a process.
pub(in crate::owner) fn socket_of(root: &ProcRoot, pid: i32, descriptor: i32) -> nix::Result<Option<u64>> {
    let mut name = [0u8; 16];
    let mut rest = &mut name[..];
    // "fd/" and a descriptor number that is not negative have at most 13 characters, so this always fits.
    let _ = write!(rest, "fd/{descriptor}");
    let left = rest.len();
    let name = name.get(..16 - left).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default();
    root.guarded(pid, || socket_at(root.directory(), PidPath::new(pid).file(name)))
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
    let stat = parse::stat(text)?;
    Some(Kin { id: ProcId { pid, start_ticks: stat.start_ticks }, parent: stat.parent })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::path::Path;

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
}
