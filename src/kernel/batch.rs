//! Reads and deletes many entries of a hash map in one system call (bpf(2), since Linux 5.6).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The number of entries that one call moves.
const BATCH: usize = 512;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// The part of `union bpf_attr` that batch commands take.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Buffers for the entries of one call. Both types consist of integers and have the layout of the map's
/// types.
pub(super) struct Batch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: aya::Pod + Default, V: aya::Pod + Default> Batch<K, V> {
    pub(super) fn new() -> Batch<K, V> {
        Batch { keys: vec![K::default(); BATCH], values: vec![V::default(); BATCH] }
    }

    /// Passes every entry of the map to `take`. Entries that are inserted or deleted meanwhile may be missed
    /// or seen.
    ///
    /// # Errors
    /// Fails with the error of bpf(2).
    pub(super) fn read(&mut self, map: BorrowedFd<'_>, mut take: impl FnMut(&K, &V)) -> io::Result<()> {
        // The kernel stores its position, the number of a bucket, in four bytes.
        let (mut place, mut next) = (0u32, 0u32);
        let mut is_first = true;
        loop {
            let mut attributes = BatchAttr {
                in_batch: if is_first { 0 } else { (&raw const place) as u64 },
                out_batch: (&raw mut next) as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: self.keys.len() as u32,
                map: map.as_raw_fd() as u32,
                ..BatchAttr::default()
            };
            // SAFETY: the buffers hold `count` keys and values of the map's sizes, which were compared when
            // the map was opened by type, and outlive the call.
            let result = unsafe { command(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
            let count = attributes.count as usize;
            match result {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && self.keys.len() < 1 << 16 => {
                    // One bucket holds more entries than the buffers.
                    let room = self.keys.len() * 2;
                    self.keys.resize(room, K::default());
                    self.values.resize(room, V::default());
                    continue;
                }
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
            self.keys.iter().zip(&self.values).take(count).for_each(|(key, value)| take(key, value));
            if result.is_err() {
                return Ok(());
            }
            (place, is_first) = (next, false);
        }
    }
}

/// Returns the value of one entry, or `None` if the map has no such entry. Both types have the layout of the
/// map's types.
pub(super) fn lookup<K: aya::Pod, V: aya::Pod + Default>(map: BorrowedFd<'_>, key: &K) -> Option<V> {
    /// The part of `union bpf_attr` that commands on one entry take.
    #[repr(C)]
    struct EntryAttr {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut value = V::default();
    let entry = EntryAttr {
        map: map.as_raw_fd().unsigned_abs(),
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        flags: 0,
    };
    // SAFETY: key and value have the map's sizes, which were compared when the map was opened by type, and
    // outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, std::ptr::from_ref(&entry), size_of::<EntryAttr>())
    };
    (result == 0).then_some(value)
}

/// Deletes entries. Missing entries are skipped.
pub(super) fn delete<K: aya::Pod>(map: BorrowedFd<'_>, keys: &[K]) {
    let mut rest = keys;
    while !rest.is_empty() {
        let mut attributes = BatchAttr {
            keys: rest.as_ptr() as u64,
            count: rest.len() as u32,
            map: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: `keys` holds `count` keys of the map's size and outlives the call.
        let result = unsafe { command(BPF_MAP_DELETE_BATCH, &mut attributes) };
        // The kernel stops at the first missing entry.
        let done = attributes.count as usize + usize::from(result.is_err());
        rest = rest.get(done..).unwrap_or_default();
    }
}

/// # Safety
/// The pointers in `attributes` are valid for the command.
unsafe fn command(command: libc::c_long, attributes: &mut BatchAttr) -> io::Result<()> {
    // SAFETY: the caller vouches for the targets of the pointers; the attributes have the stated length.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<BatchAttr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
