//! What a scenario needs of the kernel, which some kernels refuse.

use std::io::Error;

/// What is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    IoUring,
    FastOpen,
    Multipath,
    /// The machine's clock, to be set at will.
    Clock,
}

/// TCP Fast Open for clients and for servers (ip-sysctl of the kernel's documentation). It is a setting of each network
/// namespace.
pub const FAST_OPEN: (&str, &str) = ("net/ipv4/tcp_fastopen", "3");

impl Need {
    /// Why this machine does not have it.
    pub fn refusal(self) -> Option<String> {
        match self {
            Need::IoUring => {
                // A kernel that allows it goes on to find its parameters missing.
                // SAFETY: the kernel checks the pointer, which is to nothing.
                let status = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
                let error = Error::last_os_error();
                let is_there = status >= 0 || error.raw_os_error() == Some(libc::EFAULT);
                (!is_there).then(|| format!("the kernel refuses io_uring: {error}"))
            }
            Need::FastOpen => {
                let is_there = std::fs::exists(format!("/proc/sys/{}", FAST_OPEN.0)).unwrap_or(false);
                (!is_there).then(|| "the kernel has no TCP Fast Open".to_owned())
            }
            Need::Clock => {
                let is_free = std::env::var_os("CAPTURE_OWN_CLOCK").is_some_and(|value| value == "1");
                (!is_free)
                    .then(|| "CAPTURE_OWN_CLOCK=1 does not say that nobody else needs the clock".to_owned())
            }
            Need::Multipath => {
                // SAFETY: the call takes no pointers.
                let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
                if socket < 0 {
                    return Some(format!(
                        "Multipath TCP is off (net.mptcp.enabled): {}",
                        Error::last_os_error()
                    ));
                }
                // SAFETY: the call has just returned it, and nobody else has it.
                unsafe { libc::close(socket) };
                None
            }
        }
    }
}
