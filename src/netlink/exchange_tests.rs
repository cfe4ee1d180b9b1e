//! Tests of requests and dumps with made-up replies.

use super::super::message::{MESSAGE_HEADER, put};
use super::*;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

const KIND: u16 = 24;
const DONE: u16 = libc::NLMSG_DONE as u16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;

/// Replies with prepared datagrams; those to the request with a number, in turn.
#[derive(Default)]
struct Replies {
    datagrams: RefCell<VecDeque<Vec<u8>>>,
    requests: RefCell<Vec<Vec<u8>>>,
    drained: Cell<usize>,
}

impl MessageSocket for Replies {
    fn send(&self, message: &[u8]) -> nix::Result<()> {
        self.requests.borrow_mut().push(message.to_vec());
        Ok(())
    }

    fn receive<'b>(&self, buffer: &'b mut [u8]) -> nix::Result<&'b [u8]> {
        let datagram = self.datagrams.borrow_mut().pop_front().ok_or(Errno::EAGAIN)?;
        put(buffer, 0, &datagram);
        Ok(&buffer[..datagram.len()])
    }

    fn drain(&self, _: &mut [u8]) -> nix::Result<()> {
        self.drained.set(self.drained.get() + 1);
        Ok(())
    }
}

fn message(kind: u16, flags: i32, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; MESSAGE_HEADER + payload.len()];
    begin(&mut message, kind, flags, sequence);
    put(&mut message, MESSAGE_HEADER, payload);
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

fn row(sequence: u32, number: u8) -> Vec<u8> {
    message(KIND, libc::NLM_F_MULTI, sequence, &[number; 4])
}

fn interrupted(sequence: u32, number: u8) -> Vec<u8> {
    message(KIND, libc::NLM_F_MULTI | libc::NLM_F_DUMP_INTR, sequence, &[number; 4])
}

fn done(sequence: u32) -> Vec<u8> {
    message(DONE, libc::NLM_F_MULTI, sequence, &0i32.to_ne_bytes())
}

fn exchange(datagrams: impl IntoIterator<Item = Vec<u8>>) -> Exchange<Replies> {
    let datagrams = RefCell::new(datagrams.into_iter().collect());
    Exchange::over(Replies { datagrams, ..Replies::default() }, 256)
}

fn dump(exchange: &mut Exchange<Replies>) -> nix::Result<Dump<Vec<u8>>> {
    exchange.dump(&mut [0; MESSAGE_HEADER + 1], KIND, |rows: &mut Vec<u8>, payload| rows.push(payload[0]))
}

fn requests(exchange: &Exchange<Replies>) -> usize {
    exchange.transport.requests.borrow().len()
}

#[test]
fn rows_are_collected_from_several_datagrams_up_to_the_end() {
    let late = [row(7, 9), message(ERROR, 0, 7, &(-libc::EPERM).to_ne_bytes())].concat();
    let mut exchange = exchange([late, [row(1, 1), row(1, 2)].concat(), [row(1, 3), done(1)].concat()]);
    assert_eq!(dump(&mut exchange), Ok(Dump { rows: vec![1, 2, 3], is_consistent: true }));
    let request = exchange.transport.requests.borrow()[0].clone();
    let sent = messages(&request).next().unwrap().unwrap();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    assert_eq!(sent, Message { kind: KIND, flags, sequence: 1, payload: &[0] });
    assert_eq!(exchange.transport.drained.get(), 0);
}

#[test]
fn an_interrupted_dump_is_restarted_without_its_rows() {
    // The mark may be at any message, also at the last one alone.
    let end = message(DONE, libc::NLM_F_MULTI | libc::NLM_F_DUMP_INTR, 2, &[]);
    let mut exchange = exchange([
        [interrupted(1, 1), row(1, 2), done(1)].concat(),
        [row(2, 1), end].concat(),
        [row(3, 2), done(3)].concat(),
    ]);
    let dumped = dump(&mut exchange).unwrap();
    assert_eq!(dumped, Dump { rows: vec![2], is_consistent: true });
    assert_eq!((dumped.consistent(), requests(&exchange)), (Ok(vec![2]), 3));
    assert_eq!(exchange.transport.drained.get(), 0, "every pass was read to its end");
}

#[test]
fn restarts_are_bounded_and_the_last_rows_are_marked() {
    let pass = |sequence| [interrupted(sequence, sequence as u8), done(sequence)].concat();
    let mut exchange = exchange((1..=10).map(pass));
    let dumped = dump(&mut exchange).unwrap();
    assert_eq!(dumped, Dump { rows: vec![MAX_PASSES as u8], is_consistent: false });
    assert_eq!((dumped.consistent(), requests(&exchange)), (Err(Errno::EAGAIN), MAX_PASSES));
}

#[test]
fn errors_end_a_dump_at_its_beginning_and_at_its_end() {
    let refused = message(ERROR, 0, 1, &(-libc::EOPNOTSUPP).to_ne_bytes());
    let failed = message(DONE, libc::NLM_F_MULTI, 2, &(-libc::ENOBUFS).to_ne_bytes());
    let cut = message(ERROR, 0, 3, &[]);
    let mut exchange = exchange([refused, [row(2, 1), failed].concat(), cut, vec![1; 9]]);
    assert_eq!(dump(&mut exchange), Err(Errno::EOPNOTSUPP));
    assert_eq!(dump(&mut exchange), Err(Errno::ENOBUFS));
    assert_eq!(dump(&mut exchange), Err(Errno::EBADMSG));
    assert_eq!(exchange.transport.drained.get(), 0, "these dumps have ended");
    assert_eq!(dump(&mut exchange), Err(Errno::EBADMSG), "a datagram that is no message");
}

#[test]
fn the_rest_of_a_dump_that_was_broken_off_is_drained_before_the_next() {
    // The second datagram of the first dump never arrives.
    let mut exchange = exchange([row(1, 1)]);
    assert_eq!(dump(&mut exchange), Err(Errno::EAGAIN));
    exchange.transport.datagrams.borrow_mut().push_back([row(2, 5), done(2)].concat());
    assert_eq!(dump(&mut exchange), Ok(Dump { rows: vec![5], is_consistent: true }));
    assert_eq!(exchange.transport.drained.get(), 1);
    exchange.transport.datagrams.borrow_mut().push_back(done(3));
    assert_eq!(dump(&mut exchange), Ok(Dump { rows: vec![], is_consistent: true }));
    assert_eq!(exchange.transport.drained.get(), 1);
}

#[test]
fn a_single_request_passes_over_the_rest_of_a_dump() {
    let mut exchange = exchange([[row(5, 1), done(5)].concat(), row(1, 3)]);
    let answer = exchange
        .ask(&mut [0; MESSAGE_HEADER], KIND, libc::NLM_F_REQUEST, |message| Some(Ok(message.payload[0])));
    assert_eq!(answer, Ok(Ok(3)));
}
