//! The wire between the hosts: a network namespace that both directions pass, and in it a link whose devices neither
//! segment nor merge anything, where packets are counted.
//!
//! A veth device hands an offloaded frame on as it is, and so do routers and bridges, until a device has to transmit it
//! that cannot: that is the link in the middle of this namespace, between two bridges. What comes out of it is what a
//! cable would carry, and counted as it does, before any host can merge it again.

use super::{enter, nft, run};

/// The largest window of a receiver. What is under way then fits the queue of any device on the way, so that no packet
/// is lost between those who count.
const WINDOW: &str = "4096 131072 262144";

/// Features of a device that make or take frames of several packets (ethtool(8)).
const OFFLOADS: &str = "tso X gso X gro X tx-udp-segmentation X";

/// Whether a host leaves segmentation and merging to its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offloads {
    On,
    Off,
}

/// The namespace between two others.
pub struct Wire {
    name: String,
}

impl Wire {
    /// Makes the namespace. Each of the two hosts is still to be plugged in.
    pub fn new(name: String) -> Wire {
        run(&format!("ip netns add {name}"));
        let wire = Wire { name };
        let name = &wire.name;
        enter(name, || {
            // The wire itself sends nothing.
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        });
        run(&format!("ip -n {name} link add middle0 type veth peer name middle1"));
        for end in [0, 1] {
            run(&format!("ip -n {name} link add bridge{end} type bridge mcast_snooping 0"));
            run(&format!("ip -n {name} link set bridge{end} up"));
            wire.add_port(&format!("middle{end}"), end);
            run(&format!("ip netns exec {name} ethtool -K middle{end} sg off"));
        }
        wire
    }

    /// Makes the device `veth0` of a host, one end of the wire, with its offloads on or off.
    pub fn plug(&self, host: &str, end: usize, offloads: Offloads) {
        let name = &self.name;
        run(&format!("ip -n {host} link add veth0 type veth peer name host{end} netns {name}"));
        self.add_port(&format!("host{end}"), end);
        set_offloads(host, "veth0", offloads);
        enter(host, || std::fs::write("/proc/sys/net/ipv4/tcp_rmem", WINDOW).unwrap());
    }

    fn add_port(&self, device: &str, end: usize) {
        let name = &self.name;
        set_offloads(name, device, Offloads::Off);
        run(&format!("ip -n {name} link set {device} master bridge{end}"));
        run(&format!("ip -n {name} link set {device} up"));
    }

    /// Counts packets from here on, by the matches of those to the server and of those from it, instead of what was
    /// counted before.
    pub fn count(&self, to_server: &str, from_server: &str) {
        let chain = |end: usize| {
            format!(
                "counter to{end} {{}}
                 counter from{end} {{}}
                 chain into{end} {{
                   type filter hook ingress device middle{end} priority 0;
                   {to_server} counter name to{end}
                   {from_server} counter name from{end}
                 }}"
            )
        };
        let chains = [chain(0), chain(1)].join("\n");
        let emptied = "table netdev capture {}\ndelete table netdev capture";
        nft(&self.name, &format!("{emptied}\ntable netdev capture {{\n{chains}\n}}"));
    }

    /// The name of the counter of packets that come out at an end: those to the server, and those from it.
    pub fn counters(end: usize) -> [String; 2] {
        [format!("to{end}"), format!("from{end}")]
    }

    /// The namespace, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn set_offloads(namespace: &str, device: &str, offloads: Offloads) {
    let features = OFFLOADS.replace('X', if offloads == Offloads::On { "on" } else { "off" });
    run(&format!("ip netns exec {namespace} ethtool -K {device} {features}"));
}
