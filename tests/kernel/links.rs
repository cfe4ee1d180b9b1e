//! The link headers of packets on devices with any index, in any namespace.

use crate::lab::{Host, Lab, run};
use crate::watching::{Watch, options, with_lab};
use capture::internals::config::{Engine, Options};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::tap::TapOptions;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, sendto, socket};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use std::fs::File;
use std::os::fd::AsRawFd;

/// Sets the index of a TUN device that is to be created (include/uapi/linux/if_tun.h).
const TUNSETIFINDEX: u64 = 0x4004_54da;

/// The size of a packet with a datagram of 72 bytes, without a link header.
const PACKET: u64 = 100;
const ETHERNET: u64 = 14;

/// Opens a TUN device, which has no link header, with this index and the address 10.`network`.0.1/24.
fn open_tun(lab: &Lab, host: Host, name: &str, index: u32, network: u8) -> File {
    let open = || {
        lab.enter(host);
        crate::lab::open_tun(name, libc::IFF_TUN, |file| {
            // SAFETY: the call reads an unsigned int from the pointer.
            let numbered = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFINDEX, &raw const index) };
            assert_eq!(numbered, 0, "{}", std::io::Error::last_os_error());
        })
    };
    let file = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
    let namespace = lab.name(host);
    run(&format!("ip -n {namespace} addr add 10.{network}.0.1/24 dev {name}"));
    run(&format!("ip -n {namespace} link set {name} up"));
    file
}

fn index(lab: &Lab, host: Host, device: &str) -> u32 {
    let line = run(&format!("ip -n {} -o link show {device}", lab.name(host)));
    line.split(':').next().unwrap().parse().unwrap()
}

/// Forks a process on a host that sends ten datagrams of 72 bytes and ends. Returns its pid.
fn send_from(lab: &Lab, host: Host, network: u8) -> i32 {
    let to = SockaddrIn::new(10, network, 0, 2, 7900);
    let start = || {
        lab.enter(host);
        // SAFETY: the child only makes system calls until it ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let made = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None);
                if let Ok(made) = made {
                    for _ in 0..10 {
                        let _ = sendto(made.as_raw_fd(), &[7; 72], &to, MsgFlags::empty());
                    }
                }
                // SAFETY: _exit(2) ends the process without running any code of the parent's.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                waitpid(child, None).unwrap();
                child.as_raw()
            }
        }
    };
    std::thread::scope(|scope| scope.spawn(start).join().unwrap())
}

/// Regression: the lengths of link headers were in a table of 4,096 entries, indexed by the last bits of the
/// devices' indexes, for the session's own namespace only.
#[test]
fn a_link_header_is_that_of_the_device_whatever_its_number_root() {
    with_lab(|lab| {
        let other = format!("/run/netns/{}", lab.name(Host::B)).into();
        let capture =
            TapOptions { namespaces: NamespaceChoice::Chosen(vec![other]), ..TapOptions::default() };
        let mut watch = Watch::new(lab, Options { capture, ..options(Engine::Kernel) });
        // The same last 12 bits as the link's own index.
        let _same_end = open_tun(lab, Host::A, "bare0", 4096 + index(lab, Host::A, "veth0"), 90);
        // The same index in both namespaces; only one of the two devices has a link header.
        let name = lab.name(Host::A);
        run(&format!("ip -n {name} link add both index 5000 type veth peer name end"));
        run(&format!("ip -n {name} addr add 10.91.0.1/24 dev both"));
        run(&format!("ip -n {name} link set both up"));
        run(&format!("ip -n {name} link set end up"));
        run(&format!("ip -n {name} neigh add 10.91.0.2 lladdr 02:00:00:00:00:02 dev both nud permanent"));
        let _other = open_tun(lab, Host::B, "bare1", 5000, 92);
        let bare = [(Host::A, 90), (Host::B, 92)];
        let with_header = [(Host::A, 77), (Host::A, 91), (Host::B, 77)];
        std::thread::sleep(std::time::Duration::from_millis(1_100));
        let all = bare.map(|from| (from, PACKET)).into_iter();
        let all = all.chain(with_header.map(|from| (from, PACKET + ETHERNET)));
        for ((host, network), length) in all {
            let pid = send_from(lab, host, network);
            watch.until("its datagrams are counted", |watch| watch.traffic(pid).send_packets == 10);
            assert_eq!(watch.traffic(pid).send_bytes, 10 * length, "{host:?} 10.{network}.0.2");
        }
        run(&format!("ip -n {name} link del both"));
        let _again = open_tun(lab, Host::A, "bare2", 5000, 91);
        let pid = send_from(lab, Host::A, 91);
        watch.until("its datagrams are counted", |watch| watch.traffic(pid).send_packets == 10);
        assert_eq!(watch.traffic(pid).send_bytes, 10 * PACKET);
    });
}
