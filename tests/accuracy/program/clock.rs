//! Steps the system's clock repeatedly, as a clock that is far off the true time is corrected.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time between two steps.
const INTERVAL: Duration = Duration::from_millis(250);

/// The offset of the clock from the true time after each step, milliseconds. The sequence repeats.
const OFFSETS: [i64; 6] = [3_600_000, -7_200_000, 300, -300, 40, 0];

/// Steps the clock until this is dropped, and then restores the right time.
pub struct Steps {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Steps {
    pub fn start() -> Steps {
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let booted = clock_gettime(ClockId::CLOCK_REALTIME).expect("it can be read") - since_boot();
        let thread = std::thread::spawn(move || {
            for offset in OFFSETS.into_iter().cycle() {
                std::thread::sleep(INTERVAL);
                // The last step must leave the right time.
                let is_last = told.load(Ordering::Relaxed);
                set_ahead(booted, if is_last { 0 } else { offset });
                if is_last {
                    break;
                }
            }
        });
        Steps { is_over, thread: Some(thread) }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the clock can be set");
        }
    }
}

/// Sets the clock `offset` milliseconds ahead of the true time, which is `booted` plus the time since then.
fn set_ahead(booted: TimeSpec, offset: i64) {
    let ahead = TimeSpec::from_duration(Duration::from_millis(offset.unsigned_abs()));
    let now = booted + since_boot();
    let set = if offset < 0 { now - ahead } else { now + ahead };
    clock_settime(ClockId::CLOCK_REALTIME, set).expect("root may set the clock");
}

fn since_boot() -> TimeSpec {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("it can be read")
}
