//! The processes that get stuck until the event that they wait for; then they live on until they are killed.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// The time for one thread to get stuck before the other one follows.
pub const PAUSE: Duration = Duration::from_millis(300);

const PAGE: usize = 4096;

/// `_IOWR(0xaa, 0x3f, struct uffdio_api)` and the others of linux/userfaultfd.h.
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
const UFFDIO_ZEROPAGE: libc::Ioctl = 0xc020_aa04_u32 as libc::Ioctl;

fn map(descriptor: i32) -> *mut libc::c_void {
    let (access, flags) = match descriptor {
        -1 => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        _ => (libc::PROT_READ, libc::MAP_PRIVATE),
    };
    // SAFETY: a new mapping at an address of the kernel's choice harms nothing.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, flags, descriptor, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    page
}

/// Reads a page of `file` into memory on one thread while another thread changes the address space.
pub fn fault(file: &str) {
    begin();
    let file = std::fs::File::open(file).unwrap();
    let page = map(file.as_raw_fd()) as usize;
    let fault = std::thread::spawn(move || {
        // SAFETY: the page stays mapped.
        unsafe { std::ptr::read_volatile(page as *const u8) }
    });
    std::thread::sleep(PAUSE);
    map(-1);
    fault.join().unwrap();
    live_on();
}

/// Executes another program, which closes `file`.
pub fn exec(file: &str) {
    begin();
    let path = CString::new(file).unwrap();
    // SAFETY: the path ends with NUL.
    let opened = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    assert!(opened >= 0);
    panic!("{}", Command::new("sleep").arg("600").exec());
}

/// Lists a directory into a page that is delivered only on an order from standard input, while another thread
/// changes the directory's mode.
pub fn list(directory: &str) {
    begin();
    let directory = std::fs::File::open(directory).unwrap();
    let number = directory.as_raw_fd();
    let page = map(-1) as usize;
    // SAFETY: the call takes only flags.
    let faults = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as i32;
    assert!(faults >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
    let mut api = [0xaa_u64, 0, 0];
    let mut register = [page as u64, PAGE as u64, 1, 0];
    // SAFETY: the requests' structures have three and four words of 64 bits.
    let done = unsafe {
        libc::ioctl(faults, UFFDIO_API, api.as_mut_ptr())
            | libc::ioctl(faults, UFFDIO_REGISTER, register.as_mut_ptr())
    };
    assert_eq!(done, 0);
    let listing = std::thread::spawn(move || {
        // SAFETY: the page belongs to this process and has this size.
        unsafe { libc::syscall(libc::SYS_getdents64, number, page as *mut u8, PAGE) }
    });
    std::thread::sleep(PAUSE);
    let changing = std::thread::spawn(move || {
        // SAFETY: the descriptor is open. Once it has the lock, the call leaves the mode as it
        // is or is refused.
        unsafe { libc::fchmod(number, 0o555) }
    });
    println!("listing");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    let mut zero = [page as u64, PAGE as u64, 0, 0];
    // SAFETY: the structure has four words of 64 bits.
    assert_eq!(unsafe { libc::ioctl(faults, UFFDIO_ZEROPAGE, zero.as_mut_ptr()) }, 0);
    listing.join().unwrap();
    changing.join().unwrap();
    println!("done");
    std::io::stdout().flush().unwrap();
    live_on();
}

/// Waits for the order to get stuck. From then on the process ends with its parent.
fn begin() {
    // SAFETY: the call sets a property of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let _ = std::io::stdin().read(&mut [0]);
}

fn live_on() {
    let _ = std::io::stdin().read(&mut [0]);
    std::thread::sleep(Duration::from_secs(600));
}
