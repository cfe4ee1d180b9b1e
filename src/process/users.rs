//! Names of users and groups, looked up once per id and kept until the databases change.

use crate::thread::on_host;
use nix::sys::stat::stat;
use nix::unistd::{Gid, Group, Uid, User};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The interval between checks of the files.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// The time for which names are kept if the files do not change: names may come from elsewhere
/// (nsswitch.conf(5)).
const KEEP_FOR: Duration = Duration::from_secs(300);
/// The maximum number of names, against a process that runs through all possible ids.
const LIMIT: usize = 65_536;

/// The attributes of a file that change if it is rewritten or replaced: device, inode, size, time of change
/// in s and ns.
type Stamp = (u64, u64, i64, i64, i64);

/// The cache of names. A lookup that it cannot answer goes through the system's name services (getpwuid_r(3),
/// getgrgid_r(3)), and its duration is not bounded.
#[derive(Debug)]
pub struct UserNames {
    users: HashMap<u32, Box<[u8]>>,
    groups: HashMap<u32, Box<[u8]>>,
    files: [PathBuf; 2],
    stamps: [Option<Stamp>; 2],
    checked: Instant,
    filled: Instant,
    generation: u32,
}

impl UserNames {
    /// Creates an empty cache for the databases in `etc`, usually `/etc`.
    pub fn new(etc: &Path, now: Instant) -> UserNames {
        let files = [etc.join("passwd"), etc.join("group")];
        let stamps = files.each_ref().map(|file| stamp(file));
        UserNames {
            users: HashMap::new(),
            groups: HashMap::new(),
            files,
            stamps,
            checked: now,
            filled: now,
            generation: 0,
        }
    }

    /// Drops the names if a database has changed or they are old. Checks the files at most once a second.
    pub fn refresh(&mut self, now: Instant) {
        if now.saturating_duration_since(self.checked) < CHECK_EVERY {
            return;
        }
        self.checked = now;
        let stamps = self.files.each_ref().map(|file| stamp(file));
        if stamps != self.stamps || now.saturating_duration_since(self.filled) >= KEEP_FOR {
            self.stamps = stamps;
            self.filled = now;
            self.forget();
        }
    }

    /// A number that changes whenever names were dropped, so that names returned before may be stale.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the user's name, or its number in decimal if it has none or the lookup fails.
    pub fn user(&mut self, uid: u32) -> &[u8] {
        self.make_room();
        self.users.entry(uid).or_insert_with(|| {
            let user = on_host(move || User::from_uid(Uid::from_raw(uid)).ok().flatten());
            name_or_number(user.flatten().map(|user| user.name), uid)
        })
    }

    /// Returns the group's name, or its number in decimal if it has none or the lookup fails.
    pub fn group(&mut self, gid: u32) -> &[u8] {
        self.make_room();
        self.groups.entry(gid).or_insert_with(|| {
            let group = on_host(move || Group::from_gid(Gid::from_raw(gid)).ok().flatten());
            name_or_number(group.flatten().map(|group| group.name), gid)
        })
    }

    /// Clears the cache if it is full. The evicted names are not stale, so the generation stays.
    fn make_room(&mut self) {
        if self.users.len() >= LIMIT || self.groups.len() >= LIMIT {
            self.users.clear();
            self.groups.clear();
        }
    }

    fn forget(&mut self) {
        self.users.clear();
        self.groups.clear();
        self.generation = self.generation.wrapping_add(1);
    }
}

fn name_or_number(name: Option<String>, number: u32) -> Box<[u8]> {
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| number.to_string()).into_bytes().into()
}

/// Returns the attributes of a file, or `None` if there is no such file.
fn stamp(path: &Path) -> Option<Stamp> {
    let stat = stat(path).ok()?;
    Some((stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime, stat.st_ctime_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses the rows of `/etc/passwd` or `/etc/group`: name and number.
    fn rows(path: &str) -> Vec<(String, u32)> {
        let text = std::fs::read_to_string(path).unwrap();
        let mut seen = std::collections::HashSet::new();
        text.lines()
            .map(|row| row.split(':').collect::<Vec<_>>())
            .map(|row| (row[0].to_string(), row[2].parse().unwrap()))
            .filter(|(_, number)| seen.insert(*number))
            .collect()
    }

    #[test]
    fn names_are_those_of_the_databases() {
        let mut names = UserNames::new(Path::new("/etc"), Instant::now());
        let (users, groups) = (rows("/etc/passwd"), rows("/etc/group"));
        assert!(users.len() > 1 && groups.len() > 1);
        for _ in 0..2 {
            for (name, uid) in &users {
                assert_eq!(names.user(*uid), name.as_bytes());
            }
            for (name, gid) in &groups {
                assert_eq!(names.group(*gid), name.as_bytes());
            }
        }
    }

    #[test]
    fn an_unknown_id_is_its_number() {
        let mut names = UserNames::new(Path::new("/etc"), Instant::now());
        assert_eq!(names.user(4_000_000_123), b"4000000123");
        assert_eq!(names.group(4_000_000_123), b"4000000123");
    }

    #[test]
    fn a_changed_database_or_age_forgets_the_names() {
        let etc = tempfile::tempdir().unwrap();
        std::fs::write(etc.path().join("passwd"), "").unwrap();
        let mut now = Instant::now();
        let mut names = UserNames::new(etc.path(), now);
        names.user(0);

        now += Duration::from_secs(2);
        names.refresh(now);
        assert_eq!((names.generation(), names.users.len()), (0, 1), "nothing has changed");

        std::fs::write(etc.path().join("passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        names.refresh(now);
        assert_eq!(names.generation(), 0, "looked at a moment ago");
        now += Duration::from_secs(2);
        names.refresh(now);
        assert_eq!((names.generation(), names.users.len()), (1, 0), "the file has grown");

        std::fs::write(etc.path().join("group"), "").unwrap();
        now += Duration::from_secs(2);
        names.refresh(now);
        assert_eq!(names.generation(), 2, "the file has come");

        now += Duration::from_secs(299);
        names.refresh(now);
        assert_eq!(names.generation(), 2);
        now += Duration::from_secs(2);
        names.refresh(now);
        assert_eq!(names.generation(), 3, "the names are old");
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut names = UserNames::new(Path::new("/etc"), Instant::now());
        names.users = (0..LIMIT as u32).map(|uid| (uid, Box::from(&b"x"[..]))).collect();
        names.user(4_000_000_123);
        assert_eq!((names.users.len(), names.generation()), (1, 0));
    }
}
