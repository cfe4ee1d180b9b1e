//! Kernels and sandboxes in which a requirement of the eBPF programs is missing or forbidden: the session
//! works without them and logs the reason.

use crate::hosting::Host;
use crate::privilege::as_nobody;
use crate::{at_best, may_run};

const RUN: &str = "exec \"$@\"";

/// Commands of bpf(2), numbered as in `linux/bpf.h`.
const BPF_MAP_CREATE: u32 = 0;
const BPF_PROG_LOAD: u32 = 5;
const BPF_LINK_CREATE: u32 = 28;

/// Starts a host whose eBPF programs must be in this state. Checks that it logs these words, if the programs
/// are built in, and that it counts its traffic all the same.
fn counts_all_the_same(shell: &str, arguments: &[&str], state: &str, words: &str) {
    let host = Host::ready(shell, arguments);
    let is_built = cfg!(feature = "ebpf");
    assert_eq!(host.state(), if is_built { state } else { "NotBuilt" }, "{:#?}", host.said);
    let reason: String =
        host.told("log").filter(|line| line.contains("owners from eBPF programs are unavailable")).collect();
    let words = if is_built { words } else { "built without" };
    assert!(reason.contains(words), "no {words:?} in {reason:?}");
    assert!(host.has_no_socket_probes(), "{:?} {:#?}", host.objects(), host.said);
    assert!(host.counts(), "{:#?}", host.said);
}

#[test]
fn no_types_as_root() {
    if may_run() {
        let hidden = format!("mount -t tmpfs none /sys/kernel/btf\n{RUN}");
        counts_all_the_same(&hidden, &[], "NoTypes", "/sys/kernel/btf/vmlinux");
        let empty = format!("mount --bind /dev/null /sys/kernel/btf/vmlinux\n{RUN}");
        counts_all_the_same(&empty, &[], "NoTypes", "/sys/kernel/btf/vmlinux");
        let broken = format!("mount --bind /proc/version /sys/kernel/btf/vmlinux\n{RUN}");
        counts_all_the_same(&broken, &[], "NoTypes", "/sys/kernel/btf/vmlinux");
    }
}

#[test]
fn no_control_groups_as_root() {
    if may_run() {
        let unmount = "for place in $(awk '/ - cgroup2 / { print $5 }' /proc/self/mountinfo | sort -r)\n\
                       do umount -l \"$place\"; done\n";
        let nobody = as_nobody(&["bpf", "perfmon", "net_admin", "net_raw"]);
        counts_all_the_same(&format!("{unmount}{nobody}"), &[], "NoCgroup", "no cgroup v2 hierarchy");
        // A process that may mount mounts the hierarchy at a place that no other process sees.
        let host = Host::ready(&format!("{unmount}{RUN}"), &[]);
        assert_eq!(host.state(), at_best(), "{:#?}", host.said);
    }
}

#[test]
fn another_pid_namespace_as_root() {
    if may_run() {
        let shell = "exec unshare --pid --fork --mount-proc --kill-child \"$@\"";
        counts_all_the_same(shell, &[], "PidNamespace", "PID namespace");
    }
}

#[test]
fn not_asked_for_as_root() {
    if may_run() {
        let host = Host::ready(RUN, &["probes=no"]);
        assert_eq!(host.state(), "Off");
        assert!(host.objects().is_empty());
        assert!(
            !host.told("log").any(|line| line.contains("owners from eBPF programs are unavailable")),
            "{:#?}",
            host.said
        );
        assert!(host.counts(), "{:#?}", host.said);
    }
}

#[test]
fn built_in_but_forbidden_as_root() {
    if !may_run() {
        return;
    }
    let forbidden = "the required capabilities are held";
    counts_all_the_same(RUN, &[&format!("refuse={}", libc::EPERM)], "NotPermitted", forbidden);
    counts_all_the_same(RUN, &[&format!("refuse={}", libc::ENOSYS)], "NotSupported", "os error 38");
    // A security module can forbid some commands and permit others. Objects that were created before must be
    // removed.
    for (command, errno, state) in [
        (BPF_MAP_CREATE, libc::EACCES, "NotPermitted"),
        (BPF_MAP_CREATE, libc::ENOMEM, "NoMemory"),
        (BPF_PROG_LOAD, libc::EPERM, "NotPermitted"),
        (BPF_PROG_LOAD, libc::ENOMEM, "NoMemory"),
        (BPF_LINK_CREATE, libc::EPERM, "NotPermitted"),
        (BPF_LINK_CREATE, libc::EINVAL, "NotSupported"),
    ] {
        let refuse = format!("refuse={errno}:{command}");
        counts_all_the_same(RUN, &[&refuse], state, &format!("os error {errno}"));
    }
}

#[test]
fn locked_down_as_root() {
    if may_run() {
        // The kernel then does not know the helpers that read its memory, and the verifier rejects the eBPF
        // program as invalid.
        let lockdown = format!(
            "mount -t tmpfs none /sys/kernel/security\n\
             echo 'none integrity [confidentiality]' >/sys/kernel/security/lockdown\n{RUN}"
        );
        let refuse = format!("refuse={}:{BPF_PROG_LOAD}", libc::EINVAL);
        counts_all_the_same(&lockdown, &[&refuse], "NotPermitted", "; the kernel is locked down");
    }
}

#[test]
fn packets_are_captured_where_the_kernel_cannot_count_as_root() {
    if may_run() {
        let host = Host::ready(RUN, &["engine=kernel", &format!("refuse={}", libc::EPERM)]);
        assert_eq!(host.engine(), "Pcap");
        let reason = host.told("log").find(|line| line.starts_with("engine kernel is unavailable"));
        let words =
            if cfg!(feature = "ebpf") { "the required capabilities are held" } else { "built without" };
        assert!(reason.is_some_and(|line| line.contains(words)), "{:#?}", host.said);
        assert!(host.objects().is_empty() && host.counts(), "{:#?}", host.said);
    }
}

#[test]
fn no_locked_memory_as_root() {
    if may_run() {
        // Since Linux 5.11, the memory of eBPF programs is charged to the control group and is no longer
        // locked memory.
        let host = Host::ready(&as_nobody(&["bpf", "perfmon", "net_admin", "net_raw"]), &["locked=0"]);
        assert_eq!(host.state(), at_best(), "{:#?}", host.said);
    }
}
