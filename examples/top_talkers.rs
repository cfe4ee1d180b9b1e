//! Prints the processes with the highest network rates, every three seconds for a minute.
//!
//! ```sh
//! cargo run --release --example top_talkers        # as root, or with CAP_NET_RAW
//! ```

use capture::{LogOptions, Options, ProcId, Session, Validity};
use std::collections::HashMap;
use std::time::Duration;

/// The number of processes that are printed.
const SHOWN: usize = 10;

/// The time between two updates.
const INTERVAL: Duration = Duration::from_secs(3);

fn main() -> capture::Result<()> {
    let log = LogOptions { queue: true, ..LogOptions::default() };
    let mut session = Session::open(Options { log, ..Options::default() })?;
    let stats = session.stats_reader();
    let mut totals: HashMap<ProcId, u64> = HashMap::new();
    for _ in 0..20 {
        std::thread::sleep(INTERVAL);
        session.update()?;
        for line in session.take_log_lines() {
            eprintln!("{}: {}", line.level, line.text);
        }
        // Processes that ended since the last update are not among the living ones.
        let ended = session.take_removed();
        let [now, before] = stats.read().sampled_ns;
        let seconds = now.saturating_sub(before) as f64 / 1e9;
        let mut rates = Vec::new();
        let mut latest = HashMap::new();
        // Totals without this mark are not known, for example in a network namespace that is not captured.
        let counted = session.processes().chain(&ended).filter(|it| it.valid.has(Validity::NETWORK));
        for record in counted {
            let (process, total) = (record.sample.id, record.traffic.bytes());
            let bytes = total - totals.get(&process).copied().unwrap_or_default();
            latest.insert(process, total);
            if bytes > 0 {
                let name = String::from_utf8_lossy(&record.identity.name).into_owned();
                rates.push((bytes as f64 / seconds, process.pid, name));
            }
        }
        totals = latest;
        rates.sort_by(|one, other| other.0.total_cmp(&one.0));
        println!("{:>12}  {:>8}  NAME", "BYTES/S", "PID");
        for (rate, pid, name) in rates.iter().take(SHOWN) {
            println!("{rate:>12.0}  {pid:>8}  {name}");
        }
    }
    Ok(())
}
