//! Reads the kernel's tcp_info of living TCP connections, in one dump for each network namespace.

use crate::model::{FlowKey, Namespace, Protocol};
use crate::namespace::{Follower, enter};
use crate::netlink::{InetDiag, InetSocket, TcpInfo};
use tracing::{debug, info, warn};

/// The states of connections that have a socket of their own, by their numbers in include/net/tcp_states.h:
/// all but TIME_WAIT (6), CLOSE (7), LISTEN (10) and NEW_SYN_RECV (12).
const CONNECTED: u32 = 0b1011_0011_1110;

/// The sock_diag sockets, one in each captured namespace.
pub struct TcpReader {
    sources: Vec<(Namespace, InetDiag)>,
    follower: Follower,
}

impl TcpReader {
    /// Opens a reader with the namespace of the calling thread, which is the session's own.
    ///
    /// # Errors
    /// The system's error.
    pub fn open(follower: Follower) -> nix::Result<TcpReader> {
        Ok(TcpReader { sources: vec![(Namespace::HOME, InetDiag::open()?)], follower })
    }

    /// Follows namespaces that appear and disappear.
    pub fn follow_namespaces(&mut self) {
        let changes = self.follower.changes();
        self.sources.retain(|(namespace, _)| !changes.gone.contains(namespace));
        for entry in &changes.come {
            match enter(entry, InetDiag::open) {
                Ok(Ok(diag)) => self.sources.push((entry.namespace, diag)),
                Ok(Err(errno)) => info!("tcp_info is unavailable in {}: {errno}", entry.path.display()),
                Err(error) => info!("{}: {error}", entry.path.display()),
            }
        }
    }

    /// Passes every connection in the namespaces that `is_wanted` selects to `each`.
    pub fn read(
        &mut self,
        is_wanted: impl Fn(Namespace) -> bool,
        mut each: impl FnMut(FlowKey, &InetSocket, &TcpInfo),
    ) {
        for (namespace, diag) in self.sources.iter_mut().filter(|(namespace, _)| is_wanted(*namespace)) {
            let read = diag.dump_tcp(CONNECTED, |socket, info| {
                let &InetSocket { local, remote, .. } = socket;
                let key = FlowKey { local, remote, protocol: Protocol::TCP, namespace: *namespace };
                each(key, socket, info);
            });
            if let Err(errno) = read {
                warn!("reading the tcp_info of connections failed: {errno}");
            }
        }
    }

    /// Returns true if the socket with this cookie no longer has these endpoints; false if that cannot be
    /// determined.
    pub fn is_gone(&mut self, key: &FlowKey, cookie: u64) -> bool {
        // The kernel does not find link-local addresses by their endpoints; see `InetDiag::find`.
        if key.local.address.is_link_local_v6() {
            return false;
        }
        let source = self.sources.iter_mut().find(|(namespace, _)| *namespace == key.namespace);
        let found = source.map(|(_, diag)| diag.find(key));
        match found {
            Some(Ok(found)) => found.is_none_or(|found| found.cookie != cookie),
            Some(Err(errno)) => {
                debug!("looking up a connection's socket failed: {errno}");
                false
            }
            None => false,
        }
    }
}
