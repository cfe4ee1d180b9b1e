//! Kernels that lack something that the eBPF programs use: the library reports what is missing, and the rest
//! works.

use crate::hosting::Host;
use crate::may_run;
use crate::types::AlteredTypes;
use capture::internals::model::ProgramSet;

const RUN: &str = "exec \"$@\"";
/// Engine pcap, and engine kernel.
const ENGINES: [(&str, &[&str]); 2] = [("Pcap", &[]), ("Kernel", &["engine=kernel"])];

fn start(types: &AlteredTypes, arguments: &[&str]) -> Host {
    Host::ready(&format!("{}{RUN}", types.mount()), arguments)
}

/// Checks that all eBPF programs work without these types and members.
fn nothing_is_missed(names: &[&str]) {
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    let types = AlteredTypes::without(names);
    for (engine, arguments) in ENGINES {
        let host = start(&types, arguments);
        assert_eq!((host.state(), host.engine()), ("Active", engine), "{names:?} {:#?}", host.said);
        assert_eq!(host.programs(), ProgramSet::ALL);
        assert!(host.counts(), "{:#?}", host.said);
    }
}

/// Verification of eBPF programs is most of the cost of opening a session: the kernel needs a microsecond for
/// each instruction that it processes. Code after many paths multiplies these instructions.
#[test]
fn the_kernel_verifies_each_program_soon_as_root() {
    const MOST: u64 = 16_000;
    const MAX_TOGETHER: u64 = 60_000;
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    for (engine, arguments) in ENGINES {
        let host = Host::ready(RUN, arguments);
        let verified = host.verified();
        assert!(verified.len() > 10 && verified.iter().all(|&count| count > 0), "{verified:?}");
        let together: u64 = verified.iter().sum();
        assert!(
            verified.iter().all(|&count| count < MOST) && together < MAX_TOGETHER,
            "{engine}: {verified:?}"
        );
    }
}

/// Before Linux 6.2, eBPF programs for packets cannot read a socket's cookie by themselves.
#[test]
fn a_kernel_without_its_own_form_of_packets_as_root() {
    nothing_is_missed(&["bpf_cast_to_kern_ctx"]);
}

/// The copy serves as well as the original if nothing relevant is missing.
#[test]
fn a_kernel_without_something_else_as_root() {
    nothing_is_missed(&["btf_trace_sys_enter"]);
}

#[test]
fn a_kernel_without_mptcp_as_root() {
    nothing_is_missed(&["mptcp_sock", "tcp_sock.is_mptcp"]);
}

#[test]
fn a_kernel_without_ipv6_as_root() {
    nothing_is_missed(&["sock_common.skc_v6_daddr", "sock_common.skc_v6_rcv_saddr"]);
}

/// eBPF programs that report little are dispensable. Regression: any one of them that was rejected made all
/// others unavailable.
#[test]
fn a_kernel_without_what_few_packets_need_as_root() {
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    for (point, part) in
        [("kfree_skb", ProgramSet::LATE_PACKETS), ("net_dev_queue", ProgramSet::DIRECT_PACKETS)]
    {
        let types = AlteredTypes::without(&[&format!("btf_trace_{point}")]);
        for (engine, arguments) in ENGINES {
            let host = start(&types, arguments);
            assert_eq!((host.state(), host.engine()), ("Active", engine), "{:#?}", host.said);
            assert_eq!(host.programs(), ProgramSet::ALL.without(part));
            let words = "an eBPF program for sockets is unavailable";
            let mut lines = host.told("log").filter(|line| line.contains(words));
            assert!(lines.next().is_some_and(|line| line.contains(point)), "{:#?}", host.said);
            assert_eq!(lines.next(), None);
            assert!(host.counts(), "{:#?}", host.said);
        }
    }
}

/// Without the attach point that reports the states of connections, nothing is known of them.
#[test]
fn a_kernel_without_what_all_need_as_root() {
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    let types = AlteredTypes::without(&["btf_trace_inet_sock_set_state"]);
    for (_, arguments) in ENGINES {
        let host = start(&types, arguments);
        assert_eq!((host.state(), host.engine()), ("NotSupported", "Pcap"), "{:#?}", host.said);
        assert_eq!(host.programs(), ProgramSet::default());
        let reason = "the kernel has no attach point inet_sock_set_state";
        assert!(host.told("log").any(|line| line.contains(reason)), "{:#?}", host.said);
        assert!(host.has_no_socket_probes() && host.counts(), "{:#?}", host.said);
    }
}

/// Before Linux 6.3, other eBPF programs report what is sent and received. A kernel that accepts neither kind
/// cannot count, but owners are found all the same.
#[test]
fn a_kernel_without_what_tells_of_calls_as_root() {
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    let types = AlteredTypes::without(&["btf_trace_sock_send_length", "btf_trace_sock_recv_length"]);
    let calls = [ProgramSet::SENDS, ProgramSet::RECEIVES];
    let host = start(&types, &[]);
    assert_eq!((host.state(), host.engine()), ("Active", "Pcap"), "{:#?}", host.said);
    let of_calls = calls.map(|part| host.programs().has(part));
    let missed =
        host.told("log").filter(|line| line.contains("an eBPF program for sockets is unavailable")).count();
    assert_eq!(missed, of_calls.iter().filter(|is_there| !**is_there).count(), "{:#?}", host.said);
    assert!(host.programs().has(ProgramSet::SOCKETS) && host.counts(), "{:#?}", host.said);
    let host = start(&types, &["engine=kernel"]);
    if of_calls == [true; 2] {
        assert_eq!((host.state(), host.engine()), ("Active", "Kernel"), "{:#?}", host.said);
    } else {
        assert_eq!((host.state(), host.engine()), ("NotSupported", "Pcap"), "{:#?}", host.said);
        let words = "engine kernel is unavailable; falling back to engine pcap";
        assert!(host.told("log").any(|line| line.contains(words)), "{:#?}", host.said);
    }
    assert!(host.counts(), "{:#?}", host.said);
}
