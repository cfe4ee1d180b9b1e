//! Tests of rechecked flows: when and how often they are rechecked, and which answers change the owner.

use super::*;

const HERE: &str = "192.0.2.1:10";
const THERE: &str = "198.51.100.1:2";

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const RST: u8 = 0x04;

fn with(pid: i32, quality: Quality) -> std::result::Result<Owner, Unowned> {
    Ok(Owner { process: ProcId { pid, start_ticks: 1 }, quality })
}

impl PipelineFixture {
    /// Begins a connection with this owner. Returns its bytes.
    fn begin(&mut self, owner: std::result::Result<Owner, Unowned>) -> u64 {
        let bytes = self.packet(tcp(SYN, HERE, THERE));
        self.answer_all(|_| owner);
        bytes
    }

    /// Sends one more packet. Returns its bytes and the requests that it causes.
    fn more(&mut self) -> (u64, Vec<Request>) {
        let bytes = self.packet(tcp(ACK, HERE, THERE));
        self.publish(&[], usize::MAX);
        (bytes, std::mem::take(&mut self.asked))
    }
}

#[test]
fn a_connection_that_is_handed_on_is_the_new_owners_from_the_answer_on() {
    let mut bench = PipelineFixture::new(8);
    let mut before = bench.begin(exact(1));
    bench.pass(1_000);
    let (bytes, asked) = bench.more();
    before += bytes;
    assert!(asked.is_empty(), "too young");
    bench.pass(600);
    let (bytes, asked) = bench.more();
    before += bytes;
    assert_eq!(asked.len(), 1);
    assert!(asked[0].first.0 >= bench.now, "what was found at its first packet is no answer");
    let (bytes, none) = bench.more();
    before += bytes;
    assert!(none.is_empty(), "asked already");
    before += bench.packet(tcp(ACK, HERE, THERE));
    bench.publish(&[answer(&asked[0], exact(2))], usize::MAX);
    let (after, _) = bench.more();
    assert_eq!((bench.credited(1), bench.credited(2)), ((before, 0), (after, 0)));
    assert_eq!(bench.accounted(), before + after);
    // The same answer again changes nothing.
    bench.publish(&[answer(&asked[0], exact(3))], usize::MAX);
    let (more, _) = bench.more();
    assert_eq!((bench.credited(2), bench.credited(3)), ((after + more, 0), (0, 0)));
}

#[test]
fn what_is_silent_or_over_or_in_a_savefile_is_not_asked_about() {
    let mut bench = PipelineFixture::new(8);
    bench.begin(exact(1));
    bench.pass(2_000);
    bench.publish(&[], usize::MAX);
    assert!(bench.asked.is_empty(), "silent");
    bench.packet(tcp(RST, HERE, THERE));
    bench.publish(&[], usize::MAX);
    assert!(bench.asked.is_empty(), "over");
    let mut bench = PipelineFixture::new(8);
    bench.begin(exact(1));
    bench.now += 2_000_000_000;
    assert!(bench.more().1.is_empty(), "nobody has told of time");
}

#[test]
fn a_flow_is_asked_about_thrice_at_most() {
    let mut bench = PipelineFixture::new(8);
    bench.begin(exact(1));
    let mut ages = Vec::new();
    for half_seconds in 1..200 {
        bench.pass(500);
        let (_, asked) = bench.more();
        ages.extend(asked.iter().map(|_| half_seconds));
        let answers: Vec<_> = asked.iter().map(|request| answer(request, exact(1))).collect();
        bench.publish(&answers, usize::MAX);
    }
    assert_eq!(ages, [3, 10, 60]);
}

#[test]
fn an_answer_that_says_less_changes_nothing() {
    use Quality::{Exact, Guessed, Shared};
    let cases = [
        (with(1, Exact), Err(Unowned::NoSocket), [1, 1]),
        (with(1, Exact), with(2, Guessed), [1, 1]),
        (with(1, Shared), with(2, Guessed), [1, 1]),
        (with(1, Guessed), with(2, Guessed), [2, 2]),
        (with(1, Guessed), with(2, Shared), [2, 2]),
        (with(1, Shared), with(2, Shared), [2, 2]),
        (with(1, Shared), with(2, Exact), [2, 2]),
        (with(1, Exact), with(2, Exact), [2, 2]),
        // The first answer may have come between fork and exec; the second cannot.
        (with(1, Exact), with(2, Shared), [1, 2]),
    ];
    for (known, found, owners) in cases {
        let mut bench = PipelineFixture::new(8);
        bench.begin(known);
        for (wait, owner) in [1_600, 4_000].into_iter().zip(owners) {
            bench.pass(wait);
            let (_, asked) = bench.more();
            assert_eq!(asked.len(), 1, "{known:?}, {found:?}");
            bench.publish(&[answer(&asked[0], found)], usize::MAX);
            let had = bench.credited(owner);
            let (bytes, _) = bench.more();
            assert_eq!(bench.credited(owner).0, had.0 + bytes, "{known:?}, {found:?}");
        }
    }
}

#[test]
fn what_turns_out_to_be_shared_is_flagged_at_once() {
    let mut bench = PipelineFixture::new(8);
    bench.begin(with(1, Quality::Exact));
    bench.pass(1_600);
    let (_, asked) = bench.more();
    bench.publish(&[answer(&asked[0], with(1, Quality::Shared))], usize::MAX);
    let (bytes, _) = bench.more();
    assert_eq!(bench.ledger.lock().totals().owned[Quality::Shared as usize], bytes);
}

#[test]
fn so_many_are_asked_about_a_second_and_new_flows_come_first() {
    const FLOWS: u16 = 1_000;
    let mut bench = PipelineFixture::new(2_048);
    let carry = |bench: &mut PipelineFixture, ports: std::ops::Range<u16>| {
        for port in ports {
            bench.packet(udp(&format!("{HOST}:{port}"), THERE));
        }
    };
    carry(&mut bench, 1..FLOWS + 1);
    bench.answer_all(|_| exact(1));
    bench.pass(10_000);
    let round = |bench: &mut PipelineFixture, room| {
        carry(bench, 1..FLOWS + 1);
        bench.publish(&[], room);
        std::mem::take(&mut bench.asked).len()
    };
    assert_eq!(round(&mut bench, 100), 100, "no more room");
    assert_eq!(round(&mut bench, usize::MAX), 150, "a second's worth");
    assert_eq!(round(&mut bench, usize::MAX), 0);
    bench.pass(100);
    assert_eq!(round(&mut bench, usize::MAX), 25);
    bench.pass(20_000);
    for port in FLOWS + 1..FLOWS + 11 {
        bench.packet(tcp(0x10, &format!("{HOST}:{port}"), THERE));
    }
    carry(&mut bench, 1..FLOWS + 1);
    bench.publish(&[], 15);
    let ports: Vec<u16> = bench.asked.iter().map(|request| request.key.local.port).collect();
    assert_eq!(ports.len(), 15);
    assert_eq!(ports.iter().filter(|&&port| port > FLOWS).count(), 10, "{ports:?}");
}

#[test]
fn who_has_ended_is_not_found_again_by_what_was_known_of_the_first_packet() {
    let mut bench = PipelineFixture::new(8);
    bench.begin(exact(1));
    bench.ledger.lock().close(ProcId { pid: 1, start_ticks: 1 }, std::time::Instant::now());
    let (_, asked) = bench.more();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].first.0 >= bench.now, "the first look has found the one that has ended");
}

#[test]
fn an_owner_that_ends_while_its_flow_is_asked_about_again_leaves_one_answer() {
    let mut bench = PipelineFixture::new(8);
    let mut before = bench.begin(exact(1));
    bench.pass(2_000);
    let (bytes, again) = bench.more();
    before += bytes;
    bench.fetch();
    bench.ledger.lock().close(ProcId { pid: 1, start_ticks: 1 }, std::time::Instant::now());
    let (late, ended) = bench.more();
    assert_eq!((again.len(), ended.len()), (1, 1));
    bench.publish(&[answer(&again[0], exact(2)), answer(&ended[0], exact(3))], usize::MAX);
    let (after, _) = bench.more();
    assert_eq!((bench.credited(1), bench.credited(2), bench.credited(3)), ((before, 0), (after, 0), (0, 0)));
    assert_eq!(bench.unowned(Unowned::OwnerEnded), late);
}
