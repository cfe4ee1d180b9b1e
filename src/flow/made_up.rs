//! Testing support: keys of flows, and lists of what a table hands out.

use super::{Departed, FlowId, FlowTable};
use crate::model::{Address, Endpoint, FlowKey, Namespace, Protocol};

/// Returns the key of the flow with this number; each number has its own key.
pub fn key(protocol: Protocol, number: u32) -> FlowKey {
    let [a, b, c, d] = number.to_be_bytes();
    FlowKey {
        local: Endpoint::new(Address::v4([10, 0, 0, 1]), 1_000),
        remote: Endpoint::new(Address::v4([11, a, b, c]), u16::from(d)),
        protocol,
        namespace: Namespace::HOME,
    }
}

/// Drains the flows that are to be looked up.
pub fn fresh(table: &mut FlowTable) -> Vec<FlowId> {
    let mut ids = Vec::new();
    table.drain_fresh(|id, _| ids.push(id));
    ids
}

/// Drains the flows that have left.
pub fn departed(table: &mut FlowTable) -> Vec<Departed> {
    let mut all = Vec::new();
    table.drain_departed(|one| all.push(one));
    all
}
