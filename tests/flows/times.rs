//! Times over a link with a known delay, compared with the clock of the program that waited.

use crate::link::Link;
use crate::watch::{Watch, assert_known};
use crate::with_lab;
use capture::internals::model::{FlowPhase, FlowRecord, FlowValidity as V, Role};
use capture_test_support::lab::{Host, Lab, run};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

const DELAY: Duration = Duration::from_millis(20);

/// Echoes all bytes that it receives on host B until its peer closes.
fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = [0; 65_536];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        stream.write_all(&buffer[..count]).unwrap();
    }
}

fn on_b<T: Send>(lab: &Lab, work: impl FnOnce() -> T + Send) -> T {
    let body = || {
        lab.enter(Host::B);
        work()
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap())
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn epoch() -> u64 {
    nanoseconds(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

/// Returns a field of ss(8) (`name:value`) for one connection.
fn ss(near: SocketAddr, name: &str) -> Option<String> {
    let filter = format!("ss -tinOH src {near}");
    let line = run(&filter);
    let mut words = line.split_whitespace().filter_map(|word| word.split_once(':'));
    words.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
}

#[test]
fn times_are_those_that_the_program_waited_root() {
    with_lab(|lab, engine| {
        let _link = Link::new(lab, DELAY);
        let listener = on_b(lab, || TcpListener::bind("10.78.0.2:7000").unwrap());
        let target = listener.local_addr().unwrap();
        let mut watch = Watch::on(lab, Host::A, engine);
        std::thread::scope(|scope| {
            scope.spawn(|| echo(&listener));
            let (began, before) = (Instant::now(), epoch());
            let mut stream = TcpStream::connect(target).unwrap();
            let (connecting, after) = (began.elapsed(), epoch());
            let near = stream.local_addr().unwrap();
            let mut waited = Vec::new();
            for _ in 0..5 {
                let asked = Instant::now();
                stream.write_all(b"question").unwrap();
                stream.read_exact(&mut [0; 8]).unwrap();
                waited.push(nanoseconds(asked.elapsed()));
                std::thread::sleep(Duration::from_millis(30));
            }
            let is_whole = |it: &FlowRecord| {
                it.response.count == 5 && it.valid.has(V::SMOOTHED_RTT) && it.owner.is_some()
            };
            let living = watch
                .until("a record with all responses", |watch| watch.living(near, target).filter(is_whole));
            let least = nanoseconds(DELAY) * 9 / 10;
            assert_known(
                &living,
                &[
                    V::NAMESPACE,
                    V::OPENED,
                    V::ESTABLISHED,
                    V::ROLE,
                    V::TRAFFIC,
                    V::CONNECT_LATENCY,
                    V::RETRANSMITS,
                ],
            );
            assert_eq!((living.phase, living.role, living.tcp_state), (FlowPhase::Open, Role::Opened, 1));
            assert_eq!(living.owner.unwrap().process.pid, std::process::id() as i32);
            let namespace = File::open("/proc/thread-self/ns/net").unwrap().metadata().unwrap().ino();
            assert_eq!(living.namespace_inode, namespace);
            // Both clocks are the machine's; one of them may be adjusted a little meanwhile.
            let slack = 5_000_000;
            assert!((before - slack..=after + slack).contains(&living.opened.0), "{living:?}");
            assert!(
                (least..=nanoseconds(connecting) + slack).contains(&living.connect_latency_ns),
                "{living:?}"
            );
            assert_eq!(living.established.0, living.opened.0 + living.connect_latency_ns);
            let sum: u64 = waited.iter().sum();
            let (shortest, longest) = (waited.iter().min().unwrap(), waited.iter().max().unwrap());
            let response = living.response;
            assert!((least..=*shortest + slack).contains(&response.minimum_ns), "{response:?} {waited:?}");
            assert!((least..=*longest + slack).contains(&response.maximum_ns), "{response:?} {waited:?}");
            assert!((5 * least..=sum + slack).contains(&response.sum_ns), "{response:?} {waited:?}");
            let rtt: f64 = ss(near, "rtt").unwrap().split('/').next().unwrap().parse().unwrap();
            assert_eq!(living.smoothed_rtt_ns, (rtt * 1e6).round() as u64, "as ss says");
            assert!(living.smoothed_rtt_ns >= least);
            assert!(living.duration_ns >= nanoseconds(connecting) - slack + sum);
            drop(stream);
            let ended = watch.last(near, target);
            assert_eq!((ended.id, ended.cookie), (living.id, living.cookie));
            assert!(ended.valid.has(V::SMOOTHED_RTT) && ended.smoothed_rtt_ns >= least, "{ended:?}");
            assert!(
                ended.duration_ns >= living.duration_ns - slack
                    && ended.duration_ns <= nanoseconds(began.elapsed())
            );
        });
    });
}

#[test]
fn what_was_sent_again_is_counted_as_ss_counts_it_root() {
    with_lab(|lab, engine| {
        let link = Link::new(lab, DELAY);
        let listener = on_b(lab, || TcpListener::bind("10.78.0.2:7000").unwrap());
        let target = listener.local_addr().unwrap();
        let mut watch = Watch::on(lab, Host::A, engine);
        std::thread::scope(|scope| {
            scope.spawn(|| echo(&listener));
            let mut stream = TcpStream::connect(target).unwrap();
            let near = stream.local_addr().unwrap();
            let retransmits =
                || ss(near, "retrans").map_or(0, |it| it.split('/').next_back().unwrap().parse().unwrap());
            const ROUNDS: u64 = 3;
            for round in 1..=ROUNDS {
                // No answer and no acknowledgement arrives until data is retransmitted.
                link.is_lossy.store(true, Ordering::Relaxed);
                stream.write_all(b"question").unwrap();
                watch.until("another attempt", |_| (retransmits() >= round).then_some(()));
                link.is_lossy.store(false, Ordering::Relaxed);
                stream.read_exact(&mut [0; 8]).unwrap();
            }
            let sent = 8 * ROUNDS;
            let record = watch.until("the figures of ss", |watch| {
                // Nothing is in flight once everything is acknowledged.
                let acknowledged = ss(near, "bytes_acked").unwrap();
                let expected = (retransmits(), acknowledged.parse::<u64>().unwrap());
                let living = watch.living(near, target)?;
                (living.retransmits == expected.0 && expected.1 == sent + 1).then_some(living)
            });
            assert!(record.retransmits >= 3);
            let headers = record.traffic.send_packets * 66;
            assert_eq!(ss(near, "bytes_received").unwrap(), sent.to_string());
            assert!(record.traffic.send_bytes >= headers + sent, "{record:?}");
        });
    });
}

#[test]
fn datagrams_have_responses_and_a_role_root() {
    with_lab(|lab, engine| {
        let _link = Link::new(lab, DELAY);
        let server = on_b(lab, || UdpSocket::bind("10.78.0.2:7000").unwrap());
        let mut watch = Watch::on(lab, Host::A, engine);
        let client = UdpSocket::bind("10.78.0.1:7001").unwrap();
        client.connect("10.78.0.2:7000").unwrap();
        for _ in 0..3 {
            client.send(b"question").unwrap();
            let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
            server.send_to(b"answer", from).unwrap();
            client.recv(&mut [0; 8]).unwrap();
        }
        let (near, far) = (client.local_addr().unwrap(), server.local_addr().unwrap());
        let record = watch.until("three responses", |watch| {
            watch.living(near, far).filter(|it| it.response.count == 3 && it.owner.is_some())
        });
        assert_eq!((record.role, record.phase), (Role::Opened, FlowPhase::Open));
        assert!(record.response.minimum_ns >= nanoseconds(DELAY) * 9 / 10, "{record:?}");
        assert!(!record.valid.has(V::SMOOTHED_RTT) && !record.valid.has(V::CONNECT_LATENCY));
        assert_eq!((record.traffic.send_packets, record.traffic.receive_packets), (3, 3));
    });
}
