//! A registry that works on a thread of its own, since a read of a process's namespace may not return.

use super::choice::NamespaceChoice;
use super::registry::{Known, NamespaceEntry, Registry, RegistryStats};
use crate::blocking::{Abandoned, Errand, Helper};
use crate::error::{Code, Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Runs a [`Registry`] for a thread that must not wait for it. If a read does not return, the registry is
/// lost with its thread, and another one continues with the namespaces that were known.
pub struct NamespaceFinder {
    choice: NamespaceChoice,
    proc_path: PathBuf,
    helper: Helper<(), Errand<()>>,
    registry: Option<Registry>,
    known: Known,
    stats: RegistryStats,
    notes: Vec<String>,
}

impl NamespaceFinder {
    /// Opens a registry. See [`Registry::open`].
    ///
    /// # Errors
    /// As [`Registry::open`]. Also fails with `SystemResource` if a read does not return, and with `Thread`
    /// if the system refuses a thread.
    pub fn open(choice: &NamespaceChoice, proc_path: &Path) -> Result<NamespaceFinder> {
        let mut finder = NamespaceFinder {
            choice: choice.clone(),
            proc_path: proc_path.into(),
            helper: Helper::of_errands("capture-scan", || ()),
            registry: None,
            known: Known::default(),
            stats: RegistryStats::default(),
            notes: Vec::new(),
        };
        let (choice, path) = (finder.choice.clone(), finder.proc_path.clone());
        let opened = finder.helper.call(move |()| Registry::open(&choice, &path)).map_err(not_read)??;
        finder.known = opened.known().clone();
        finder.registry = Some(opened);
        Ok(finder)
    }

    /// Looks for namespaces that have appeared or disappeared. See [`Registry::refresh`]. If a read does not
    /// return, it takes at most a quarter of a second longer than that, and then returns the namespaces that
    /// were known.
    pub fn refresh(&mut self) -> Arc<[NamespaceEntry]> {
        let registry = self.registry.take();
        let (choice, path, known) = (self.choice.clone(), self.proc_path.clone(), self.known.clone());
        let refreshed = self.helper.call(move |()| {
            let mut registry = match registry {
                Some(registry) => registry,
                None => Registry::resume(&choice, &path, known)?,
            };
            registry.refresh();
            Ok(registry)
        });
        match refreshed.map_err(not_read).and_then(|refreshed| refreshed) {
            Ok(mut registry) => {
                self.stats = registry.stats();
                self.notes.extend(registry.take_notes());
                self.registry = Some(registry);
            }
            Err(error) => self.notes.push(format!("the search for network namespaces failed: {error}")),
        }
        self.known.snapshot()
    }

    /// Returns the view of the namespaces that other threads can use.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Returns the registry's counters.
    pub fn stats(&self) -> RegistryStats {
        self.stats
    }

    /// Takes the pending lines for the log.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

fn not_read(abandoned: Abandoned) -> Error {
    match abandoned {
        Abandoned::Reading => Error::new(Code::SystemResource, "a read of /proc does not return"),
        Abandoned::NoThread(error) => error,
    }
}
