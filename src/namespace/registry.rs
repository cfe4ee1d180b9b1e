//! The network namespaces that there are besides the session's own: found, numbered, and let go when they end.

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

/// Processes looked at in one refresh, in turn: 3 to 4 ms where there are 10,000, and less where they are fewer.
const SLICE: usize = 1_000;

/// The same in the first lap, when none is known yet, and while it is in doubt whether a namespace still has a process:
/// it and its devices are kept open meanwhile. Some 20 ms, in which no packet is read.
const SEARCH: usize = 5_000;

/// Processes remembered of each namespace, so that the end of one raises no doubt.
const WITNESSES: usize = 4;

/// Descriptors that this process must be allowed to open for each namespace. One with two devices takes seven (two
/// sockets for devices and addresses, one for each device, three to find owners), others more; most are left to the host.
const DESCRIPTORS: u64 = 16;

/// A network namespace and a way into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceEntry {
    /// Its number in this session, from 1.
    pub namespace: Namespace,
    /// Its inode in nsfs. A later namespace may have it again once this one is gone.
    pub inode: u64,
    /// A process in it, of the tree that the registry was opened with; `None` where only a path is known.
    pub pid: Option<i32>,
    /// What leads there: a mount, or the link of that process. It may lead nowhere a moment later.
    pub path: Arc<Path>,
}

/// What a registry has found, for all threads. Clones show the same.
#[derive(Clone, Debug)]
pub struct Known(Arc<Mutex<KnownNamespaces>>);

#[derive(Debug)]
struct KnownNamespaces {
    entries: Arc<[NamespaceEntry]>,
    /// The inode of each number: of the last namespace that had it, also when that is gone.
    inodes: [u64; 1 << u8::BITS],
}

impl Known {
    /// The namespaces there are besides the session's own, as of the last refresh, by number. Costs one lock.
    pub fn snapshot(&self) -> Arc<[NamespaceEntry]> {
        Arc::clone(&self.0.lock().entries)
    }

    /// The inode of the namespace that has this number, or had it last. `None` for one that none has had.
    pub fn inode(&self, namespace: Namespace) -> Option<u64> {
        let inode = self.0.lock().inodes[usize::from(namespace.0)];
        (inode != 0).then_some(inode)
    }

    /// The namespace that has this number now.
    pub fn get(&self, namespace: Namespace) -> Option<NamespaceEntry> {
        let entries = self.snapshot();
        let place = entries.binary_search_by_key(&namespace, |entry| entry.namespace).ok()?;
        entries.get(place).cloned()
    }

    /// Shows these, which are in the order of their numbers, if they differ. Returns what is shown.
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

/// What a registry has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegistryStats {
    /// Namespaces known now, the session's own not among them.
    pub known: u32,
    /// Namespaces that were found and have no number, because there are more than [`Registry`] takes up.
    pub left_out: u32,
}

/// One namespace as the registry keeps it.
struct TrackedNamespace {
    namespace: Namespace,
    /// Processes that were last seen in it.
    witnesses: Vec<i32>,
    /// After how many laps without a witness it is gone, while that is in doubt.
    gone_after: Option<u64>,
    /// The way into it that is shown.
    shown: Option<(Option<i32>, Arc<Path>)>,
}

/// Finds the network namespaces that are chosen, and follows their coming and going.
///
/// `All` are those that a process is in, and those that are mounted where this thread sees it. Of processes it reads
/// 1,000 links in each refresh, 5,000 until all have been read once, and besides those of all process numbers given out
/// since the last two refreshes, so that a new container is found with the next refresh, and a process that changes its
/// namespace later after as many refreshes as there are times 1,000 processes. Namespaces that only a descriptor or a
/// thread other than the first of its process keeps are not found.
///
/// A namespace is gone with the refresh that finds it neither mounted nor with a process in it: the next one when there
/// are up to 5,000 processes. One whose link has become unreadable counts as having no process.
///
/// No more than 254 are taken up at once, and no more than one for every 16 descriptors that the process may open
/// (`RLIMIT_NOFILE` as it is at the opening): 64 where that is 1,024. Those that are found on top are counted, and
/// taken up when others have gone.
pub struct Registry {
    choice: NamespaceChoice,
    root: ProcRoot,
    proc_path: PathBuf,
    /// The session's own namespace; always known where others are looked for.
    home: Option<u64>,
    /// Most namespaces that are taken up.
    most: u8,
    held: BTreeMap<u64, TrackedNamespace>,
    numbers: Numbers,
    scan: Scan,
    mounts: Mounts,
    /// Namespaces without a number, of the lap under way and of the last one.
    left_out: [HashSet<u64>; 2],
    laps: u64,
    known: Known,
    notes: Vec<String>,
    noted_full: bool,
    noted_forbidden: bool,
}

impl Registry {
    /// A registry of the namespaces that `choice` means, of the processes in the `/proc` tree at `proc_path`. The
    /// namespace of the calling thread is the session's own and never among them. Nothing has been looked for yet.
    ///
    /// # Errors
    /// `InvalidArgument` when a chosen path is not a network namespace, or when more are chosen than are taken up;
    /// `SystemResource` when it cannot be told which namespace the calling thread is in, for then its own would be taken
    /// for another one; what [`ProcRoot::open`] returns.
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

    /// A registry in place of one that was lost, which goes on with the namespaces and numbers that it has shown in
    /// `known`.
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

    /// What it has found, to be given to other threads.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// What it has counted.
    pub fn stats(&self) -> RegistryStats {
        let left_out = self.left_out.iter().map(HashSet::len).max().unwrap_or(0);
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        RegistryStats { known: number(self.held.len()), left_out: number(left_out) }
    }

    /// Takes the lines for the log that have come up.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Looks for namespaces that have come and gone. To be called about once a second. Returns what there is now.
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
            // Most processes are in the session's own.
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

    /// Forgets processes that have ended or moved on. A namespace that is left without any is in doubt from then on.
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

    /// The namespace with this inode, which gets a number if it is new; `None` when it gets none.
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
                    self.notes.push(format!("there are more network namespaces than are captured in: {why}"));
                }
                return None;
            };
            let held = TrackedNamespace { namespace, witnesses: Vec::new(), gone_after: None, shown: None };
            self.held.insert(inode, held);
        }
        self.held.get_mut(&inode)
    }

    /// Lets go of those of which `gone` is true.
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
                "the network namespaces of {forbidden} processes may not be read; {}",
                capability::advice(&[capability::SYS_PTRACE])
            ));
        }
    }

    /// Shows what there is, if it has changed.
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

/// Why no more namespaces are taken up.
fn limit(most: u8) -> String {
    match most {
        Numbers::COUNT => format!("at most {most} are"),
        _ => format!(
            "{most} are, one for every {DESCRIPTORS} descriptors that the process may open (RLIMIT_NOFILE)"
        ),
    }
}

/// Sets the way into a namespace.
fn show(held: &mut TrackedNamespace, pid: Option<i32>, path: &Path) {
    if held.shown.as_ref().is_none_or(|(shown, by)| *shown != pid || **by != *path) {
        held.shown = Some((pid, path.into()));
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
