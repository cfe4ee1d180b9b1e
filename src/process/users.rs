//! Names of users and groups, looked up once per id and kept until the databases change.

use crate::bounded::{BoundedMap, Eviction};
use crate::thread::on_host;
use nix::sys::stat::stat;
use nix::unistd::{Gid, Group, Uid, User};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
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

/// The time for which a lookup is waited for. A name service may be on another host.
const WAIT: Duration = Duration::from_millis(100);
/// The maximum number of lookups that have not returned in time.
const MAX_LATE: usize = 256;

/// The database that a number is looked up in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Database {
    Users,
    Groups,
}

/// The cache of names. A lookup that it cannot answer goes through the system's name services (getpwuid_r(3),
/// getgrgid_r(3)). If one does not return in time, numbers stand in place of names until it does.
#[derive(Debug)]
pub struct UserNames {
    names: BoundedMap<(Database, u32), Box<[u8]>>,
    /// The lookups that have not returned in time. While there are any, none is waited for.
    late: Vec<(Database, u32, Receiver<Option<String>>)>,
    /// Set if a number was not looked up because too many lookups were late.
    has_left_out: bool,
    look_up: fn(Database, u32) -> Option<String>,
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
            names: BoundedMap::new(LIMIT, Eviction::All),
            late: Vec::new(),
            has_left_out: false,
            look_up,
            files,
            stamps,
            checked: now,
            filled: now,
            generation: 0,
        }
    }

    /// Takes the results of late lookups, and drops the names if a database has changed or they are old. Checks
    /// the files at most once a second.
    pub fn refresh(&mut self, now: Instant) {
        if !self.late.is_empty() {
            self.take_late();
        }
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

    /// A number that changes whenever names were dropped or found late, so that names returned before may be
    /// stale.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns the user's name, or its number in decimal if it has none, the lookup fails or takes long.
    pub fn user(&mut self, uid: u32) -> &[u8] {
        self.name(Database::Users, uid)
    }

    /// Returns the group's name, or its number in decimal if it has none, the lookup fails or takes long.
    pub fn group(&mut self, gid: u32) -> &[u8] {
        self.name(Database::Groups, gid)
    }

    fn name(&mut self, database: Database, number: u32) -> &[u8] {
        let UserNames { names, late, has_left_out, look_up, .. } = self;
        // Evicted names are not stale, so the generation stays.
        let name = names.get_or_insert_with((database, number), || {
            if late.len() >= MAX_LATE {
                *has_left_out = true;
                return name_or_number(None, number);
            }
            let look_up = *look_up;
            let result = on_host(move || look_up(database, number));
            let wait = if late.is_empty() { WAIT } else { Duration::ZERO };
            let found = result.recv_timeout(wait);
            if found == Err(RecvTimeoutError::Timeout) {
                late.push((database, number, result));
            }
            name_or_number(found.ok().flatten(), number)
        });
        // The map refuses no name.
        name.map_or(&[], |name| name)
    }

    /// Takes the results of the late lookups that have returned.
    fn take_late(&mut self) {
        let before = self.late.len();
        let UserNames { names, late, .. } = self;
        late.retain(|(database, number, result)| match result.try_recv() {
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Disconnected) => false,
            Ok(name) => {
                names.insert((*database, *number), name_or_number(name, *number));
                false
            }
        });
        if self.late.is_empty() && self.has_left_out {
            self.forget();
        } else if self.late.len() < before {
            self.generation = self.generation.wrapping_add(1);
        }
    }

    fn forget(&mut self) {
        self.names.clear();
        self.has_left_out = false;
        self.generation = self.generation.wrapping_add(1);
    }
}

/// Returns those of the given users, names or numbers, that the system does not know. A user whose lookup takes
/// long is not among them.
pub fn unknown_users(users: &[Vec<u8>]) -> Vec<String> {
    let names = users.iter().filter_map(|user| std::str::from_utf8(user).ok());
    let is_unknown = |name: &&str| {
        let sought = name.to_string();
        let found = on_host(move || matches!(User::from_name(&sought), Ok(None)));
        name.parse::<u32>().is_err() && found.recv_timeout(WAIT) == Ok(true)
    };
    names.filter(is_unknown).map(str::to_owned).collect()
}

/// Looks up a name through the system's name services.
fn look_up(database: Database, number: u32) -> Option<String> {
    match database {
        Database::Users => Some(User::from_uid(Uid::from_raw(number)).ok()??.name),
        Database::Groups => Some(Group::from_gid(Gid::from_raw(number)).ok()??.name),
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
    use crate::thread::PrivateTable;
    use std::sync::atomic::{AtomicBool, Ordering};

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
    fn unknown_users_are_found() {
        let users = ["root", "0", "4000000123", "no such user"].map(|name| name.as_bytes().to_vec());
        assert_eq!(unknown_users(&users), ["no such user"]);
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
        assert_eq!((names.generation(), names.names.len()), (0, 1), "nothing has changed");

        std::fs::write(etc.path().join("passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        names.refresh(now);
        assert_eq!(names.generation(), 0, "looked at a moment ago");
        now += Duration::from_secs(2);
        names.refresh(now);
        assert_eq!((names.generation(), names.names.len()), (1, 0), "the file has grown");

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
        (0..LIMIT as u32).for_each(|uid| names.names.insert((Database::Users, uid), Box::from(&b"x"[..])));
        names.user(4_000_000_123);
        assert_eq!((names.names.len(), names.names.evicted(), names.generation()), (1, LIMIT as u64, 0));
    }

    /// While a name service is silent, numbers stand in place of names; nothing is waited for twice.
    #[test]
    fn a_silent_name_service_holds_nobody_up() {
        static ANSWERS: AtomicBool = AtomicBool::new(false);
        fn look_up(_: Database, number: u32) -> Option<String> {
            while !ANSWERS.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Some(format!("user{number}"))
        }
        let table = PrivateTable::of_thread().unwrap();
        let worker = table.start_worker("capture-test").unwrap();
        let run = || {
            let start = Instant::now();
            let mut names = UserNames { look_up, ..UserNames::new(Path::new("/etc"), start) };
            let many = MAX_LATE as u32 + 10;
            for number in 0..many {
                assert_eq!(names.user(number), number.to_string().as_bytes());
            }
            names.refresh(start);
            assert_eq!((names.generation(), names.late.len()), (0, MAX_LATE));
            ANSWERS.store(true, Ordering::Release);
            while names.generation() == 0 || !names.late.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
                names.refresh(start);
            }
            for number in 0..many {
                assert_eq!(names.user(number), format!("user{number}").as_bytes());
            }
        };
        worker.run(run).unwrap();
    }
}
