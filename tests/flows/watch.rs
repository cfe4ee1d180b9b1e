//! A session that records flows, and functions that wait for the results of its updates.

use capture::internals::config::{Engine, Options};
use capture::internals::model::{FlowRecord, FlowValidity, ProcessRecord};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::Session;
use capture_test_support::lab::{Host, Lab};
use capture_test_support::requirements::requires_all;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The time after which a test stops waiting for an event.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A session with the results of its updates.
pub struct Watch {
    pub session: Session,
    pub ended: Vec<FlowRecord>,
    pub removed: HashMap<i32, ProcessRecord>,
}

impl Watch {
    /// Opens a session on a host; the calling thread stays in the host's namespace.
    pub fn on(lab: &Lab, host: Host, engine: Engine) -> Watch {
        Watch::with(lab, host, Options { flows: true, engine, ..Options::default() })
    }

    /// Does the same as [`Watch::on`] with the given options. It replaces the namespaces: the other host's
    /// flows are not captured.
    pub fn with(lab: &Lab, host: Host, mut options: Options) -> Watch {
        lab.enter(host);
        options.capture.namespaces = NamespaceChoice::Own;
        let engine = options.engine;
        let session = Session::open(options).unwrap();
        let required = cfg!(feature = "ebpf") && requires_all();
        assert!(!required || session.stats_reader().read().engine == engine, "the engine is not to be had");
        Watch { session, ended: Vec::new(), removed: HashMap::new() }
    }

    pub fn update(&mut self) {
        self.session.update().unwrap();
        self.session.health().unwrap();
        self.ended.extend(self.session.take_ended_flows());
        for record in self.session.take_removed() {
            self.removed.insert(record.sample.id.pid, record);
        }
    }

    /// Updates until `found` returns a result.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Watch) -> Option<T>) -> T {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.update();
            if let Some(found) = found(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "never: {what}; ended: {:?}", self.ended);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns the record of a living flow.
    pub fn living(&self, local: SocketAddr, remote: SocketAddr) -> Option<FlowRecord> {
        self.session.flows().find(|record| is_between(record, local, remote)).copied()
    }

    /// Waits for the last record of a flow, and asserts that there is only one and that the flow is
    /// no longer living.
    #[track_caller]
    pub fn last(&mut self, local: SocketAddr, remote: SocketAddr) -> FlowRecord {
        self.until("the end of a flow", |watch| {
            let mut all = watch.ended.iter().filter(|record| is_between(record, local, remote));
            let (first, second) = (all.next().copied(), all.next());
            assert_eq!(second, None, "told twice");
            assert!(first.is_none() || watch.living(local, remote).is_none(), "ended and living");
            first
        })
    }
}

fn is_between(record: &FlowRecord, local: SocketAddr, remote: SocketAddr) -> bool {
    let is = |end: capture::internals::model::Endpoint, address: SocketAddr| {
        (end.address.ip(), end.port) == (address.ip(), address.port())
    };
    is(record.local, local) && is(record.remote, remote)
}

/// Asserts that these parts of a record are valid.
#[track_caller]
pub fn assert_known(record: &FlowRecord, parts: &[FlowValidity]) {
    for part in parts {
        assert!(record.valid.has(*part), "{part:?} is not known in {record:?}");
    }
}
