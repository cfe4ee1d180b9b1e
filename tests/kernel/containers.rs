//! A session in its own cgroup namespace, like that of a container, in which a mount of the hierarchy shows
//! only a part of it.

use crate::group::Group;
use crate::hosting::Host;
use crate::may_run;

/// A Python program that sends to itself all the time, from outside the session's group.
const SENDER: &str = "import socket, time\n\
                      s = socket.socket(type=socket.SOCK_DGRAM)\n\
                      s.bind((\"127.0.0.1\", 0))\n\
                      for _ in range(600):\n    s.sendto(bytes(500), s.getsockname())\n    time.sleep(0.1)\n";

/// Runs the host in a part of the hierarchy, with a process outside it that the host watches. `last` is the
/// command that runs the program.
fn in_a_part(group: &Group, last: &str, arguments: &[&str]) -> Host {
    let unmount = "for place in $(awk '/ - cgroup2 / { print $5 }' /proc/self/mountinfo | sort -r)\n\
                   do umount -l \"$place\"; done\n\
                   mount -t tmpfs none /mnt && mkdir /mnt/part && mount -t cgroup2 none /mnt/part\n";
    let shell = format!(
        "python3 -c '{SENDER}' & sender=$!\n\
         echo 0 >'{}'\n\
         exec unshare --cgroup --mount sh -e -c '{}' sh \"$@\" watch=$sender",
        group.door().display(),
        format!("{unmount}{last}").replace('\'', "'\\''"),
    );
    Host::ready(&shell, arguments)
}

/// Regression: the eBPF programs were attached to the part. No process outside it was ever counted, although
/// the state was Active.
#[test]
fn processes_outside_the_part_are_counted_as_root() {
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    let Some(group) = Group::new() else { return };
    for (engine, arguments) in [("Kernel", &["engine=kernel"][..]), ("Pcap", &[])] {
        let host = in_a_part(&group, "exec \"$@\"", arguments);
        assert_eq!((host.state(), host.engine()), ("Active", engine), "{:#?}", host.said);
        assert!(host.watched().is_some_and(|bytes| bytes > 0), "{:#?}", host.said);
        assert!(host.counts(), "{:#?}", host.said);
    }
}

/// Without CAP_DAC_READ_SEARCH, the root of the hierarchy cannot be reached from the part.
#[test]
fn where_the_root_cannot_be_reached_packets_are_captured_as_root() {
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    let Some(group) = Group::new() else { return };
    let last = "exec setpriv --bounding-set=-dac_read_search --inh-caps=-dac_read_search \"$@\"";
    let host = in_a_part(&group, last, &["engine=kernel"]);
    assert_eq!((host.state(), host.engine()), ("NoCgroup", "Pcap"), "{:#?}", host.said);
    let reason = "only a part of the cgroup v2 hierarchy can be reached";
    assert!(host.told("log").any(|line| line.contains(reason)), "{:#?}", host.said);
    assert!(host.watched().is_some_and(|bytes| bytes > 0) && host.counts(), "{:#?}", host.said);
    assert!(host.has_no_socket_probes(), "{:?}", host.objects());
}
