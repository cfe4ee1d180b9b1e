//! Network namespaces with devices and traffic, and a tap on them.

use capture::internals::model::{Frame, LocalAddresses, Namespace};
use capture::internals::tap::{FrameHandler, Tap, TapOptions};
use capture_test_support::namespaces::enter_new;
pub use capture_test_support::namespaces::in_new_namespace;
use nix::errno::Errno;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const TURN: Duration = Duration::from_millis(50);
/// The time after which a test stops waiting for an event.
pub const TIMEOUT: Duration = Duration::from_secs(20);

pub fn try_ip(arguments: &str) -> Output {
    Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed")
}

pub fn ip(arguments: &str) {
    let output = try_ip(arguments);
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Another namespace, for the far end of a veth pair.
pub struct Elsewhere {
    thread_id: i32,
    end: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Elsewhere {
    pub fn new() -> Elsewhere {
        let (tell_id, id) = channel();
        let (end, ended) = channel();
        let thread = std::thread::spawn(move || {
            enter_new().unwrap();
            tell_id.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = ended.recv();
        });
        Elsewhere { thread_id: id.recv().unwrap(), end: Some((end, thread)) }
    }

    /// Makes a veth pair: `name` in this namespace and its peer in the other one, both up.
    pub fn link(&self, name: &str) {
        ip(&format!("link add {name} type veth peer name far-{name} netns {}", self.thread_id));
        ip(&format!("link set {name} up"));
        let output = Command::new("nsenter")
            .args([
                &format!("--net=/proc/{}/ns/net", self.thread_id),
                "ip",
                "link",
                "set",
                &format!("far-{name}"),
                "up",
            ])
            .output()
            .expect("nsenter is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.end.take() {
            drop(end);
            let _ = thread.join();
        }
    }
}

/// Gives `device` the address 10.9.`net`.1/24, and a neighbour .2 that needs no ARP.
pub fn configure(device: &str, net: u8) {
    ip(&format!("addr add 10.9.{net}.1/24 broadcast + dev {device}"));
    ip(&format!("link set {device} up"));
    make_neighbour(device, net);
}

/// Gives `device` the neighbour 10.9.`net`.2. Taking the device down removes it.
pub fn make_neighbour(device: &str, net: u8) {
    ip(&format!("neigh replace 10.9.{net}.2 lladdr 02:00:00:00:00:{net:02x} dev {device} nud permanent"));
}

/// Sends `count` datagrams with a unique text, and returns the text.
pub fn send(to: &str, count: usize) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let text = format!("datagram-{:08}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let to: SocketAddr = to.parse().unwrap();
    for _ in 0..count {
        socket.send_to(text.as_bytes(), to).unwrap();
    }
    text
}

/// Returns true if a frame is a datagram with this text. An ICMP error, which quotes a datagram that found no
/// listener, does not count.
pub fn bears(frame: &Frame<'_>, text: &str) -> bool {
    // Ethernet header of 14 bytes, then the protocol at byte 9 of the IPv4 header.
    let udp = frame.data.get(23) == Some(&17);
    udp && frame.data.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Passes frames to a closure, and ignores addresses.
pub struct Each<F>(F);

pub fn each<F: FnMut(Frame<'_>)>(take: F) -> Each<F> {
    Each(take)
}

impl<F: FnMut(Frame<'_>)> FrameHandler for Each<F> {
    fn frame(&mut self, frame: Frame<'_>) {
        (self.0)(frame);
    }

    fn set_addresses(&mut self, _: &[(Namespace, Arc<LocalAddresses>)]) {}
}

pub fn options() -> TapOptions {
    TapOptions { timeout: Duration::from_millis(10), buffer_bytes: 2 << 20, ..TapOptions::default() }
}

pub fn open(devices: &[&str]) -> Tap {
    let devices = devices.iter().map(|name| name.to_string()).collect();
    Tap::live(&TapOptions { devices, ..options() }).unwrap()
}

/// Reads until `expected` frames with this text have been seen, and then until several reads find nothing, so
/// that frames delivered twice are seen. Returns the number of frames.
pub fn count(tap: &mut Tap, text: &str, expected: usize) -> usize {
    let (mut seen, mut idle) = (0, 0);
    let deadline = Instant::now() + TIMEOUT;
    while (seen < expected || idle < 5) && Instant::now() < deadline {
        tap.wait(TURN).unwrap();
        let progress = tap.read(64, &mut each(|frame| seen += usize::from(bears(&frame, text)))).unwrap();
        assert!(!progress.ended, "live capture does not end");
        idle = if progress.frames == 0 { idle + 1 } else { 0 };
    }
    seen
}

/// Reads until `expected` devices are open.
pub fn await_devices(tap: &mut Tap, expected: u32) {
    let deadline = Instant::now() + TIMEOUT;
    while tap.stats().devices_open != expected && Instant::now() < deadline {
        tap.wait(TURN).unwrap();
        tap.read(64, &mut each(|_| ())).unwrap();
    }
    assert_eq!(tap.stats().devices_open, expected);
}

/// Reads until no more frames arrive.
pub fn settle(tap: &mut Tap) {
    count(tap, "nothing bears this", 0);
}

pub fn said(tap: &mut Tap, words: &[&str]) -> bool {
    tap.take_notes().iter().any(|note| words.iter().all(|word| note.text.contains(word)))
}

/// Takes CAP_NET_RAW from the calling thread.
pub fn drop_net_raw() {
    const VERSION_3: u32 = 0x2008_0522;
    const CAP_NET_RAW: u32 = 13;
    let mut header = [VERSION_3, 0];
    // Effective, permitted and inheritable capabilities, low words and high words.
    let mut data = [0u32; 6];
    // SAFETY: header and data have the layout of version 3 in capget(2); the calls affect this thread only.
    unsafe {
        Errno::result(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr())).unwrap();
        data[0] &= !(1 << CAP_NET_RAW);
        Errno::result(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr())).unwrap();
    }
}
