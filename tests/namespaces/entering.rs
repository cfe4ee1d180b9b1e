//! Work inside a namespace runs on a separate thread in the right namespace, and never on the
//! caller's thread.

use super::lab::*;
use capture::internals::model::Namespace;
use capture::internals::namespace::{
    EnterError, NamespaceChoice, NamespaceEntry, Registry, enter, enter_initial,
};
use nix::sys::signal::{SigSet, Signal};
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Returns the entry of a container's namespace.
fn entry(container: &Container) -> NamespaceEntry {
    let path = container.path().into();
    NamespaceEntry { namespace: Namespace(1), inode: container.inode(), pid: Some(container.pid()), path }
}

#[test]
fn work_is_done_inside_and_the_caller_stays_where_it_is_root() {
    in_namespace(|| {
        let container = Container::start();
        container.join("va", "10.9.0.2");
        let (before, thread) = (own_namespace(), nix::unistd::gettid());
        let (namespace, other, mask) =
            enter(&entry(&container), || (own_namespace(), nix::unistd::gettid(), SigSet::thread_get_mask()))
                .unwrap();
        assert_eq!(namespace, format!("net:[{}]", container.inode()));
        assert_ne!(other, thread);
        assert!(mask.unwrap().contains(Signal::SIGTERM));
        // A socket stays in its namespace for good.
        let socket = enter(&entry(&container), || UdpSocket::bind("10.9.0.2:0").unwrap()).unwrap();
        assert!(UdpSocket::bind("10.9.0.2:0").is_err(), "the address is not one of here");
        assert_eq!(socket.local_addr().unwrap().ip().to_string(), "10.9.0.2");
        let comm = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
        let initial = if comm == "kthreadd\n" { link("/proc/2/ns/net") } else { link("/proc/1/ns/net") };
        assert_eq!(enter_initial(own_namespace).unwrap(), initial);
        let panicked = catch_unwind(AssertUnwindSafe(|| enter(&entry(&container), || panic!("spilt"))));
        assert_eq!(panicked.unwrap_err().downcast_ref::<String>().map(String::as_str), Some("spilt"));
        assert_eq!((own_namespace(), nix::unistd::gettid()), (before, thread));
    });
}

#[test]
fn a_way_that_leads_elsewhere_is_noticed_root() {
    in_namespace(|| {
        let (container, other) = (Container::start(), Container::start());
        // Simulates a pid that another process has reused.
        let reused = NamespaceEntry { inode: other.inode(), ..entry(&container) };
        assert_eq!(enter(&reused, || panic!("entered")), Err(EnterError::Gone));
        let ended = entry(&container);
        container.end();
        assert_eq!(enter(&ended, || panic!("entered")), Err(EnterError::Gone));
        for path in ["/proc/self/ns/mnt", "/nonexistent", "/etc/passwd"] {
            let wrong = NamespaceEntry { path: Path::new(path).into(), ..ended.clone() };
            assert_eq!(enter(&wrong, || panic!("entered")), Err(EnterError::Gone), "{path}");
        }
    });
}

#[test]
fn the_registry_agrees_with_proc_root() {
    in_namespace(|| {
        let containers = [Container::start(), Container::start()];
        let mut registry = Registry::open(&NamespaceChoice::All, Path::new("/proc")).unwrap();
        let entries = registry.refresh();
        for container in &containers {
            let all: Vec<_> = entries.iter().filter(|entry| entry.inode == container.inode()).collect();
            assert_eq!(all.len(), 1);
            assert_eq!((all[0].pid, &*all[0].path), (Some(container.pid()), &*container.path()));
        }
        let own: u64 = own_namespace().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        // Other processes on this machine start and end with their namespaces, so that the two views may take
        // several attempts to agree.
        wait_until("the registry shows the namespaces of all processes", || {
            let entries = registry.refresh();
            assert!(entries.iter().all(|entry| entry.inode != own), "the own one is not among them");
            let with_process = entries.iter().filter(|entry| entry.pid.is_some());
            with_process.map(|entry| entry.inode).collect::<BTreeSet<u64>>() == of_all_processes(own)
        });
    });
}

/// Returns the reference: the namespaces that the links of all processes name, except this one.
fn of_all_processes(but: u64) -> BTreeSet<u64> {
    let all = procfs::process::all_processes().unwrap().filter_map(|process| {
        let namespaces = process.ok()?.namespaces().ok()?;
        namespaces.0.get(std::ffi::OsStr::new("net")).map(|namespace| namespace.identifier)
    });
    all.filter(|&inode| inode != but).collect()
}
