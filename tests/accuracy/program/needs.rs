//! Requirements of scenarios that some kernels do not meet.

use std::io::Error;

/// A requirement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    IoUring,
    FastOpen,
    Multipath,
    /// The machine's clock, which the scenario may set at will.
    Clock,
}

/// TCP Fast Open for clients and for servers (ip-sysctl of the kernel's documentation). The setting belongs
/// to a network namespace.
pub const FAST_OPEN: (&str, &str) = ("net/ipv4/tcp_fastopen", "3");

impl Need {
    /// Returns the reason why this machine does not meet the requirement.
    pub fn refusal(self) -> Option<String> {
        match self {
            Need::IoUring => {
                // A kernel that permits io_uring goes on and finds the parameters missing.
                // SAFETY: the kernel checks the pointer, which is null.
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
                // SAFETY: the call has just returned the descriptor, and nothing else owns it.
                unsafe { libc::close(socket) };
                None
            }
        }
    }
}
