//! Type information of a kernel that was built without some types.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// The kernel's type information (Documentation/bpf/btf.rst).
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// A copy of the running kernel's type information in which some types or members have other names. All types
/// keep the ids by which the kernel itself knows them.
pub struct AlteredTypes {
    directory: TempDir,
}

impl AlteredTypes {
    /// Removes types by their names, whatever their kind, and members of structures, unions and enumerations
    /// as `type.member`.
    ///
    /// # Panics
    ///
    /// Panics if one of them does not exist.
    pub fn without(names: &[&str]) -> AlteredTypes {
        let mut bytes = fs::read(VMLINUX).unwrap();
        let missing: HashSet<&str> = names.iter().copied().collect();
        let found = take_out(&mut bytes, &missing);
        let left: Vec<_> = missing.iter().filter(|name| !found.contains(**name)).collect();
        assert!(left.is_empty(), "not in this kernel: {left:?}");
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("vmlinux"), bytes).unwrap();
        AlteredTypes { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns an sh(1) command that makes all later processes of this mount namespace find the copy instead
    /// of the kernel's own.
    pub fn mount(&self) -> String {
        format!("mount --bind {}/vmlinux {VMLINUX}\n", self.path().display())
    }
}

/// Renames the types and members by removing the first letter. Returns those that it found.
fn take_out(bytes: &mut [u8], names: &HashSet<&str>) -> HashSet<String> {
    let [header, type_offset, type_length, string_offset, string_length] =
        [4, 8, 12, 16, 20].map(|at| word(bytes, at) as usize);
    let strings = header + string_offset;
    let strings = bytes[strings..strings + string_length].to_vec();
    let name_at = |offset: u32| {
        let rest = &strings[offset as usize..];
        std::str::from_utf8(rest.split(|&byte| byte == 0).next().unwrap()).unwrap()
    };
    let mut found = HashSet::new();
    let mut at = header + type_offset;
    let end = at + type_length;
    while at < end {
        let (offset, info) = (word(bytes, at), word(bytes, at + 4));
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let name = name_at(offset);
        if names.contains(name) {
            found.insert(name.to_owned());
            rename(bytes, at);
        }
        // Parts and their length, by the number of the kind.
        let (parts, length) = match kind {
            1 | 14 | 17 => (1, 4),
            3 => (1, 12),
            4 | 5 | 15 | 19 => (count, 12),
            6 | 13 => (count, 8),
            _ => (0, 0),
        };
        if matches!(kind, 4..=6 | 19) && !name.is_empty() {
            for part in 0..parts {
                let part = at + 12 + part * length;
                let member = format!("{name}.{}", name_at(word(bytes, part)));
                if names.contains(member.as_str()) {
                    found.insert(member);
                    rename(bytes, part);
                }
            }
        }
        at += 12 + parts * length;
    }
    found
}

fn rename(bytes: &mut [u8], at: usize) {
    let renamed = word(bytes, at) + 1;
    bytes[at..at + 4].copy_from_slice(&renamed.to_ne_bytes());
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}
