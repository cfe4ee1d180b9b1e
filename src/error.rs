//! The table of error codes, and an error that states the failed operation and a remedy.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use std::collections::TryReserveError;
use std::ffi::CStr;
use std::fmt;
use std::io;

/// The reason that a call failed. Functions return 0 for success. Numbers are never reused and never
/// renumbered.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub enum Code {
    /// No device to capture on.
    NoDevice = 1,
    /// A device could not be opened.
    OpenDevice = 2,
    /// The filter expression does not compile.
    CompileFilter = 3,
    /// The filter could not be set on a device.
    SetFilter = 4,
    /// There is no open session.
    NotInitialised = 5,
    /// A directory could not be opened.
    OpenDirectory = 6,
    /// Process sampling could not start.
    ProcessInit = 35,
    /// A file of /proc is not in the expected format.
    ProcessFormat = 36,
    /// A file of /proc could not be opened.
    ProcessOpen = 37,
    /// A directory of /proc could not be read.
    ProcessOpenDirectory = 38,
    /// A packet was not understood.
    PacketFormat = 41,
    /// The address was not found.
    AddressNotFound = 43,
    /// The inode was not found.
    InodeNotFound = 44,
    /// An argument is not valid.
    InvalidArgument = 100,
    /// Another call on the same session is running, in this thread or in another one.
    Busy = 101,
    /// The session belongs to another process: it was opened before a fork.
    Forked = 102,
    /// The session is already open.
    AlreadyOpen = 103,
    /// The log file could not be opened.
    LogFile = 104,
    /// The savefile could not be read.
    Savefile = 105,
    /// A thread could not be started.
    Thread = 106,
    /// The system refused a descriptor or another resource.
    SystemResource = 107,
    /// The session has failed and can only be closed.
    SessionFailed = 108,
    /// A fault of the library itself.
    Internal = 109,
}

impl Code {
    /// Every code.
    pub const ALL: &'static [Code] = &[
        Code::NoDevice,
        Code::OpenDevice,
        Code::CompileFilter,
        Code::SetFilter,
        Code::NotInitialised,
        Code::OpenDirectory,
        Code::ProcessInit,
        Code::ProcessFormat,
        Code::ProcessOpen,
        Code::ProcessOpenDirectory,
        Code::PacketFormat,
        Code::AddressNotFound,
        Code::InodeNotFound,
        Code::InvalidArgument,
        Code::Busy,
        Code::Forked,
        Code::AlreadyOpen,
        Code::LogFile,
        Code::Savefile,
        Code::Thread,
        Code::SystemResource,
        Code::SessionFailed,
        Code::Internal,
    ];

    /// Returns the meaning of the code, without the circumstances.
    pub const fn description(self) -> &'static CStr {
        match self {
            Code::NoDevice => c"no device to capture on",
            Code::OpenDevice => c"a device could not be opened",
            Code::CompileFilter => c"the filter expression does not compile",
            Code::SetFilter => c"the filter could not be set on a device",
            Code::NotInitialised => c"there is no open session",
            Code::OpenDirectory => c"a directory could not be opened",
            Code::ProcessInit => c"process sampling could not start",
            Code::ProcessFormat => c"a file of /proc is not in the expected format",
            Code::ProcessOpen => c"a file of /proc could not be opened",
            Code::ProcessOpenDirectory => c"a directory of /proc could not be read",
            Code::PacketFormat => c"a packet was not understood",
            Code::AddressNotFound => c"the address was not found",
            Code::InodeNotFound => c"the inode was not found",
            Code::InvalidArgument => c"an argument is not valid",
            Code::Busy => c"another call on the same session is running, in this thread or in another one",
            Code::Forked => c"the session belongs to another process: it was opened before a fork",
            Code::AlreadyOpen => c"the session is already open",
            Code::LogFile => c"the log file could not be opened",
            Code::Savefile => c"the savefile could not be read",
            Code::Thread => c"a thread could not be started",
            Code::SystemResource => c"the system refused a descriptor or another resource",
            Code::SessionFailed => c"the session has failed and can only be closed",
            Code::Internal => c"a fault of the library itself",
        }
    }
}

/// A code with the circumstances: the operation, its object, the system's reason, and a remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// The kind of failure.
    pub code: Code,
    /// One line of text for people.
    pub text: String,
}

/// A result with the library's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns an error with this code and text.
    pub fn new(code: Code, text: impl Into<String>) -> Error {
        Error { code, text: text.into() }
    }

    /// Returns an error for a failed system call, with the operation and the system's reason. If a limit of
    /// descriptors is the cause, the code is `SystemResource`, and the text names the limit.
    pub fn system(code: Code, tried: impl fmt::Display, reason: impl Reason) -> Error {
        match reason.number().and_then(exhausted) {
            Some(limit) => Error::new(Code::SystemResource, format!("{tried}: {reason}; {limit}")),
            None => Error::new(code, format!("{tried}: {reason}")),
        }
    }
}

/// The system's reason for a failure.
pub trait Reason: fmt::Display {
    /// Returns its error number (errno(3)), if it has one.
    fn number(&self) -> Option<i32>;
}

impl Reason for Errno {
    fn number(&self) -> Option<i32> {
        Some(*self as i32)
    }
}

impl Reason for io::Error {
    fn number(&self) -> Option<i32> {
        self.raw_os_error()
    }
}

impl Reason for TryReserveError {
    fn number(&self) -> Option<i32> {
        Some(libc::ENOMEM)
    }
}

/// Returns a text about the limit of descriptors that is reached, if `errno` reports one.
pub fn exhausted(errno: i32) -> Option<String> {
    match errno {
        libc::EMFILE => {
            let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
            Some(format!("the limit of descriptors (RLIMIT_NOFILE) is {limit}"))
        }
        libc::ENFILE => Some("the system's limit of open files (fs.file-max) is reached".into()),
        _ => None,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_published_codes_keep_their_numbers() {
        let published = [
            (Code::NoDevice, 1),
            (Code::OpenDevice, 2),
            (Code::CompileFilter, 3),
            (Code::SetFilter, 4),
            (Code::NotInitialised, 5),
            (Code::OpenDirectory, 6),
            (Code::ProcessInit, 35),
            (Code::ProcessFormat, 36),
            (Code::ProcessOpen, 37),
            (Code::ProcessOpenDirectory, 38),
            (Code::PacketFormat, 41),
            (Code::AddressNotFound, 43),
            (Code::InodeNotFound, 44),
        ];
        for (code, number) in published {
            assert_eq!(code as i32, number);
        }
    }

    #[test]
    fn a_limit_of_descriptors_is_named() {
        let errors = [
            Error::system(Code::OpenDevice, "opening", Errno::EMFILE),
            Error::system(Code::OpenDevice, "opening", io::Error::from_raw_os_error(libc::EMFILE)),
        ];
        for error in errors {
            assert!(error.code == Code::SystemResource && error.text.contains("RLIMIT_NOFILE"), "{error}");
        }
        assert_eq!(Error::system(Code::OpenDevice, "opening", Errno::ENODEV).code, Code::OpenDevice);
    }

    #[test]
    fn numbers_and_descriptions_are_distinct() {
        let numbers: HashSet<i32> = Code::ALL.iter().map(|&code| code as i32).collect();
        let texts: HashSet<&CStr> = Code::ALL.iter().map(|code| code.description()).collect();
        assert_eq!(numbers.len(), Code::ALL.len());
        assert_eq!(texts.len(), Code::ALL.len());
        assert!(!numbers.contains(&0));
    }
}
