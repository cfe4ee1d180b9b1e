//! What can go wrong: one table of codes, and an error that says what was tried and what would help.

use std::fmt;

/// One row per code: the variant, its number, the name C sees, and what it means.
macro_rules! codes {
    ($($variant:ident = $number:literal, $text:literal;)*) => {
        /// Why a call failed. Numbers are part of the C interface: never reused, never renumbered.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(i32)]
        pub enum Code {
            $(#[doc = $text] $variant = $number,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// What the code means, without the circumstances.
            pub const fn description(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }
        }
    };
}

codes! {
    NoDevice = 1, "no device to capture on";
    OpenDevice = 2, "a device could not be opened";
    CompileFilter = 3, "the filter expression does not compile";
    SetFilter = 4, "the filter could not be set";
    NotInitialised = 5, "there is no open session";
    OpenDirectory = 6, "a directory could not be opened";
    ProcessInit = 35, "process sampling could not start";
    ProcessFormat = 36, "a file of /proc is not in the expected format";
    ProcessOpen = 37, "a file of /proc could not be opened";
    ProcessOpenDirectory = 38, "a directory of /proc could not be opened";
    PacketFormat = 41, "a packet was not understood";
    AddressNotFound = 43, "the address was not found";
    InodeNotFound = 44, "the inode was not found";
    InvalidArgument = 100, "an argument is not valid";
    Busy = 101, "another call on the same session is running, in this thread or in another";
    Forked = 102, "the session belongs to another process: it was opened before a fork";
    AlreadyOpen = 103, "a session is already open";
    LogFile = 104, "the log file could not be opened";
    Savefile = 105, "the savefile could not be read";
    Thread = 106, "a thread could not be started";
    SystemResource = 107, "the system refused a descriptor or other resource";
    SessionFailed = 108, "the session has failed and can only be closed";
    Internal = 109, "a fault of the library itself";
}

/// A code with the circumstances: what was tried, on what, what the system said, and what would help.
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
    /// An error with this code and text.
    pub fn new(code: Code, text: impl Into<String>) -> Error {
        Error { code, text: text.into() }
    }

    /// An error for a failed system call: what was tried, and the system's own words.
    pub fn system(code: Code, tried: impl fmt::Display, errno: impl fmt::Display) -> Error {
        Error { code, text: format!("{tried}: {errno}") }
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
    fn numbers_and_descriptions_are_distinct() {
        let numbers: HashSet<i32> = Code::ALL.iter().map(|&code| code as i32).collect();
        let texts: HashSet<&str> = Code::ALL.iter().map(|code| code.description()).collect();
        assert_eq!(numbers.len(), Code::ALL.len());
        assert_eq!(texts.len(), Code::ALL.len());
        assert!(!numbers.contains(&0));
    }
}
