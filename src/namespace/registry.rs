//! The network namespaces besides the session's own: finds them, numbers them, and releases them when they
//! end.

use super::choice::NamespaceChoice;
use super::links;
use super::mounts::Mounts;
use super::numbers::Numbers;
use super::scan::{Scan, namespace_of};
use crate::capability;
use crate::error::{Code, Error, Result};
use crate::model::Namespace;
use crate::proc::{ProcRoot, network_namespace_at};
use crate::sync::Mutex;
use nix::sys::resource::{Resource, getrlimit};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Processes read in one refresh, in turn. This takes 3 to 4 ms with 10,000 processes, and less with fewer.
const SLICE: usize = 1_000;

/// Processes read in one refresh during the first lap, when none is known yet, and while it is uncertain
/// whether a namespace still has a process, because the namespace and its devices are kept open meanwhile.
/// This takes some 20 ms, in which no packet is read.
const SEARCH: usize = 5_000;

/// Processes recorded for each namespace, so that the end of one does not make its state uncertain.
const WITNESSES: usize = 4;

/// Descriptors that this process must be allowed to open for each namespace. A namespace with two devices
/// takes seven (two sockets for devices and addresses, one for each device, three to find owners), and others
/// take more. Most descriptors are left to the host.
const DESCRIPTORS: u64 = 16;

/// A network namespace and a path to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceEntry {
    /// Its number in this session, from 1.
    pub namespace: Namespace,
    /// Its inode in nsfs. A later namespace may have the same inode once this one has ended.
    pub inode: u64,
    /// A process in it, from the tree that the registry was opened with. `None` if only a path is known.
    pub pid: Option<i32>,
    /// A path to it: a mount, or the link of that process. The path may become invalid at any moment.
    pub path: Arc<Path>,
}

/// The namespaces that a registry has found, for all threads. Clones show the same data.
#[derive(Clone, Debug)]
pub struct Known(Arc<Mutex<KnownNamespaces>>);

#[derive(Debug)]
struct KnownNamespaces {
    entries: Arc<[NamespaceEntry]>,
    /// The inode of each number: that of the last namespace that had it, even if that one has ended.
    inodes: [u64; 1 << u8::BITS],
}

impl Known {
    /// Returns the namespaces besides the session's own, as of the last refresh, by number. Costs one lock.
    pub fn snapshot(&self) -> Arc<[NamespaceEntry]> {
        Arc::clone(&self.0.lock().entries)
    }

    /// Returns the inode of the namespace that has this number or had it last. `None` if no namespace has had
    /// it.
    pub fn inode(&self, namespace: Namespace) -> Option<u64> {
        let inode = self.0.lock().inodes[usize::from(namespace.0)];
        (inode != 0).then_some(inode)
    }

    /// Returns the namespace that has this number now.
    pub fn get(&self, namespace: Namespace) -> Option<NamespaceEntry> {
        let entries = self.snapshot();
        let place = entries.binary_search_by_key(&namespace, |entry| entry.namespace).ok()?;
        entries.get(place).cloned()
    }

    /// Publishes these entries, which are sorted by number, if they differ. Returns the published entries.
    pub(super) fn show(&self, entries: Vec<NamespaceEntry>) -> Arc<[NamespaceEntry]> {
        let mut shown = self.0.lock();
        if *shown.entries != *entries {
            for entry in &entries {
                shown.inodes[usize::from(entry.namespace.0)] = entry.inode;
            }
            shown.entries = entries.into();
        }
        Arc::clone(&shown.entries)
    }
}

impl Default for Known {
    fn default() -> Known {
        Known(Arc::new(Mutex::new(KnownNamespaces { entries: Arc::default(), inodes: [0; 1 << u8::BITS] })))
    }
}

/// The counters of a registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegistryStats {
    /// Namespaces known now, without the session's own.
    pub known: u32,
    /// Namespaces that were found but have no number, because [`Registry`] tracks a limited number of them.
    pub left_out: u32,
}

/// One namespace as the registry keeps it.
struct TrackedNamespace {
    namespace: Namespace,
    /// Processes that were last seen in it.
    witnesses: Vec<i32>,
    /// The count of laps at which it is considered ended, unless a process in it is found before. `None`
    /// while it has a process or a mount.
    gone_after: Option<u64>,
    /// The path to it that is published, with a process if one is known.
    shown: Option<(Option<i32>, Arc<Path>)>,
}

/// Finds the chosen network namespaces, and follows them as they appear and disappear.
///
/// `All` are those that a process is in, and those that are mounted where this thread sees the mount. In each
/// refresh, the registry reads the links of 1,000 processes (5,000 until all have been read once), and also
/// those of all process numbers assigned since the last but one refresh. It therefore finds a new container
/// with the next refresh. It finds a process that changes its namespace later after as many refreshes as
/// there are times 1,000 processes. It does not find namespaces that are kept only by a descriptor or by a
/// thread other than the first of its process.
///
/// A namespace is gone with the refresh that finds it neither mounted nor with a process in it. This is the
/// next refresh if there are up to 5,000 processes. A process whose link has become unreadable does not count
/// as being in it.
///
/// At most 254 namespaces are tracked at once, and at most one for every 16 descriptors that the process may
/// open (`RLIMIT_NOFILE` at the time of opening): 64 if the limit is 1,024. Further ones are counted, and are
/// tracked once others have ended.
pub struct Registry {
    choice: NamespaceChoice,
    root: ProcRoot,
    proc_path: PathBuf,
    /// The session's own namespace. It is always known if other namespaces are looked for.
    home: Option<u64>,
    /// The maximum number of tracked namespaces.
    most: u8,
    held: BTreeMap<u64, TrackedNamespace>,
    numbers: Numbers,
    scan: Scan,
    mounts: Mounts,
    /// Namespaces without a number, of the current lap and of the last one.
    left_out: [HashSet<u64>; 2],
    laps: u64,
    known: Known,
    notes: Vec<String>,
    noted_full: bool,
    noted_forbidden: bool,
}

impl Registry {
    /// Returns a registry of the namespaces of `choice`, for the processes in the `/proc` tree at
    /// `proc_path`. The calling thread's namespace is the session's own and is never included. The search
    /// begins with the first refresh.
    ///
    /// # Errors
    /// Fails with `InvalidArgument` if a chosen path is not a network namespace, or if more are chosen than
    /// can be tracked. Fails with `SystemResource` if the calling thread's namespace cannot be read, since
    /// the registry would take it for another one. Also fails with the errors of [`ProcRoot::open`].
    pub fn open(choice: &NamespaceChoice, proc_path: &Path) -> Result<Registry> {
        let allowed = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let most = u8::try_from(allowed / DESCRIPTORS).unwrap_or(u8::MAX).clamp(1, Numbers::COUNT);
        Registry::with_most(choice, proc_path, most)
    }

    fn with_most(choice: &NamespaceChoice, proc_path: &Path, most: u8) -> Result<Registry> {
        choice.check()?;
        choice.check_present()?;
        if let NamespaceChoice::Chosen(paths) = choice
            && paths.len() > usize::from(most)
        {
            let count = paths.len();
            let text = format!("{count} network namespaces are chosen; {}", limit(most));
            return Err(Error::new(Code::InvalidArgument, text));
        }
        let root = ProcRoot::open(proc_path)?;
        let home = match network_namespace_at(root.directory(), c"thread-self/ns/net") {
            _ if !choice.is_wide() => None,
            Ok(inode) => Some(inode),
            Err(errno) => {
                let tried = format_args!("reading {}/thread-self/ns/net", proc_path.display()).to_string();
                return Err(Error::system(Code::SystemResource, tried, errno));
            }
        };
        Ok(Registry {
            choice: choice.clone(),
            home,
            most,
            root,
            proc_path: proc_path.into(),
            held: BTreeMap::new(),
            numbers: Numbers::default(),
            scan: Scan::new(),
            mounts: Mounts::default(),
            left_out: Default::default(),
            laps: 0,
            known: Known::default(),
            notes: Vec::new(),
            noted_full: false,
            noted_forbidden: false,
        })
    }

    /// Returns a registry that replaces a lost one. It continues with the namespaces and numbers in `known`.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn resume(choice: &NamespaceChoice, proc_path: &Path, known: Known) -> Result<Registry> {
        let mut registry = Registry::open(choice, proc_path)?;
        for entry in known.snapshot().iter() {
            registry.numbers.reserve(entry.namespace);
            let shown = Some((entry.pid, Arc::clone(&entry.path)));
            let witnesses = entry.pid.into_iter().collect();
            let held = TrackedNamespace { namespace: entry.namespace, witnesses, gone_after: None, shown };
            registry.held.insert(entry.inode, held);
        }
        registry.known = known;
        Ok(registry)
    }

    /// Returns the view of the namespaces that other threads can use.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Returns the counters.
    pub fn stats(&self) -> RegistryStats {
        let left_out = self.left_out.iter().map(HashSet::len).max().unwrap_or(0);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        RegistryStats { known: number(self.held.len()), left_out: number(left_out) }
    }

    /// Takes the pending lines for the log.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Looks for namespaces that have appeared or disappeared, and returns the current ones. The caller calls
    /// it about once a second.
    pub fn refresh(&mut self) -> Arc<[NamespaceEntry]> {
        match self.choice.clone() {
            NamespaceChoice::Usual | NamespaceChoice::Own => {}
            NamespaceChoice::All => self.follow_all(),
            NamespaceChoice::Chosen(paths) => self.follow(&paths),
        }
        self.publish()
    }

    /// Follows chosen paths.
    fn follow(&mut self, paths: &[PathBuf]) {
        let mut present: HashMap<u64, &Path> = HashMap::new();
        for path in paths {
            if let Ok(inode) = links::namespace_at(path)
                && self.home != Some(inode)
            {
                present.entry(inode).or_insert(path);
            }
        }
        self.release(|inode, _| !present.contains_key(&inode));
        for (&inode, &path) in &present {
            if let Some(held) = self.hold(inode) {
                show(held, None, path);
            }
        }
    }

    /// Follows processes and mounts.
    fn follow_all(&mut self) {
        self.mounts.refresh(&self.root);
        let mounts: Vec<u64> = self.mounts.all().keys().copied().collect();
        for inode in mounts {
            self.hold(inode);
        }
        self.question_witnesses();
        let doubtful = self.held.values().any(|held| held.gone_after.is_some());
        let Registry { scan, root, home, .. } = self;
        let mut found = Vec::new();
        let mut take = |pid, inode| {
            // Most processes are in the session's own namespace.
            if *home != Some(inode) {
                found.push((pid, inode));
            }
        };
        scan.recent(root, &mut take);
        let most = if doubtful || scan.laps() == 0 { SEARCH } else { SLICE };
        scan.slice(root, most, &mut take);
        for (pid, inode) in found {
            if let Some(held) = self.hold(inode) {
                held.gone_after = None;
                if held.witnesses.len() < WITNESSES && !held.witnesses.contains(&pid) {
                    held.witnesses.push(pid);
                }
            }
        }
        let laps = self.scan.laps();
        self.release(|_, held| held.gone_after.is_some_and(|after| laps >= after));
        if laps != self.laps {
            self.laps = laps;
            self.left_out = [HashSet::new(), std::mem::take(&mut self.left_out[0])];
            self.note_forbidden();
        }
        for (inode, held) in &mut self.held {
            let pid = held.witnesses.first().copied();
            match (self.mounts.all().get(inode), pid) {
                (Some(path), _) => show(held, pid, path),
                (None, Some(pid)) => {
                    let path = self.proc_path.join(format!("{pid}/ns/net"));
                    show(held, Some(pid), &path);
                }
                (None, None) => {}
            }
        }
    }

    /// Drops processes that have ended or have left. A namespace without a process or a mount is uncertain
    /// from then on.
    fn question_witnesses(&mut self) {
        let root = &self.root;
        let mut doubt = false;
        for (inode, held) in &mut self.held {
            held.witnesses.retain(|&pid| namespace_of(root, pid) == Ok(*inode));
            if self.mounts.all().contains_key(inode) || !held.witnesses.is_empty() {
                held.gone_after = None;
            } else {
                doubt |= held.gone_after.is_none();
            }
        }
        if !doubt {
            return;
        }
        if self.held.values().all(|held| held.gone_after.is_none()) {
            self.scan.restart();
        }
        let after = self.scan.laps_to_see_all();
        for (inode, held) in &mut self.held {
            if held.witnesses.is_empty() && !self.mounts.all().contains_key(inode) {
                held.gone_after.get_or_insert(after);
            }
        }
    }

    /// Returns the namespace with this inode, and assigns a number to it if it is new. `None` if it gets no
    /// number.
    fn hold(&mut self, inode: u64) -> Option<&mut TrackedNamespace> {
        if self.home == Some(inode) {
            return None;
        }
        if !self.held.contains_key(&inode) {
            let has_room = self.held.len() < usize::from(self.most);
            let Some(namespace) = has_room.then(|| self.numbers.take()).flatten() else {
                self.left_out[0].insert(inode);
                if !std::mem::replace(&mut self.noted_full, true) {
                    let why = limit(self.most);
                    self.notes.push(format!("some network namespaces are not captured in: {why}"));
                }
                return None;
            };
            let held = TrackedNamespace { namespace, witnesses: Vec::new(), gone_after: None, shown: None };
            self.held.insert(inode, held);
        }
        self.held.get_mut(&inode)
    }

    /// Releases the namespaces for which `gone` returns true.
    fn release(&mut self, gone: impl Fn(u64, &TrackedNamespace) -> bool) {
        let numbers = &mut self.numbers;
        self.held.retain(|&inode, held| {
            let gone = gone(inode, held);
            if gone {
                numbers.give_back(held.namespace);
            }
            !gone
        });
    }

    fn note_forbidden(&mut self) {
        let forbidden = self.scan.forbidden();
        if forbidden > 0 && !std::mem::replace(&mut self.noted_forbidden, true) {
            self.notes.push(format!(
                "reading the network namespaces of {forbidden} processes is not permitted; {}",
                capability::advice(&[capability::SYS_PTRACE])
            ));
        }
    }

    /// Publishes the current namespaces, if they have changed.
    fn publish(&mut self) -> Arc<[NamespaceEntry]> {
        let mut entries: Vec<NamespaceEntry> = self
            .held
            .iter()
            .filter_map(|(&inode, held)| {
                let (pid, path) = held.shown.clone()?;
                Some(NamespaceEntry { namespace: held.namespace, inode, pid, path })
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.namespace);
        self.known.show(entries)
    }
}

/// Returns the reason that no more namespaces are tracked.
fn limit(most: u8) -> String {
    match most {
        Numbers::COUNT => format!("at most {most} are supported"),
        _ => format!(
            "at most {most} are supported, one for every {DESCRIPTORS} descriptors that the process may open (RLIMIT_NOFILE)"
        ),
    }
}

/// Sets the published path to a namespace.
fn show(held: &mut TrackedNamespace, pid: Option<i32>, path: &Path) {
    if held.shown.as_ref().is_none_or(|(shown, by)| *shown != pid || **by != *path) {
        held.shown = Some((pid, path.into()));
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
