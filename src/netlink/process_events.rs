//! Process events from the kernel's proc connector (drivers/connector/cn_proc.c, linux/cn_proc.h).

use super::message::{MESSAGE_HEADER, begin, messages, put, u32_at, u64_at};
use super::socket::{Socket, attach_filter};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Bytes of a `struct cn_msg` (linux/connector.h), and the offsets of its fields.
const CONNECTOR_HEADER: usize = 20;
const ACKNOWLEDGE: usize = 12;
const LENGTH: usize = 16;
/// Bytes of a request, which contains one number.
const REQUEST: usize = MESSAGE_HEADER + CONNECTOR_HEADER + 4;
/// `CN_IDX_PROC` and `CN_VAL_PROC`; the group has the same number.
const PROCESSES: u32 = 1;
/// `PROC_CN_MCAST_LISTEN`.
const LISTEN: u32 = 1;
/// Offsets in a `struct proc_event`, which begins with the kind: the time, and the data of the kind.
const TIME: usize = 8;
const DATA: usize = 16;

/// Kinds of events, `what` of `struct proc_event`.
const ACKNOWLEDGED: u32 = 0;
const FORK: u32 = 1;
const EXEC: u32 = 2;
const UID: u32 = 4;
const GID: u32 = 0x40;
const COMM: u32 = 0x200;
const EXIT: u32 = 0x8000_0000;

/// The size of the buffer in bytes. No event is longer.
const BUFFER: usize = 256;
/// The time within which the kernel must acknowledge.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The kind of a process event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Happening {
    /// The process was forked.
    Fork {
        /// The parent process.
        parent: i32,
    },
    /// The process executed another program.
    Exec,
    /// The process changed its name.
    Renamed,
    /// The process changed its user or group.
    Ids,
    /// The process's first thread ended, mostly together with all others. If other threads live on, so does
    /// the process, and if one of these calls execve(2), an `Exec` with the same number follows.
    Exit,
}

/// One event of a process. Threads have none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessEvent {
    /// The process.
    pub pid: i32,
    /// The kind of the event.
    pub happening: Happening,
    /// The time of the event in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// A listener for process events.
#[derive(Debug)]
pub struct ProcessEvents {
    socket: Socket,
    buffer: [u8; BUFFER],
}

impl ProcessEvents {
    /// Begins to listen. The calling thread must be in the initial network namespace, and its process in the
    /// initial process and user namespaces: the connector serves no others. Before Linux 6.6 it needs
    /// CAP_NET_ADMIN.
    ///
    /// # Errors
    /// Fails with `ECONNREFUSED` in another network namespace; with `EPERM` if the capability is missing;
    /// with `EOPNOTSUPP` if the kernel does not answer, as in another process or user namespace; and with any
    /// other error of the kernel.
    pub fn open() -> nix::Result<ProcessEvents> {
        ProcessEvents::open_with(ProcessEvents::unasked()?)
    }

    /// Begins to listen as [`ProcessEvents::open`] does, but without forks and exits. The remaining events,
    /// of which there are fewer, can change the name or identity of a process.
    ///
    /// # Errors
    /// Fails as [`ProcessEvents::open`] does.
    pub fn open_for_names() -> nix::Result<ProcessEvents> {
        let events = ProcessEvents::unasked()?;
        leave_out_threads(&events.socket, true)?;
        ProcessEvents::open_with(events)
    }

    fn open_with(mut events: ProcessEvents) -> nix::Result<ProcessEvents> {
        let number = own_number();
        events.socket.send(&request(LISTEN, number))?;
        events.await_acknowledgement(number)?;
        Ok(events)
    }

    /// Opens the socket without the request that makes the kernel send events.
    fn unasked() -> nix::Result<ProcessEvents> {
        let socket = Socket::for_notices(libc::NETLINK_CONNECTOR, PROCESSES)?;
        leave_out_threads(&socket, false)?;
        Ok(ProcessEvents { socket, buffer: [0; BUFFER] })
    }

    /// Waits for the reply to the request with this number. The kernel sends every listener the replies to
    /// all requests, and any process may send a request that the kernel refuses. The replies to others must
    /// therefore be skipped.
    fn await_acknowledgement(&mut self, number: u32) -> nix::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
            let mut watched = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut watched, timeout) == Ok(0) {
                return Err(Errno::EOPNOTSUPP);
            }
            let datagram = match self.socket.receive(&mut self.buffer) {
                Err(Errno::EAGAIN | Errno::ENOBUFS) => continue,
                other => other?,
            };
            for message in messages(datagram).flatten() {
                if let Some(answer) = acknowledgement(message.payload, number) {
                    return answer;
                }
            }
        }
    }

    /// Delivers the available events, in order, without blocking. Returns true if events were lost for lack
    /// of room.
    ///
    /// # Errors
    /// Fails with the error of recvfrom(2).
    pub fn read(&mut self, mut each: impl FnMut(ProcessEvent)) -> nix::Result<bool> {
        self.socket.notices(&mut self.buffer, |message| {
            if let Some(event) = message.payload.get(CONNECTOR_HEADER..).and_then(parse) {
                each(event);
            }
        })
    }
}

impl AsFd for ProcessEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns a request of the connector, with a number that identifies its reply.
fn request(operation: u32, number: u32) -> [u8; REQUEST] {
    let mut message = [0; REQUEST];
    begin(&mut message, libc::NLMSG_DONE as u16, 0, 0);
    let connector = &mut message[MESSAGE_HEADER..];
    put(connector, 0, &PROCESSES.to_ne_bytes());
    put(connector, 4, &PROCESSES.to_ne_bytes());
    put(connector, ACKNOWLEDGE, &number.to_ne_bytes());
    put(connector, LENGTH, &4u16.to_ne_bytes());
    put(connector, CONNECTOR_HEADER, &operation.to_ne_bytes());
    message
}

/// Returns a number that hardly any other request has.
fn own_number() -> u32 {
    // The hasher's keys are random in each process and differ each time.
    RandomState::new().hash_one(std::process::id()) as u32
}

/// Returns the kernel's reply in a `struct cn_msg`, if it belongs to the request with this number. The kernel
/// returns the request's `ack` plus one; it does not return the `seq` (`cn_proc_ack`, `send_msg`).
fn acknowledgement(connector: &[u8], number: u32) -> Option<nix::Result<()>> {
    let event = connector.get(CONNECTOR_HEADER..)?;
    if u32_at(event, 0)? != ACKNOWLEDGED || u32_at(connector, ACKNOWLEDGE)? != number.wrapping_add(1) {
        return None;
    }
    Some(match u32_at(event, DATA)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error as i32)),
    })
}

/// Parses a `struct proc_event`. Returns `None` if its kind is not reported.
fn parse(event: &[u8]) -> Option<ProcessEvent> {
    let pid_at = |field: usize| u32_at(event, DATA + 4 * field).map(|pid| pid as i32);
    let at_ns = u64_at(event, TIME)?;
    // The data has the numbers of parent and child, or of the process: first the thread's, then the
    // process's.
    let (pid, happening) = match u32_at(event, 0)? {
        FORK => (pid_at(3)?, Happening::Fork { parent: pid_at(1)? }),
        EXEC => (pid_at(1)?, Happening::Exec),
        UID | GID => (pid_at(1)?, Happening::Ids),
        COMM => (pid_at(1)?, Happening::Renamed),
        EXIT => (pid_at(1)?, Happening::Exit),
        _ => return None,
    };
    Some(ProcessEvent { pid, happening, at_ns })
}

/// Makes the kernel leave out the events of threads that are not the first of their process, and kinds of
/// events that are not reported. A program that starts threads by the thousand then costs the library
/// nothing. With `only_names`, forks and exits are left out as well.
fn leave_out_threads(socket: &Socket, only_names: bool) -> nix::Result<()> {
    const EVENT: u32 = (MESSAGE_HEADER + CONNECTOR_HEADER) as u32;
    const FIELDS: u32 = EVENT + DATA as u32;
    /// The position of the instruction that drops the loaded event.
    const LEAVE_OUT: u8 = 16;
    let load = |at: u32| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at);
    // Loads convert numbers from network order to the host's. These numbers are in the host's order already,
    // so the constants are converted, too.
    let is =
        |kind: u32, yes, no| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, kind.to_be());
    let into_x = instruction(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0);
    let program = [
        load(EVENT),
        is(FORK, if only_names { LEAVE_OUT - 2 } else { 6 }, 0),
        is(EXEC, 9, 0),
        is(UID, 8, 0),
        is(GID, 7, 0),
        is(COMM, 6, 0),
        is(EXIT, if only_names { LEAVE_OUT - 7 } else { 5 }, 0),
        is(ACKNOWLEDGED, 9, 8),
        // A fork: the child's thread and process.
        load(FIELDS + 8),
        into_x,
        load(FIELDS + 12),
        instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, 3),
        // Another event: the thread and its process.
        load(FIELDS),
        into_x,
        load(FIELDS + 4),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_X, 1, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    attach_filter(socket.as_fd(), &program)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capture_test_support::namespaces::in_new_namespace;
    use capture_test_support::requirements::left_out;
    use std::process::Command;

    fn listen() -> Option<ProcessEvents> {
        match ProcessEvents::open() {
            Ok(events) => Some(events),
            Err(errno) => {
                left_out(&format!("the proc connector is unavailable: {errno}"));
                None
            }
        }
    }

    /// Returns the events until the process with this pid has ended.
    fn events_of(events: &mut ProcessEvents, pid: i32) -> Vec<ProcessEvent> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = Vec::new();
        while !seen.iter().any(|event: &ProcessEvent| event.happening == Happening::Exit) {
            assert!(Instant::now() < deadline, "no end in {seen:?}");
            events
                .read(|event| {
                    if event.pid == pid {
                        seen.push(event)
                    }
                })
                .unwrap();
        }
        seen
    }

    #[test]
    fn the_life_of_a_child_is_told_root() {
        let Some(mut events) = listen() else { return };
        let mut child = Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        let seen = events_of(&mut events, child.id() as i32);
        let happenings: Vec<Happening> = seen.iter().map(|event| event.happening).collect();
        let parent = std::process::id() as i32;
        assert_eq!(happenings, [Happening::Fork { parent }, Happening::Exec, Happening::Exit]);
        assert!(seen.is_sorted_by_key(|event| event.at_ns));
    }

    #[test]
    fn names_alone_are_told_root() {
        let Some(mut all) = listen() else { return };
        let mut names = ProcessEvents::open_for_names().unwrap();
        let script = "printf renamed >/proc/$$/comm; exec /bin/true";
        let mut child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        child.wait().unwrap();
        let pid = child.id() as i32;
        let told: Vec<Happening> = events_of(&mut all, pid).iter().map(|event| event.happening).collect();
        let mut seen = Vec::new();
        let own = |event: ProcessEvent| seen.extend(Some(event.happening).filter(|_| event.pid == pid));
        names.read(own).unwrap();
        assert_eq!(seen, [Happening::Exec, Happening::Renamed, Happening::Exec]);
        assert_eq!(told[1..], [&seen[..], &[Happening::Exit]].concat());
    }

    #[test]
    fn threads_are_not_told_of_root() {
        let Some(mut events) = listen() else { return };
        for _ in 0..50 {
            std::thread::spawn(|| ()).join().unwrap();
        }
        let mut child = Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        let (own, mut threads) = (std::process::id() as i32, 0);
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut ended = false;
        while !ended {
            assert!(Instant::now() < deadline);
            events
                .read(|event| {
                    // An event of a thread would have the number of its process.
                    threads += u32::from(event.pid == own);
                    ended |= event.pid == child.id() as i32 && event.happening == Happening::Exit;
                })
                .unwrap();
        }
        assert_eq!(threads, 0);
    }

    #[test]
    fn a_change_of_identity_is_told_root() {
        if !nix::unistd::geteuid().is_root() {
            println!("not run: needs root");
            return;
        }
        let Some(mut events) = listen() else { return };
        let mut command = Command::new("/bin/true");
        let mut child = std::os::unix::process::CommandExt::uid(&mut command, 65534).spawn().unwrap();
        child.wait().unwrap();
        let seen = events_of(&mut events, child.id() as i32);
        assert!(seen.iter().any(|event| event.happening == Happening::Ids), "{seen:?}");
    }

    #[test]
    fn times_are_those_of_the_monotonic_clock_root() {
        let Some(mut events) = listen() else { return };
        let now = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        let before = Duration::from(now());
        let mut child = Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        let after = Duration::from(now());
        for event in events_of(&mut events, child.id() as i32) {
            assert!((before..=after).contains(&Duration::from_nanos(event.at_ns)), "{event:?}");
        }
    }

    #[test]
    fn one_listener_does_not_silence_another_by_its_end_root() {
        let (Some(mut events), Some(other)) = (listen(), listen()) else { return };
        drop(other);
        let mut child = Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        assert!(!events_of(&mut events, child.id() as i32).is_empty());
    }

    #[test]
    fn another_network_namespace_is_refused_root() {
        in_new_namespace(|| {
            assert_eq!(ProcessEvents::open().map(|_| ()), Err(Errno::ECONNREFUSED));
        });
    }

    #[test]
    fn lost_events_are_told_root() {
        let Some(mut events) = listen() else { return };
        let little = 2048usize;
        nix::sys::socket::setsockopt(&events.as_fd(), nix::sys::socket::sockopt::RcvBuf, &little).unwrap();
        for _ in 0..100 {
            Command::new("/bin/true").status().unwrap();
        }
        assert!(events.read(|_| ()).unwrap());
    }

    /// Any process may send the connector a request that it refuses, and every listener receives the refusal.
    #[test]
    fn the_answer_to_another_is_not_taken_for_ours_root() {
        if listen().is_none() {
            return;
        }
        let mut events = ProcessEvents::unasked().unwrap();
        let another = Socket::for_notices(libc::NETLINK_CONNECTOR, 0).unwrap();
        // No such operation: EINVAL, which is queued before the reply to the test's own request.
        another.send(&request(99, 6)).unwrap();
        events.socket.send(&request(LISTEN, 7)).unwrap();
        assert_eq!(events.await_acknowledgement(7), Ok(()));
    }

    #[test]
    fn an_answer_is_known_by_the_number_of_its_request() {
        let mut answer = vec![0; CONNECTOR_HEADER + 40];
        put(&mut answer, ACKNOWLEDGE, &8u32.to_ne_bytes());
        assert_eq!(acknowledgement(&answer, 7), Some(Ok(())));
        assert_eq!(acknowledgement(&answer, 8), None);
        put(&mut answer, CONNECTOR_HEADER + DATA, &(libc::EPERM as u32).to_ne_bytes());
        assert_eq!(acknowledgement(&answer, 7), Some(Err(Errno::EPERM)));
        assert_eq!(acknowledgement(&answer[..CONNECTOR_HEADER + DATA + 3], 7), None);
        put(&mut answer, CONNECTOR_HEADER, &FORK.to_ne_bytes());
        assert_eq!(acknowledgement(&answer, 7), None);
    }

    #[test]
    fn what_is_too_short_or_unknown_is_nothing() {
        let mut event = vec![0u8; 64];
        assert_eq!(parse(&event), None);
        put(&mut event, 0, &EXIT.to_ne_bytes());
        put(&mut event, DATA + 4, &77u32.to_ne_bytes());
        assert_eq!(parse(&event), Some(ProcessEvent { pid: 77, happening: Happening::Exit, at_ns: 0 }));
        assert_eq!(parse(&event[..DATA + 7]), None);
    }
}
