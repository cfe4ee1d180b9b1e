//! The wire between the hosts: a network namespace that both directions pass through, with a link whose
//! devices neither segment nor merge anything, where packets are counted.
//!
//! Veth devices, routers and bridges pass an offloaded frame on unchanged, until it reaches a device
//! that cannot transmit it: that is the link in the middle of this namespace, between two bridges. The
//! packets at its far end are those that a cable would carry, and are counted there before any host can
//! merge them again.

use crate::commands::run;
use crate::lab::{enter, nft};

/// The largest window of a receiver. The data under way then fits the queue of any device on the way, so that
/// no packet is lost between the points that count.
const WINDOW: &str = "4096 131072 262144";

/// Features of a device that make or accept frames of several packets (ethtool(8)).
const OFFLOADS: &str = "tso X gso X gro X tx-udp-segmentation X";

/// The offload setting of a host: with `On`, it leaves segmentation and merging to its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offloads {
    On,
    Off,
}

/// The namespace between two others. Deleting its name removes it.
pub struct Wire {
    name: String,
}

impl Wire {
    /// Makes the namespace. Each of the two hosts must still be plugged in.
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
            wire.add_port(&Wire::device(end), end);
            run(&format!("ip netns exec {name} ethtool -K {} sg off", Wire::device(end)));
        }
        wire
    }

    /// Makes the device of a host and connects it to one end of the wire, with its offloads on or off.
    pub fn plug(&self, host: &str, device: &str, end: usize, offloads: Offloads) {
        let name = &self.name;
        run(&format!("ip -n {host} link add {device} type veth peer name host{end} netns {name}"));
        self.add_port(&format!("host{end}"), end);
        set_offloads(host, device, offloads);
        enter(host, || std::fs::write("/proc/sys/net/ipv4/tcp_rmem", WINDOW).unwrap());
    }

    fn add_port(&self, device: &str, end: usize) {
        let name = &self.name;
        set_offloads(name, device, Offloads::Off);
        run(&format!("ip -n {name} link set {device} master bridge{end}"));
        run(&format!("ip -n {name} link set {device} up"));
    }

    /// Counts packets from now on, by a match for those to the server and one for those from it, and resets
    /// earlier counts.
    pub fn count(&self, to_server: &str, from_server: &str) {
        let chain = |end: usize| {
            format!(
                "counter to{end} {{}}
                 counter from{end} {{}}
                 chain into{end} {{
                   type filter hook ingress device {} priority 0;
                   {to_server} counter name to{end}
                   {from_server} counter name from{end}
                 }}",
                Wire::device(end)
            )
        };
        let chains = [chain(0), chain(1)].join("\n");
        let emptied = "table netdev capture {}\ndelete table netdev capture";
        nft(&self.name, &format!("{emptied}\ntable netdev capture {{\n{chains}\n}}"));
    }

    /// Returns the device through which all packets arrive that the host at the other end sends.
    pub fn device(end: usize) -> String {
        format!("middle{end}")
    }

    /// Returns the names of the counters of packets that leave the wire at an end: those to the server,
    /// and those from it.
    pub fn counters(end: usize) -> [String; 2] {
        [format!("to{end}"), format!("from{end}")]
    }

    /// Returns the namespace, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn set_offloads(namespace: &str, device: &str, offloads: Offloads) {
    let features = OFFLOADS.replace('X', if offloads == Offloads::On { "on" } else { "off" });
    run(&format!("ip netns exec {namespace} ethtool -K {device} {features}"));
}
