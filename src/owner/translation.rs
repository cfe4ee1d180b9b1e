//! Translated addresses (NAT): the socket's endpoints behind those that a flow has on the wire.
//!
//! The endpoints of a packet on the wire are not those of its socket if the host translates addresses: a
//! published port, a redirected one, a virtual address, masquerading. The flow may not even be this host's:
//! the packets that a container sends and receives through the host have one of the host's addresses on the
//! wire. The kernel's connection tracking knows both pairs of endpoints.
//!
//! Nothing here makes the kernel load a module: a module that is not loaded is not queried.

use crate::bounded::{BoundedMap, Eviction};
use crate::capability;
use crate::error::{Code, Error};
use crate::model::{Address, FlowKey};
use crate::netlink::{Conntrack, Routing};
use crate::proc::ProcRoot;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time for which three facts stay valid: the modules that are loaded, forwarding, and the addresses that
/// are local. The state of connection tracking is read in each round.
const VALIDITY: Duration = Duration::from_secs(5);

/// The time for which the absence of [`NAT`] stays valid.
const ABSENCE: Duration = Duration::from_millis(100);

/// The module that reports tracked connections.
const REPORTS: &str = "nf_conntrack_netlink";

/// The module that translates addresses.
const NAT: &str = "nf_nat";

/// The limit of addresses that are cached as local or not, some 40 bytes each.
const ADDRESSES: usize = 4096;

/// Exists where connection tracking is loaded, in every network namespace, and contains the number of tracked
/// connections of the reader's namespace.
const COUNT: &CStr = c"sys/net/netfilter/nf_conntrack_count";

/// Exists wherever `/proc/sys` can be read.
const SETTINGS: &CStr = c"sys/net/core";

/// The party behind the endpoints that a flow has on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behind {
    /// The same endpoints: they are the socket's.
    Same,
    /// A socket of this namespace with other endpoints.
    Socket(FlowKey),
    /// Another host or a container: the flow is forwarded.
    Elsewhere,
    /// Not known: it may be any of these.
    Unknown,
}

/// The translations of one network namespace.
#[derive(Debug)]
pub struct Translations {
    root: Arc<ProcRoot>,
    /// Set if the namespace is that of the calling thread.
    is_home: bool,
    /// [`COUNT`], as long as it has contained only 0.
    count: Option<OwnedFd>,
    conntrack: Option<Conntrack>,
    routing: Option<Routing>,
    local: BoundedMap<Address, bool>,
    /// Set if connections are tracked, or have been.
    is_tracking: bool,
    /// The round in which `is_tracking` was read last.
    read_at: Option<Instant>,
    forwards: bool,
    checked: Option<Instant>,
    /// Set once addresses may be translated.
    may_translate: bool,
    /// The time of the last search for [`NAT`].
    searched_at: Option<Instant>,
    fault: Option<Error>,
}

impl Translations {
    /// Opens the translations of the calling thread's namespace. With `is_home`, the calling thread is also
    /// in this namespace at each lookup; otherwise it may be in another.
    pub fn open(root: Arc<ProcRoot>, is_home: bool) -> Translations {
        let mut translations = Translations {
            root,
            is_home,
            count: None,
            conntrack: None,
            routing: None,
            local: BoundedMap::new(ADDRESSES, Eviction::All),
            is_tracking: false,
            read_at: None,
            forwards: true,
            checked: None,
            may_translate: false,
            searched_at: None,
            fault: None,
        };
        translations.open_sockets();
        translations
    }

    /// Opens the sockets that are not open, in the namespace of the calling thread.
    fn open_sockets(&mut self) {
        if self.routing.is_none() {
            self.routing = Routing::open().ok();
        }
        if self.conntrack.is_some() {
            return;
        }
        if is_loaded(&self.root, REPORTS) != Some(true) {
            let text = "tracked connections cannot be looked up: load the module nf_conntrack_netlink";
            self.fault = Some(Error::new(Code::SystemResource, text));
            return;
        }
        match Conntrack::open() {
            Ok(conntrack) => self.conntrack = Some(conntrack),
            Err(errno) => self.failed(errno),
        }
    }

    /// Finds the endpoints behind those of a flow on the wire. Sends no request if no connections are
    /// tracked.
    pub fn behind(&mut self, key: &FlowKey, now: Instant) -> Behind {
        self.check(now);
        if !self.tracks(now) {
            return Behind::Same;
        }
        match self.conntrack.as_mut().map(|conntrack| conntrack.behind(key)) {
            Some(Ok(Some(own))) => {
                self.fault = None;
                match own == *key {
                    true => Behind::Same,
                    false => match self.is_local(&own.local.address) {
                        Some(true) => Behind::Socket(own),
                        Some(false) => Behind::Elsewhere,
                        None => Behind::Unknown,
                    },
                }
            }
            Some(Ok(None)) => self.untold(),
            Some(Err(errno)) => {
                self.failed(errno);
                self.untold()
            }
            None => self.untold(),
        }
    }

    /// Returns true if sockets may have other endpoints than their packets, so that even a socket with exactly
    /// the endpoints of a flow may not be its own: the translation gives a socket another port if its own is
    /// taken by a translated one.
    pub fn may_translate(&mut self, now: Instant) -> bool {
        self.check(now);
        if !self.tracks(now) {
            return false;
        }
        let is_recent = |at: Instant| now.saturating_duration_since(at) < ABSENCE;
        if !self.may_translate && !self.searched_at.is_some_and(is_recent) {
            self.searched_at = Some(now);
            self.may_translate = is_loaded(&self.root, NAT) != Some(false);
        }
        self.may_translate
    }

    /// Returns the answer for endpoints that connection tracking does not know. They can belong to another
    /// host only if packets are forwarded.
    fn untold(&self) -> Behind {
        if self.forwards { Behind::Unknown } else { Behind::Same }
    }

    fn failed(&mut self, errno: Errno) {
        let help = match errno {
            Errno::EPERM => format!("; {}", capability::advice(&[capability::NET_ADMIN])),
            _ => String::new(),
        };
        let text = format!("looking up tracked connections: {errno}{help}");
        self.fault = Some(Error::new(Code::SystemResource, text));
        if errno == Errno::EPERM {
            self.conntrack = None;
        }
    }

    /// The reason why connection tracking cannot be queried, if connections are tracked.
    pub fn fault(&self) -> Option<&Error> {
        self.fault.as_ref().filter(|_| self.is_tracking)
    }

    /// The number of addresses that were evicted because too many were cached.
    pub fn evicted(&self) -> u64 {
        self.local.evicted()
    }

    /// Rereads at intervals the facts that may have changed.
    fn check(&mut self, now: Instant) {
        if self.checked.is_some_and(|at| now.saturating_duration_since(at) < VALIDITY) {
            return;
        }
        self.checked = Some(now);
        self.local.clear();
        match openat(self.root.directory(), COUNT, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            _ if self.is_tracking => {}
            Ok(count) if self.is_home => self.count = Some(count),
            Err(Errno::ENOENT) => self.is_tracking = self.root.stat(SETTINGS).is_err(),
            Ok(_) | Err(_) => self.is_tracking = true,
        }
        if self.is_home && (self.is_tracking || self.count.is_some()) {
            self.open_sockets();
        }
        if !self.is_tracking {
            return;
        }
        // If forwarding cannot be determined, packets count as forwarded.
        self.forwards = self.routing.as_mut().is_none_or(|routing| routing.forwards().unwrap_or(true));
    }

    /// Returns true if there may be tracked connections, or have been. The flows of one round have begun
    /// before it, so one read serves all of them.
    fn tracks(&mut self, now: Instant) -> bool {
        if self.read_at == Some(now) {
            return self.is_tracking;
        }
        self.read_at = Some(now);
        if let Some(count) = &self.count {
            let mut digits = [0; 2];
            // An unreadable count is taken for a number above 0.
            self.is_tracking = !matches!(pread(count, &mut digits, 0), Ok(2) if digits == *b"0\n");
            if self.is_tracking {
                (self.count, self.checked) = (None, None);
            }
        }
        self.is_tracking
    }

    /// Returns true if an address is this namespace's; `None` if that cannot be determined.
    fn is_local(&mut self, address: &Address) -> Option<bool> {
        if let Some(&is_local) = self.local.get(address) {
            return Some(is_local);
        }
        let is_local = self.routing.as_mut()?.is_local(address).ok()?;
        self.local.insert(*address, is_local);
        Some(is_local)
    }
}

/// Returns true if a module is present: loaded, built in, or the kernel has no modules. Returns `None` if that
/// cannot be determined.
fn is_loaded(root: &ProcRoot, module: &str) -> Option<bool> {
    let mut text = Vec::new();
    match root.read(c"modules", &mut text) {
        Err(errno) => (errno == Errno::ENOENT && root.stat(SETTINGS).is_ok()).then_some(true),
        Ok(modules) => {
            let is_in = |text: &[u8], word: &[u8]| text.windows(word.len()).any(|window| window == word);
            if modules
                .split(|&byte| byte == b'\n')
                .any(|line| line.starts_with(format!("{module} ").as_bytes()))
            {
                return Some(true);
            }
            let release = nix::sys::utsname::uname().ok()?.release().to_owned();
            let list = Path::new("/lib/modules").join(release).join("modules.builtin");
            Some(is_in(&std::fs::read(list).ok()?, format!("/{module}.ko").as_bytes()))
        }
    }
}
