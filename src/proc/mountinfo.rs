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
        let octal = after.first_chunk::<3>().filter(|_| byte == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    OsString::from_vec(plain).into()
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
        assert_eq!(path(b"a\\134b\\09\\"), Path::new("a\\b\\09\\"));
    }
}
