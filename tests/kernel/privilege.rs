//! Sessions without root: the capabilities that suffice, and the effect of removing each of them.

use crate::hosting::Host;
use crate::{at_best, may_run};

const ENOUGH: [&str; 4] = ["bpf", "perfmon", "net_admin", "net_raw"];

/// Returns a command that runs the program as user nobody with only these capabilities.
pub fn as_nobody(capabilities: &[&str]) -> String {
    let set: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    format!(
        "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all{set} --ambient-caps=-all{set} \
         --bounding-set=-all{set} \"$@\""
    )
}

fn without(name: &str) -> Host {
    let rest: Vec<&str> = ENOUGH.into_iter().filter(|capability| *capability != name).collect();
    Host::ready(&as_nobody(&rest), &[])
}

/// Returns the one line of the log with the reason why the eBPF programs do not work.
fn reason(host: &Host) -> &str {
    let reasons: Vec<&str> =
        host.told("log").filter(|line| line.contains("owners from eBPF programs are unavailable")).collect();
    assert_eq!(reasons.len(), 1, "{:#?}", host.said);
    reasons[0]
}

#[test]
fn four_capabilities_are_enough_as_root() {
    if !may_run() {
        return;
    }
    let host = Host::ready(&as_nobody(&ENOUGH), &[]);
    assert_eq!(host.state(), at_best(), "{:#?}", host.said);
    assert!(host.counts(), "{:#?}", host.said);
    assert_eq!(host.objects().is_empty(), at_best() != "Active");
}

#[test]
fn three_capabilities_are_enough_for_the_kernel_to_count_as_root() {
    if !may_run() {
        return;
    }
    let host = Host::ready(&as_nobody(&["bpf", "perfmon", "net_admin"]), &["engine=kernel"]);
    if at_best() == "Active" {
        assert_eq!((host.state(), host.engine()), ("Active", "Kernel"), "{:#?}", host.said);
        assert!(host.counts(), "{:#?}", host.said);
    } else {
        assert_eq!((host.state(), host.engine()), ("NotBuilt", "Pcap"), "{:#?}", host.said);
    }
}

#[test]
fn each_capability_that_is_missing_is_named_and_missed_alone_as_root() {
    if !may_run() {
        return;
    }
    for (name, constant) in [("bpf", "CAP_BPF"), ("perfmon", "CAP_PERFMON"), ("net_admin", "CAP_NET_ADMIN")] {
        let host = without(name);
        if at_best() == "Active" {
            assert_eq!(host.state(), "NotPermitted", "{:#?}", host.said);
            assert!(reason(&host).ends_with(&format!("; {constant} is missing")), "{}", reason(&host));
        } else {
            assert_eq!(host.state(), "NotBuilt");
        }
        assert!(host.has_no_socket_probes(), "{:?}", host.objects());
        assert!(host.counts(), "{:#?}", host.said);
    }
}

#[test]
fn without_packets_the_session_opens_all_the_same_as_root() {
    if !may_run() {
        return;
    }
    let host = without("net_raw");
    assert!(host.told("log").any(|line| line.starts_with("CAP_NET_RAW is missing")), "{:#?}", host.said);
    let host = Host::ready(&as_nobody(&[]), &[]);
    assert_ne!(host.state(), "Active");
    assert_eq!(host.told("network").collect::<Vec<_>>(), ["none"]);
}
