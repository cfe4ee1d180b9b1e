//! Sockets that only threads other than the main one hold: in a descriptor table of their own, and after the
//! main thread has ended.

use super::live::{Failure, Live, Sockets, key, owned, turn};
use capture::internals::model::{Protocol, Quality};
use std::ffi::c_void;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// A thread of this process that has left the shared descriptor table opens a connection.
pub fn a_thread_with_a_table_of_its_own(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    let opener = std::thread::spawn(move || -> Result<(), String> {
        // SAFETY: the call takes a number, and replaces the descriptor table of this thread only, by a copy.
        if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        let found = || -> Result<(), Failure> {
            let client = TcpStream::connect(to)?;
            let flow = key(Protocol::TCP, client.local_addr()?, to);
            let common = std::fs::read_link(format!("/proc/self/fd/{}", client.as_raw_fd()));
            let own = std::fs::read_link(format!("/proc/thread-self/fd/{}", client.as_raw_fd()))?;
            assert!(common.ok().as_ref() != Some(&own), "the main thread does not have the socket");
            let mut live = Live::new(sockets)?;
            for _ in 0..2 {
                assert_eq!(live.first(flow), owned(std::process::id(), Quality::Exact)?);
            }
            Ok(())
        };
        found().map_err(|error| error.to_string())
    });
    Ok(opener.join().map_err(|_| "the thread panicked")??)
}

const STACK: usize = 64 * 1024;

extern "C" fn sleep_for_ever(_: *mut c_void) -> i32 {
    loop {
        // SAFETY: a system call without arguments.
        unsafe { libc::pause() };
    }
}

/// Forks a child whose main thread has ended while another thread continues.
fn fork_without_main_thread() -> Result<Forked, Failure> {
    let flags =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    // SAFETY: the child makes only system calls. The mapping is private memory of its new thread alone, which
    // uses it as its stack, from its end down.
    let pid = unsafe {
        match libc::fork() {
            0 => {
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let stack = libc::mmap(std::ptr::null_mut(), STACK, protection, kind, -1, 0);
                if stack != libc::MAP_FAILED {
                    libc::clone(sleep_for_ever, stack.byte_add(STACK), flags, std::ptr::null_mut());
                }
                // Ends this thread only.
                libc::syscall(libc::SYS_exit, 0);
                0
            }
            pid => pid,
        }
    };
    let forked = Forked(pid);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") Z ") {
        assert!(Instant::now() < deadline, "the main thread has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(forked)
}

/// A child that is ended when this is dropped.
struct Forked(i32);

impl Drop for Forked {
    fn drop(&mut self) {
        // SAFETY: system calls on a child of this process that has not been waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// A child inherits a connection, and its main thread ends; this process has closed its own descriptor.
pub fn a_process_whose_main_thread_has_ended(sockets: Sockets) -> Result<(), Failure> {
    let _turn = turn();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let flow = key(Protocol::TCP, client.local_addr()?, client.peer_addr()?);
    let child = fork_without_main_thread()?;
    drop(client);
    assert_eq!(Live::new(sockets)?.first(flow), owned(u32::try_from(child.0)?, Quality::Exact)?);
    Ok(())
}
