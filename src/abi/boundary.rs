//! The boundary between C and Rust: no panic crosses it, and the text of every failure is kept.

use crate::error::{Code, Error, Result};
use crate::session::catch_quietly;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::ptr;

thread_local! {
    /// Text of the last failure in this thread.
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs `body` and turns a panic in it into an error.
pub fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_quietly(body).unwrap_or_else(|text| {
        Err(Error::new(Code::Internal, format!("a fault of the library itself: {text}")))
    })
}

/// Keeps the error's text for this thread and returns the number that C sees.
pub fn code_of(result: Result<()>) -> i32 {
    match result {
        Ok(()) => super::classic_types::CAPTURE_OK,
        Err(error) => {
            record_error(&error.text);
            error.code as i32
        }
    }
}

/// Returns the error of a call made while another one runs.
pub fn busy() -> Error {
    Error::new(Code::Busy, "another call on this session is running, in this thread or in another one")
}

/// Returns the error of a call in a child of the process that opened the session.
pub fn forked(opener: u32) -> Error {
    let text = format!("the session was opened by process {opener} before a fork; open one in this process");
    Error::new(Code::Forked, text)
}

fn record_error(text: &str) {
    let bytes: Vec<u8> = text.bytes().filter(|&byte| byte != 0).collect();
    // The host may call while its thread is ending and thread-local storage is released. The text is then not
    // kept.
    let _ = LAST_ERROR.try_with(|last| {
        if let (Ok(mut last), Ok(text)) = (last.try_borrow_mut(), CString::new(bytes)) {
            *last = text;
        }
    });
}

/// Returns the text of this thread's last failure, which is valid until its next failure.
pub fn last_error() -> *const c_char {
    LAST_ERROR
        .try_with(|last| last.try_borrow().map_or(c"".as_ptr(), |text| text.as_ptr()))
        .unwrap_or(c"".as_ptr())
}

/// Returns the bytes of a C string, or `None` for NULL.
///
/// # Safety
/// `text` is NULL or points to a NUL-terminated string that stays unchanged for `'a`.
pub unsafe fn bytes_of<'a>(text: *const c_char) -> Option<&'a [u8]> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller guarantees a NUL-terminated string.
    Some(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// Returns the text of a C string, or `None` for NULL and for an empty string.
///
/// # Errors
/// Fails with `InvalidArgument`, naming the argument, if the text is not UTF-8.
///
/// # Safety
/// As [`bytes_of`].
pub unsafe fn text_of<'a>(name: &str, text: *const c_char) -> Result<Option<&'a str>> {
    // SAFETY: the caller guarantees a NUL-terminated string.
    match unsafe { bytes_of(text) } {
        None | Some(b"") => Ok(None),
        Some(bytes) => str::from_utf8(bytes).map(Some).map_err(|error| {
            Error::new(Code::InvalidArgument, format!("{name} is not valid UTF-8: {error}"))
        }),
    }
}

/// Returns the size that a structure states in its first field.
///
/// # Errors
/// Fails with `InvalidArgument`, stating the given and the known size, if the pointer is NULL or the size is
/// implausible.
///
/// # Safety
/// `given` is NULL or points to a readable `usize`, aligned or not.
pub unsafe fn read_size<T>(name: &str, given: *const T, min_size: usize) -> Result<usize> {
    if given.is_null() {
        return Err(Error::new(Code::InvalidArgument, format!("{name} is NULL")));
    }
    // SAFETY: the caller guarantees the field; the read does not assume that the caller aligned it.
    let size = unsafe { given.cast::<usize>().read_unaligned() };
    if !(min_size..=MAX_PLAUSIBLE_SIZE).contains(&size) {
        let known = size_of::<T>();
        let text = format!("{name}.size is {size}; set it to sizeof({name}), which is {known}");
        return Err(Error::new(Code::InvalidArgument, text));
    }
    Ok(size)
}

/// Reads a structure that begins with its own size. A structure shorter than this version's is padded with
/// zeros if it is at least as long as that of the first version. A longer one is accepted if all unknown
/// bytes are zero.
///
/// # Errors
/// Fails as [`read_size`] does, and with `InvalidArgument` if an unknown byte is not zero.
///
/// # Safety
/// `given` is NULL or points to as many readable bytes as its first field states. `T` begins with that
/// `usize` field and is valid when all its bytes are zero.
pub unsafe fn read_sized<T: Copy>(name: &str, given: *const T, min_size: usize) -> Result<T> {
    let known = size_of::<T>();
    // SAFETY: the caller guarantees that the structure is readable.
    let size = unsafe { read_size(name, given, min_size)? };
    if size > known {
        // SAFETY: the caller guarantees `size` readable bytes.
        let tail = unsafe { std::slice::from_raw_parts(given.cast::<u8>().add(known), size - known) };
        if tail.iter().any(|&byte| byte != 0) {
            let text = format!("{name} has nonzero fields that this version of the library does not know");
            return Err(Error::new(Code::InvalidArgument, text));
        }
    }
    let mut copy = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: source and destination have at least that many bytes and do not overlap. Zeros and the caller's
    // bytes are valid values of `T`, as the caller of this function guarantees.
    unsafe {
        ptr::copy_nonoverlapping(given.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), size.min(known));
        Ok(copy.assume_init())
    }
}

/// No structure of this interface will ever be larger. A larger size is a field that was not set.
const MAX_PLAUSIBLE_SIZE: usize = 1 << 16;

/// Copies text to an array of C characters. The result is always NUL-terminated and is cut to the array's
/// size, but not inside a UTF-8 character. NULs inside the text become spaces.
pub fn copy_text(text: &[u8], into: &mut [c_char]) {
    let Some(room) = into.len().checked_sub(1) else { return };
    let text = text.get(..cut_length(text, room)).unwrap_or_default();
    for (to, &from) in into.iter_mut().zip(text) {
        *to = if from == 0 { b' ' } else { from } as c_char;
    }
    if let Some(rest) = into.get_mut(text.len()..) {
        rest.fill(0);
    }
}

/// Returns the largest number of bytes of `text`, at most `room`, that does not end inside a UTF-8 character.
fn cut_length(text: &[u8], room: usize) -> usize {
    if text.len() <= room {
        return text.len();
    }
    // A character has at most four bytes; find the one that spans the cut.
    for start in (room.saturating_sub(3)..room).rev() {
        let length = match text.get(start) {
            Some(0xc2..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..=0xf4) => 4,
            Some(0x80..=0xbf) => continue,
            _ => return room,
        };
        let whole = text.get(start..start + length).is_some_and(|bytes| str::from_utf8(bytes).is_ok());
        return if whole && start + length > room { start } else { room };
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, PartialEq, Debug)]
    struct Sized2 {
        size: usize,
        old: u64,
        new: u64,
    }

    fn read(given: &Sized2, min_size: usize) -> Result<Sized2> {
        // SAFETY: `given` is a complete structure, and each test states a size that it has.
        unsafe { read_sized("Sized2", given, min_size) }
    }

    #[test]
    fn a_shorter_structure_is_filled_up_with_zeros() {
        let taken = read(&Sized2 { size: 16, old: 5, new: 9 }, 16).unwrap();
        assert_eq!(taken, Sized2 { size: 16, old: 5, new: 0 });
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [0, 15, usize::MAX, MAX_PLAUSIBLE_SIZE + 1] {
            let error = read(&Sized2 { size, old: 0, new: 0 }, 16).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument);
            assert!(error.text.contains("sizeof(Sized2)"), "{error}");
        }
    }

    #[test]
    fn a_longer_structure_is_taken_when_the_rest_is_zero() {
        let mut longer = [40usize, 5, 9, 0, 0];
        // SAFETY: the array holds the 40 bytes that its first word states.
        let taken = unsafe { read_sized::<Sized2>("Sized2", longer.as_ptr().cast(), 16) }.unwrap();
        assert_eq!(taken, Sized2 { size: 40, old: 5, new: 9 });
        longer[4] = 1;
        // SAFETY: as above.
        let error = unsafe { read_sized::<Sized2>("Sized2", longer.as_ptr().cast(), 16) }.unwrap_err();
        assert!(error.text.contains("does not know"), "{error}");
        // SAFETY: NULL is allowed.
        assert!(unsafe { read_sized::<Sized2>("Sized2", ptr::null(), 16) }.is_err());
    }

    fn copied(text: &[u8], room: usize) -> Vec<u8> {
        let mut into = vec![1 as c_char; room];
        copy_text(text, &mut into);
        into.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect()
    }

    #[test]
    fn text_is_cut_before_a_character_that_does_not_fit() {
        assert_eq!(copied("abcé".as_bytes(), 6), "abcé".as_bytes());
        assert_eq!(copied("abcé".as_bytes(), 5), b"abc");
        assert_eq!(copied("ab€".as_bytes(), 5), b"ab");
        assert_eq!(copied("ab€".as_bytes(), 4), b"ab");
        assert_eq!(copied("a😀b".as_bytes(), 4), b"a");
        assert_eq!(copied("a😀b".as_bytes(), 6), "a😀".as_bytes());
        assert_eq!(copied(b"\xff\xfe\xfd\xfc", 3), b"\xff\xfe", "not UTF-8: cut anywhere");
        assert_eq!(copied(b"ab\x80\x80\x80\x80", 5), b"ab\x80\x80");
        assert_eq!(copied(b"a\0b", 4), b"a b");
        assert_eq!(copied(b"", 4), b"");
        copy_text(b"x", &mut []);
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_text() {
        let error = guarded::<()>(|| std::panic::panic_any("broken")).unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert!(error.text.contains("broken"));
        assert_eq!(code_of(Err(Error::new(Code::Busy, "in\0 use"))), 101);
        // SAFETY: the pointer is a string of this thread.
        assert_eq!(unsafe { CStr::from_ptr(last_error()) }, c"in use");
    }
}
