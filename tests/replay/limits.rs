//! More flows than the flow table and the lookup queue have room for.

use super::machine;
use super::replay::{accounted, bytes, file, options, replay};
use capture::internals::config::Options;
use capture::internals::model::Unowned;
use capture_test_support::frames::{Carries, Packet, Wire};
use capture_test_support::proc_tree::UNCONNECTED;
use capture_test_support::savefile::{Format, Record, link_type, savefile};

/// Returns requests of `clients` clients to process 102, two from each client; consecutive clients' requests
/// differ in length.
fn requests(clients: u32) -> Vec<Record> {
    let mut packet = Packet::new(Carries::Udp, "198.51.100.1:1", "192.0.2.2:53", 0);
    let frames = (0..clients).flat_map(|client| [client, client]).map(|client| {
        let [_, b, c, d] = client.to_be_bytes();
        packet.from = std::net::SocketAddr::from(([100, b, c, d], 1024 + (client % 7) as u16));
        packet.payload = (client % 50) as usize;
        Record::whole(Wire::Ethernet.frame(&packet.bytes()))
    });
    frames.collect()
}

fn total(records: &[Record]) -> u64 {
    records.iter().map(|record| u64::from(record.wire_len)).sum()
}

#[test]
fn a_full_table_lets_flows_go_but_no_bytes() {
    const CLIENTS: u32 = 5_000;
    const LIMIT: usize = 16;
    let tree = machine::tree();
    let records = requests(CLIENTS);
    let saved = file(&savefile(Format::Little, link_type(Wire::Ethernet), &records));
    let session = replay(Options { flow_limit: Some(LIMIT), ..options(saved.path(), &tree) });
    let mut session = session.unwrap();
    session.update().unwrap();
    let stats = session.stats_reader().read();
    assert_eq!(stats.flows, LIMIT as u64);
    assert_eq!(stats.flows_evicted + stats.flows_expired, u64::from(CLIENTS) - LIMIT as u64);
    assert!(stats.flows_evicted > 0);
    assert_eq!(accounted(&session), total(&records));
    assert_eq!(stats.bytes.unowned[Unowned::Pending as usize], 0);
    assert_eq!(bytes(session.processes())[&102], (0, stats.bytes.owned.iter().sum::<u64>()));
}

#[test]
fn more_flows_than_the_resolver_can_be_asked_about_at_once_all_find_their_owner() {
    // More than twice the queue's limit of 65,536.
    const CLIENTS: u32 = 140_000;
    let tree = machine::tree();
    // Reading these takes longer than reading a batch of the savefile.
    for port in 20_000..30_000 {
        tree.socket("udp", &format!("192.0.2.15:{port}"), "0.0.0.0:0", UNCONNECTED, port);
    }
    let records = requests(CLIENTS);
    let saved = file(&savefile(Format::Little, link_type(Wire::Ethernet), &records));
    for _ in 0..2 {
        let session = replay(Options { flow_limit: Some(200_000), ..options(saved.path(), &tree) });
        let mut session = session.unwrap();
        session.update().unwrap();
        let stats = session.stats_reader().read();
        assert_eq!(stats.bytes.unowned, [0; Unowned::COUNT]);
        assert_eq!(bytes(session.processes())[&102], (0, total(&records)));
    }
}
