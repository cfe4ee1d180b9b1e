//! Devices and addresses that appear and disappear while the tap is read, without a refresh.

use crate::machine::*;
use capture::internals::model::{Address, Frame, LocalAddresses, Namespace};
use capture::internals::tap::{FrameHandler, Tap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// Records the delivered addresses and counts the frames that contain `text`.
struct Reader<'a> {
    text: &'a str,
    address: Address,
    /// `heard` is set if addresses have been delivered, `is_local` if `address` is among the latest.
    heard: bool,
    is_local: bool,
    /// Frames that were delivered before the address, and after it.
    before: usize,
    after: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, address: &str) -> Reader<'a> {
        let address = Address::from(address.parse::<IpAddr>().unwrap());
        Reader { text, address, heard: false, is_local: false, before: 0, after: 0 }
    }
}

impl FrameHandler for Reader<'_> {
    fn frame(&mut self, frame: Frame<'_>) {
        let of = if self.is_local { &mut self.after } else { &mut self.before };
        *of += usize::from(bears(&frame, self.text));
    }

    fn set_addresses(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]) {
        self.heard = true;
        self.is_local = addresses.iter().any(|(_, addresses)| addresses.contains(&self.address));
    }
}

/// Reads the available frames. Returns true if other addresses were delivered.
fn hear(tap: &mut Tap) -> bool {
    let mut reader = Reader::new("nothing bears this", "127.0.0.1");
    tap.read(64, &mut reader).unwrap();
    reader.heard
}

/// Returns true if `say` returns true for the addresses of any namespace.
fn any(tap: &Tap, text: &str, say: impl Fn(&LocalAddresses, &Address) -> bool) -> bool {
    let address = Address::from(text.parse::<IpAddr>().unwrap());
    tap.local_addresses().iter().any(|(_, addresses)| say(addresses, &address))
}

fn is_local(tap: &Tap, text: &str) -> bool {
    any(tap, text, LocalAddresses::contains)
}

fn is_conditional(tap: &Tap, text: &str) -> bool {
    any(tap, text, LocalAddresses::is_conditional)
}

/// Refreshes while `holds` returns true, for at most the usual time limit.
fn refresh_while(tap: &mut Tap, holds: impl Fn(&Tap) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while holds(tap) && Instant::now() < deadline {
        tap.wait(TURN).unwrap();
        hear(tap);
        tap.begin_refresh().unwrap();
    }
}

#[test]
fn addresses_that_are_local_by_route_count_from_their_notice_on_needs_root() {
    in_new_namespace(|| {
        ip("route add local 10.99.0.0/24 dev lo");
        ip("route add local fd00:99::/64 dev lo");
        let mut tap = open(&[]);
        for text in ["10.99.0.77", "fd00:99::77", "127.0.0.1"] {
            assert!(is_local(&tap, text), "{text}");
        }
        assert!(!is_local(&tap, "10.98.0.77") && !is_local(&tap, "10.99.1.77"));
        assert!(hear(&mut tap) && !hear(&mut tap), "the first are handed over once");
        ip("route add local 10.98.0.0/16 dev lo");
        ip("addr add 10.7.7.7/24 dev lo");
        assert!(hear(&mut tap) && is_local(&tap, "10.98.1.2") && is_local(&tap, "10.7.7.7"));
        // Routes of other types and in other tables make nothing local.
        ip("route add 10.97.0.0/16 dev lo");
        ip("route add unreachable 10.96.0.0/16");
        ip("route add local 10.95.0.0/16 dev lo table 100");
        hear(&mut tap);
        for text in ["10.97.0.1", "10.96.0.1", "10.95.0.1"] {
            assert!(!is_local(&tap, text), "{text}");
        }
        // A removed address counts a little longer, for the frames that are still queued.
        ip("route del local 10.98.0.0/16 dev lo");
        hear(&mut tap);
        assert!(is_local(&tap, "10.98.1.2"));
        refresh_while(&mut tap, |tap| is_local(tap, "10.98.1.2"));
        assert!(!is_local(&tap, "10.98.1.2") && is_local(&tap, "10.7.7.7") && is_local(&tap, "10.99.0.1"));
    });
}

#[test]
fn routes_of_other_tables_make_addresses_local_for_some_packets_needs_root() {
    in_new_namespace(|| {
        ip("route add local 10.95.0.0/16 dev lo table 100");
        ip("route add local fd00:95::/64 dev lo table 1000");
        ip("route add 10.94.0.0/16 dev lo table 100");
        let mut tap = open(&[]);
        for text in ["10.95.0.1", "fd00:95::1"] {
            assert!(is_conditional(&tap, text) && !is_local(&tap, text), "{text}");
        }
        assert!(!is_conditional(&tap, "10.94.0.1"));
        hear(&mut tap);
        ip("route add local default dev lo table 101");
        assert!(hear(&mut tap) && is_conditional(&tap, "203.0.113.7") && !is_local(&tap, "203.0.113.7"));
        ip("addr add 203.0.113.7/24 dev lo");
        assert!(hear(&mut tap) && !is_conditional(&tap, "203.0.113.7") && is_local(&tap, "203.0.113.7"));
        tap.begin_refresh().unwrap();
        assert!(is_conditional(&tap, "203.0.114.7") && is_conditional(&tap, "10.95.0.1"));
        ip("route del local default dev lo table 101");
        refresh_while(&mut tap, |tap| is_conditional(tap, "203.0.114.7"));
        assert!(!is_conditional(&tap, "203.0.114.7") && is_conditional(&tap, "10.95.0.1"));
    });
}

#[test]
fn a_new_device_is_opened_without_a_refresh_and_a_removed_one_is_read_to_its_end_needs_root() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        let mut tap = open(&[]);
        assert_eq!(tap.stats().devices_open, 1);
        elsewhere.link("short");
        configure("short", 3);
        await_devices(&mut tap, 2);
        settle(&mut tap);
        let text = send("10.9.3.2:9", 500);
        ip("link del short");
        assert_eq!(count(&mut tap, &text, 500), 500);
        await_devices(&mut tap, 1);
        assert_eq!(tap.stats().devices_closed, 1);
        assert!(said(&mut tap, &["short", "it has disappeared"]));
    });
}

#[test]
fn an_address_is_handed_over_before_the_frames_that_bear_it_needs_root() {
    in_new_namespace(|| {
        let mut tap = open(&[]);
        settle(&mut tap);
        for round in 0..20 {
            let address = format!("10.7.{round}.7");
            ip(&format!("addr add {address}/24 dev lo"));
            let text = send(&format!("{address}:9"), 10);
            let mut reader = Reader::new(&text, &address);
            let deadline = Instant::now() + TIMEOUT;
            while reader.before + reader.after < 10 && Instant::now() < deadline {
                tap.wait(TURN).unwrap();
                tap.read(64, &mut reader).unwrap();
            }
            assert_eq!((reader.before, reader.after), (0, 10), "{address}");
        }
    });
}

#[test]
fn routes_of_other_types_are_no_news_needs_root() {
    in_new_namespace(|| {
        let mut tap = open(&[]);
        settle(&mut tap);
        let file = tempfile::NamedTempFile::new().unwrap();
        let routes: String =
            (0..20_000).map(|i| format!("route add 20.{}.{}.0/24 dev lo\n", i >> 8, i & 255)).collect();
        std::fs::write(&file, routes).unwrap();
        ip(&format!("-batch {}", file.path().display()));
        assert!(!hear(&mut tap));
        let before = Instant::now();
        tap.begin_refresh().unwrap();
        println!("a refresh beside 20,000 routes: {:?}", before.elapsed());
        assert!(!hear(&mut tap) && !is_local(&tap, "20.1.2.3"));
    });
}

/// Makes a device that carries only what is sent to 10.9.4.2.
fn make_device() {
    for which in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
    }
    // A bridge without ports forwards to no device.
    ip("link add short type bridge");
    configure("short", 4);
}

/// Returns the bytes of `count` datagrams: Ethernet 14, IPv4 20, UDP 8, and the text.
fn length(text: &str, count: u64) -> u64 {
    count * (14 + 20 + 8 + text.len() as u64)
}

/// Compares with a tolerance: the kernel may report the groups of a new device by itself (IGMP).
fn is_about(found: u64, truth: u64) -> bool {
    (truth..truth + 500).contains(&found)
}

#[test]
fn what_a_new_device_carries_before_its_capture_is_counted_needs_root() {
    in_new_namespace(|| {
        let early = send("127.0.0.1:9", 10);
        let mut tap = open(&[]);
        make_device();
        let before = send("10.9.4.2:9", 500);
        await_devices(&mut tap, 2);
        settle(&mut tap);
        let missed = tap.stats().bytes_before_capture;
        assert!(is_about(missed, length(&before, 500)), "{missed}");
        let after = send("10.9.4.2:9", 300);
        assert_eq!((count(&mut tap, &after, 300), count(&mut tap, &early, 0)), (300, 0));
        ip("link del short");
        await_devices(&mut tap, 1);
        let counted = tap.stats().bytes_before_capture;
        assert_eq!(counted, missed, "neither what was captured, nor what is older than the tap");
    });
}

#[test]
fn what_a_device_has_carried_that_was_never_captured_on_is_counted_needs_root() {
    in_new_namespace(|| {
        let mut tap = open(&[]);
        make_device();
        let text = send("10.9.4.2:9", 500);
        ip("link del short");
        let deadline = Instant::now() + TIMEOUT;
        while tap.stats().bytes_before_capture == 0 && Instant::now() < deadline {
            tap.wait(TURN).unwrap();
            tap.read(64, &mut each(|_| ())).unwrap();
        }
        let missed = tap.stats().bytes_before_capture;
        assert!(is_about(missed, length(&text, 500)), "{missed}");
        assert_eq!(tap.stats().devices_opened, 1);

        // A bridge shows the packets of its port.
        ip("link add bridge type bridge");
        ip("link set bridge up");
        let elsewhere = Elsewhere::new();
        elsewhere.link("port");
        configure("port", 5);
        let text = send("10.9.5.2:9", 100);
        settle(&mut tap);
        let before = tap.stats().bytes_before_capture;
        ip("link set port master bridge");
        ip("link del port");
        settle(&mut tap);
        assert_eq!(tap.stats().bytes_before_capture, before, "{text}");
    });
}

#[test]
fn what_is_not_to_be_captured_is_not_missing_needs_root() {
    in_new_namespace(|| {
        let mut tap = open(&["lo"]);
        make_device();
        send("10.9.4.2:9", 500);
        ip("link del short");
        settle(&mut tap);
        assert_eq!(tap.stats().bytes_before_capture, 0);
    });
}
