//! A thousand processes, each with its own series, at the usual interval: nothing is dropped. The cost is
//! printed beside that of collectd's own plugin `processes`, which reads the same processes in the same
//! minute.
//!
//! Each plugin runs in its own collectd, so that their CPU times can be separated. Two figures come from the
//! kernel's accounts of each thread (`schedstat`): that of the reading threads with the library's threads,
//! and that of the whole process. Both plugins read each process separately, including descriptors and I/O.
//! Prometheus fetches all values from both. Only the second figure includes the cost of this, and of
//! collectd's own work on each value.

use crate::daemon::Collectd;
use crate::prometheus::Prometheus;
use crate::site::{Place, Site};
use crate::{snippets, with_daemons_alone};
use std::collections::HashSet;
use std::fs::{read_dir, read_to_string};
use std::thread::sleep;
use std::time::Duration;

const PROCESSES: usize = 1000;
const INTERVAL_S: u64 = 10;
const INTERVALS: u32 = 4;

/// CPU time of threads.
#[derive(Clone, Copy, Default)]
struct Cpu {
    reading: Duration,
    all: Duration,
}

impl Cpu {
    fn of(agent: &Collectd) -> Cpu {
        let mut cpu = Cpu::default();
        for thread in read_dir(format!("/proc/{}/task", agent.pid())).unwrap() {
            let text = |file: &str| read_to_string(thread.as_ref().unwrap().path().join(file)).unwrap();
            let spent = Duration::from_nanos(text("schedstat").split(' ').next().unwrap().parse().unwrap());
            let name = text("comm");
            cpu.all += spent;
            if name.starts_with("reader#") || name.starts_with("capture-") {
                cpu.reading += spent;
            }
        }
        cpu
    }

    fn show(plugin: &str, before: Cpu, after: Cpu) {
        let (reading, all) = (after.reading - before.reading, after.all - before.all);
        let each = |time: Duration| time.as_secs_f64() * 1000.0 / f64::from(INTERVALS);
        println!(
            "{plugin:10} {:6.1} ms of CPU each {INTERVAL_S} s in its threads, {:6.1} ms in all of collectd",
            each(reading),
            each(all)
        );
    }
}

#[test]
fn a_thousand_processes_by_pid_lose_nothing_root() {
    with_daemons_alone(|| {
        let site = Site::new(2);
        let orders = [("count", PROCESSES as u64), ("named", 1)];
        let maker = site.maker(Place::Hub, "many", "bystanders", "-", &orders);
        let pids = children(maker.pid());
        assert_eq!(pids.len(), PROCESSES);
        let changes = [("GroupBy \"name\" ", "GroupBy \"pid\" ")];
        let own = ("own.conf", "CollectInternalStats true\n".to_owned());
        let parts = [snippets::capture(INTERVAL_S, &changes), own.clone()];
        let ours = Collectd::start(&site, Place::Host(1), "ours", INTERVAL_S, &parts);
        let theirs = Collectd::start(
            &site,
            Place::Host(2),
            "theirs",
            INTERVAL_S,
            &[("theirs.conf", peer(&pids)), own],
        );
        // Two scrapes in each interval, so that no reading is missed.
        let targets = ["10.78.1.2".to_owned(), "10.78.2.2".to_owned()];
        let prometheus = Prometheus::start(&site, &targets, INTERVAL_S / 2);
        // The first reading of each plugin allocates memory that the later readings reuse.
        prometheus.wait_for(&format!("count(collectd_capture_resident_bytes) > {PROCESSES}"));
        sleep(Duration::from_secs(INTERVAL_S + INTERVAL_S / 2));

        let before = [Cpu::of(&ours), Cpu::of(&theirs)];
        sleep(Duration::from_secs(INTERVAL_S) * INTERVALS);
        let after = [Cpu::of(&ours), Cpu::of(&theirs)];
        Cpu::show("capture", before[0], after[0]);
        Cpu::show("processes", before[1], after[1]);

        let now = std::time::SystemTime::now();
        // Prometheus may not have fetched the latest reading yet.
        let range = INTERVAL_S * u64::from(INTERVALS + 1);
        for metric in ["network_bytes_send_total", "cpu_us_user_total", "resident_bytes", "open_descriptors"]
        {
            let each = format!("count_over_time(collectd_capture_{metric}[{range}s]) >= {INTERVALS}");
            let complete: HashSet<String> = prometheus
                .query_at(&each, now)
                .into_iter()
                .map(|(mut labels, _)| labels.remove("capture").unwrap())
                .collect();
            let lacking: Vec<&i32> =
                pids.iter().filter(|pid| !complete.contains(&format!("maker-{pid}[{pid}]"))).collect();
            assert!(lacking.is_empty(), "{metric}: not all readings of {lacking:?}");
        }
        let of_both = |expression: &str| {
            let [ours, theirs] = ["ours", "theirs"]
                .map(|host| prometheus.value_at(&format!("sum({expression}{{instance=\"{host}\"}})"), now));
            (ours, theirs)
        };
        let values = of_both("collectd_collectd_cache_size");
        let dropped = of_both("collectd_collectd_derive_total");
        println!("{values:?} values each time, {dropped:?} dropped");
        assert_eq!(dropped, (0.0, 0.0));
        for agent in [ours, theirs] {
            let log = agent.log().to_lowercase();
            assert!(!log.contains("drop") && !log.contains("too old"), "{log}");
            agent.stop();
        }
    });
}

/// Returns the children of a process.
fn children(pid: i32) -> Vec<i32> {
    let text = read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Returns a configuration in which the plugin `processes` reads each of the processes.
fn peer(pids: &[i32]) -> String {
    let lines: String = pids.iter().map(|pid| format!("  Process \"maker-{pid}\"\n")).collect();
    format!(
        "LoadPlugin processes\n<Plugin processes>\n  CollectFileDescriptor true\n{lines}</Plugin>\n\
         LoadPlugin write_prometheus\n"
    )
}
