//! Reads the kernel's tcp_info of living TCP connections, in one dump for each network namespace.

use crate::model::{FlowKey, Namespace, Protocol, tcp_state};
use crate::namespace::{Known, PerNamespace};
use crate::netlink::{InetDiag, InetSocket, TcpInfo};
use tracing::{debug, info, warn};

/// The states of connections that have a socket of their own.
const CONNECTED: u32 = tcp_state::mask(&[
    tcp_state::ESTABLISHED,
    tcp_state::SYN_SENT,
    tcp_state::SYN_RECV,
    tcp_state::FIN_WAIT1,
    tcp_state::FIN_WAIT2,
    tcp_state::CLOSE_WAIT,
    tcp_state::LAST_ACK,
    tcp_state::CLOSING,
]);

/// The sock_diag sockets, one in each captured namespace.
pub struct TcpReader {
    sources: PerNamespace<InetDiag>,
}

impl TcpReader {
    /// Opens a reader with the namespace of the calling thread, which is the session's own. It follows the
    /// namespaces of `known`.
    ///
    /// # Errors
    /// The system's error.
    pub fn open(known: Known) -> nix::Result<TcpReader> {
        Ok(TcpReader { sources: PerNamespace::with_home(InetDiag::open()?, known) })
    }

    /// Follows namespaces that appear and disappear.
    pub fn follow_namespaces(&mut self) {
        self.sources.follow_inside(InetDiag::open, |entry, errno| {
            info!("tcp_info is unavailable in {}: {errno}", entry.path.display());
        });
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
                let key = FlowKey { local, remote, protocol: Protocol::TCP, namespace };
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
        match self.sources.get_mut(key.namespace).map(|diag| diag.find(key)) {
            Some(Ok(found)) => found.is_none_or(|found| found.cookie != cookie),
            Some(Err(errno)) => {
                debug!("looking up a connection's socket failed: {errno}");
                false
            }
            None => false,
        }
    }
}
