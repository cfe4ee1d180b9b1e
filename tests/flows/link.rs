//! A link with a delay and with losses: a TAP device on each host, and a thread that carries
//! frames between them.

use capture_test_support::lab::{Host, Lab, run};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connects 10.78.0.1 and 10.78.0.2 on devices `slow`. Frames from host B arrive after the delay; frames from
/// host A arrive at once.
pub struct Link {
    /// Set if frames from host B are lost.
    pub is_lossy: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Link {
    pub fn new(lab: &Lab, delay: Duration) -> Link {
        let [a, b] = [Host::A, Host::B].map(|host| {
            std::thread::scope(|scope| {
                let open = || {
                    lab.enter(host);
                    open_tap()
                };
                scope.spawn(open).join().unwrap()
            })
        });
        for (host, number, other) in [(Host::A, 1, 2), (Host::B, 2, 1)] {
            let name = lab.name(host);
            run(&format!("ip -n {name} link set slow address 02:00:00:00:01:0{number}"));
            run(&format!("ip -n {name} addr add 10.78.0.{number}/24 dev slow"));
            run(&format!("ip -n {name} link set slow up"));
            run(&format!("ip -n {name} neigh add 10.78.0.{other} lladdr 02:00:00:00:01:0{other} dev slow"));
        }
        let (is_lossy, stopping) = (Arc::default(), Arc::default());
        let carry = {
            let (is_lossy, stopping) = (Arc::clone(&is_lossy), Arc::clone(&stopping));
            move || carry(a, b, delay, &is_lossy, &stopping)
        };
        Link { is_lossy, stopping, carrier: Some(std::thread::spawn(carry)) }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Opens a TAP device `slow` in the calling thread's namespace.
fn open_tap() -> File {
    capture_test_support::lab::open_tun("slow", libc::IFF_TAP, |file| {
        nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    })
}

fn carry(a: File, b: File, delay: Duration, is_lossy: &AtomicBool, stopping: &AtomicBool) {
    let mut waiting: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 1 << 17];
    while !stopping.load(Ordering::Relaxed) {
        let due = waiting.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        let patience = due.map_or(50, |due| due.as_millis() as u16 + 1);
        let mut watched =
            [PollFd::new(a.as_fd(), PollFlags::POLLIN), PollFd::new(b.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut watched, PollTimeout::from(patience.min(50)));
        while let Ok(length @ 1..) = (&a).read(&mut buffer) {
            (&b).write_all(&buffer[..length]).unwrap();
        }
        while let Ok(length @ 1..) = (&b).read(&mut buffer) {
            if !is_lossy.load(Ordering::Relaxed) {
                waiting.push_back((Instant::now() + delay, buffer[..length].to_vec()));
            }
        }
        while waiting.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let (_, frame) = waiting.pop_front().unwrap();
            (&a).write_all(&frame).unwrap();
        }
    }
}
