//! The entries of this process's eBPF maps, counted by bpftool.

use crate::lab::{Host, Lab};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

/// Returns the number of entries of each map that name a host's network namespace, of all sessions. Other
/// tests and the rest of the machine use other namespaces at the same time.
pub fn entries(lab: &Lab, host: Host) -> BTreeMap<String, usize> {
    let namespace = std::fs::metadata(format!("/run/netns/{}", lab.name(host))).unwrap().ino() as u32;
    let mut counts = BTreeMap::new();
    for id in own_maps() {
        // The map may be gone by now: sessions of other tests end.
        let Some(shown) = bpftool(&["map", "show", "id", &id]) else { continue };
        if !matches!(shown["type"].as_str(), Some("hash" | "lru_hash")) {
            continue;
        }
        let Some(dump) = bpftool(&["map", "dump", "id", &id]) else { continue };
        let entries = dump.as_array().map_or(&[][..], Vec::as_slice);
        let count = entries.iter().filter(|entry| names(entry, namespace)).count();
        *counts.entry(shown["name"].as_str().unwrap().to_owned()).or_default() += count;
    }
    counts
}

/// Returns the entries of the maps that grow with the number of sockets and not with events. Maps that are
/// bounded by themselves are left out: those that evict the oldest entries, and those with one entry for each
/// namespace.
pub fn growing(lab: &Lab, host: Host) -> BTreeMap<String, usize> {
    let mut counts = entries(lab, host);
    counts.retain(|name, _| {
        !matches!(name.as_str(), "peer_owners" | "previous_owners" | "request_socks" | "losses")
    });
    counts
}

fn names(entry: &Value, namespace: u32) -> bool {
    let wanted = namespace.to_ne_bytes();
    ["key", "value"].iter().any(|part| {
        let bytes: Vec<u8> = entry[part].as_array().into_iter().flatten().filter_map(byte).collect();
        bytes.chunks_exact(4).any(|word| word == wanted)
    })
}

fn byte(text: &Value) -> Option<u8> {
    u8::from_str_radix(text.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// Returns the ids of the maps that threads of this process have descriptors of (proc_pid_fdinfo(5)).
fn own_maps() -> Vec<String> {
    // The library's threads have their own descriptor table.
    let mut ids: Vec<String> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .filter_map(|thread| std::fs::read_dir(thread.path().join("fdinfo")).ok())
        .flat_map(Iterator::flatten)
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("map_id:\t").map(str::to_owned)))
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

fn bpftool(arguments: &[&str]) -> Option<Value> {
    let output = Command::new("bpftool").arg("-j").args(arguments).output().unwrap();
    output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten()
}
