//! Flows for tests, and lists of what a table hands out.

use super::{Departed, FlowId, FlowTable};
use crate::model::{Address, Endpoint, FlowKey, Namespace, Protocol};

/// One of as many flows as there are numbers.
pub fn key(protocol: Protocol, number: u32) -> FlowKey {
    let [a, b, c, d] = number.to_be_bytes();
    FlowKey {
        local: Endpoint::new(Address::v4([10, 0, 0, 1]), 1_000),
        remote: Endpoint::new(Address::v4([11, a, b, c]), u16::from(d)),
        protocol,
        namespace: Namespace::HOME,
    }
}

/// The flows that are to be asked about.
pub fn fresh(table: &mut FlowTable) -> Vec<FlowId> {
    let mut ids = Vec::new();
    table.drain_fresh(|id, _| ids.push(id));
    ids
}

/// The flows that have left.
pub fn departed(table: &mut FlowTable) -> Vec<Departed> {
    let mut all = Vec::new();
    table.drain_departed(|one| all.push(one));
    all
}
