//! Network namespaces beside the session's own: captured in, distinguished, followed as they appear and
//! disappear, and released.
//!
//! The tests need root, to make namespaces. Without root they print a line and pass, or fail if
//! `CAPTURE_REQUIRE_ALL=1` is set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

mod entering;
mod lab;
mod sessions;
mod talking;
mod validity;

use capture::internals::config::Options;
use capture::internals::error::Code;
use capture::internals::model::{Frame, LocalAddresses, Namespace};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::Session;
use capture::internals::tap::{FrameHandler, Tap, TapOptions};
use capture_test_support::counters::*;
use lab::*;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::time::Duration;

/// An address that no host answers at.
const NOBODY: &str = "10.9.0.99";

#[test]
fn the_same_addresses_in_two_namespaces_stay_apart_root() {
    in_namespace(|| {
        let containers = [Container::start(), Container::start()];
        for (container, device) in containers.iter().zip(["va", "vb"]) {
            container.join(device, "10.9.0.2");
            container.add_neighbour(NOBODY);
        }
        let mut tap = Tap::live(&options(chosen(&[&containers[0], &containers[1]]))).unwrap();
        let numbers = containers.each_ref().map(|container| number(&tap, container).unwrap());
        assert_eq!(tap.stats().namespaces, 2);
        containers.iter().for_each(|container| container.inside(count_udp));
        let together = Barrier::new(2);
        std::thread::scope(|scope| {
            for (container, length) in containers.iter().zip([100, 333]) {
                let together = &together;
                scope.spawn(move || {
                    container.inside(|| {
                        together.wait();
                        send("10.9.0.2:5000", &format!("{NOBODY}:53"), 1500, length);
                        send("127.0.0.1:5000", "127.0.0.1:53", 500, length);
                    });
                });
            }
        });
        let mut accounts = Accounts::default();
        accounts.read(&mut tap);
        for (container, number) in containers.iter().zip(numbers) {
            let (sent, received) = container.inside(counted);
            let seen = accounts.of(number);
            assert!(sent > received && received > 500 * 100, "{sent} {received}");
            assert_eq!((seen.sent, seen.received, seen.not_local), (sent, received, 0));
        }
        // The far ends of the veth pairs show the packets again, but they have no endpoint there.
        let home = accounts.of(Namespace::HOME);
        assert_eq!((home.sent, home.received, home.frames), (0, 0, 3000));
        assert_eq!(tap.stats().dropped_by_kernel, 0);
    });
}

#[test]
fn each_end_counts_once_root() {
    in_namespace(|| {
        // Two containers on a bridge on which this namespace has an address, too.
        let (one, two) = (Container::start(), Container::start());
        run("ip link add br0 type bridge");
        run("ip addr add 10.9.0.1/24 dev br0");
        for (container, device, address) in [(&one, "va", "10.9.0.2"), (&two, "vb", "10.9.0.3")] {
            container.join(device, address);
            run(&format!("ip link set {device} master br0"));
        }
        run("ip link set br0 up");
        let sockets = [&one, &two]
            .map(|container| container.inside(|| std::net::UdpSocket::bind("0.0.0.0:53").unwrap()));
        let _here = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
        // This resolves the addresses by ARP, and the bridge learns.
        let exchange = |count| {
            send("10.9.0.1:5000", "10.9.0.2:53", count, 100);
            one.inside(|| {
                send("10.9.0.2:5000", "10.9.0.1:53", count, 200);
                send("10.9.0.2:5000", "10.9.0.3:53", count, 300);
            });
        };
        exchange(1);
        wait_until("the bridge forwards", || {
            exchange(1);
            sockets[1].set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            sockets[1].recv(&mut [0; 300]).is_ok()
        });
        let mut tap = Tap::live(&options(chosen(&[&one, &two]))).unwrap();
        count_udp();
        [&one, &two].iter().for_each(|container| container.inside(count_udp));
        exchange(300);
        let mut accounts = Accounts::default();
        accounts.read(&mut tap);
        let ends = [
            (Namespace::HOME, counted()),
            (number(&tap, &one).unwrap(), one.inside(counted)),
            (number(&tap, &two).unwrap(), two.inside(counted)),
        ];
        for (namespace, (sent, received)) in ends {
            let seen = accounts.of(namespace);
            assert!(sent + received > 0);
            assert_eq!((seen.sent, seen.received), (sent, received), "{namespace:?}");
        }
        let seen = ends.map(|(namespace, _)| accounts.of(namespace));
        assert_eq!([seen[1].not_local, seen[2].not_local], [0, 0]);
        let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
        assert_eq!(
            sum(|seen| seen.sent),
            sum(|seen| seen.received),
            "each packet has two ends, all are here"
        );
    });
}

#[test]
fn only_what_is_chosen_is_captured_root() {
    in_namespace(|| {
        let (one, two) = (Container::start(), Container::start());
        let traffic = || send("127.0.0.1:5000", "127.0.0.1:53", 100, 100);
        let mut own = Tap::live(&options(NamespaceChoice::Usual)).unwrap();
        let mut with_one = Tap::live(&options(chosen(&[&one, &one]))).unwrap();
        assert_eq!((own.stats().namespaces, own.stats().devices_open), (0, 1));
        assert_eq!((with_one.stats().namespaces, with_one.stats().devices_open), (1, 2));
        one.inside(traffic);
        two.inside(traffic);
        let mut accounts = Accounts::default();
        accounts.read(&mut own);
        assert!(accounts.by_namespace.is_empty());
        accounts.read(&mut with_one);
        let seen: Vec<u64> = accounts.by_namespace.values().map(|seen| seen.frames).collect();
        assert_eq!((seen, number(&with_one, &two)), (vec![100], None));
        // The session's own namespace, chosen by its path, is not captured twice.
        let path = PathBuf::from(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid()));
        let mut twice = Tap::live(&options(NamespaceChoice::Chosen(vec![path]))).unwrap();
        assert_eq!((twice.stats().namespaces, twice.stats().devices_open), (0, 1));
    });
}

#[test]
fn a_name_that_is_no_namespace_is_refused_root() {
    in_namespace(|| {
        let refused = |path: &str| {
            let error =
                Tap::live(&options(NamespaceChoice::Chosen(vec![path.into()]))).map(drop).unwrap_err();
            capture::internals::error::Error::from(error)
        };
        for path in ["/run/netns/nosuch", "/proc/self/ns/mnt", "/etc/passwd", "netns"] {
            let error = refused(path);
            assert_eq!(error.code, Code::InvalidArgument);
            assert!(error.text.contains(path), "{error}");
        }
        // A device may be in any of the namespaces.
        let container = Container::start();
        container.join("va", "10.9.0.2");
        let devices =
            |name: &str| TapOptions { devices: vec![name.into()], ..options(chosen(&[&container])) };
        assert_eq!(Tap::live(&devices("eth0")).unwrap().stats().devices_open, 1);
        assert_eq!(Tap::live(&devices("lo")).unwrap().stats().devices_open, 2);
        let error = capture::internals::error::Error::from(Tap::live(&devices("eth9")).unwrap_err());
        assert_eq!((error.code, error.text.contains("lo, va, eth0")), (Code::NoDevice, true), "{error}");
    });
}

#[test]
fn losses_in_other_namespaces_are_counted_root() {
    in_namespace(|| {
        let container = Container::start();
        let choice = chosen(&[&container]);
        let smallest = TapOptions { buffer_bytes: TapOptions::MIN_BUFFER, ..options(choice) };
        let mut tap = Tap::live(&smallest).unwrap();
        let number = number(&tap, &container).unwrap();
        container.inside(|| send("127.0.0.1:5000", "127.0.0.1:53", 20_000, 100));
        let mut accounts = Accounts::default();
        accounts.read(&mut tap);
        let stats = tap.stats();
        assert!(stats.dropped_by_kernel > 0, "{stats:?}");
        assert_eq!(accounts.of(number).frames + stats.dropped_by_kernel, 20_000);
        container.end();
        wait_until("its device is closed", || {
            tap.refresh().unwrap();
            tap.stats().devices_closed == 1
        });
        let after = tap.stats();
        assert_eq!((after.devices_closed, after.dropped_by_kernel), (1, stats.dropped_by_kernel));
    });
}

#[test]
fn containers_are_found_and_let_go_root() {
    in_namespace(|| {
        let before = own_namespace();
        let view = View::new();
        let mut tap = Tap::live_beside(&options(NamespaceChoice::All), view.path()).unwrap();
        let container = view.start_container();
        container.join("va", "10.9.0.2");
        container.add_neighbour(NOBODY);
        // Two refreshes: the first may see the process forked but not yet in its namespace.
        tap.refresh().unwrap();
        tap.refresh().unwrap();
        let number = number(&tap, &container).expect("found");
        container.inside(count_udp);
        container.inside(|| send("10.9.0.2:5000", &format!("{NOBODY}:53"), 100, 100));
        let mut accounts = Accounts::default();
        accounts.read(&mut tap);
        let counted = container.inside(counted);
        assert_eq!((accounts.of(number).sent, accounts.of(number).received), counted);
        // Its only process ends. The other end of its veth pair disappears once nothing in this process
        // holds its namespace.
        container.end();
        tap.refresh().unwrap();
        assert_eq!(tap.known_namespaces().get(number), None);
        wait_until("the veth pair has gone", || {
            tap.refresh().unwrap();
            !has_device("va")
        });
        assert_eq!(own_namespace(), before);
    });
}

#[test]
fn a_session_lets_go_of_what_has_ended_root() {
    in_namespace(|| {
        for flows in [false, true] {
            let container = Container::start();
            container.join("va", "10.9.0.2");
            let capture = options(chosen(&[&container]));
            let mut session = Session::open(Options { capture, flows, ..Options::default() }).unwrap();
            let devices = || session.stats_reader().read().devices;
            wait_until("all devices are captured", || devices() == 4 || devices() == 3);
            container.inside(|| send("127.0.0.1:5000", "127.0.0.1:53", 100, 100));
            wait_until("its frames are counted", || session.stats_reader().read().frames == 100);
            session.update().unwrap();
            container.end();
            // A socket in a namespace keeps it alive, and with it this end of the pair. No update
            // happens meanwhile.
            wait_until("the veth pair has gone", || !has_device("va"));
            session.update().unwrap();
            session.health().unwrap();
        }
    });
}

#[test]
fn a_name_keeps_a_namespace_and_its_removal_ends_it_root() {
    in_namespace(|| {
        let name = format!("capture-test-{}", std::process::id());
        run(&format!("ip netns add {name}"));
        let path = PathBuf::from(format!("/run/netns/{name}"));
        let found = |tap: &Tap| tap.known_namespaces().snapshot().iter().any(|entry| *entry.path == *path);
        let mut all = Tap::live(&options(NamespaceChoice::All)).unwrap();
        let mut one = Tap::live(&options(NamespaceChoice::Chosen(vec![path.clone()]))).unwrap();
        let both = found(&all) && found(&one);
        run(&format!("ip netns del {name}"));
        assert!(both, "found by its name alone");
        for tap in [&mut all, &mut one] {
            tap.refresh().unwrap();
            assert!(!found(tap));
        }
        // A namespace made anew under the same name is captured again.
        run(&format!("ip netns add {name}"));
        for tap in [&mut all, &mut one] {
            tap.refresh().unwrap();
        }
        let again = found(&all) && found(&one);
        run(&format!("ip netns del {name}"));
        assert!(again);
    });
}

#[test]
fn a_namespace_takes_the_descriptors_that_are_stated_root() {
    in_namespace(|| {
        let containers = [Container::start(), Container::start()];
        containers[1].join("va", "10.9.0.2");
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let taken = |containers: &[&Container]| {
            let before = open();
            let mut tap = Tap::live(&options(chosen(containers))).unwrap();
            (open() - before, tap.stats().devices_open as usize)
        };
        let (one, two) = (taken(&[&containers[0]]), taken(&[&containers[0], &containers[1]]));
        assert_eq!((one.1, two.1), (3, 5));
        // Two for the namespace, and one for each device: see `TapOptions::namespaces`.
        assert_eq!(two.0 - one.0, 2 + 2);
    });
}

#[test]
fn fifty_namespaces_leave_nothing_behind_root() {
    in_namespace(|| {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let view = View::new();
        let mut tap = Tap::live_beside(&options(NamespaceChoice::All), view.path()).unwrap();
        tap.refresh().unwrap();
        let (before, devices) = (open(), tap.stats().devices_open);
        for _ in 0..10 {
            let containers: Vec<_> = (0..5).map(|_| view.start_container()).collect();
            tap.refresh().unwrap();
            tap.refresh().unwrap();
            assert!(containers.iter().all(|container| number(&tap, container).is_some()));
            containers.into_iter().for_each(Container::end);
            wait_until("what is gone is closed", || {
                tap.refresh().unwrap();
                tap.stats().devices_open == devices
            });
        }
        let stats = tap.stats();
        assert_eq!((open(), stats.devices_open), (before, devices));
        assert!(stats.devices_closed >= 50, "{stats:?}");
    });
}

/// Counts the frames of the session's own namespace that are as long as the sender's datagrams.
struct HomeFrames(usize);

impl FrameHandler for HomeFrames {
    fn frame(&mut self, frame: Frame<'_>) {
        self.0 += usize::from(frame.namespace == Namespace::HOME && frame.wire_len == 142);
    }

    fn set_addresses(&mut self, _: &[(Namespace, Arc<LocalAddresses>)]) {}
}

/// The other devices are still read while devices of many containers are opened and closed, which takes some
/// 10 and 25 ms each.
#[test]
fn nothing_is_lost_while_many_containers_come_and_go_root() {
    const PACKETS: usize = 15_000;
    in_namespace(|| {
        let view = View::new();
        let small = TapOptions { buffer_bytes: 1 << 20, ..options(NamespaceChoice::All) };
        let mut tap = Tap::live_beside(&small, view.path()).unwrap();
        let containers: Vec<_> = (0..20).map(|_| view.start_container()).collect();
        containers.iter().zip(0..).for_each(|(container, number)| {
            container.join(&format!("v{number}"), "10.9.0.2");
        });
        // Frames fill the ring in less time than it takes to close all devices one after the other.
        let paced = || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:5000").unwrap();
            for _ in 0..PACKETS {
                let _ = socket.send_to(&[7; 100], "127.0.0.1:53");
                std::thread::sleep(Duration::from_micros(150));
            }
        };
        let home = File::open("/proc/thread-self/ns/net").unwrap();
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || {
                nix::sched::setns(home, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                paced();
            });
            let (mut home, mut containers, mut opened) = (HomeFrames(0), Some(containers), 0);
            let mut read = |tap: &mut Tap| {
                tap.wait(Duration::from_millis(20)).unwrap();
                tap.read(8192, &mut home).unwrap();
                home.0
            };
            while !sender.is_finished() {
                tap.begin_refresh().unwrap();
                for _ in 0..5 {
                    read(&mut tap);
                }
                opened = opened.max(tap.stats().devices_open);
                // The containers end once all devices are open.
                if tap.stats().devices_open == 61 {
                    containers.take().into_iter().flatten().for_each(Container::end);
                }
            }
            wait_until("all is closed and read", || {
                tap.begin_refresh().unwrap();
                let frames = read(&mut tap);
                let stats = tap.stats();
                stats.devices_open == 1
                    && stats.devices_pending == 0
                    && frames as u64 + stats.dropped_by_kernel >= PACKETS as u64
            });
            assert_eq!(opened, 61, "of 20 containers two each, with the other ends, and the own loopback");
            assert_eq!((read(&mut tap), tap.stats().dropped_by_kernel), (PACKETS, 0));
        });
    });
}
