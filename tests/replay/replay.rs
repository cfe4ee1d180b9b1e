//! Runs savefiles through whole sessions.

use super::machine::{self, Bytes};
use capture::internals::config::{Options, Source};
use capture::internals::model::ProcessRecord;
use capture::internals::session::Session;
use capture_test_support::proc_tree::ProcTree;
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::resume_unwind;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// The time limit, far longer than any replay here takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Returns a file with these bytes, which is removed when dropped.
pub fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Returns the options of a session that replays a savefile on the fixture machine.
pub fn options(savefile: &Path, tree: &ProcTree) -> Options {
    Options {
        source: Source::Savefile(savefile.to_owned()),
        replay_owners: true,
        local_addresses: machine::addresses(),
        proc_root: tree.path().to_owned(),
        flow_limit: Some(4096),
        ..Options::default()
    }
}

/// Runs a test with several inputs at the same time, and returns the results in the order of the inputs. A
/// replay mostly waits for lookups that find no owner.
pub fn at_once<T: Send, R: Send>(
    inputs: impl IntoIterator<Item = T>,
    test: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let test = &test;
    std::thread::scope(|scope| {
        let threads: Vec<_> = inputs.into_iter().map(|input| scope.spawn(move || test(input))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Opens a session and waits until its savefile has been counted.
pub fn replay(options: Options) -> capture::internals::error::Result<Session> {
    let session = Session::open(options)?;
    wait(&session);
    Ok(session)
}

/// Waits until the savefile of a session has been counted.
pub fn wait(session: &Session) {
    let deadline = Instant::now() + TIMEOUT;
    while !session.has_ended() {
        assert!(Instant::now() < deadline, "the savefile does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the bytes that every process sent and received.
pub fn bytes<'a>(records: impl Iterator<Item = &'a ProcessRecord>) -> BTreeMap<i32, Bytes> {
    let bytes = |record: &ProcessRecord| (record.traffic.send_bytes, record.traffic.receive_bytes);
    records.map(|record| (record.sample.id.pid, bytes(record))).collect()
}

/// Returns all bytes that were counted, with and without an owner.
pub fn accounted(session: &Session) -> u64 {
    let totals = session.stats_reader().read().bytes;
    totals.owned.iter().chain(&totals.unowned).sum()
}
