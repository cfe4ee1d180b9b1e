//! The version of the library and the descriptions of its errors.

use super::boundary::last_error;
use super::classic_types::{CAPTURE_OK, CAPTURE_VERSION_MAJOR, CAPTURE_VERSION_MINOR, CAPTURE_VERSION_PATCH};
use crate::error::Code;
use std::ffi::c_char;

/// Returns the version of the loaded library: major * 65536 + minor * 256 + patch. May be called from any
/// thread at any time.
#[unsafe(no_mangle)]
pub extern "C" fn CaptureVersion() -> u32 {
    CAPTURE_VERSION_MAJOR << 16 | CAPTURE_VERSION_MINOR << 8 | CAPTURE_VERSION_PATCH
}

/// Returns a short description of a code. The string is never NULL and remains valid forever. May be called
/// from any thread at any time.
#[unsafe(no_mangle)]
pub extern "C" fn CaptureStrError(code: i32) -> *const c_char {
    if code == CAPTURE_OK {
        return c"success".as_ptr();
    }
    let known = Code::ALL.iter().find(|known| **known as i32 == code);
    known.map_or(c"unknown code", |code| code.description()).as_ptr()
}

/// Returns the text of the last failure in the calling thread: what the call attempted, and what would help.
/// Empty if no call has failed. Valid until the next failure in this thread or until the thread ends.
#[unsafe(no_mangle)]
pub extern "C" fn CaptureErrorText() -> *const c_char {
    last_error()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn words(code: i32) -> &'static str {
        // SAFETY: the function returns strings that are valid forever.
        unsafe { CStr::from_ptr(CaptureStrError(code)) }.to_str().unwrap()
    }

    #[test]
    fn every_code_has_words() {
        assert_eq!(words(0), "success");
        assert_eq!(words(3), "the filter expression does not compile");
        assert_eq!(words(-1), "unknown code");
        for &code in Code::ALL {
            assert_ne!(words(code as i32), "unknown code");
        }
    }
}
