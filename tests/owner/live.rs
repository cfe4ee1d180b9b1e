//! Shared support for tests of live sockets: a finder on a clock that can be advanced, the output of `ss`,
//! and children that hold sockets.

use capture::internals::model::{Endpoint, FlowKey, Namespace, Owner, ProcId, Protocol, Quality};
use capture::internals::netlink::InetDiag;
use capture::internals::owner::{Budget, Finder, Outcome, Query, ThreadMeter};
use capture::internals::proc::ProcRoot;
use capture_test_support::requirements::{has_root_and, left_out};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub type Failure = Box<dyn std::error::Error>;

/// Lets one test run at a time: between fork and exec, a child that one test starts holds the
/// sockets of all others.
static TURN: Mutex<()> = Mutex::new(());

pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sources in which a finder looks up sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sockets {
    /// Only the tables of `/proc/net`.
    Tables,
    /// The kernel by sock_diag, and then the tables.
    SockDiag,
}

/// A finder of this machine's flows, on a clock that can be advanced.
pub struct Live {
    pub finder: Finder,
    skipped: Duration,
}

impl Live {
    pub fn new(sockets: Sockets) -> Result<Live, Failure> {
        let root = ProcRoot::open(Path::new("/proc")).map_err(|error| error.text)?;
        let budget = Budget::new(1000.0, Duration::from_secs(1000), Box::new(ThreadMeter));
        let mut finder = Finder::new(Arc::new(root), budget, Arc::default());
        if sockets == Sockets::SockDiag {
            finder.ask_kernel(InetDiag::open()?);
        }
        Ok(Live { finder, skipped: Duration::ZERO })
    }

    pub fn now(&self) -> Instant {
        Instant::now() + self.skipped
    }

    /// Returns the outcome of the first lookup.
    pub fn first(&mut self, key: FlowKey) -> Outcome {
        let now = self.now();
        let mut query = Query::new(key, now);
        self.finder.find(std::slice::from_mut(&mut query), now);
        query.outcome
    }

    /// Returns the last outcome, and skips the waits.
    pub fn last(&mut self, key: FlowKey) -> Outcome {
        let mut query = Query::new(key, self.now());
        loop {
            let now = self.now();
            self.finder.find(std::slice::from_mut(&mut query), now);
            match query.outcome {
                Outcome::Retry { after, .. } => self.skipped += after,
                outcome => return outcome,
            }
        }
    }
}

pub fn key(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> FlowKey {
    let end = |socket: SocketAddr| Endpoint::new(socket.ip().into(), socket.port());
    FlowKey { local: end(local), remote: end(remote), protocol, namespace: Namespace::HOME }
}

/// Returns the id of a process as the procfs crate reads it.
pub fn process(pid: u32) -> Result<ProcId, Failure> {
    let pid = i32::try_from(pid)?;
    let start_ticks = procfs::process::Process::new(pid)?.stat()?.starttime;
    Ok(ProcId { pid, start_ticks })
}

pub fn owned(pid: u32, quality: Quality) -> Result<Outcome, Failure> {
    Ok(Outcome::Owned(Owner { process: process(pid)?, quality }))
}

/// Returns the processes that hold the sockets with these two endpoints, as `ss` lists them; `None` without
/// `ss`. A remote endpoint of `None` stands for an unconnected socket.
pub fn ss(protocol: Protocol, local: SocketAddr, remote: Option<SocketAddr>) -> Option<Vec<u32>> {
    let option = if protocol == Protocol::TCP { "-Htanpe" } else { "-Huanpe" };
    let output = Command::new("ss").arg(option).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let plain = |text: &str| text.parse::<SocketAddr>().ok().map(|it| (it.ip().to_canonical(), it.port()));
    let wanted = |socket: SocketAddr| Some((socket.ip().to_canonical(), socket.port()));
    let mut pids = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (from, to) = (*fields.get(3)?, *fields.get(4)?);
        let from = plain(&from.replacen('*', "[::]", 1));
        if from == wanted(local) && remote.map_or(to.ends_with(":*"), |remote| plain(to) == wanted(remote)) {
            assert!(line.contains(" ino:"), "{line}");
            let holders = line.split("pid=").skip(1).filter_map(|rest| rest.split(',').next());
            pids.extend(holders.filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Some(pids)
}

/// Checks the expected holders against `ss` if it is installed.
pub fn ss_agrees(
    protocol: Protocol,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    mut expected: Vec<u32>,
) -> Result<(), Failure> {
    expected.sort_unstable();
    match ss(protocol, local, remote) {
        Some(pids) if pids == expected => Ok(()),
        Some(pids) => Err(format!("ss says {pids:?} of {local}, not {expected:?}").into()),
        None => {
            left_out("there is no ss to compare with");
            Ok(())
        }
    }
}

/// A child that holds a descriptor as its standard input until it is dropped.
pub struct Holder(pub Child);

impl Holder {
    pub fn of(socket: impl Into<OwnedFd>) -> Result<Holder, Failure> {
        let mut command = Command::new("sleep");
        Ok(Holder(command.arg("600").stdin(Stdio::from(socket.into())).spawn()?))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection between link-local addresses, over a link between two namespaces, with a thread of this
/// process in each. Such sockets are bound to their device, and packets do not show the device.
pub fn both_ends_of_a_link_local_connection_root(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    if !has_root_and(&["ip"]) {
        return Ok(());
    }
    let ((tell_server, of_client), (tell_client, of_server)) = (channel(), channel());
    // Each end runs on a thread of its own, because it leaves its namespace.
    std::thread::scope(|scope| {
        let server =
            scope.spawn(move || called(sockets, &tell_client, &of_client).map_err(|e| e.to_string()));
        let client = scope.spawn(move || calls(sockets, &tell_server, &of_server).map_err(|e| e.to_string()));
        let [server, client] = [server, client].map(|thread| thread.join().map_err(|_| "an end panicked"));
        // If both fail, the server's error says more.
        server??;
        client??;
        Ok(())
    })
}

/// A message between the ends: a thread id, the address of the listener, or the end of the work.
enum Word {
    Thread(i32),
    Listens(SocketAddrV6),
    Done,
}

const CALLED: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);

fn ip(command: &str) -> Result<(), Failure> {
    let output = Command::new("ip").args(command.split(' ')).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {command}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

fn index(device: &str) -> Result<u32, Failure> {
    Ok(nix::net::if_::if_nametoindex(device)?)
}

fn called(sockets: Sockets, tell: &Sender<Word>, told: &Receiver<Word>) -> Result<(), Failure> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    tell.send(Word::Thread(nix::unistd::gettid().as_raw()))?;
    // The link exists now.
    told.recv()?;
    ip(&format!("addr add {CALLED}/64 dev called nodad"))?;
    ip("link set called up")?;
    let listener = TcpListener::bind(SocketAddrV6::new(CALLED, 0, 0, index("called")?))?;
    let SocketAddr::V6(local) = listener.local_addr()? else { return Err("an address of IPv4".into()) };
    tell.send(Word::Listens(local))?;
    // The other end is connected. If it failed instead, no connection would ever arrive.
    told.recv()?;
    let (server, from) = listener.accept()?;
    let flow = key(Protocol::TCP, server.local_addr()?, from);
    assert_eq!(Live::new(sockets)?.first(flow), owned(std::process::id(), Quality::Exact)?, "accepted");
    // The connection lasts until the owner of the other end has been found, too.
    told.recv()?;
    Ok(())
}

fn calls(sockets: Sockets, tell: &Sender<Word>, told: &Receiver<Word>) -> Result<(), Failure> {
    let Word::Thread(other) = told.recv()? else { return Err("not the other's thread".into()) };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    ip(&format!("link add calls type veth peer name called netns {other}"))?;
    ip("addr add fe80::78/64 dev calls nodad")?;
    ip("link set calls up")?;
    tell.send(Word::Done)?;
    let Word::Listens(to) = told.recv()? else { return Err("not the other's address".into()) };
    let client = TcpStream::connect(SocketAddrV6::new(CALLED, to.port(), 0, index("calls")?))?;
    tell.send(Word::Done)?;
    let flow = key(Protocol::TCP, client.local_addr()?, client.peer_addr()?);
    let child = Holder::of(client)?;
    assert_eq!(Live::new(sockets)?.first(flow), owned(child.0.id(), Quality::Exact)?, "opened");
    tell.send(Word::Done)?;
    Ok(())
}
