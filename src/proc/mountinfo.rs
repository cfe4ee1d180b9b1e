//! Mounts, as listed in a `mountinfo` file (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A line of the file. Its fields are unchanged, with escapes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mount<'t> {
    /// The directory of the file system that is mounted.
    pub root: &'t [u8],
    point: &'t [u8],
    /// The type of the file system.
    pub kind: &'t [u8],
    /// The options of the file system, separated by commas.
    pub options: &'t [u8],
}

impl Mount<'_> {
    /// The path at which it is mounted.
    pub fn point(&self) -> PathBuf {
        path(self.point)
    }
}

/// Parses the mounts in the text of such a file; other lines are skipped.
pub fn mounts(text: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    text.split(|&byte| byte == b'\n').filter_map(mount)
}

fn mount(line: &[u8]) -> Option<Mount<'_>> {
    // Id, parent, device, root, mount point, options, optional fields, "-", type, source, options of the file
    // system.
    let mut fields = line.split(|&byte| byte == b' ');
    let (root, point) = (fields.nth(3)?, fields.next()?);
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = after.next()?;
    Some(Mount { root, point, kind, options: after.nth(1).unwrap_or_default() })
}

/// Parses a path from a field in which a backslash and three octal digits stand for a byte.
pub fn path(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.first_chunk::<3>().filter(|_| byte == b'\\').and_then(octal);
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    OsString::from_vec(plain).into()
}

/// Returns the byte of three octal digits.
fn octal(digits: &[u8; 3]) -> Option<u8> {
    let values = digits.map(|digit| digit.wrapping_sub(b'0'));
    let [high, middle, low] = values;
    (high < 4 && middle < 8 && low < 8).then_some(high << 6 | middle << 3 | low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    #[test]
    fn fields_are_found_beside_optional_ones_and_escapes_resolved() {
        let text = b"23 28 0:21 / /proc rw,relatime - proc proc rw\n\
            30 23 0:26 /a\\040b /sys/fs/cgroup/a\\040b\\134c rw shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n\
            odd line\n\
            611 24 0:4 net:[4026532281] /mnt/caf\xe9 rw shared:9 - nsfs nsfs";
        let found: Vec<_> = mounts(text).collect();
        let shown = |mount: &Mount<'_>| {
            (mount.point(), path(mount.root), mount.kind.to_vec(), mount.options.to_vec())
        };
        let row = |point: &[u8], root: &str, kind: &str, options: &str| {
            let point = Path::new(OsStr::from_bytes(point)).to_owned();
            (point, Path::new(root).to_owned(), kind.as_bytes().to_vec(), options.as_bytes().to_vec())
        };
        assert_eq!(
            found.iter().map(shown).collect::<Vec<_>>(),
            [
                row(b"/proc", "/", "proc", "rw"),
                row(b"/sys/fs/cgroup/a b\\c", "/a b", "cgroup2", "rw,nsdelegate"),
                row(b"/mnt/caf\xe9", "net:[4026532281]", "nsfs", ""),
            ]
        );
    }

    #[test]
    fn escapes_of_every_byte_are_resolved_and_others_are_kept() {
        // show_mountinfo of fs/proc_namespace.c escapes space, tab, newline, backslash and #.
        assert_eq!(path(b"\\040\\011\\012\\134\\043"), Path::new(" \t\n\\#"));
        for byte in 0..=u8::MAX {
            let field = format!("a\\{byte:03o}0");
            assert_eq!(path(field.as_bytes()).as_os_str().as_bytes(), [b'a', byte, b'0'], "{field}");
        }
        // A backslash that was resolved does not begin another escape.
        assert_eq!(path(b"\\134040"), Path::new("\\040"));
        for kept in ["\\", "\\0", "\\04", "\\09", "\\08x", "\\400", "\\777", "\\+12", "\\ 12", "\\x41", "\\é"]
        {
            assert_eq!(path(kept.as_bytes()), Path::new(kept));
        }
        assert_eq!(path(b"\\303\xff\xfe\\"), Path::new(OsStr::from_bytes(b"\xc3\xff\xfe\\")));
    }

    proptest::proptest! {
        #[test]
        fn escaped_bytes_are_what_they_were(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40)
        ) {
            let escape = |byte: &u8| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                byte => vec![*byte],
            };
            let field: Vec<u8> = bytes.iter().flat_map(escape).collect();
            let line = [b"1 2 0:3 / ", &*field, b" rw - nsfs nsfs rw"].concat();
            let points: Vec<PathBuf> = mounts(&line).map(|mount| mount.point()).collect();
            proptest::prop_assert_eq!(points, [PathBuf::from(OsString::from_vec(bytes))]);
        }
    }
}
