//! `/proc` fixtures for tests: socket tables, and processes with descriptors.

use super::budget::tests::Costly;
use super::sockets::{HEADING, render};
use super::{Budget, Finder, Outcome, Query, SocketRow};
pub use crate::model::tcp_state::{CLOSE as UNCONNECTED, ESTABLISHED};
use crate::model::{Endpoint, FlowKey, Namespace, Owner, ProcId, Protocol, Quality};
use crate::proc::ProcRoot;
use capture_test_support::proc_tree::ProcTree;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const MS: Duration = Duration::from_millis(1);
/// The start of a test.
pub const NOW: Duration = Duration::ZERO;

pub struct OwnerTree {
    tree: ProcTree,
    pub start: Instant,
}

pub fn endpoint(text: &str) -> Endpoint {
    let socket: SocketAddr = text.parse().unwrap();
    Endpoint::new(socket.ip().into(), socket.port())
}

pub fn key(protocol: Protocol, local: &str, remote: &str) -> FlowKey {
    FlowKey { local: endpoint(local), remote: endpoint(remote), protocol, namespace: Namespace::HOME }
}

pub fn owned(pid: i32, start_ticks: u64, quality: Quality) -> Outcome {
    Outcome::Owned(Owner { process: ProcId { pid, start_ticks }, quality })
}

/// Returns one row of a table with both endpoints, the state and the inode. The user is 1000.
pub fn row(local: &str, remote: &str, state: u8, inode: u64) -> SocketRow {
    SocketRow { local: endpoint(local), remote: endpoint(remote), state, uid: 1000, inode }
}

impl OwnerTree {
    /// Creates a tree with a process 1 that holds nothing, and empty tables of every protocol.
    pub fn new() -> OwnerTree {
        let tree = OwnerTree { tree: ProcTree::empty(), start: Instant::now() };
        for (name, _) in super::sockets::NAMES {
            tree.table(name, &[]);
        }
        tree.process(1, 0, 1, &[]);
        tree
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.tree.file(name)
    }

    pub fn table(&self, name: &str, rows: &[SocketRow]) {
        let rows: String = rows.iter().map(|row| render(row, name.ends_with('6'))).collect();
        self.tree.write(&format!("net/{name}"), format!("{HEADING}{rows}"));
    }

    /// Adds a process with descriptors of these sockets, among others that are not sockets.
    pub fn process(&self, pid: i32, parent: i32, start: u64, sockets: &[u64]) {
        let stat = format!("{pid} (a) b (c) S {parent} 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {start} 1 2 3\n");
        self.tree.write(&format!("{pid}/stat"), stat);
        for (number, target) in ["/dev/null", "pipe:[7]", "anon_inode:[eventpoll]"].iter().enumerate() {
            self.tree.link(&format!("{pid}/fd/{number}"), target);
        }
        self.tree.sockets(pid, sockets);
    }

    pub fn end(&self, pid: i32) {
        self.tree.end(pid);
    }

    /// Returns a finder whose work costs no CPU time.
    pub fn finder(&self) -> Finder {
        self.finder_with(Budget::new(0.05, 250 * MS, Box::new(Costly::new(0))))
    }

    pub fn finder_with(&self, budget: Budget) -> Finder {
        Finder::new(Arc::new(ProcRoot::open(self.tree.path()).unwrap()), budget, Arc::default())
    }

    /// Returns a query for a flow first seen this long after the start.
    pub fn query(&self, key: FlowKey, after: Duration) -> Query {
        Query::new(key, self.start + after)
    }

    /// Returns the first outcome that a new finder has for a flow.
    pub fn first(&self, key: FlowKey) -> Outcome {
        self.at(&mut self.finder(), key, Duration::ZERO)
    }

    /// Returns the final outcome that a new finder has for a flow.
    pub fn last(&self, key: FlowKey) -> Outcome {
        let mut query = self.query(key, Duration::ZERO);
        let mut finder = self.finder();
        while matches!(query.outcome, Outcome::Retry { .. }) {
            let now = query.due();
            finder.find(std::slice::from_mut(&mut query), now);
        }
        query.outcome
    }

    /// Returns the outcome of this finder for a flow that is looked up at once, first seen this long after
    /// the start.
    pub fn at(&self, finder: &mut Finder, key: FlowKey, after: Duration) -> Outcome {
        let mut query = self.query(key, after);
        finder.find(std::slice::from_mut(&mut query), self.start + after);
        query.outcome
    }
}
