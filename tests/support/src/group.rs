//! A control group in the unified hierarchy (version 2) that a test makes.

use crate::requirements::{is_root, left_out};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A control group. Dropping it removes it and ends every process in it.
pub struct Group {
    directory: PathBuf,
    path: Vec<u8>,
}

impl Group {
    /// Makes a group below the root group; returns `None` if that is not possible.
    pub fn new() -> Option<Group> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !is_root() {
            return None;
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(mount) = mounts.lines().find(|line| line.contains(" - cgroup2 ")) else {
            left_out("no cgroup v2 hierarchy is mounted");
            return None;
        };
        let fields: Vec<&str> = mount.split(' ').collect();
        let name = format!("capture-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let top = Group { directory: fields[4].into(), path: fields[3].trim_end_matches('/').into() };
        let group = top.below(name.as_bytes());
        // The test must not remove the root group.
        std::mem::forget(top);
        Some(group)
    }

    /// Makes a group inside this one.
    pub fn below(&self, name: &[u8]) -> Group {
        let directory = self.directory.join(OsStr::from_bytes(name));
        std::fs::create_dir(&directory).unwrap();
        Group { directory, path: [&self.path, &b"/"[..], name].concat() }
    }

    /// Returns the path that records of processes in the group must show.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Returns the file that moves the process whose pid is written to it.
    pub fn door(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    pub fn take(&self, pid: i32) {
        std::fs::write(self.door(), pid.to_string()).unwrap();
    }

    /// Removes the group, and retries while ended processes in it have not been waited for.
    pub fn remove(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = std::fs::remove_dir(&self.directory) {
            assert!(Instant::now() < deadline, "{}: {error}", self.directory.display());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.directory.exists() {
            return;
        }
        let _ = std::fs::write(self.directory.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::remove_dir(&self.directory).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Returns a process's group in the unified hierarchy as the kernel reports it; `None` if the
/// process has ended.
pub fn told(pid: i32) -> Option<Vec<u8>> {
    let text = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cgroup")).ok()?;
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
    line.map(<[u8]>::to_vec)
}
