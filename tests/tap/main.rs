//! Live capture in network namespaces of its own, with real traffic.
//!
//! Most tests need root, to make namespaces and devices. Without root they print a line and pass, or fail if
//! `CAPTURE_REQUIRE_ALL=1` is set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

mod frames;
mod machine;
mod news;

use capture::internals::error::{Code, Error};
use capture::internals::model::Address;
use capture::internals::tap::{Tap, TapError, TapOptions, TapStats};
use machine::*;
use std::net::{IpAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn loopback_shows_each_packet_once_needs_root() {
    in_new_namespace(|| {
        let mut tap = open(&[]);
        assert_eq!(tap.stats(), TapStats { devices_open: 1, devices_opened: 1, ..TapStats::default() });
        let text = send("127.0.0.1:9", 1000);
        let mut others = 0;
        let seen = {
            let (mut seen, mut idle) = (0, 0);
            while idle < 5 {
                tap.wait(TURN).unwrap();
                let progress = tap
                    .read(
                        64,
                        &mut each(|frame| match bears(&frame, &text) {
                            // Ethernet 14, IPv4 20, UDP 8.
                            true => {
                                assert_eq!(frame.wire_len as usize, 14 + 20 + 8 + text.len());
                                seen += 1;
                            }
                            false => others += 1,
                        }),
                    )
                    .unwrap();
                assert!(progress.frames <= 64, "the limit holds");
                idle = if progress.frames == 0 { idle + 1 } else { 0 };
            }
            seen
        };
        assert_eq!(seen, 1000);
        let stats = tap.stats();
        assert_eq!((stats.received, stats.dropped_by_kernel), (1000 + others, 0));
    });
}

#[test]
fn a_full_ring_is_counted_needs_root() {
    in_new_namespace(|| {
        let smallest =
            TapOptions { buffer_bytes: TapOptions::MIN_BUFFER, filter: Some("udp".into()), ..options() };
        let mut tap = Tap::live(&smallest).unwrap();
        let text = send("127.0.0.1:9", 20_000);
        let seen = count(&mut tap, &text, 1);
        let stats = tap.stats();
        assert!(stats.dropped_by_kernel > 0, "{stats:?}");
        assert_eq!(seen as u64 + stats.dropped_by_kernel, 20_000);
        assert_eq!(tap.stats(), stats, "asking does not count again");
    });
}

#[test]
fn the_losses_of_a_closed_device_stay_counted_needs_root() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        elsewhere.link("va");
        configure("va", 1);
        let smallest =
            TapOptions { buffer_bytes: TapOptions::MIN_BUFFER, filter: Some("udp".into()), ..options() };
        let mut tap = Tap::live(&TapOptions { devices: vec!["va".into()], ..smallest }).unwrap();
        let text = send("10.9.1.2:9", 20_000);
        let seen = count(&mut tap, &text, 1);
        ip("link del va");
        await_devices(&mut tap, 0);
        let stats = tap.stats();
        assert_eq!((stats.devices_open, stats.devices_closed), (0, 1));
        assert!(stats.dropped_by_kernel > 0, "{stats:?}");
        assert_eq!(seen as u64 + stats.dropped_by_kernel, 20_000);
    });
}

#[test]
fn devices_come_and_go_needs_root() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        let mut tap = open(&[]);
        elsewhere.link("va");
        configure("va", 1);
        tap.refresh().unwrap();
        assert!(said(&mut tap, &["capturing on va"]));
        let text = send("10.9.1.2:9", 10);
        assert_eq!(count(&mut tap, &text, 10), 10);

        // Down and up again between two refreshes, and across one.
        ip("link set va down");
        ip("link set va up");
        make_neighbour("va", 1);
        let text = send("10.9.1.2:9", 10);
        assert_eq!(count(&mut tap, &text, 10), 10);
        ip("link set va down");
        settle(&mut tap);
        tap.refresh().unwrap();
        ip("link set va up");
        make_neighbour("va", 1);
        tap.refresh().unwrap();
        let text = send("10.9.1.2:9", 10);
        assert_eq!(count(&mut tap, &text, 10), 10);

        // Deleted and made anew before the tap could detect it.
        ip("link del va");
        elsewhere.link("va");
        configure("va", 1);
        settle(&mut tap);
        tap.refresh().unwrap();
        let text = send("10.9.1.2:9", 10);
        assert_eq!(count(&mut tap, &text, 10), 10);
        assert!(said(&mut tap, &["no longer capturing on va"]));

        ip("link del va");
        settle(&mut tap);
        tap.refresh().unwrap();
        let text = send("127.0.0.1:9", 10);
        assert_eq!(count(&mut tap, &text, 10), 10, "the others go on");
        let stats = tap.stats();
        assert_eq!(stats.devices_open, 1);
        assert_eq!(stats.devices_opened - stats.devices_closed, 1);
        assert!(stats.devices_closed >= 2, "{stats:?}");
    });
}

#[test]
fn named_devices_are_captured_and_waited_for_needs_root() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        elsewhere.link("va");
        elsewhere.link("vb");
        configure("va", 1);
        configure("vb", 2);
        let mut tap = open(&["va"]);
        let (one, other) = (send("10.9.1.2:9", 5), send("10.9.2.2:9", 5));
        assert_eq!(count(&mut tap, &one, 5), 5);
        assert_eq!(count(&mut tap, &other, 0), 0);
        ip("link del va");
        await_devices(&mut tap, 0);
        elsewhere.link("va");
        configure("va", 1);
        tap.refresh().unwrap();
        let text = send("10.9.1.2:9", 5);
        assert_eq!(count(&mut tap, &text, 5), 5);
        ip("link set va down");
        ip("link set va name vc");
        tap.refresh().unwrap();
        assert_eq!(tap.stats().devices_open, 0, "no longer the one that was named");
    });
}

#[test]
fn an_unknown_device_is_refused_needs_root() {
    in_new_namespace(|| {
        let error =
            Tap::live(&TapOptions { devices: vec!["lo".into(), "nosuch0".into()], ..options() }).unwrap_err();
        let TapError::Failed(error) = error else { panic!("{error:?}") };
        assert_eq!(error.code, Code::NoDevice);
        assert!(error.text.contains("\"nosuch0\"") && error.text.contains("there are: lo"), "{error}");
    });
}

#[test]
fn with_nothing_up_the_tap_waits_needs_root() {
    in_new_namespace(|| {
        ip("link set lo down");
        let mut tap = open(&["lo"]);
        assert!(said(&mut tap, &["no device", "up yet"]));
        let bad = TapOptions { filter: Some("udp dst port".into()), ..options() };
        assert_eq!(Error::from(Tap::live(&bad).unwrap_err()).code, Code::CompileFilter);
        ip("link set lo up");
        tap.refresh().unwrap();
        let text = send("127.0.0.1:9", 3);
        assert_eq!(count(&mut tap, &text, 3), 3);
    });
}

#[test]
fn any_is_every_device_once_needs_root() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        elsewhere.link("va");
        ip("link add br0 type bridge");
        ip("link set va master br0");
        configure("br0", 1);
        let mut tap = open(&["any"]);
        let text = send("10.9.1.2:9", 20);
        assert_eq!(count(&mut tap, &text, 20), 20);
        assert_eq!(tap.stats().devices_open, 2, "lo and br0");
    });
}

#[test]
fn a_bridged_packet_is_counted_once_needs_root() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        elsewhere.link("va");
        configure("va", 1);
        let mut tap = open(&[]);
        let text = send("10.9.1.2:9", 20);
        assert_eq!(count(&mut tap, &text, 20), 20);
        // Enslaved to a bridge while it is captured on.
        ip("addr flush dev va");
        ip("link add br0 type bridge");
        ip("link set va master br0");
        configure("br0", 1);
        tap.refresh().unwrap();
        assert!(said(&mut tap, &["not capturing", "br0", "va"]));
        let text = send("10.9.1.2:9", 20);
        assert_eq!(count(&mut tap, &text, 20), 20);
        // Released again.
        ip("link del br0");
        configure("va", 1);
        tap.refresh().unwrap();
        let text = send("10.9.1.2:9", 20);
        assert_eq!(count(&mut tap, &text, 20), 20);
    });
}

#[test]
fn a_macvlan_packet_is_counted_once_needs_root() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        elsewhere.link("va");
        ip("link add link va name mv0 type macvlan mode bridge");
        configure("mv0", 1);
        let mut tap = open(&[]);
        let text = send("10.9.1.2:9", 20);
        assert_eq!(count(&mut tap, &text, 20), 20);
        drop(tap);
        let mut tap = open(&["mv0"]);
        let text = send("10.9.1.2:9", 20);
        assert_eq!(count(&mut tap, &text, 20), 20, "named, it is captured itself");
    });
}

#[test]
fn a_tagged_packet_is_counted_once_needs_root_and_8021q() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        elsewhere.link("va");
        let output = try_ip("link add link va name va.5 type vlan id 5");
        let why = String::from_utf8_lossy(&output.stderr);
        if why.contains("Unknown device type") {
            // The kernel lacks this feature whatever the tester's privileges, so the test is skipped even if
            // all tests are required.
            eprintln!("not run: the kernel has no 802.1Q VLANs");
            return;
        }
        assert!(output.status.success(), "{why}");
        configure("va.5", 5);
        let mut tap = open(&[]);
        let text = send("10.9.5.2:9", 20);
        assert_eq!(count(&mut tap, &text, 20), 20);
        assert!(tap.stats().left_to_vlans >= 20);
        ip("link del va.5");
        tap.refresh().unwrap();
        assert_eq!(tap.stats().devices_open, 2);
    });
}

#[test]
fn addresses_are_followed_needs_root() {
    in_new_namespace(|| {
        let elsewhere = Elsewhere::new();
        elsewhere.link("va");
        let mut tap = open(&[]);
        let of = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        let before = Arc::clone(&tap.local_addresses()[0].1);
        assert!(!before.contains(&of("10.9.1.1")));
        configure("va", 1);
        ip("addr add 2001:db8::7/64 dev va nodad");
        tap.refresh().unwrap();
        let after = Arc::clone(&tap.local_addresses()[0].1);
        assert!(after.contains(&of("10.9.1.1")) && after.contains(&of("2001:db8::7")));
        assert!(after.is_group(&of("10.9.1.255")) && !after.contains(&of("10.9.1.2")));
        tap.refresh().unwrap();
        assert!(Arc::ptr_eq(&after, &tap.local_addresses()[0].1), "unchanged");
        ip("addr del 10.9.1.1/24 dev va");
        let deadline = Instant::now() + TIMEOUT;
        while tap.local_addresses()[0].1.contains(&of("10.9.1.1")) && Instant::now() < deadline {
            tap.wait(TURN).unwrap();
            tap.refresh().unwrap();
        }
        assert!(!tap.local_addresses()[0].1.contains(&of("10.9.1.1")));
    });
}

#[test]
fn the_filter_selects_and_is_checked_needs_root() {
    in_new_namespace(|| {
        let filtered = |filter: &str| Tap::live(&TapOptions { filter: Some(filter.into()), ..options() });
        let mut tap = filtered("udp dst port 4242").unwrap();
        let (unwanted, wanted) = (send("127.0.0.1:4243", 10), send("127.0.0.1:4242", 10));
        assert_eq!(count(&mut tap, &wanted, 10), 10);
        assert_eq!(count(&mut tap, &unwanted, 0), 0);
        assert_eq!(tap.stats().received, 10, "nothing else has passed");
        let error = Error::from(filtered("udp dst port").unwrap_err());
        assert_eq!(error.code, Code::CompileFilter);
        assert!(error.text.contains("udp dst port") && error.text.contains("syntax error"), "{error}");
    });
}

#[test]
fn a_filter_need_not_suit_every_link_type_needs_root() {
    in_new_namespace(|| {
        ip("tuntap add tun0 mode tun");
        ip("link set tun0 up");
        let ethernet = TapOptions { filter: Some("ether host 00:00:00:00:00:00".into()), ..options() };
        let mut tap = Tap::live(&ethernet).unwrap();
        assert!(said(&mut tap, &["not capturing", "tun0", "ether"]));
        let text = send("127.0.0.1:9", 5);
        assert_eq!(count(&mut tap, &text, 5), 5);
        // Long enough for a retry.
        for _ in 0..150 {
            tap.refresh().unwrap();
        }
        assert_eq!(tap.take_notes(), [], "said once");
        let tunnel = TapOptions { devices: vec!["tun0".into()], ..ethernet };
        assert_eq!(Error::from(Tap::live(&tunnel).unwrap_err()).code, Code::CompileFilter);
    });
}

#[test]
fn frames_are_cut_to_the_snaplen_needs_root() {
    in_new_namespace(|| {
        let mut tap = Tap::live(&TapOptions { snaplen: 60, ..options() }).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[7; 20_000], "127.0.0.1:9").unwrap();
        let (mut seen, deadline) = (0, Instant::now() + TIMEOUT);
        while seen == 0 && Instant::now() < deadline {
            tap.wait(TURN).unwrap();
            tap.read(
                64,
                &mut each(|frame| {
                    if frame.wire_len == 14 + 20 + 8 + 20_000 {
                        assert_eq!(frame.data.len(), 60);
                        seen += 1;
                    }
                }),
            )
            .unwrap();
        }
        assert_eq!(seen, 1);
    });
}

#[test]
fn a_panic_of_the_handler_passes_through_needs_root() {
    in_new_namespace(|| {
        let mut tap = open(&["lo"]);
        let text = send("127.0.0.1:9", 10);
        let deadline = Instant::now() + TIMEOUT;
        let panicked = loop {
            assert!(Instant::now() < deadline);
            tap.wait(TURN).unwrap();
            let read = catch_unwind(AssertUnwindSafe(|| tap.read(64, &mut each(|_| panic!("on purpose")))));
            if let Err(panic) = read {
                break panic;
            }
        };
        assert_eq!(panicked.downcast_ref(), Some(&"on purpose"));
        assert_eq!(count(&mut tap, &text, 9), 9, "the rest is still there");
    });
}

#[test]
fn a_wait_is_ended_by_the_waker_needs_root() {
    in_new_namespace(|| {
        let mut tap = open(&["lo"]);
        let waker = tap.waker();
        let other = std::thread::spawn(move || waker.wake());
        tap.wait(Duration::from_secs(3600)).unwrap();
        other.join().unwrap();
        let waker = tap.waker();
        drop(tap);
        waker.wake();
    });
}

#[test]
fn packet_sockets_are_not_inherited_needs_root() {
    in_new_namespace(|| {
        let _tap = open(&["lo"]);
        let listing = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        assert!(!listing.contains("socket:"), "{listing}");
    });
}

#[test]
fn without_the_capability_the_error_names_it() {
    std::thread::scope(|scope| {
        let _ = scope
            .spawn(|| {
                drop_net_raw();
                let error = Tap::live(&options()).unwrap_err();
                let TapError::NotPermitted(error) = error else { panic!("{error:?}") };
                assert_eq!(error.code, Code::OpenDevice);
                assert!(error.text.contains("CAP_NET_RAW"), "{error}");
                let invalid = TapOptions { snaplen: 0, ..options() };
                let error = Error::from(Tap::live(&invalid).unwrap_err());
                assert_eq!(error.code, Code::InvalidArgument, "mistakes are named first");
                let missing = TapOptions { devices: vec!["no-such0".into()], ..options() };
                let error = Error::from(Tap::live(&missing).unwrap_err());
                assert_eq!(error.code, Code::NoDevice, "{error}");
            })
            .join()
            .map_err(|panic| std::panic::resume_unwind(panic));
    });
}
