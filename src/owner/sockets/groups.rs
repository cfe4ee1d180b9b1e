//! The groups that a network namespace has joined through any of its sockets and devices: `/proc/net/igmp`
//! and `igmp6`.

use super::table::hex_word;
use crate::model::Address;
use crate::proc::{PidPath, ProcRoot};
use std::ffi::{CStr, CString};
use std::time::Instant;

/// The groups of one namespace, as of their latest reading.
#[derive(Debug)]
pub(in crate::owner) struct Groups {
    paths: [CString; 2],
    joined: Vec<Address>,
    read_at: Option<Instant>,
}

impl Groups {
    /// The groups of the calling thread's network namespace.
    pub fn of_this_thread(root: &ProcRoot) -> Groups {
        let directory = [c"thread-self/net", c"net"].into_iter().find(|path| root.stat(path).is_ok());
        Groups::of(directory.unwrap_or(c"net"))
    }

    /// The groups of a process's network namespace.
    pub fn of_process(pid: i32) -> Groups {
        Groups::of(PidPath::new(pid).file("net"))
    }

    fn of(directory: &CStr) -> Groups {
        let path = |name: &[u8]| CString::new([directory.to_bytes(), name].concat()).unwrap_or_default();
        Groups { paths: [path(b"/igmp"), path(b"/igmp6")], joined: Vec::new(), read_at: None }
    }

    /// Returns true if a group was joined, as of `since` or later; false if that cannot be read.
    pub fn has(&mut self, root: &ProcRoot, group: &Address, since: Instant, now: Instant) -> bool {
        if self.read_at.is_none_or(|at| at < since) {
            self.read_at = Some(now);
            self.joined.clear();
            let mut text = Vec::new();
            for path in &self.paths {
                let lines = root.read(path, &mut text).unwrap_or_default().split(|&byte| byte == b'\n');
                self.joined.extend(lines.filter_map(group_of));
            }
        }
        self.joined.contains(group)
    }
}

/// Parses the group of a line. A line of IPv4 begins with spaces and has the group's address as a number in
/// host order; a line of IPv6 begins with index and name of the device (net/ipv4/igmp.c and net/ipv6/mcast.c,
/// `…_mc_seq_show`).
fn group_of(line: &[u8]) -> Option<Address> {
    let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    if line.first().is_some_and(u8::is_ascii_whitespace) {
        let word = hex_word(words.next()?.first_chunk()?)?;
        return Some(Address::v4(word.to_ne_bytes()));
    }
    let (digits, []) = words.nth(2)?.as_chunks::<8>() else { return None };
    let mut bytes = [0; 16];
    let [a, b, c, d] = digits else { return None };
    for (four, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip([a, b, c, d]) {
        *four = hex_word(word)?.to_be_bytes();
    }
    Some(Address::v6(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use capture_test_support::namespaces::in_new_namespace;
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
    use std::path::Path;

    #[test]
    fn other_lines_name_no_group() {
        for line in [
            "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter",
            "1\tlo : 1 V3",
            "",
            " ",
            "  xy",
        ] {
            assert_eq!(group_of(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn groups_are_those_that_sockets_have_joined_root() {
        in_new_namespace(|| {
            let root = ProcRoot::open(Path::new("/proc")).unwrap();
            let (v4, v6) = (Ipv4Addr::new(239, 1, 2, 3), "ff05::1:2".parse::<Ipv6Addr>().unwrap());
            let mut groups = Groups::of_this_thread(&root);
            let mut has = |group: std::net::IpAddr| {
                let now = Instant::now();
                groups.has(&root, &Address::from(group), now, now)
            };
            assert!(has(Ipv4Addr::new(224, 0, 0, 1).into()), "of all hosts");
            assert!(!has(v4.into()) && !has(v6.into()));
            let (one, other) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::]:0").unwrap());
            one.join_multicast_v4(&v4, &Ipv4Addr::LOCALHOST).unwrap();
            other.join_multicast_v6(&v6, 1).unwrap();
            assert!(has(v4.into()) && has(v6.into()));
            drop((one, other));
            assert!(!has(v4.into()) && !has(v6.into()));
        });
    }
}
