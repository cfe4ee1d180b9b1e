//! A session's own log, to a file and to a queue that the caller drains, never to the host's subscriber.

mod file;

use crate::error::Result;
use crate::sync::Mutex;
use file::LogFile;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use tracing::dispatcher::{self, DefaultGuard, Dispatch};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber, field};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// The maximum number of lines kept for the caller between two updates. Older ones are dropped and counted.
const QUEUE_LIMIT: usize = 1024;

/// The maximum number of lines kept for the file while the disk is slow. Newer ones are dropped and counted.
const FILE_LIMIT: usize = 8192;

/// The targets and the level of a session's log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A regular file or a character device to which a separate thread appends lines, so that a slow disk
    /// delays nothing else. Symbolic links are followed. If the name refers to another file, that one is
    /// opened before the next line.
    pub file: Option<PathBuf>,
    /// The least important level that is logged.
    pub level: LevelFilter,
    /// True if lines are also queued for [`crate::Session::take_log_lines`].
    pub queue: bool,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { file: None, level: LevelFilter::INFO, queue: false }
    }
}

/// One line of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogLine {
    /// The level of the line.
    pub level: Level,
    /// The text, without a line end.
    pub text: String,
}

/// A session's log. It receives events only from threads and scopes that entered it.
pub struct Log {
    dispatch: Dispatch,
    queue: Arc<Queue>,
    file: Option<LogFile>,
}

impl Log {
    /// Opens the log.
    ///
    /// # Errors
    /// Fails with `LogFile` if the file cannot be opened for appending, or is neither a regular file nor a
    /// character device.
    pub fn open(options: &LogOptions) -> Result<Log> {
        let mut log_file = None;
        let mut file_layer = None;
        if let Some(path) = &options.file {
            let (file, writer) = LogFile::open(path)?;
            log_file = Some(file);
            file_layer = Some(
                tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(writer),
            );
        }
        let queue = Arc::new(Queue::default());
        let queue_layer = options.queue.then(|| QueueLayer { queue: Arc::clone(&queue) });
        let subscriber =
            tracing_subscriber::registry().with(options.level).with(file_layer).with(queue_layer);
        Ok(Log { dispatch: Dispatch::new(subscriber), queue, file: log_file })
    }

    /// Makes this the log of the current thread until the guard is dropped.
    pub fn enter(&self) -> DefaultGuard {
        dispatcher::set_default(&self.dispatch)
    }

    /// Takes the queued lines, oldest first.
    pub fn take_lines(&self) -> Vec<LogLine> {
        self.queue.inner.lock().lines.drain(..).collect()
    }

    /// Returns the number of lines lost because the queue or the file's writer could not keep up, or because
    /// they could not be written.
    pub fn lost(&self) -> u64 {
        self.queue.inner.lock().lost + self.file.as_ref().map_or(0, LogFile::lost)
    }
}

#[derive(Default)]
struct Queue {
    inner: Mutex<QueueInner>,
}

#[derive(Default)]
struct QueueInner {
    lines: VecDeque<LogLine>,
    lost: u64,
}

struct QueueLayer {
    queue: Arc<Queue>,
}

impl<S: Subscriber> Layer<S> for QueueLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut text = LineText(String::new());
        event.record(&mut text);
        let mut inner = self.queue.inner.lock();
        if inner.lines.len() >= QUEUE_LIMIT {
            inner.lines.pop_front();
            inner.lost += 1;
        }
        inner.lines.push_back(LogLine { level: *event.metadata().level(), text: text.0 });
    }
}

/// Joins an event's message and its fields to one line.
struct LineText(String);

impl field::Visit for LineText {
    fn record_debug(&mut self, field: &field::Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use tracing::{debug, info, warn};

    #[test]
    fn lines_reach_the_file_and_the_queue_at_the_level_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let options = LogOptions { file: Some(path.clone()), queue: true, ..LogOptions::default() };
        let log = Log::open(&options).unwrap();
        {
            let _entered = log.enter();
            info!(device = "lo", "opened");
            debug!("not asked for");
        }
        warn!("outside the scope");
        let lines = log.take_lines();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0], LogLine { level: Level::INFO, text: "opened device=\"lo\"".into() });
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("INFO opened device=\"lo\""), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn the_queue_is_bounded_and_counts_what_it_drops() {
        let log = Log::open(&LogOptions { queue: true, ..LogOptions::default() }).unwrap();
        let _entered = log.enter();
        for number in 0..QUEUE_LIMIT + 10 {
            info!(number);
        }
        assert_eq!(log.lost(), 10);
        let lines = log.take_lines();
        assert_eq!(lines.len(), QUEUE_LIMIT);
        assert_eq!(lines[0].text, " number=10");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let options = LogOptions { file: Some("/nonexistent/log".into()), ..LogOptions::default() };
        let error = Log::open(&options).err().unwrap();
        assert_eq!(error.code, Code::LogFile);
        assert!(error.text.contains("/nonexistent/log"), "{error}");
    }
}
