//! Sockets by io_uring(7): opened, connected, accepted, sent to and received from without a separate
//! system call for each.

use super::exchange::{Way, family};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Operations, flags and mapping offsets of <linux/io_uring.h>.
const ACCEPT: u8 = 13;
const CONNECT: u8 = 16;
const SEND: u8 = 26;
const RECEIVE: u8 = 27;
const SOCKET: u8 = 45;
const BY_WORKER: u8 = 1 << 4;
const POLLED: u32 = 1 << 1;
const SINGLE_MAPPING: u32 = 1;
const WAIT: u32 = 1;
const WAKE: u32 = 1 << 1;
const RINGS_AT: i64 = 0;
const ENTRIES_AT: i64 = 0x1000_0000;

/// Length of a `struct io_uring_cqe`, and the offset of its result.
const COMPLETION: usize = 16;
const RESULT_AT: usize = 8;

/// Milliseconds for which the kernel's thread polls for work before it sleeps, so that the CPU is free
/// for other work.
const IDLE: u32 = 1;

/// Offsets of the fields of one of the rings (`struct io_sqring_offsets` and `struct io_cqring_offsets`).
#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    /// For submissions, the flags and the number of dropped entries; for completions, the overflow count
    /// and the entries.
    particular: [u32; 2],
    /// The array of submissions.
    array: u32,
    reserved: u32,
    address: u64,
}

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Parameters {
    submissions: u32,
    completions: u32,
    flags: u32,
    thread_cpu: u32,
    thread_idle: u32,
    features: u32,
    workers: u32,
    reserved: [u32; 3],
    submission_offsets: Offsets,
    completion_offsets: Offsets,
}

/// `struct io_uring_sqe`; fields that the operations here do not use are 0.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Entry {
    operation: u8,
    flags: u8,
    priority: u16,
    descriptor: i32,
    second_address: u64,
    address: u64,
    length: u32,
    operation_flags: u32,
    data: u64,
    rest: [u64; 3],
}

/// A ring for one operation at a time.
pub struct Ring {
    descriptor: OwnedFd,
    is_polled: bool,
    rings: NonNull<u8>,
    entries: NonNull<Entry>,
    submission_tail: usize,
    completion_head: usize,
    completion_tail: usize,
    completion_mask: usize,
    completions: usize,
    done: u64,
}

impl Ring {
    /// Makes a ring whose operations the caller submits, or a polled one, from which a thread of the
    /// kernel fetches them.
    pub fn new(is_polled: bool) -> Result<Ring> {
        let mut parameters = Parameters {
            flags: if is_polled { POLLED } else { 0 },
            thread_idle: IDLE,
            ..Parameters::default()
        };
        // SAFETY: the pointer is to a whole structure of the type that the call reads and fills.
        let descriptor = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut parameters) };
        if descriptor < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the call has just returned the descriptor, and nothing else owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
        if parameters.features & SINGLE_MAPPING == 0 {
            return Err(Error::other("the rings of this kernel take two mappings"));
        }
        let (submission, completion) = (&parameters.submission_offsets, &parameters.completion_offsets);
        let completions = completion.particular[1] as usize;
        let submissions_end = submission.array as usize + parameters.submissions as usize * size_of::<u32>();
        let completions_end = completions + parameters.completions as usize * COMPLETION;
        let rings = mapped(&descriptor, submissions_end.max(completions_end), RINGS_AT)?;
        let entries =
            mapped(&descriptor, parameters.submissions as usize * size_of::<Entry>(), ENTRIES_AT)?.cast();
        // The only slot of the array refers to the only entry, because it contains zero.
        Ok(Ring {
            descriptor,
            is_polled,
            rings,
            entries,
            submission_tail: submission.tail as usize,
            completion_head: completion.head as usize,
            completion_tail: completion.tail as usize,
            completion_mask: completion.mask as usize,
            completions,
            done: 0,
        })
    }

    /// Runs one operation in the kernel, and waits for its end. In a ring that is not polled, one of the
    /// kernel's workers runs every other operation.
    fn run(&mut self, entry: Entry) -> Result<i32> {
        let by_worker = !self.is_polled && self.done % 2 == 1;
        self.done += 1;
        let flags = if by_worker { BY_WORKER } else { 0 };
        // SAFETY: the mapping contains this entry, and the kernel has finished the previous one.
        unsafe { self.entries.write(Entry { flags, data: self.done, ..entry }) };
        // The kernel sees the contents of the entry before the new tail.
        self.number(self.submission_tail).fetch_add(1, Ordering::Release);
        let head = self.number(self.completion_head).load(Ordering::Relaxed);
        while self.number(self.completion_tail).load(Ordering::Acquire) == head {
            self.enter()?;
        }
        let place = head & self.number(self.completion_mask).load(Ordering::Relaxed);
        let result_at = self.completions + place as usize * COMPLETION + RESULT_AT;
        // SAFETY: the kernel has filled this completion, which is inside the mapping.
        let result = unsafe { self.rings.add(result_at).cast::<i32>().read() };
        self.number(self.completion_head).store(head.wrapping_add(1), Ordering::Release);
        if result < 0 { Err(Error::from_raw_os_error(-result)) } else { Ok(result) }
    }

    /// Submits pending entries, and waits for a completion.
    fn enter(&self) -> Result<()> {
        let how = if self.is_polled { WAIT | WAKE } else { WAIT };
        let (ring, none, no_size) = (self.descriptor.as_raw_fd(), std::ptr::null::<u8>(), 0_usize);
        // SAFETY: the call takes no pointers; the memory that the entry points to exists until the
        // operation has ended.
        let status = unsafe { libc::syscall(libc::SYS_io_uring_enter, ring, 1, 1, how, none, no_size) };
        match Error::last_os_error() {
            _ if status >= 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::EINTR) => Ok(()),
            error => Err(error),
        }
    }

    /// Returns a number of the rings that the kernel reads or writes, too.
    fn number(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the kernel has placed it there, aligned, in a mapping that lasts as long as this process.
        unsafe { AtomicU32::from_ptr(self.rings.add(at).cast().as_ptr()) }
    }
}

/// Maps a ring's memory for as long as this process lives.
fn mapped(ring: &OwnedFd, length: usize, at: i64) -> Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
    let none = std::ptr::null_mut();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let memory = unsafe { libc::mmap(none, length, protection, flags, ring.as_raw_fd(), at) };
    if memory == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| Error::other("mapped at no address"))
}

/// Takes ownership of a descriptor that an operation has just returned.
fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the descriptor is new, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

impl Way for Ring {
    fn open(&mut self, address: SocketAddr, request: &[u8]) -> Result<OwnedFd> {
        let opened = owned(self.run(Entry {
            operation: SOCKET,
            descriptor: family(address) as i32,
            second_address: (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64,
            ..Entry::default()
        })?);
        let target = SockaddrStorage::from(address);
        self.run(Entry {
            operation: CONNECT,
            descriptor: opened.as_raw_fd(),
            address: target.as_ptr() as u64,
            second_address: target.len().into(),
            ..Entry::default()
        })?;
        self.send_all(&opened, request)?;
        Ok(opened)
    }

    fn accept(&mut self, listener: &OwnedFd) -> Result<OwnedFd> {
        let operation_flags = libc::SOCK_CLOEXEC as u32;
        let descriptor = listener.as_raw_fd();
        Ok(owned(self.run(Entry { operation: ACCEPT, descriptor, operation_flags, ..Entry::default() })?))
    }

    fn send(&mut self, socket: &OwnedFd, bytes: &[u8]) -> Result<usize> {
        let count = self.run(Entry {
            operation: SEND,
            descriptor: socket.as_raw_fd(),
            address: bytes.as_ptr() as u64,
            length: bytes.len() as u32,
            operation_flags: libc::MSG_NOSIGNAL as u32,
            ..Entry::default()
        })?;
        Ok(count as usize)
    }

    fn receive(&mut self, socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
        let count = self.run(Entry {
            operation: RECEIVE,
            descriptor: socket.as_raw_fd(),
            address: buffer.as_mut_ptr() as u64,
            length: buffer.len() as u32,
            ..Entry::default()
        })?;
        Ok(count as usize)
    }
}
