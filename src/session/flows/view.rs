//! The update's part of the flow records: requests the living flows, and completes records with the kernel's
//! tcp_info.

use super::mailbox::{FlowMailbox, NamespacedRecord, SocketEnd};
use super::record::complete;
use super::tcp_reader::TcpReader;
use crate::model::{FlowKey, FlowRecord, Namespace, Protocol, Timestamp};
use crate::netlink::TcpInfo;
use crate::session::pipeline::DrainBarrier;
use crate::sync::Mutex;
use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest wait of an update for the living flows. The capture thread is busy for a few milliseconds at most,
/// unless the machine is busy.
const TIMEOUT: Duration = Duration::from_millis(200);

/// The kernel's figures of a flow's socket.
#[derive(Clone, Copy)]
struct SocketFigures {
    flow: u64,
    cookie: u64,
    info: TcpInfo,
}

type AllFigures = HashMap<FlowKey, SocketFigures, RandomState>;

/// The flows as of the last update.
pub struct FlowView {
    mailbox: Arc<FlowMailbox>,
    living: Vec<NamespacedRecord>,
    kernel: Option<Arc<Mutex<TcpReader>>>,
    /// The figures of the flows that lived at the last update, and at the one before it. Flows that ended in
    /// between are delivered only now.
    figures: [AllFigures; 2],
}

impl FlowView {
    /// Returns a view without flows. Without a reader, the records contain only what was captured.
    pub fn new(mailbox: Arc<FlowMailbox>, kernel: Option<Arc<Mutex<TcpReader>>>) -> FlowView {
        FlowView { mailbox, living: Vec::new(), kernel, figures: Default::default() }
    }

    /// Returns the reader of tcp_info, for the thread that follows namespaces between updates. That matters
    /// because an open socket keeps its namespace alive.
    pub fn reader(&self) -> Option<Arc<Mutex<TcpReader>>> {
        self.kernel.clone()
    }

    /// Updates the living flows.
    pub fn update(&mut self, barrier: &DrainBarrier) {
        let deadline = Instant::now() + TIMEOUT;
        if let Some(living) = self.mailbox.living(deadline, || barrier.wake()) {
            self.living = living;
        }
        self.read_kernel();
    }

    /// Takes the living flows that were stored in the mailbox without a request.
    pub fn take_left(&mut self) {
        if let Some(living) = self.mailbox.left() {
            self.living = living;
        }
    }

    /// Returns the living flows.
    pub fn living(&self) -> impl Iterator<Item = &FlowRecord> {
        self.living.iter().map(|seen| &seen.record)
    }

    /// Takes the last records of the flows that have ended, oldest first.
    pub fn take_ended(&mut self) -> Vec<FlowRecord> {
        let complete_one = |mut seen: NamespacedRecord| {
            let key = seen.key();
            let known = self.figures.iter().filter_map(|figures| figures.get(&key));
            let known = known.filter(|_| !seen.is_translated);
            if let Some(figures) = known.into_iter().find(|figures| figures.flow == seen.record.id) {
                complete(&mut seen.record, figures.cookie, &figures.info);
            }
            seen.record
        };
        self.mailbox.take_ended().into_iter().map(complete_one).collect()
    }

    fn read_kernel(&mut self) {
        let FlowView { mailbox, living, kernel: Some(kernel), figures: [latest, before] } = self else {
            return;
        };
        let mut kernel = kernel.lock();
        kernel.follow_namespaces();
        std::mem::swap(latest, before);
        latest.clear();
        let is_tcp = |seen: &&mut NamespacedRecord| seen.record.protocol == Protocol::TCP;
        let of_tcp = living.iter_mut().filter(|seen| is_tcp(seen) && !seen.is_translated);
        let mut wanted: HashMap<FlowKey, &mut FlowRecord, RandomState> =
            of_tcp.map(|seen| (seen.key(), &mut seen.record)).collect();
        let namespaces: HashSet<Namespace> = wanted.keys().map(|key| key.namespace).collect();
        kernel.read(
            |namespace| namespaces.contains(&namespace),
            |key, socket, info| {
                if let Some(record) = wanted.remove(&key) {
                    complete(record, socket.cookie, info);
                    latest.insert(key, SocketFigures { flow: record.id, cookie: socket.cookie, info: *info });
                }
            },
        );
        // Flows whose socket existed at the last update and is missing now.
        let mut gone = Vec::new();
        for (key, record) in wanted {
            let Some(&known) = before.get(&key).filter(|known| known.flow == record.id) else { continue };
            complete(record, known.cookie, &known.info);
            if kernel.is_gone(&key, known.cookie) {
                // Reported once: at the next update the flow is in neither map.
                gone.push(SocketEnd { key, told: Timestamp::now(), cookie: known.cookie, info: known.info });
            } else {
                latest.insert(key, known);
            }
        }
        drop(kernel);
        mailbox.add_notices(gone.into_iter());
    }
}
