//! Owners of live sockets of this process and of children, compared with the output of `ss`.

mod live;
mod threads;

use capture::internals::model::{Protocol, Quality, Unowned};
use capture::internals::owner::{Budget, Finder, Meter, Outcome, Query, ThreadMeter};
use capture::internals::proc::ProcRoot;
use capture_test_support::requirements::{has_root_and, left_out};
use live::{
    Failure, Holder, Live, Sockets, both_ends_of_a_link_local_connection_root, key, owned, ss_agrees, turn,
};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use threads::{a_process_whose_main_thread_has_ended, a_thread_with_a_table_of_its_own};

/// Makes two tests of each function: with the tables, and with sock_diag.
macro_rules! by_every_source {
    ($($name:ident)*) => {
        mod by_tables {
            $(#[test]
            fn $name() -> Result<(), super::Failure> {
                super::$name(super::Sockets::Tables)
            })*
        }
        mod by_sock_diag {
            $(#[test]
            fn $name() -> Result<(), super::Failure> {
                super::$name(super::Sockets::SockDiag)
            })*
        }
    };
}

by_every_source! {
    both_ends_of_tcp_connections
    a_connection_that_is_not_accepted_and_then_is
    a_connection_that_is_over
    connected_and_unconnected_udp
    a_socket_shared_with_a_child_is_the_childs
    a_port_reused_by_two_processes_is_ambiguous
    root_threads_own_network_namespace_and_raw_sockets
    both_ends_of_a_link_local_connection_root
    twenty_thousand_sockets
    a_thread_with_a_table_of_its_own
    a_process_whose_main_thread_has_ended
}

/// Opens a TCP connection and returns both ends: the client's and the server's.
fn connect(listener: &TcpListener, to: IpAddr) -> Result<(TcpStream, TcpStream), Failure> {
    let client = TcpStream::connect((to, listener.local_addr()?.port()))?;
    Ok((client, listener.accept()?.0))
}

fn both_ends_of_tcp_connections(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let me = std::process::id();
    let mut live = Live::new(sockets)?;
    for (bound, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
        let listener = match TcpListener::bind(bound) {
            Ok(listener) => listener,
            Err(error) => {
                left_out(&format!("{bound} cannot be bound: {error}"));
                continue;
            }
        };
        let (client, server) = connect(&listener, to.parse()?)?;
        let expected = owned(me, Quality::Exact)?;
        for end in [&client, &server] {
            let (local, remote) = (end.local_addr()?, end.peer_addr()?);
            assert_eq!(live.first(key(Protocol::TCP, local, remote)), expected, "{local}-{remote}");
            ss_agrees(Protocol::TCP, local, Some(remote), vec![me])?;
        }
        // Packets show IPv4 addresses, even if the listener is a dual-stack socket.
        let plain = |socket: SocketAddr| SocketAddr::new(socket.ip().to_canonical(), socket.port());
        let flow = key(Protocol::TCP, plain(server.local_addr()?), plain(server.peer_addr()?));
        assert_eq!(live.first(flow), expected);
    }
    Ok(())
}

fn a_connection_that_is_not_accepted_and_then_is(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut live = Live::new(sockets)?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let server = key(Protocol::TCP, client.peer_addr()?, client.local_addr()?);
    let outcome = live.first(server);
    assert!(matches!(outcome, Outcome::Retry { reason: Unowned::NoSocket, .. }), "{outcome:?}");
    assert_eq!(live.last(server), owned(std::process::id(), Quality::Guessed)?);
    let _accepted = listener.accept()?;
    assert_eq!(live.first(server), owned(std::process::id(), Quality::Exact)?);
    Ok(())
}

fn a_connection_that_is_over(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (client, server) = connect(&listener, Ipv4Addr::LOCALHOST.into())?;
    let flow = key(Protocol::TCP, client.local_addr()?, client.peer_addr()?);
    drop(client);
    drop(server);
    assert_eq!(Live::new(sockets)?.last(flow), Outcome::Unowned(Unowned::NoSocket));
    Ok(())
}

fn connected_and_unconnected_udp(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let me = std::process::id();
    let mut live = Live::new(sockets)?;
    let peer = UdpSocket::bind("127.0.0.1:0")?;
    for bound in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
        let socket = match UdpSocket::bind(bound) {
            Ok(socket) => socket,
            Err(error) => {
                left_out(&format!("{bound} cannot be bound: {error}"));
                continue;
            }
        };
        let port = socket.local_addr()?.port();
        let flow = key(Protocol::UDP, (Ipv4Addr::LOCALHOST, port).into(), peer.local_addr()?);
        ss_agrees(Protocol::UDP, socket.local_addr()?, None, vec![me])?;
        assert_eq!(live.first(flow), owned(me, Quality::Guessed)?, "{bound}");
        let remote = match socket.local_addr()? {
            SocketAddr::V4(_) => peer.local_addr()?,
            SocketAddr::V6(_) => (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), peer.local_addr()?.port()).into(),
        };
        socket.connect(remote)?;
        ss_agrees(Protocol::UDP, socket.local_addr()?, Some(remote), vec![me])?;
        assert_eq!(live.first(flow), owned(me, Quality::Exact)?, "{bound}, connected");
        let stranger = key(Protocol::UDP, (Ipv4Addr::LOCALHOST, port).into(), "127.0.0.1:9".parse()?);
        assert_eq!(live.last(stranger), Outcome::Unowned(Unowned::NoSocket), "{bound}");
    }
    Ok(())
}

fn a_socket_shared_with_a_child_is_the_childs(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let me = std::process::id();
    let mut live = Live::new(sockets)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (client, _server) = connect(&listener, Ipv4Addr::LOCALHOST.into())?;
    let (local, remote) = (client.local_addr()?, client.peer_addr()?);
    let flow = key(Protocol::TCP, local, remote);
    assert_eq!(live.first(flow), owned(me, Quality::Exact)?);
    let child = Holder::of(client.try_clone()?)?;
    ss_agrees(Protocol::TCP, local, Some(remote), vec![me, child.0.id()])?;
    assert_eq!(live.first(flow), owned(child.0.id(), Quality::Shared)?);
    drop(client);
    ss_agrees(Protocol::TCP, local, Some(remote), vec![child.0.id()])?;
    assert_eq!(live.first(flow), owned(child.0.id(), Quality::Exact)?);
    Ok(())
}

/// Returns a UDP socket on this port with `SO_REUSEPORT`.
fn reusing(port: u16) -> Result<UdpSocket, Failure> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
    };
    let descriptor = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&descriptor, sockopt::ReusePort, &true)?;
    bind(descriptor.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port))?;
    Ok(descriptor.into())
}

fn a_port_reused_by_two_processes_is_ambiguous(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let me = std::process::id();
    let mut live = Live::new(sockets)?;
    let mine = reusing(0)?;
    let local = mine.local_addr()?;
    let flow = key(Protocol::UDP, local, "127.0.0.1:9".parse()?);
    let also_mine = reusing(local.port())?;
    assert_eq!(live.first(flow), owned(me, Quality::Guessed)?, "two sockets, one process");
    let child = Holder::of(also_mine)?;
    ss_agrees(Protocol::UDP, local, None, vec![me, child.0.id()])?;
    assert_eq!(live.first(flow), Outcome::Unowned(Unowned::Ambiguous));
    drop(mine);
    assert_eq!(live.first(flow), owned(child.0.id(), Quality::Guessed)?);
    Ok(())
}

fn root_threads_own_network_namespace_and_raw_sockets(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let thread = std::thread::spawn(move || -> Result<(), String> {
        let text = |error: Failure| error.to_string();
        // SAFETY: unshare(2) changes the network namespace of this thread only and touches no memory.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let error = std::io::Error::last_os_error();
            left_out(&format!("a network namespace cannot be made: {error}"));
            return Ok(());
        }
        let look = || -> Result<(), Failure> {
            let me = std::process::id();
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let local = (Ipv4Addr::LOCALHOST, socket.local_addr()?.port());
            let flow = key(Protocol::UDP, local.into(), "127.0.0.1:9".parse()?);
            let mut live = Live::new(sockets)?;
            assert_eq!(live.first(flow), owned(me, Quality::Guessed)?);
            let echo = key(Protocol::ICMP, "127.0.0.1:77".parse()?, "127.0.0.2:0".parse()?);
            assert_eq!(live.last(echo), Outcome::Unowned(Unowned::NoSocket));
            // SAFETY: socket(2) touches no memory; its result is checked before it is used.
            let raw = unsafe {
                libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP)
            };
            if raw < 0 {
                left_out(&format!("a raw socket cannot be made: {}", std::io::Error::last_os_error()));
                return Ok(());
            }
            // SAFETY: the descriptor was just made and nothing else owns it.
            let _raw = unsafe { OwnedFd::from_raw_fd(raw) };
            assert_eq!(live.first(echo), owned(me, Quality::Guessed)?);
            Ok(())
        };
        look().map_err(text)
    });
    Ok(thread.join().map_err(|_| "the thread panicked")??)
}

/// Copies this program to where every user may execute it, to run one of its ignored tests.
fn copy_of_this_program(directory: &Path) -> Result<std::path::PathBuf, Failure> {
    let copy = directory.join("owner-test");
    std::fs::copy(std::env::current_exe()?, &copy)?;
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755))?;
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755))?;
    Ok(copy)
}

#[test]
#[ignore = "run as another user by root_other_users_sockets_are_not_permitted"]
fn ask_as_another_user() -> Result<(), Failure> {
    let Ok(ends) = std::env::var("OWNER_TEST_FLOW") else { return Ok(()) };
    let (local, remote) = ends.split_once(' ').ok_or("two ends")?;
    let mut live = Live::new(Sockets::SockDiag)?;
    let flow = key(Protocol::UDP, local.parse()?, remote.parse()?);
    assert_eq!(live.last(flow), Outcome::Unowned(Unowned::NotPermitted));
    let faults: Vec<_> = live.finder.report().sources.into_iter().filter_map(|source| source.fault).collect();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].text.contains("CAP_SYS_PTRACE"), "{faults:?}");
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let own = key(Protocol::UDP, socket.local_addr()?, remote.parse()?);
    assert_eq!(live.last(own), owned(std::process::id(), Quality::Guessed)?, "its own it knows");
    Ok(())
}

#[test]
fn root_other_users_sockets_are_not_permitted() -> Result<(), Failure> {
    let _turn = turn();
    if !has_root_and(&["setpriv"]) {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let program = copy_of_this_program(directory.path())?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect("127.0.0.1:9")?;
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program)
        .args(["--exact", "ask_as_another_user", "--ignored"])
        .env("OWNER_TEST_FLOW", format!("{} {}", socket.local_addr()?, socket.peer_addr()?))
        .current_dir("/")
        .output();
    let output = output?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    Ok(())
}

const MANY: u16 = 10_000;

/// Returns the local endpoints of the sockets of one of the holders of many, outside the range of
/// ephemeral ports.
fn many(holder: u8) -> impl Iterator<Item = SocketAddr> {
    (0..MANY).map(move |n| (Ipv4Addr::new(127, 77, holder, (n % 250) as u8), 20_000 + n / 250).into())
}

#[test]
#[ignore = "run as a child by twenty_thousand_sockets"]
fn hold_many() -> Result<(), Failure> {
    let Ok(holder) = std::env::var("OWNER_TEST_HOLDER") else { return Ok(()) };
    let holder: u8 = holder.parse()?;
    let mut sockets = Vec::new();
    for local in many(holder) {
        let socket = UdpSocket::bind(local)?;
        socket.connect("127.0.0.1:9")?;
        sockets.push(socket);
    }
    println!("holding");
    std::io::stdout().flush()?;
    let _ = std::io::stdin().read(&mut [0]);
    Ok(())
}

fn twenty_thousand_sockets(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let limit = std::fs::read_to_string("/proc/self/limits")?;
    let files = limit.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    let soft: u64 = files.split_whitespace().nth(3).and_then(|soft| soft.parse().ok()).unwrap_or(0);
    if soft < u64::from(MANY) + 100 {
        left_out(&format!("a process may have only {soft} descriptors, not {MANY}"));
        return Ok(());
    }
    let mut children = Vec::new();
    for holder in [1u8, 2] {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "hold_many", "--ignored", "--nocapture"])
            .env("OWNER_TEST_HOLDER", holder.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = child.stdout.take().ok_or("no output")?;
        children.push(Holder(child));
        let (mut text, mut piece) = (String::new(), [0; 64]);
        while !text.contains("holding") {
            let count = said.read(&mut piece)?;
            assert_ne!(count, 0, "the child said only {text}");
            text.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    }
    let now = Instant::now();
    let mut queries = Vec::new();
    for holder in [1, 2] {
        queries.extend(
            many(holder).map(|local| {
                Query::new(key(Protocol::UDP, local, SocketAddr::from(([127, 0, 0, 1], 9))), now)
            }),
        );
    }
    let mut live = Live::new(sockets)?;
    let before = ThreadMeter.cpu_time();
    live.finder.find(&mut queries, now);
    println!(
        "{} flows of {MANY} sockets each of 2 processes: {:?}",
        queries.len(),
        ThreadMeter.cpu_time() - before
    );
    for (part, child) in queries.chunks(usize::from(MANY)).zip(&children) {
        let expected = owned(child.0.id(), Quality::Exact)?;
        assert!(part.iter().all(|query| query.outcome == expected));
    }
    let now = Instant::now();
    let mut again: Vec<Query> = queries.iter().step_by(20).map(|query| Query::new(query.key, now)).collect();
    let before = ThreadMeter.cpu_time();
    live.finder.find(&mut again, now);
    println!("{} of them again: {:?}", again.len(), ThreadMeter.cpu_time() - before);
    assert!(again.iter().all(|query| matches!(query.outcome, Outcome::Owned(_))));
    assert_eq!(live.finder.report().full_scans, 1);
    Ok(())
}

/// A meter that charges a second for every round.
struct Dear(u64);

impl Meter for Dear {
    fn cpu_time(&mut self) -> Duration {
        self.0 += 1;
        Duration::from_secs(self.0)
    }
}

#[test]
fn beyond_the_budget_flows_wait() -> Result<(), Failure> {
    let _turn = turn();
    let root = Arc::new(ProcRoot::open(Path::new("/proc")).map_err(|error| error.text)?);
    let mut finder =
        Finder::new(root, Budget::new(0.5, Duration::from_millis(500), Box::new(Dear(0))), Arc::default());
    let start = Instant::now();
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let flow = key(Protocol::UDP, socket.local_addr()?, "127.0.0.1:9".parse()?);
    let expected = owned(std::process::id(), Quality::Guessed)?;
    let mut query = Query::new(flow, start);
    finder.find(std::slice::from_mut(&mut query), start);
    assert_eq!(query.outcome, expected);
    let mut query = Query::new(flow, start + Duration::from_millis(1));
    let mut now = start + Duration::from_millis(1);
    finder.find(std::slice::from_mut(&mut query), now);
    let Outcome::Retry { reason: Unowned::Pending, after } = query.outcome else {
        return Err(format!("{:?}", query.outcome).into());
    };
    assert!(after > Duration::from_millis(900), "half a second of debt at a half: {after:?}");
    // This meter charges the round that had to wait, too.
    now += after + Duration::from_secs(2);
    finder.find(std::slice::from_mut(&mut query), now);
    assert_eq!(query.outcome, expected);
    Ok(())
}
