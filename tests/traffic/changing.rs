//! Links and addresses that appear, disappear and reappear while a session runs.

use super::{Watch, with_lab};
use capture_test_support::lab::{Host, Lab, run};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A datagram's payload, and its length on the link.
const LENGTH: usize = 500;
const FRAME: u64 = LENGTH as u64 + 8 + 20 + 14;

fn sent(watch: &mut Watch) -> u64 {
    watch.update();
    let traffic = watch.traffic();
    assert!(traffic.len() <= 1, "{traffic:?}");
    traffic.get(&(std::process::id() as i32)).map_or(0, |own| own.send_bytes)
}

/// Sends from this address until a datagram is counted, then checks that all further ones are.
fn is_counted(lab: &Lab, watch: &mut Watch, from: &str, to: &str) {
    let open = || {
        lab.enter(Host::A);
        UdpSocket::bind((from, 0)).unwrap()
    };
    let socket = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
    let send = || assert_eq!(socket.send_to(&[7; LENGTH], (to, 7051)).unwrap(), LENGTH);
    let (before, deadline) = (sent(watch), Instant::now() + TIMEOUT);
    let mut number = 0;
    while sent(watch) == before {
        assert!(Instant::now() < deadline, "{from} is not counted");
        send();
        number += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    // All bytes sent so far that will ever be counted are counted before the next check begins.
    let mut known = 0;
    while known != sent(watch) {
        known = sent(watch);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(known - before <= number * FRAME);
    (0..50).for_each(|_| send());
    while sent(watch) != known + 50 * FRAME {
        assert!(Instant::now() < deadline, "{from}: {} after {known}", sent(watch));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Makes a veth pair between the hosts, with a network of its own.
fn link(lab: &Lab, device: &str, network: u8) {
    let (a, b) = (lab.name(Host::A), lab.name(Host::B));
    run(&format!("ip -n {a} link add {device} type veth peer name {device} netns {b}"));
    for (name, number) in [(a, 1), (b, 2)] {
        run(&format!("ip -n {name} addr add 10.{network}.0.{number}/24 dev {device}"));
        run(&format!("ip -n {name} link set {device} up"));
    }
    // Packets may be lost during neighbour discovery.
    let address = run(&format!("ip -n {b} -o link show {device}"));
    let address = address.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    run(&format!("ip -n {a} neigh add 10.{network}.0.2 lladdr {address} dev {device} nud permanent"));
}

#[test]
fn links_and_addresses_are_followed_root() {
    with_lab(|lab| {
        let a = lab.name(Host::A);
        let mut watch = Watch::on(&lab, Host::A);
        is_counted(&lab, &mut watch, "10.77.0.1", "10.77.0.2");
        // Another address.
        run(&format!("ip -n {a} addr add 10.77.0.9/24 dev veth0"));
        is_counted(&lab, &mut watch, "10.77.0.9", "10.77.0.2");
        // Another link.
        link(&lab, "veth1", 78);
        is_counted(&lab, &mut watch, "10.78.0.1", "10.78.0.2");
        // The link disappears without affecting the others, and another link of its name appears.
        run(&format!("ip -n {a} link del veth1"));
        is_counted(&lab, &mut watch, "10.77.0.1", "10.77.0.2");
        link(&lab, "veth1", 79);
        is_counted(&lab, &mut watch, "10.79.0.1", "10.79.0.2");
        // Down and up again, which removes the static neighbours.
        run(&format!("ip -n {a} link set veth0 down"));
        is_counted(&lab, &mut watch, "10.79.0.1", "10.79.0.2");
        run(&format!("ip -n {a} link set veth0 up"));
        run(&format!("ip -n {a} neigh replace 10.77.0.2 lladdr 02:00:00:00:00:02 dev veth0 nud permanent"));
        is_counted(&lab, &mut watch, "10.77.0.1", "10.77.0.2");
        watch.session.health().unwrap();
    });
}
