//! A session that records flows, and waiting for what its updates say.

use crate::lab::{Host, Lab};
use capture::config::{Engine, Options};
use capture::model::{FlowRecord, FlowValidity, ProcessRecord};
use capture::namespace::NamespaceChoice;
use capture::session::Session;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// When a test gives up on what should long have happened.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A session with what its updates said.
pub struct Watch {
    pub session: Session,
    pub ended: Vec<FlowRecord>,
    pub removed: HashMap<i32, ProcessRecord>,
}

impl Watch {
    /// Opens a session on a host; the calling thread is there from then on.
    pub fn on(lab: &Lab, host: Host, engine: Engine) -> Watch {
        Watch::with(lab, host, Options { flows: true, engine, ..Options::default() })
    }

    /// The same with options of one's own, but for the namespaces: the other host's flows are not watched.
    pub fn with(lab: &Lab, host: Host, mut options: Options) -> Watch {
        lab.enter(host);
        options.capture.namespaces = NamespaceChoice::Own;
        let engine = options.engine;
        let session = Session::open(options).unwrap();
        let required = cfg!(feature = "ebpf") && std::env::var_os("CAPTURE_REQUIRE_ALL").is_some();
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

    /// Updates until `found` finds something.
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

    /// The record of a flow that lives.
    pub fn living(&self, local: SocketAddr, remote: SocketAddr) -> Option<FlowRecord> {
        self.session.flows().find(|record| is_between(record, local, remote)).copied()
    }

    /// The last record of a flow, which has no other and lives no more.
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
    let is = |end: capture::model::Endpoint, address: SocketAddr| {
        (end.address.ip(), end.port) == (address.ip(), address.port())
    };
    is(record.local, local) && is(record.remote, remote)
}

/// Asserts that these parts of a record are known.
#[track_caller]
pub fn assert_known(record: &FlowRecord, parts: &[FlowValidity]) {
    for part in parts {
        assert!(record.valid.has(*part), "{part:?} is not known in {record:?}");
    }
}
