//! A descriptor table apart from the host's, shared by the threads of sessions.
//!
//! In the host's table, a child that the host forks would keep the descriptors of a session, and a program
//! that the host executes would keep those that a library opens without close-on-exec. Descriptors in a
//! separate table are inherited only by threads started from it, are not closed by the host's `closefrom`,
//! and do not count with the host's.
//!
//! Sessions of a process share one table, since they share eBPF programs. A thread cannot move to an existing
//! table: it gets the table of the thread that starts it, together with that thread's namespaces and
//! privileges. Therefore threads that differ in these have different tables.

use super::context::Context;
use super::leave::leave_host_table;
use super::worker::Worker;
use crate::error::{Code, Error, Result};
use crate::shared::{PerProcess, Shared};
use nix::errno::Errno;
use std::fs::{read, read_link};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The tables of all sessions.
static TABLES: PerProcess<Shared<InheritedAttributes, PrivateTable>> = PerProcess::new();

/// The number of the latest table.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The attributes that a thread inherits from the thread that starts it, as the kernel reports them.
type InheritedAttributes = Vec<Vec<u8>>;

/// A descriptor table, and the thread that starts others in it.
#[derive(Debug)]
pub struct PrivateTable {
    keeper: Worker,
    context: Arc<Context>,
    /// Works in the host's table.
    _host: Worker,
    /// The reason that it is the host's table after all.
    shared_because: Option<Errno>,
}

impl PrivateTable {
    /// Returns the table for sessions of the calling thread.
    ///
    /// # Errors
    /// Fails with `Thread` if the system refuses another thread.
    pub fn of_thread() -> Result<Arc<PrivateTable>> {
        match attributes() {
            Some(attributes) => TABLES.get().get(attributes, PrivateTable::make),
            None => PrivateTable::make().map(Arc::new),
        }
    }

    fn make() -> Result<PrivateTable> {
        let host = Worker::start("capture-host")?;
        let keeper = Worker::start("capture-keeper")?;
        let left = keeper.run(leave_host_table).unwrap_or(Err(Errno::ECHILD));
        let number = match left {
            Ok(()) => NUMBER.fetch_add(1, Ordering::Relaxed) + 1,
            Err(_) => 0,
        };
        let sender = host.sender().ok_or_else(no_thread)?;
        let context = Arc::new(Context::new(number, sender));
        let entered = Arc::clone(&context);
        keeper.run(move || Context::enter(Some(entered)));
        Ok(PrivateTable { keeper, context, _host: host, shared_because: left.err() })
    }

    /// Starts a worker in the table.
    ///
    /// # Errors
    /// Fails with `Thread` if the system refuses another thread.
    pub fn start_worker(&self, name: &'static str) -> Result<Worker> {
        self.keeper.run(move || Worker::start(name)).unwrap_or_else(|| Err(no_thread()))
    }

    /// Returns the reason that it is not apart from the host's table, if it is not.
    pub fn shared_because(&self) -> Option<Errno> {
        self.shared_because
    }
}

impl Drop for PrivateTable {
    fn drop(&mut self) {
        // An abandoned thread has the context, too. Its sender would keep the host's worker from ending.
        self.context.end_host();
    }
}

fn no_thread() -> Error {
    Error::new(Code::Thread, "starting a thread: the thread that starts others has ended")
}

/// Returns the namespaces and privileges of the calling thread. `None` if they cannot be read.
fn attributes() -> Option<InheritedAttributes> {
    const NAMESPACES: [&str; 5] = ["net", "mnt", "pid", "user", "cgroup"];
    const LINES: [&[u8]; 6] = [b"Uid:", b"Gid:", b"Groups:", b"Cap", b"NoNewPrivs:", b"Seccomp"];
    let status = read("/proc/thread-self/status").ok()?;
    let is_inherited = |line: &&[u8]| LINES.iter().any(|start| line.starts_with(start));
    let mut all: InheritedAttributes =
        status.split(|&byte| byte == b'\n').filter(is_inherited).map(<[u8]>::to_vec).collect();
    for name in NAMESPACES {
        let link = read_link(format!("/proc/thread-self/ns/{name}"));
        match link {
            Ok(link) => all.push(link.into_os_string().into_encoded_bytes()),
            Err(_) if name != "net" => {}
            Err(_) => return None,
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::read_dir;

    fn descriptors() -> usize {
        read_dir("/proc/thread-self/fd").unwrap().count()
    }

    #[test]
    fn sessions_of_one_thread_share_a_table_that_has_nothing_of_the_hosts() {
        let _of_host = std::fs::File::open("/etc/passwd").unwrap();
        let (one, other) = (PrivateTable::of_thread().unwrap(), PrivateTable::of_thread().unwrap());
        assert!(Arc::ptr_eq(&one, &other) && one.shared_because().is_none());
        let [first, second] = [one, other].map(|table| table.start_worker("capture-test").unwrap());
        let (number, count) = first.run(|| (Context::table(), descriptors())).unwrap();
        // The placeholders of the standard streams, and the listing itself.
        assert_eq!(count, 4);
        assert!(number > 0 && second.run(Context::table) == Some(number) && Context::table() == 0);
    }

    #[test]
    fn what_threads_start_is_in_their_table_and_reaches_the_hosts() {
        let table = PrivateTable::of_thread().unwrap();
        let worker = table.start_worker("capture-test").unwrap();
        let started = worker.run(|| super::super::both("capture-test", Context::table, Context::table));
        let (one, other) = started.unwrap();
        assert!(one == other && one > 0);
        let file = std::fs::File::open("/etc/passwd").unwrap();
        let path = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let other_path = path.clone();
        assert!(worker.run(move || read_link(other_path).is_err()).unwrap());
        let seen = worker.run(move || super::super::on_host(move || read_link(path).ok())).unwrap();
        assert!(seen.recv().unwrap().unwrap().ends_with("passwd"));
    }
}
