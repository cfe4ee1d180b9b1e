//! The cost of finding the owner of a connection at its first packet, compared with the two system calls that
//! are unavoidable: looking up the socket in the kernel, and reading one descriptor.

#![allow(clippy::expect_used, reason = "a bench that cannot begin may stop")]
#![allow(missing_docs)]

use capture::internals::model::{Address, Endpoint, FlowKey, Namespace, Protocol, Timestamp};
use capture::internals::netlink::InetDiag;
use capture::internals::owner::{EarlyLookup, EarlyOwnerCache, Opening, SearchExchange, Side, Translations};
use capture::internals::proc::ProcRoot;
use criterion::{Criterion, criterion_group, criterion_main};
use std::fs::{File, read_link};
use std::hint::black_box;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Descriptors that the process has open in addition to the connection.
const OTHERS: [usize; 2] = [0, 900];

/// Opens a connection over loopback; returns it with the flow of the opener's endpoint.
fn connection() -> (TcpListener, TcpStream, FlowKey) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
    let end = |end: SocketAddr| Endpoint::new(Address::from(end.ip()), end.port());
    let key = FlowKey {
        local: end(client.local_addr().expect("connected")),
        remote: end(client.peer_addr().expect("connected")),
        protocol: Protocol::TCP,
        namespace: Namespace::HOME,
    };
    (listener, client, key)
}

fn first_look(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("first look");
    for others in OTHERS {
        let _others: Vec<File> = (0..others).map(|_| File::open("/dev/null").expect("room")).collect();
        let (_listener, client, key) = connection();
        let mut diag = InetDiag::open().expect("sock_diag");
        let descriptor = format!("/proc/{}/fd/{}", std::process::id(), client.as_raw_fd());
        group.bench_function(format!("floor, {others} other descriptors"), |bencher| {
            bencher.iter(|| (diag.find(black_box(&key)), read_link(&descriptor)));
        });
        let root = Arc::new(ProcRoot::open(Path::new("/proc")).expect("/proc"));
        let hints = Arc::new(SearchExchange::default());
        let mut look =
            EarlyLookup::new(Arc::clone(&root), Arc::new(EarlyOwnerCache::default()), Arc::clone(&hints));
        look.ask_kernel(diag, Translations::open(root, true));
        look.tell_events(true);
        hints.set_busy(std::iter::once(std::process::id() as i32));
        look.learn();
        let mut now = Instant::now();
        group.bench_function(format!("owner, {others} other descriptors"), |bencher| {
            bencher.iter(|| {
                // The lookup ignores a repetition of the same packet within a moment.
                now += Duration::from_secs(1);
                let time = Timestamp::now();
                look.packet(Opening { key, side: Side::Opener, device: 0, sequence: Some(1), time }, now);
                let mut found = false;
                look.look(now, |_, _| found = true);
                assert!(found);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, first_look);
criterion_main!(benches);
