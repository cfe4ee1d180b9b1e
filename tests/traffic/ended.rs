//! Connections that have ended, compared with the bytes that their sockets carried: bytes that the capture
//! lost are recovered, and nothing is added if it lost none.

use super::{V4, V6, Watch, with_lab};
use capture::internals::config::Options;
use capture::internals::model::Traffic;
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::Stats;
use capture::internals::tap::TapOptions;
use capture_test_support::lab::{Host, Lab, Maker};
use std::time::{Duration, Instant};

/// The time limit, far longer than the second or two after which connections are compared.
const TIMEOUT: Duration = Duration::from_secs(20);

fn with(capture: TapOptions) -> Options {
    Options { capture, ..Options::default() }
}

impl Watch {
    /// Updates until `wanted` returns true for the statistics.
    #[track_caller]
    fn wait(&mut self, mut wanted: impl FnMut(&Stats) -> bool) -> Stats {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.update();
            let stats = self.session.stats_reader().read();
            if wanted(&stats) {
                return stats;
            }
            assert!(Instant::now() < deadline, "{stats:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// One connection at full speed, captured in a buffer that holds only a few frames.
fn lost_bytes_are_completed(address: &str, watched: Host) {
    const BYTES: u64 = 1_000_000_000;
    with_lab(|lab| {
        let target =
            if address.contains(':') { format!("[{address}]:7011") } else { format!("{address}:7011") };
        lab.count_port(watched, "tcp", 7011);
        let mut watch = Watch::with(
            &lab,
            watched,
            with(TapOptions {
                snaplen: TapOptions::MAX_SNAPLEN,
                buffer_bytes: TapOptions::MIN_BUFFER,
                ..TapOptions::default()
            }),
        );
        let mut sink = lab.maker(Host::B, "tcp-sink", &target, &[]);
        let mut source = lab.maker(Host::A, "tcp-source", &target, &[("bytes", BYTES)]);
        source.start();
        assert_eq!(source.finish().payload, BYTES);
        assert_eq!(sink.finish().payload, BYTES);
        let pid = if watched == Host::A { source.pid() } else { sink.pid() };
        let truth = lab.counted(watched).both();
        let stats = watch.wait(|stats| stats.connections_checked == 1);
        assert!(stats.lost_in_kernel > 0, "the test has brought about no loss: {stats:?}");
        assert!(stats.connections_short == 1 && stats.bytes_completed > 0, "{stats:?}");
        // Recovered bytes are credited with the same batch or the next one.
        let payload = |traffic: &Traffic| match watched {
            Host::A => traffic.send_bytes,
            Host::B => traffic.receive_bytes,
        };
        watch.wait_for_traffic(|traffic| traffic.get(&pid).is_some_and(|own| payload(own) >= BYTES));
        let mut traffic = watch.traffic();
        let own = traffic.remove(&pid).unwrap();
        assert!(traffic.is_empty(), "{traffic:?}");
        assert!(own.send_bytes <= truth.0 && own.receive_bytes <= truth.1, "{own:?}, truth {truth:?}");
        let seen = payload(&own) - stats.bytes_completed;
        // Headers offset some of the lost payload.
        let passed = if watched == Host::A { truth.0 } else { truth.1 };
        assert!(seen < passed, "what was seen alone is too little");
        println!("  {address} from {watched:?}: {seen} seen, {} completed; {truth:?}", stats.bytes_completed);
    });
}

#[test]
fn what_was_lost_of_a_sender_is_completed_root() {
    lost_bytes_are_completed(V4, Host::A);
}

#[test]
fn what_was_lost_of_a_receiver_is_completed_root() {
    lost_bytes_are_completed(V6, Host::B);
}

/// Makes connections at this rate for this time, each with a request and a response. Returns their number.
fn connect(lab: &Lab, target: &str, rate: u64, milliseconds: u64) -> u64 {
    let numbers = [("rate", rate), ("milliseconds", milliseconds)];
    let mut clients = lab.maker(Host::A, "tcp-clients", target, &numbers);
    clients.start();
    let report = clients.finish();
    report.processes.iter().map(|process| process.connections).sum()
}

fn server(lab: &Lab, target: &str) -> Maker {
    lab.maker(Host::B, "tcp-server", target, &[])
}

/// Both ends are captured, one of them in another network namespace.
#[test]
fn nothing_is_added_where_nothing_was_lost_root() {
    with_lab(|lab| {
        let other = format!("/run/netns/{}", lab.name(Host::B)).into();
        let namespaces = NamespaceChoice::Chosen(vec![other]);
        let capture = TapOptions { namespaces, ..TapOptions::default() };
        // With eBPF programs there is no early lookup.
        let mut watch = Watch::with(&lab, Host::A, Options { probes: false, ..with(capture) });
        let target = format!("{V4}:7012");
        let _server = server(&lab, &target);
        // The session follows the other namespace only a moment after the opening.
        let deadline = Instant::now() + 2 * TIMEOUT;
        let (mut before, mut now) = (0, 0);
        while now - before < 2 {
            assert!(Instant::now() < deadline, "both ends of a connection were never compared");
            before = now;
            assert_eq!(connect(&lab, &target, 10, 100), 1);
            watch.wait(|stats| stats.connections_checked > before);
            std::thread::sleep(Duration::from_secs(1));
            now = watch.session.stats_reader().read().connections_checked;
        }
        let made = connect(&lab, &target, 200, 2_000);
        assert!(made > 300);
        let stats = watch.wait(|stats| stats.connections_checked >= now + 2 * made);
        assert_eq!(stats.connections_checked, now + 2 * made);
        assert_eq!(stats.lost_in_kernel, 0);
        assert_eq!((stats.connections_short, stats.bytes_completed, stats.ends_lost), (0, 0, 0), "{stats:?}");
        // Early lookups were made, too; the number made in time depends on how busy the machine is.
        let first = stats.first;
        assert!(first.packets > 0 && first.found > 0, "{first:?}");
        assert!(first.packets >= first.found + first.too_late + first.not_found + first.crowded_out);
    });
}

/// Packets that a filter or a choice of devices leaves out do not count as lost.
#[test]
fn only_a_capture_of_everything_is_compared_root() {
    with_lab(|lab| {
        let filtered =
            TapOptions { filter: Some("tcp[tcpflags] & tcp-push == 0".into()), ..TapOptions::default() };
        let chosen = TapOptions { devices: vec!["veth0".into()], ..TapOptions::default() };
        let mut whole = Watch::with(&lab, Host::A, Options::default());
        let mut parts = [filtered, chosen].map(|options| Watch::with(&lab, Host::A, with(options)));
        let target = format!("{V4}:7013");
        let _server = server(&lab, &target);
        let made = connect(&lab, &target, 100, 200);
        whole.wait(|stats| stats.connections_checked == made);
        // The other sessions would not be slower.
        std::thread::sleep(Duration::from_secs(2));
        for part in &mut parts {
            part.update();
            let stats = part.session.stats_reader().read();
            assert!(stats.frames > 0, "{stats:?}");
            assert_eq!((stats.connections_checked, stats.bytes_completed), (0, 0), "{stats:?}");
        }
    });
}
