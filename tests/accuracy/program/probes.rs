//! The time that the library's probes take on the processors, which is not in any process's own: bpf(2).

use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Commands of bpf(2), of <linux/bpf.h>.
const PROGRAM_AFTER: i32 = 11;
const PROGRAM_BY_ID: i32 = 13;
const INFO_BY_DESCRIPTOR: i32 = 15;
const ENABLE_STATISTICS: i32 = 32;

/// How the library's probes are named; the kernel keeps 15 bytes of a name.
const PREFIX: &[u8] = b"capture_";

/// The beginning of `struct bpf_prog_info`, and where the name and the time stand in it.
const INFO: usize = 200;
const NAME_AT: usize = 64;
const NAME: usize = 16;
const RUN_TIME_AT: usize = 192;

/// Keeps the kernel measuring, and knows which programs were there before.
pub struct Probes {
    _measuring: OwnedFd,
    others: Vec<u32>,
}

impl Probes {
    /// Has the kernel measure from here on. The probes of who watches are those that are loaded later.
    pub fn measure() -> Result<Probes> {
        // The kind of statistics: 0 is the run time.
        let descriptor = bpf(ENABLE_STATISTICS, &mut [0; 16])?;
        // SAFETY: the call has just returned it, and nobody else has it.
        let measuring = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Probes { _measuring: measuring, others: nanoseconds()?.into_keys().collect() })
    }

    /// Seconds that the probes have run so far.
    pub fn seconds(&self) -> f64 {
        // They may all be gone.
        let own = nanoseconds().unwrap_or_default();
        let own = own.iter().filter(|(id, _)| !self.others.contains(id)).map(|(_, &time)| time);
        own.sum::<u64>() as f64 / 1e9
    }
}

/// The run times of all programs with the library's prefix, by id.
fn nanoseconds() -> Result<BTreeMap<u32, u64>> {
    let mut all = BTreeMap::new();
    let mut id = 0_u32;
    loop {
        let mut attributes = [0; 16];
        attributes[..4].copy_from_slice(&id.to_ne_bytes());
        match bpf(PROGRAM_AFTER, &mut attributes) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(all),
            found => found?,
        };
        id = number(&attributes[4..8]) as u32;
        let Some(info) = info(id)? else { continue };
        if info[NAME_AT..NAME_AT + NAME].starts_with(PREFIX) {
            all.insert(id, number(&info[RUN_TIME_AT..RUN_TIME_AT + 8]));
        }
    }
}

/// What the kernel tells of a program, unless it is gone meanwhile.
fn info(id: u32) -> Result<Option<[u8; INFO]>> {
    let mut attributes = [0; 16];
    attributes[..4].copy_from_slice(&id.to_ne_bytes());
    let program = match bpf(PROGRAM_BY_ID, &mut attributes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        // SAFETY: the call has just returned it, and nobody else has it.
        descriptor => unsafe { OwnedFd::from_raw_fd(descriptor?) },
    };
    let mut info = [0; INFO];
    let mut attributes = [0; 16];
    attributes[..4].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
    attributes[4..8].copy_from_slice(&(INFO as u32).to_ne_bytes());
    attributes[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    bpf(INFO_BY_DESCRIPTOR, &mut attributes)?;
    Ok(Some(info))
}

/// A number of up to eight bytes in this machine's order.
fn number(bytes: &[u8]) -> u64 {
    match bytes.len() {
        4 => u32::from_ne_bytes(bytes.try_into().unwrap()).into(),
        _ => u64::from_ne_bytes(bytes.try_into().unwrap()),
    }
}

/// The call; what the attributes point to must be as the command wants it.
fn bpf(command: i32, attributes: &mut [u8]) -> Result<i32> {
    // SAFETY: the kernel reads and writes the attributes within their length. The only pointer in them is that of
    // `info`, which is to as many bytes as they say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), attributes.len()) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// `r0 = 0; exit`: a socket filter that lets nothing through.
    const NOTHING: [u64; 2] = [0xb7, 0x95];
    const LOAD: i32 = 5;
    const SOCKET_FILTER: u32 = 1;

    /// Loads the filter under a name.
    fn loaded(name: &[u8; NAME]) -> Result<OwnedFd> {
        let mut attributes = [0; 72];
        attributes[..4].copy_from_slice(&SOCKET_FILTER.to_ne_bytes());
        attributes[4..8].copy_from_slice(&(NOTHING.len() as u32).to_ne_bytes());
        attributes[8..16].copy_from_slice(&(NOTHING.as_ptr() as u64).to_ne_bytes());
        attributes[16..24].copy_from_slice(&(c"GPL".as_ptr() as u64).to_ne_bytes());
        attributes[48..64].copy_from_slice(name);
        // SAFETY: the call has just returned it, and nobody else has it.
        bpf(LOAD, &mut attributes).map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    /// Has a socket run it for so many datagrams.
    fn run(program: &OwnedFd, datagrams: u32) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let descriptor = program.as_raw_fd();
        let length = size_of_val(&descriptor) as libc::socklen_t;
        // SAFETY: the pointer is to a number of that length, which the call only reads.
        let status = unsafe {
            let pointer = (&raw const descriptor).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_BPF, pointer, length)
        };
        assert_eq!(status, 0);
        let address = socket.local_addr().unwrap();
        (0..datagrams).for_each(|_| drop(socket.send_to(b"x", address).unwrap()));
    }

    #[test]
    fn time_of_later_programs_with_the_prefix_counts_root() {
        let earlier = match loaded(b"capture_earlier\0") {
            Ok(program) => program,
            Err(error) => {
                let is_required = std::env::var_os("CAPTURE_REQUIRE_ALL").is_some_and(|value| value == "1");
                assert!(!is_required, "programs can be loaded: {error}");
                eprintln!("not run: no program can be loaded: {error}");
                return;
            }
        };
        let probes = Probes::measure().unwrap();
        let (own, other) =
            (loaded(b"capture_later\0\0\0").unwrap(), loaded(b"others_later\0\0\0\0").unwrap());
        run(&earlier, 100);
        run(&other, 100);
        assert_eq!(probes.seconds(), 0.0, "of others it is not");
        run(&own, 100);
        let time = probes.seconds();
        assert!(time > 0.0 && time < 1.0, "{time}");
        run(&own, 1000);
        assert!(probes.seconds() > time);
    }
}
