//! The way of a frame: the capture thread decodes it, counts it in its flow, and credits the flow's bytes to
//! the ledger.
//!
//! Flows without an owner go to `lookup` as requests, and its answers return with a later batch. Closed
//! sockets come from `flows` and are reconciled with the counted bytes. An update waits at the drain barrier
//! until everything captured before it is accounted.

mod batch_end;
mod capture_thread;
mod drain_barrier;
mod flow_cache;
mod frame_pipeline;
mod locality;
mod looped;
mod packet_queue;
mod pending_departures;
mod recheck;
mod steps;
mod tcp_reconciler;

pub use capture_thread::{CaptureShared, CaptureThread};
pub use drain_barrier::DrainBarrier;
pub use frame_pipeline::FramePipeline;
pub use packet_queue::{PacketBatch, PacketEntry, PacketQueue};
