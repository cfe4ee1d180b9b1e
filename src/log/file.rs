//! The file of a log. It is opened without waiting, reopened if its name refers to another file, and counts
//! lost lines.

use super::FILE_LIMIT;
use crate::error::{Code, Error, Result};
use crate::sync::Mutex;
use std::fs::{File, Metadata, OpenOptions, metadata};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// The time to wait for the end of the thread that writes the file.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The log's handle of the thread that writes the file.
pub(super) struct LogFile {
    crowded_out: ErrorCounter,
    failed: Arc<AtomicU64>,
    /// Flushes and stops the thread when dropped, but does not wait for its end.
    guard: Option<WorkerGuard>,
    /// Disconnected when the thread has released the file, just before it ends.
    released: Mutex<Receiver<()>>,
}

impl LogFile {
    /// Opens the file and starts its thread. Lines are sent to the returned writer.
    ///
    /// # Errors
    /// Fails with `LogFile`, naming the file and the reason, if the file cannot be opened.
    pub(super) fn open(path: &Path) -> Result<(LogFile, NonBlocking)> {
        let failed = Arc::new(AtomicU64::new(0));
        let (release, released) = channel();
        let written = WrittenFile::open(path, Arc::clone(&failed), Some(release)).map_err(|error| {
            let tried = format_args!("opening the log file {} for appending", path.display());
            Error::system(Code::LogFile, tried, error)
        })?;
        let (writer, guard) = NonBlockingBuilder::default()
            .thread_name("capture-log")
            .buffered_lines_limit(FILE_LIMIT)
            .finish(written);
        let crowded_out = writer.error_counter();
        Ok((LogFile { crowded_out, failed, guard: Some(guard), released: Mutex::new(released) }, writer))
    }

    /// Returns the number of lines that are not in the file: too many were waiting, or they could not be
    /// written.
    pub(super) fn lost(&self) -> u64 {
        self.crowded_out.dropped_lines() as u64 + self.failed.load(Ordering::Relaxed)
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        self.guard = None;
        // A disk that hangs must not block the host. In that case the thread continues alone.
        let _ = self.released.lock().recv_timeout(CLOSE_TIMEOUT);
    }
}

/// The file, as used by the thread that writes it.
struct WrittenFile {
    file: File,
    /// The device and inode number of the open file.
    identity: (u64, u64),
    /// Its absolute path, if known, so that lookups do not depend on the host's working directory.
    path: Option<PathBuf>,
    /// Set if the last line was written only in part.
    is_torn: bool,
    failed: Arc<AtomicU64>,
    _release: Option<Sender<()>>,
}

impl WrittenFile {
    fn open(path: &Path, failed: Arc<AtomicU64>, release: Option<Sender<()>>) -> io::Result<WrittenFile> {
        let (file, identity) = open_for_appending(path)?;
        let path = std::path::absolute(path).ok();
        Ok(WrittenFile { file, identity, path, is_torn: false, failed, _release: release })
    }

    /// Reopens the file if its name refers to another file, as after log rotation. If that one cannot be
    /// opened, the current file stays open.
    fn follow_name(&mut self) {
        let Some(path) = &self.path else { return };
        if metadata(path).is_ok_and(|found| identity_of(&found) == self.identity) {
            return;
        }
        if let Ok((file, identity)) = open_for_appending(path) {
            (self.file, self.identity, self.is_torn) = (file, identity, false);
        }
    }
}

impl Write for WrittenFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    /// Writes one line.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.follow_name();
        if self.is_torn && self.file.write(b"\n").is_ok() {
            self.is_torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(count) if count > 0 => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.is_torn |= rest.len() < line.len();
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
        }
        // The thread has no other use for an error.
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Opens a regular file, which is created if it does not exist, or a character device, without waiting for
/// anything. Symbolic links are followed.
fn open_for_appending(path: &Path) -> io::Result<(File, (u64, u64))> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = OpenOptions::new().append(true).create(true).custom_flags(flags).open(path);
    let unfit = || io::Error::other("it is neither a regular file nor a character device");
    let file = opened.map_err(|error| match error.raw_os_error() {
        // A FIFO without a reader, or a socket.
        Some(libc::ENXIO) => unfit(),
        _ => error,
    })?;
    let found = file.metadata()?;
    if !found.is_file() && !found.file_type().is_char_device() {
        return Err(unfit());
    }
    let identity = identity_of(&found);
    Ok((file, identity))
}

fn identity_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::fs::{read_to_string, remove_file, rename};

    fn opened(path: &Path) -> WrittenFile {
        WrittenFile::open(path, Arc::default(), None).unwrap()
    }

    fn refused(path: &Path) -> String {
        WrittenFile::open(path, Arc::default(), None).err().unwrap().to_string()
    }

    #[test]
    fn a_name_that_is_another_file_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let [path, rotated] = ["log", "log.1"].map(|name| folder.path().join(name));
        let mut file = opened(&path);
        file.write_all(b"one\n").unwrap();
        rename(&path, &rotated).unwrap();
        file.write_all(b"two\n").unwrap();
        remove_file(&path).unwrap();
        file.write_all(b"three\n").unwrap();
        std::fs::write(folder.path().join("new"), "new\n").unwrap();
        rename(folder.path().join("new"), &path).unwrap();
        file.write_all(b"four\n").unwrap();
        assert_eq!(read_to_string(&rotated).unwrap(), "one\n");
        assert_eq!(read_to_string(&path).unwrap(), "new\nfour\n");
        // Truncated in place, as by logrotate's copytruncate.
        std::fs::write(&path, "").unwrap();
        file.write_all(b"five\n").unwrap();
        assert_eq!(read_to_string(&path).unwrap(), "five\n");
    }

    #[test]
    fn a_name_that_cannot_be_opened_leaves_the_file_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let [path, rotated] = ["log", "log.1"].map(|name| folder.path().join(name));
        let mut file = opened(&path);
        rename(&path, &rotated).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        file.write_all(b"one\n").unwrap();
        assert_eq!(read_to_string(&rotated).unwrap(), "one\n");
    }

    #[test]
    fn fifos_and_folders_are_refused_without_a_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert!(refused(&path).contains("neither a regular file nor a character device"));
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        assert!(refused(&path).contains("neither a regular file nor a character device"));
        drop(reader);
        assert!(refused(folder.path()).contains("directory"));
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let (file, mut writer) = LogFile::open(Path::new("/dev/full")).unwrap();
        (0..3).for_each(|_| writer.write_all(b"line\n").unwrap());
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while file.lost() < 3 && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(file.lost(), 3);
        let (file, mut writer) = LogFile::open(Path::new("/dev/null")).unwrap();
        writer.write_all(b"line\n").unwrap();
        assert_eq!(file.lost(), 0);
    }

    #[test]
    fn symbolic_links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let [link, target] = ["link", "target"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        opened(&link).write_all(b"one\n").unwrap();
        assert_eq!(read_to_string(&target).unwrap(), "one\n");
    }
}
