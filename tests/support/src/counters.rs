//! Bytes as nftables counts them in the calling thread's network namespace, with a link header
//! for each packet.

use crate::commands::{nft, run};
use std::time::Duration;

const ETHERNET_HEADER: u64 = 14;

/// Makes the kernel count UDP from now on in the calling thread's namespace.
pub fn count_udp() {
    count(&[("udp", "meta l4proto udp")]);
}

/// Makes the kernel count TCP and UDP for each of these ports, at either end.
pub fn count_ports(ports: &[u16]) {
    let names: Vec<_> = ports.iter().map(|port| (format!("p{port}"), format!("th dport {port}"))).collect();
    let back: Vec<_> = ports.iter().map(|port| (format!("p{port}"), format!("th sport {port}"))).collect();
    let all: Vec<(&str, &str)> = names.iter().chain(&back).map(|(name, is)| (&**name, &**is)).collect();
    count(&all);
}

/// Counts what matches, under these names, in the output and the input hook.
pub fn count(matches: &[(&str, &str)]) {
    let hooks = ["type filter hook output priority 0;", "type filter hook input priority 0;"];
    count_in("inet", hooks, matches);
}

/// Does the same as [`count`] in a namespace that only forwards packets: what arrives on the first of two
/// devices counts as sent, what arrives on the second as received.
pub fn count_passing(devices: [&str; 2], matches: &[(&str, &str)]) {
    let hooks = devices.map(|device| format!("type filter hook ingress device {device} priority 0;"));
    count_in("netdev", [&hooks[0], &hooks[1]], matches);
}

fn count_in(family: &str, [sent, received]: [&str; 2], matches: &[(&str, &str)]) {
    let each = |line: &dyn Fn(&str, &str) -> String| -> String {
        matches.iter().map(|(name, is)| line(name, is)).collect()
    };
    let counters = each(&|name, _| format!("counter {name}_sent {{}}\ncounter {name}_received {{}}\n"));
    let output = each(&|name, is| format!("{is} counter name {name}_sent\n"));
    let input = each(&|name, is| format!("{is} counter name {name}_received\n"));
    let rules = format!(
        "table {family} capture {{
            {counters}
            chain output {{
                {sent}
                {output}
            }}
            chain input {{
                {received}
                {input}
            }}
        }}"
    );
    nft(&rules);
}

/// Returns the bytes of UDP sent and received in the calling thread's namespace, with a link header
/// for each packet.
pub fn counted() -> (u64, u64) {
    counters_of("udp")
}

/// Returns the bytes of a port, sent and received.
pub fn counted_port(port: u16) -> (u64, u64) {
    counters_of(&format!("p{port}"))
}

/// Returns the bytes of a port once they no longer change.
pub fn settled_port(port: u16) -> (u64, u64) {
    let mut before = counted_port(port);
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = counted_port(port);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Returns the figures of the other end, which receives what this end sends.
pub fn swapped((sent, received): (u64, u64)) -> (u64, u64) {
    (received, sent)
}

/// Returns the bytes counted under a name, sent and received.
pub fn counters_of(name: &str) -> (u64, u64) {
    let text = run("nft list counters");
    let words: Vec<&str> = text.split_whitespace().collect();
    let read = |counter: String| {
        let at = words.iter().position(|&word| word == counter).unwrap();
        let after = |word| {
            let word_at = words[at..].iter().position(|&found| found == word).unwrap();
            words[at + word_at + 1].parse::<u64>().unwrap()
        };
        after("bytes") + ETHERNET_HEADER * after("packets")
    };
    (read(format!("{name}_sent")), read(format!("{name}_received")))
}
