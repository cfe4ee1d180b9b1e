//! A minimal file server (FUSE, linux/fuse.h): one file in one directory, and one request that is not
//! answered until it is released.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const ROOT: u64 = 1;
const FILE: u64 = 2;
const SIZE: u64 = 4096;
/// The number of refused attempts after which a page fault no longer releases the memory lock while it waits.
const REFUSED_READS: u32 = 2;

/// A mounted file server.
pub struct Server {
    device: File,
    directory: PathBuf,
    /// The request that is held, if there is one.
    held: Arc<(Mutex<Option<u64>>, Condvar)>,
    holds_reads: bool,
}

impl Server {
    /// Serves `directory`. `kind` selects the request that is held: a read or the closing of the file.
    pub fn start(directory: &Path, kind: &str) -> Server {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        // The mount is invisible to other processes, and disappears with this program.
        // SAFETY: the calls take flags and strings that end with NUL.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            let none = std::ptr::null();
            assert_eq!(libc::mount(none, c"/".as_ptr(), none, flags, none.cast()), 0);
        }
        // SAFETY: the calls only return numbers.
        let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
        let options = format!("fd={},rootmode=40000,user_id={user},group_id={group}", device.as_raw_fd());
        let (options, target) =
            (CString::new(options).unwrap(), CString::new(directory.as_os_str().as_bytes()).unwrap());
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        // SAFETY: all strings end with NUL and outlive the call.
        let mounted = unsafe {
            libc::mount(
                c"capture".as_ptr(),
                target.as_ptr(),
                c"fuse".as_ptr(),
                flags,
                options.as_ptr().cast(),
            )
        };
        assert_eq!(mounted, 0, "mounting: {}", std::io::Error::last_os_error());
        let server = Server {
            device,
            directory: directory.into(),
            held: Arc::default(),
            holds_reads: kind == "memory",
        };
        let (device, held, holds_reads) =
            (server.device.try_clone().unwrap(), Arc::clone(&server.held), server.holds_reads);
        std::thread::spawn(move || serve(device, &held, holds_reads));
        server
    }

    /// Waits until the request that is to be held has arrived.
    pub fn wait_until_held(&self) {
        let (held, came) = &*self.held;
        drop(came.wait_while(held.lock().unwrap(), |held| held.is_none()).unwrap());
    }

    /// Answers the held request.
    pub fn release(&self) {
        let unique = self.held.0.lock().unwrap().take().unwrap();
        let page = vec![0; if self.holds_reads { SIZE as usize } else { 0 }];
        reply(&self.device, unique, 0, &page);
    }

    /// Removes the mount once nothing waits for it.
    pub fn unmount(&self) {
        let target = CString::new(self.directory.as_os_str().as_bytes()).unwrap();
        // SAFETY: the string ends with NUL.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

fn serve(mut device: File, held: &(Mutex<Option<u64>>, Condvar), holds_reads: bool) {
    let mut request = vec![0; 1 << 18];
    let mut refused = 0;
    loop {
        let Ok(length) = device.read(&mut request) else { return };
        let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
        let unique = u64::from_ne_bytes(request[8..16].try_into().unwrap());
        let node = u64::from_ne_bytes(request[16..24].try_into().unwrap());
        assert!(length >= 40);
        let hold = || {
            *held.0.lock().unwrap() = Some(unique);
            held.1.notify_all();
        };
        match opcode {
            INIT => reply(&device, unique, 0, &init()),
            LOOKUP => {
                let times = words(&[FILE, 0, 1000, 1000, 0]);
                reply(&device, unique, 0, &[times, attributes(FILE)].concat());
            }
            GETATTR => reply(&device, unique, 0, &[words(&[1000, 0]), attributes(node)].concat()),
            OPEN => reply(&device, unique, 0, &words(&[1, 0])),
            READ if holds_reads && refused == REFUSED_READS => hold(),
            READ => {
                refused += 1;
                reply(&device, unique, -libc::EIO, &[]);
            }
            FLUSH if !holds_reads && held.0.lock().unwrap().is_none() => hold(),
            FLUSH => reply(&device, unique, 0, &[]),
            FORGET | BATCH_FORGET | INTERRUPT => {}
            _ => reply(&device, unique, -libc::ENOSYS, &[]),
        }
    }
}

/// Sends a `struct fuse_out_header` and its body. The request may have been interrupted.
fn reply(mut device: &File, unique: u64, error: i32, body: &[u8]) {
    let length = 16 + body.len() as u32;
    let message = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes(), body].concat();
    let _ = device.write(&message);
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `struct fuse_init_out` of protocol 7.31.
fn init() -> Vec<u8> {
    let (read_ahead, background, write) = (4096u32, 16u32 | 12 << 16, 4096u32);
    let mut body: Vec<u8> =
        [7, 31, read_ahead, 0, background, write].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    body.resize(64, 0);
    body
}

/// `struct fuse_attr`.
fn attributes(node: u64) -> Vec<u8> {
    let (size, mode) = match node {
        ROOT => (0, libc::S_IFDIR | 0o755),
        _ => (SIZE, libc::S_IFREG | 0o644),
    };
    let mut body = words(&[node, size, 0, 0, 0, 0]);
    // Nanoseconds of three times, mode, links, user, group, device, block size, flags.
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body
}
