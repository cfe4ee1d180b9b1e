//! Addresses that are local by a route in a table other than `local`, for packets that a routing rule
//! selects (TPROXY): packets that a socket of this host receives are credited to its owner, and forwarded
//! packets have no owner.

use super::counting::{me, on};
use super::nat::{Container, Way, count, counted, lab, unowned};
use super::{Watch, with};
use capture::internals::model::Unowned;
use capture_test_support::lab::{Host, Lab, nft, run};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The time limit, far longer than finding an owner takes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Payload that a connection carries to the proxy.
const BYTES: usize = 1_000_000;

/// Makes host A deliver TCP packets for port 80 of any address to its port 8080.
fn divert(lab: &Lab) {
    let host = lab.name(Host::A);
    nft(
        host,
        "table ip proxy {
           chain before {
             type filter hook prerouting priority mangle;
             ip daddr 203.0.113.0/24 tcp dport 80 tproxy to :8080 meta mark set 1 accept
           }
         }",
    );
    run(&format!("ip -n {host} rule add fwmark 1 lookup 100"));
    run(&format!("ip -n {host} route add local default dev lo table 100"));
    for device in ["all", "veth0"] {
        lab.set(Host::A, &format!("net/ipv4/conf/{device}/rp_filter"), "0");
    }
    run(&format!("ip -n {} route add 203.0.113.0/24 via 10.77.0.1", lab.name(Host::B)));
}

/// Returns a listener of this process on host A that accepts connections to any address.
fn proxy(lab: &Lab) -> TcpListener {
    on(lab, Host::A, || {
        // SAFETY: the calls take numbers, and pointers to memory that lives during them; nothing else owns
        // the descriptor.
        let listener = unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            assert!(socket >= 0);
            let on: libc::c_int = 1;
            let length = size_of_val(&on) as libc::socklen_t;
            let set =
                libc::setsockopt(socket, libc::SOL_IP, libc::IP_TRANSPARENT, (&raw const on).cast(), length);
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(socket)
        };
        let any = nix::sys::socket::SockaddrIn::new(0, 0, 0, 0, 8080);
        nix::sys::socket::bind(listener.as_raw_fd(), &any).unwrap();
        let listener = TcpListener::from(listener);
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(16).unwrap()).unwrap();
        listener
    })
}

#[test]
fn a_transparent_proxy_has_the_bytes_of_its_connections_root() {
    for way in Way::ALL {
        with(lab, |lab| {
            println!("{way:?}:");
            divert(&lab);
            let listener = proxy(&lab);
            count(lab.name(Host::A), "10.77.0.2");
            let mut watch = Watch::with(&lab, Host::A, way.options());
            let mut client = on(&lab, Host::B, || TcpStream::connect("203.0.113.7:80").unwrap());
            let (mut server, _) = listener.accept().unwrap();
            assert_eq!(server.local_addr().unwrap().to_string(), "203.0.113.7:80");
            let sent = std::thread::spawn(move || {
                client.write_all(&vec![7; BYTES]).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                client.read_to_end(&mut Vec::new()).unwrap()
            });
            assert_eq!(server.read_to_end(&mut Vec::new()).unwrap(), BYTES);
            server.write_all(&vec![7; BYTES]).unwrap();
            drop(server);
            assert_eq!(sent.join().unwrap(), BYTES);
            let truth = counted(lab.name(Host::A));
            assert!(truth.0 > BYTES as u64 && truth.1 > BYTES as u64);
            watch.expect_all_within(TIMEOUT, me(), truth);
        });
    }
}

/// The host could receive any packet, and has a server on the port of the container that clients send to.
#[test]
fn what_such_a_host_forwards_is_not_a_servers_on_the_same_port_root() {
    for way in [Way::Owners, Way::Portable] {
        with(lab, |lab| {
            println!("{way:?}:");
            let container = Container::of(&lab);
            divert(&lab);
            run(&format!("ip -n {} route add 10.78.0.0/24 via 10.77.0.1", lab.name(Host::B)));
            let _server = on(&lab, Host::A, || UdpSocket::bind("0.0.0.0:53").unwrap());
            count(&container.name, "10.77.0.2");
            let mut watch = Watch::with(&lab, Host::A, way.options());
            let inside =
                capture_test_support::lab::enter(&container.name, || UdpSocket::bind("0.0.0.0:53").unwrap());
            let client = on(&lab, Host::B, || UdpSocket::bind("10.77.0.2:0").unwrap());
            inside.set_read_timeout(Some(TIMEOUT)).unwrap();
            for _ in 0..200 {
                client.send_to(&[7; 500], "10.78.0.2:53").unwrap();
                let (count, from) = inside.recv_from(&mut [0; 500]).unwrap();
                inside.send_to(&[7; 500][..count], from).unwrap();
            }
            let (sent, received) = counted(&container.name);
            // Captured on both devices that it passes.
            let passed = 2 * (sent + received);
            let deadline = Instant::now() + TIMEOUT;
            loop {
                watch.update();
                let found = unowned(&watch, Unowned::NotLocal);
                if found >= passed && unowned(&watch, Unowned::Pending) == 0 {
                    assert!(found - passed < 10_000, "{found} of {passed}");
                    break;
                }
                assert!(Instant::now() < deadline, "{found} of {passed}");
                std::thread::sleep(Duration::from_millis(100));
            }
            assert_eq!(watch.traffic(), [].into());
        });
    }
}
