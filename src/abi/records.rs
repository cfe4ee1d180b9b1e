//! Conversion of the session's records to the C structures, in reusable buffers.

use super::boundary::copy_text;
use super::classic_types::*;
use super::flow_types::*;
use super::process_types::*;
use super::session_types::*;
use crate::model::{
    CloseReason, Connections, Endpoint, FlowPhase, FlowRecord, ProcessRecord, Protocol, Quality, Role,
    Validity,
};
use crate::session::{PacketBatch, Units};
use std::ffi::c_char;
use std::fmt::Write as _;

/// Converts a process record to the classic structure.
pub fn classic_process(record: &ProcessRecord, units: &Units) -> Process_t {
    let (sample, identity) = (&record.sample, &record.identity);
    let mut process = Process_t {
        name: [0; CAPTURE_COMMAN_SIZE],
        cmdline: [0; CAPTURE_CMDLINE_SIZE],
        user: [0; CAPTURE_COMMAN_SIZE],
        group: [0; CAPTURE_COMMAN_SIZE],
        pid: sample.id.pid,
        uid: identity.uid,
        gid: identity.gid,
        fdCnt: sample.descriptors,
        memory: sample.resident_bytes / 1024,
        cpuPercent: record.cpu_percent,
        memPercent: units.memory_percent(sample.resident_bytes),
        ioRead: sample.read_chars,
        ioWrite: sample.write_chars,
        recv: record.traffic.receive_bytes,
        send: record.traffic.send_bytes,
    };
    copy_text(&identity.name, &mut process.name);
    let arguments = identity.command_line.strip_suffix(&[0]).unwrap_or(&identity.command_line);
    copy_text(arguments, &mut process.cmdline);
    copy_text(&identity.user, &mut process.user);
    copy_text(&identity.group, &mut process.group);
    process
}

/// Converts the TCP and UDP packets of a batch to the classic structure. The results point into the batch.
pub fn classic_packets(batch: &mut PacketBatch, into: &mut Vec<Packet_t>) {
    let mut hash = String::new();
    batch.for_each_mut(|entry, bytes| {
        let family = match entry.packet.protocol {
            Protocol::TCP => PacketType::P_TCP,
            Protocol::UDP => PacketType::P_UDP,
            _ => return,
        };
        hash.clear();
        let (source, destination): (Endpoint, Endpoint) = (entry.packet.source, entry.packet.destination);
        // Writing to a String cannot fail.
        let _ = write!(hash, "{source}-{destination}");
        let mut packet = Packet_t {
            hash: [0; CAPTURE_COMMAN_SIZE],
            family,
            packet: bytes.as_mut_ptr(),
            packetSize: entry.wire_len,
        };
        copy_text(hash.as_bytes(), &mut packet.hash);
        into.push(packet);
    });
}

/// Processes in the structure of the session interface, with the text that they point to.
#[derive(Default)]
pub struct ProcessArray {
    processes: Vec<CaptureProcess>,
    text: Vec<u8>,
    /// The first element serves all processes without flows.
    connections: Vec<CaptureConnections>,
}

impl ProcessArray {
    /// Replaces the contents of the array.
    pub fn fill<'r>(&mut self, records: impl Iterator<Item = &'r ProcessRecord>, units: &Units) {
        self.processes.clear();
        self.text.clear();
        self.connections.clear();
        self.connections.push(connections(&Connections::default()));
        for record in records {
            let process = self.process(record, units);
            self.processes.push(process);
        }
        // Both buffers move while they grow, so the recorded offsets become pointers only now.
        let (base, connections) = (self.text.as_ptr(), self.connections.as_ptr());
        for process in &mut self.processes {
            let CaptureProcess { name, command_line, user, group, cgroup, .. } = process;
            for place in [name, command_line, user, group, cgroup] {
                *place = base.wrapping_add(place.addr()).cast();
            }
            process.connections = match process.valid & CAPTURE_VALID_CONNECTIONS {
                0 => std::ptr::null(),
                _ => connections.wrapping_add(process.connections.addr()),
            };
        }
    }

    /// Returns the contents of the array.
    pub fn as_slice(&self) -> &[CaptureProcess] {
        &self.processes
    }

    fn process(&mut self, record: &ProcessRecord, units: &Units) -> CaptureProcess {
        let (sample, identity, traffic) = (&record.sample, &record.identity, &record.traffic);
        CaptureProcess {
            valid: record.valid.0,
            pid: sample.id.pid,
            parent: sample.parent,
            uid: identity.uid,
            gid: identity.gid,
            threads: sample.threads,
            descriptors: sample.descriptors,
            state: sample.state.into(),
            name: self.text(&identity.name),
            name_length: identity.name.len(),
            command_line: self.text(&identity.command_line),
            command_line_length: identity.command_line.len(),
            user: self.text(&identity.user),
            group: self.text(&identity.group),
            start_time_ns: units.start_time_ns(sample.id.start_ticks),
            cpu_user_ns: units.ticks_to_ns(sample.user_ticks),
            cpu_system_ns: units.ticks_to_ns(sample.system_ticks),
            cpu_percent: record.cpu_percent,
            resident_bytes: sample.resident_bytes,
            virtual_bytes: sample.virtual_bytes,
            memory_percent: units.memory_percent(sample.resident_bytes),
            read_chars: sample.read_chars,
            write_chars: sample.write_chars,
            read_bytes: sample.read_bytes,
            write_bytes: sample.write_bytes,
            send_bytes: traffic.send_bytes,
            receive_bytes: traffic.receive_bytes,
            send_packets: traffic.send_packets,
            receive_packets: traffic.receive_packets,
            uncertain_bytes: record.uncertain_bytes,
            connections: self.connections(record),
            minor_faults: sample.minor_faults,
            major_faults: sample.major_faults,
            voluntary_switches: sample.voluntary_switches,
            involuntary_switches: sample.involuntary_switches,
            cgroup: self.text(&identity.cgroup),
            cgroup_length: identity.cgroup.len(),
            shared_bytes: sample.shared_bytes,
            proportional_bytes: sample.proportional_bytes,
            own_read_chars: sample.own_read_chars,
            own_write_chars: sample.own_write_chars,
            own_read_bytes: sample.own_read_bytes,
            own_write_bytes: sample.own_write_bytes,
        }
    }

    /// Appends the activity of a process's flows and returns its index, encoded as a pointer.
    fn connections(&mut self, record: &ProcessRecord) -> *const CaptureConnections {
        let known = record.connections.as_ref().filter(|_| record.valid.has(Validity::CONNECTIONS));
        let place = known.map_or(0, |known| {
            self.connections.push(connections(known));
            self.connections.len() - 1
        });
        std::ptr::without_provenance(place)
    }

    /// Appends NUL-terminated text and returns its offset, encoded as a pointer.
    fn text(&mut self, text: &[u8]) -> *const c_char {
        let offset = self.text.len();
        self.text.extend_from_slice(text);
        self.text.push(0);
        std::ptr::without_provenance(offset)
    }
}

/// Converts the packets of a batch to the structure of the session interface. The results point into the
/// batch.
pub fn session_packets(batch: &PacketBatch, into: &mut Vec<CapturePacket>) {
    into.extend(batch.iter().map(|(entry, bytes)| CapturePacket {
        time_ns: entry.time.0,
        data: bytes.as_ptr(),
        captured_length: bytes.len() as u32,
        wire_length: entry.wire_len,
        source_address: *entry.packet.source.address.bytes(),
        destination_address: *entry.packet.destination.address.bytes(),
        source_port: entry.packet.source.port,
        destination_port: entry.packet.destination.port,
        protocol: entry.packet.protocol.0.into(),
    }));
}

fn connections(of: &Connections) -> CaptureConnections {
    let &Connections { connects, accepts, closes, sends, receives, response } = of;
    CaptureConnections { connects, accepts, closes, sends, receives, responses: response.0 }
}

/// Converts a flow record to the structure of the session interface.
pub fn session_flow(record: &FlowRecord, units: &Units) -> CaptureFlow {
    let (owner, response, traffic) = (record.owner, &record.response, &record.traffic);
    CaptureFlow {
        id: record.id,
        valid: record.valid.0,
        protocol: record.protocol.0.into(),
        local_address: *record.local.address.bytes(),
        remote_address: *record.remote.address.bytes(),
        local_port: record.local.port,
        remote_port: record.remote.port,
        owner_quality: match owner.map(|owner| owner.quality) {
            None => CaptureOwnerQuality::None,
            Some(Quality::Exact) => CaptureOwnerQuality::Exact,
            Some(Quality::Shared) => CaptureOwnerQuality::Shared,
            Some(Quality::Guessed) => CaptureOwnerQuality::Guessed,
        },
        pid: owner.map_or(0, |owner| owner.process.pid),
        state: match record.phase {
            FlowPhase::Unknown => CaptureFlowState::Unknown,
            FlowPhase::Opening => CaptureFlowState::Opening,
            FlowPhase::Open => CaptureFlowState::Open,
            FlowPhase::Closing => CaptureFlowState::Closing,
            FlowPhase::Ended => CaptureFlowState::Ended,
        },
        process_start_ns: owner.map_or(0, |owner| units.start_time_ns(owner.process.start_ticks)),
        namespace_inode: record.namespace_inode,
        cookie: record.cookie,
        role: match record.role {
            Role::Unknown => CaptureFlowRole::Unknown,
            Role::Opened => CaptureFlowRole::Opened,
            Role::Accepted => CaptureFlowRole::Accepted,
        },
        tcp_state: record.tcp_state.into(),
        opened_ns: record.opened.0,
        established_ns: record.established.0,
        last_ns: record.last.0,
        send_bytes: traffic.send_bytes,
        receive_bytes: traffic.receive_bytes,
        send_packets: traffic.send_packets,
        receive_packets: traffic.receive_packets,
        connect_latency_ns: record.connect_latency_ns,
        smoothed_rtt_ns: record.smoothed_rtt_ns,
        retransmits: record.retransmits,
        response_count: response.count,
        response_sum_ns: response.sum_ns,
        response_minimum_ns: response.minimum_ns,
        response_maximum_ns: response.maximum_ns,
        duration_ns: record.duration_ns,
        reason: match record.reason {
            CloseReason::Unknown => CaptureFlowReason::Unknown,
            CloseReason::Orderly => CaptureFlowReason::Orderly,
            CloseReason::Reset => CaptureFlowReason::Reset,
            CloseReason::TimedOut => CaptureFlowReason::TimedOut,
            CloseReason::Refused => CaptureFlowReason::Refused,
            CloseReason::Aborted => CaptureFlowReason::Aborted,
        },
        error: record.errno,
    }
}
