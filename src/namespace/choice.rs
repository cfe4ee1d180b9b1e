//! The choice of network namespaces to capture in, besides the session's own.

use super::links;
use crate::error::{Code, Error, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The network namespaces to count in. The session's own, which is that of the thread that opens it, is
/// always included.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum NamespaceChoice {
    /// The session's own namespace if packets are captured, since every other one takes sockets and
    /// privileges. All namespaces if the kernel counts, since it counts in all of them anyway.
    #[default]
    Usual,
    /// Only the session's own namespace.
    Own,
    /// All namespaces that a process is in or that are mounted. [`super::Registry`] describes the search.
    All,
    /// The namespaces at these absolute paths, such as `/run/netns/blue` or `/proc/1234/ns/net`. A path
    /// refers to whatever exists there at the moment. If it disappears, the session waits for it to reappear.
    /// A path in `/proc` follows the process number, not the process.
    Chosen(Vec<PathBuf>),
}

impl NamespaceChoice {
    /// The maximum number of chosen paths, one for each namespace number.
    pub const MOST: usize = 254;

    /// Parses the argument of the C interface. `None` or the empty string means `Usual`, `own` means `Own`
    /// and `all` means `All`. Anything else is a list of paths separated by commas.
    pub fn from_words(words: Option<&Path>) -> NamespaceChoice {
        use std::os::unix::ffi::OsStrExt as _;
        let bytes = words.map_or(&[][..], |words| words.as_os_str().as_bytes()).trim_ascii();
        match bytes {
            b"" => NamespaceChoice::Usual,
            b"own" => NamespaceChoice::Own,
            b"all" => NamespaceChoice::All,
            _ => {
                let items = bytes.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
                let path = |item| PathBuf::from(std::ffi::OsStr::from_bytes(item));
                NamespaceChoice::Chosen(items.filter(|item| !item.is_empty()).map(path).collect())
            }
        }
    }

    /// Returns true if the choice includes other namespaces than the session's own when packets are captured.
    pub fn is_wide(&self) -> bool {
        matches!(self, NamespaceChoice::All | NamespaceChoice::Chosen(_))
    }

    /// Returns the inodes of the namespaces to count in if the kernel counts: `home`, the session's own, and
    /// the chosen ones that exist now. `None` stands for all namespaces.
    pub fn inodes(&self, home: u64) -> Option<HashSet<u64>> {
        let chosen = match self {
            NamespaceChoice::Usual | NamespaceChoice::All => return None,
            NamespaceChoice::Own => &[][..],
            NamespaceChoice::Chosen(paths) => paths,
        };
        Some(chosen.iter().filter_map(|path| links::namespace_at(path).ok()).chain([home]).collect())
    }

    /// Checks the form of the choice, without looking up any path.
    ///
    /// # Errors
    /// Fails with `InvalidArgument` if a path is not absolute, and names it, or if the number of paths is out
    /// of range.
    pub fn check(&self) -> Result<()> {
        let NamespaceChoice::Chosen(paths) = self else { return Ok(()) };
        if paths.is_empty() || paths.len() > Self::MOST {
            let (count, most) = (paths.len(), Self::MOST);
            let text = format!("{count} network namespaces are chosen; it must be 1 to {most}");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        match paths.iter().find(|path| !path.is_absolute()) {
            None => Ok(()),
            Some(path) => {
                let text = format!("the network namespace \"{}\" is not an absolute path", path.display());
                Err(Error::new(Code::InvalidArgument, text))
            }
        }
    }

    /// Checks that every chosen path is a network namespace now.
    ///
    /// # Errors
    /// Fails with `InvalidArgument` if a path is not a network namespace. The text names the path and the
    /// system's reason.
    pub fn check_present(&self) -> Result<()> {
        let NamespaceChoice::Chosen(paths) = self else { return Ok(()) };
        for path in paths {
            links::namespace_at(path).map_err(|errno| {
                let what = format_args!("the network namespace {}", path.display()).to_string();
                match errno {
                    nix::errno::Errno::EINVAL => {
                        Error::new(Code::InvalidArgument, format!("{what}: it is not a network namespace"))
                    }
                    errno => Error::system(Code::InvalidArgument, what, errno),
                }
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        let of = |words: &str| NamespaceChoice::from_words(Some(Path::new(words)));
        assert_eq!(NamespaceChoice::from_words(None), NamespaceChoice::Usual);
        assert_eq!(of(" "), NamespaceChoice::Usual);
        assert_eq!(of("own"), NamespaceChoice::Own);
        assert_eq!(of("all"), NamespaceChoice::All);
        let paths = vec![PathBuf::from("/run/netns/a"), PathBuf::from("/proc/1/ns/net")];
        assert_eq!(of("/run/netns/a, /proc/1/ns/net,"), NamespaceChoice::Chosen(paths));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_named() {
        let chosen = |paths: &[&str]| NamespaceChoice::Chosen(paths.iter().map(PathBuf::from).collect());
        for good in
            [NamespaceChoice::Usual, NamespaceChoice::Own, NamespaceChoice::All, chosen(&["/run/netns/a"])]
        {
            good.check().unwrap();
        }
        let refused = |choice: NamespaceChoice| {
            let error = choice.check().and_then(|()| choice.check_present()).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument);
            error.text
        };
        assert!(refused(chosen(&[])).contains("0 network namespaces"));
        assert!(refused(chosen(&["/x"; 255])).contains("255 network namespaces"));
        assert!(refused(chosen(&["blue"])).contains("\"blue\" is not an absolute path"));
        assert!(refused(chosen(&["/nonexistent"])).contains("/nonexistent: ENOENT"));
        assert!(refused(chosen(&["/proc/self/ns/mnt"])).contains("not a network namespace"));
        assert!(refused(chosen(&["/proc/self/stat"])).contains("not a network namespace"));
        chosen(&["/proc/self/ns/net"]).check_present().unwrap();
    }
}
