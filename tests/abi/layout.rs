//! The frozen layout of every structure and value of every name of the interface. C, C++ and Rust must agree
//! with what programs compiled years ago have built in.

use crate::tools::{compiler, finished};
use capture::internals::abi;
use std::fmt::Write as _;
use std::time::Duration;

/// The frozen layout of one structure.
struct Frozen {
    name: &'static str,
    size: usize,
    rust_size: usize,
    fields: Vec<Field>,
}

struct Field {
    name: &'static str,
    offset: usize,
    rust_offset: usize,
    c_type: &'static str,
}

macro_rules! frozen {
    ($name:ident, $size:literal, { $($field:ident: $offset:literal, $c_type:literal;)* }) => {
        Frozen {
            name: stringify!($name),
            size: $size,
            rust_size: size_of::<abi::$name>(),
            fields: vec![$(Field {
                name: stringify!($field).trim_start_matches("r#"),
                offset: $offset,
                rust_offset: std::mem::offset_of!(abi::$name, $field),
                c_type: $c_type,
            }),*],
        }
    };
}

fn structures() -> Vec<Frozen> {
    vec![
        frozen!(CaptureInitt, 48, {
            logfile: 0, "const char *";
            ms: 8, "int32_t";
            snaplen: 12, "int32_t";
            promise: 16, "int32_t";
            fliter: 24, "const char *";
            errorbuf: 32, "char *";
            r#loop: 40, "LoopType";
        }),
        frozen!(Process_t, 968, {
            name: 0, "char [128]";
            cmdline: 128, "char [512]";
            user: 640, "char [128]";
            group: 768, "char [128]";
            pid: 896, "pid_t";
            uid: 900, "uid_t";
            gid: 904, "gid_t";
            fdCnt: 908, "uint32_t";
            memory: 912, "uint64_t";
            cpuPercent: 920, "double";
            memPercent: 928, "double";
            ioRead: 936, "uint64_t";
            ioWrite: 944, "uint64_t";
            recv: 952, "uint64_t";
            send: 960, "uint64_t";
        }),
        frozen!(Packet_t, 152, {
            hash: 0, "char [128]";
            family: 128, "PacketType";
            packet: 136, "uint8_t *";
            packetSize: 144, "uint32_t";
        }),
        frozen!(CaptureOptions, 184, {
            size: 0, "size_t";
            devices: 8, "const char *";
            savefile: 16, "const char *";
            filter: 24, "const char *";
            local_addresses: 32, "const char *";
            pids: 40, "const pid_t *";
            pid_count: 48, "size_t";
            users: 56, "const char *const *";
            user_count: 64, "size_t";
            names: 72, "const char *const *";
            name_count: 80, "size_t";
            log_file: 88, "const char *";
            log_handler: 96, "CaptureLogHandler";
            log_user_data: 104, "void *";
            log_level: 112, "CaptureLogLevel";
            disable: 116, "uint32_t";
            promiscuous: 120, "uint32_t";
            snaplen: 124, "uint32_t";
            timeout_ms: 128, "uint32_t";
            interval_ms: 132, "uint32_t";
            buffer_bytes: 136, "uint64_t";
            flow_limit: 144, "uint64_t";
            packet_bytes: 152, "uint64_t";
            namespaces: 160, "const char *";
            engine: 168, "CaptureEngine";
            flows: 172, "uint32_t";
            ended_flow_limit: 176, "uint32_t";
            enable: 180, "uint32_t";
        }),
        frozen!(CaptureProcess, 312, {
            valid: 0, "uint32_t";
            pid: 4, "pid_t";
            parent: 8, "pid_t";
            uid: 12, "uid_t";
            gid: 16, "gid_t";
            threads: 20, "uint32_t";
            descriptors: 24, "uint32_t";
            state: 28, "uint32_t";
            name: 32, "const char *";
            name_length: 40, "size_t";
            command_line: 48, "const char *";
            command_line_length: 56, "size_t";
            user: 64, "const char *";
            group: 72, "const char *";
            start_time_ns: 80, "uint64_t";
            cpu_user_ns: 88, "uint64_t";
            cpu_system_ns: 96, "uint64_t";
            cpu_percent: 104, "double";
            resident_bytes: 112, "uint64_t";
            virtual_bytes: 120, "uint64_t";
            memory_percent: 128, "double";
            read_chars: 136, "uint64_t";
            write_chars: 144, "uint64_t";
            read_bytes: 152, "uint64_t";
            write_bytes: 160, "uint64_t";
            send_bytes: 168, "uint64_t";
            receive_bytes: 176, "uint64_t";
            send_packets: 184, "uint64_t";
            receive_packets: 192, "uint64_t";
            uncertain_bytes: 200, "uint64_t";
            connections: 208, "const CaptureConnections *";
            minor_faults: 216, "uint64_t";
            major_faults: 224, "uint64_t";
            voluntary_switches: 232, "uint64_t";
            involuntary_switches: 240, "uint64_t";
            cgroup: 248, "const char *";
            cgroup_length: 256, "size_t";
            shared_bytes: 264, "uint64_t";
            proportional_bytes: 272, "uint64_t";
            own_read_chars: 280, "uint64_t";
            own_write_chars: 288, "uint64_t";
            own_read_bytes: 296, "uint64_t";
            own_write_bytes: 304, "uint64_t";
        }),
        frozen!(CaptureConnections, 296, {
            connects: 0, "uint64_t";
            accepts: 8, "uint64_t";
            closes: 16, "uint64_t";
            sends: 24, "uint64_t";
            receives: 32, "uint64_t";
            responses: 40, "uint64_t [32]";
        }),
        frozen!(CaptureFlow, 224, {
            id: 0, "uint64_t";
            valid: 8, "uint32_t";
            protocol: 12, "uint32_t";
            local_address: 16, "uint8_t [16]";
            remote_address: 32, "uint8_t [16]";
            local_port: 48, "uint16_t";
            remote_port: 50, "uint16_t";
            owner_quality: 52, "CaptureOwnerQuality";
            pid: 56, "pid_t";
            state: 60, "CaptureFlowState";
            process_start_ns: 64, "uint64_t";
            namespace_inode: 72, "uint64_t";
            cookie: 80, "uint64_t";
            role: 88, "CaptureFlowRole";
            tcp_state: 92, "uint32_t";
            opened_ns: 96, "uint64_t";
            established_ns: 104, "uint64_t";
            last_ns: 112, "uint64_t";
            send_bytes: 120, "uint64_t";
            receive_bytes: 128, "uint64_t";
            send_packets: 136, "uint64_t";
            receive_packets: 144, "uint64_t";
            connect_latency_ns: 152, "uint64_t";
            smoothed_rtt_ns: 160, "uint64_t";
            retransmits: 168, "uint64_t";
            response_count: 176, "uint64_t";
            response_sum_ns: 184, "uint64_t";
            response_minimum_ns: 192, "uint64_t";
            response_maximum_ns: 200, "uint64_t";
            duration_ns: 208, "uint64_t";
            reason: 216, "CaptureFlowReason";
            error: 220, "int32_t";
        }),
        frozen!(CapturePacket, 64, {
            time_ns: 0, "uint64_t";
            data: 8, "const uint8_t *";
            captured_length: 16, "uint32_t";
            wire_length: 20, "uint32_t";
            source_address: 24, "uint8_t [16]";
            destination_address: 40, "uint8_t [16]";
            source_port: 56, "uint16_t";
            destination_port: 58, "uint16_t";
            protocol: 60, "uint32_t";
        }),
        frozen!(CaptureHandlers, 48, {
            size: 0, "size_t";
            user_data: 8, "void *";
            process: 16, "CaptureProcessHandler";
            packet: 24, "CapturePacketHandler";
            packet_limit: 32, "uint64_t";
            flow: 40, "CaptureFlowHandler";
        }),
        frozen!(CaptureStats, 424, {
            size: 0, "size_t";
            frames: 8, "uint64_t";
            frame_bytes: 16, "uint64_t";
            undecoded_truncated: 24, "uint64_t";
            undecoded_not_ip: 32, "uint64_t";
            undecoded_malformed: 40, "uint64_t";
            lost_in_kernel: 48, "uint64_t";
            lost_in_device: 56, "uint64_t";
            lost_packets: 64, "uint64_t";
            lost_log_lines: 72, "uint64_t";
            devices: 80, "uint64_t";
            flows: 88, "uint64_t";
            flows_expired: 96, "uint64_t";
            flows_evicted: 104, "uint64_t";
            flows_waiting: 112, "uint64_t";
            bytes_exact: 120, "uint64_t";
            bytes_shared: 128, "uint64_t";
            bytes_guessed: 136, "uint64_t";
            bytes_pending: 144, "uint64_t";
            bytes_no_socket: 152, "uint64_t";
            bytes_no_holder: 160, "uint64_t";
            bytes_ambiguous: 168, "uint64_t";
            bytes_not_permitted: 176, "uint64_t";
            bytes_queue_full: 184, "uint64_t";
            bytes_fragment: 192, "uint64_t";
            bytes_not_local: 200, "uint64_t";
            bytes_no_ports: 208, "uint64_t";
            bytes_owner_ended: 216, "uint64_t";
            bytes_unreadable: 224, "uint64_t";
            processes_skipped: 232, "uint64_t";
            update_ns: 240, "uint64_t";
            missing_capabilities: 248, "uint64_t";
            early_lookup_packets: 256, "uint64_t";
            early_lookup_found: 264, "uint64_t";
            early_lookup_too_late: 272, "uint64_t";
            early_lookup_not_found: 280, "uint64_t";
            early_lookup_queue_full: 288, "uint64_t";
            early_lookup_evicted: 296, "uint64_t";
            connections_checked: 304, "uint64_t";
            connections_incomplete: 312, "uint64_t";
            bytes_recovered: 320, "uint64_t";
            close_events_lost: 328, "uint64_t";
            devices_pending: 336, "uint64_t";
            lost_flows: 344, "uint64_t";
            offloaded_frames: 352, "uint64_t";
            offloaded_packets: 360, "uint64_t";
            estimated_bytes: 368, "uint64_t";
            engine: 376, "CaptureEngine";
            socket_probes: 380, "CaptureProbeState";
            sample_probes: 384, "CaptureProbeState";
            socket_programs: 388, "uint32_t";
            bytes_before_capture: 392, "uint64_t";
            sampled_ns: 400, "uint64_t";
            sampled_before_ns: 408, "uint64_t";
            replay_finished: 416, "uint64_t";
        }),
    ]
}

/// Every enumeration with its values. Each enumeration is 4 bytes wide.
const ENUMERATIONS: &[(&str, &[(&str, i64)])] = &[
    ("LoopType", &[("SELECT", 0), ("EPOLL", 1), ("NONE", 2)]),
    ("CaptureAction", &[("ACTION_UPDATE", 0), ("ACTION_REMOVE", 1)]),
    ("PacketType", &[("P_TCP", 0), ("P_UDP", 1)]),
    (
        "CaptureEngine",
        &[("CAPTURE_ENGINE_PCAP", 0), ("CAPTURE_ENGINE_KERNEL", 1), ("CAPTURE_ENGINE_AUTO", 2)],
    ),
    (
        "CaptureProbeState",
        &[
            ("CAPTURE_PROBE_STATE_OFF", 0),
            ("CAPTURE_PROBE_STATE_ACTIVE", 1),
            ("CAPTURE_PROBE_STATE_NOT_BUILT", 2),
            ("CAPTURE_PROBE_STATE_NO_TYPES", 3),
            ("CAPTURE_PROBE_STATE_NOT_PERMITTED", 4),
            ("CAPTURE_PROBE_STATE_NOT_SUPPORTED", 5),
            ("CAPTURE_PROBE_STATE_NO_MEMORY", 6),
            ("CAPTURE_PROBE_STATE_NO_CGROUP", 7),
            ("CAPTURE_PROBE_STATE_PID_NAMESPACE", 8),
            ("CAPTURE_PROBE_STATE_NO_DESCRIPTOR", 9),
        ],
    ),
    (
        "CaptureLogLevel",
        &[
            ("CAPTURE_LOG_LEVEL_DEFAULT", 0),
            ("CAPTURE_LOG_LEVEL_ERROR", 1),
            ("CAPTURE_LOG_LEVEL_WARN", 2),
            ("CAPTURE_LOG_LEVEL_INFO", 3),
            ("CAPTURE_LOG_LEVEL_DEBUG", 4),
            ("CAPTURE_LOG_LEVEL_TRACE", 5),
            ("CAPTURE_LOG_LEVEL_OFF", 6),
        ],
    ),
    (
        "CaptureOwnerQuality",
        &[
            ("CAPTURE_OWNER_QUALITY_NONE", 0),
            ("CAPTURE_OWNER_QUALITY_EXACT", 1),
            ("CAPTURE_OWNER_QUALITY_SHARED", 2),
            ("CAPTURE_OWNER_QUALITY_GUESSED", 3),
        ],
    ),
    (
        "CaptureFlowState",
        &[
            ("CAPTURE_FLOW_STATE_UNKNOWN", 0),
            ("CAPTURE_FLOW_STATE_OPENING", 1),
            ("CAPTURE_FLOW_STATE_OPEN", 2),
            ("CAPTURE_FLOW_STATE_CLOSING", 3),
            ("CAPTURE_FLOW_STATE_ENDED", 4),
        ],
    ),
    (
        "CaptureFlowRole",
        &[
            ("CAPTURE_FLOW_ROLE_UNKNOWN", 0),
            ("CAPTURE_FLOW_ROLE_OPENED", 1),
            ("CAPTURE_FLOW_ROLE_ACCEPTED", 2),
        ],
    ),
    (
        "CaptureFlowReason",
        &[
            ("CAPTURE_FLOW_REASON_UNKNOWN", 0),
            ("CAPTURE_FLOW_REASON_ORDERLY", 1),
            ("CAPTURE_FLOW_REASON_RESET", 2),
            ("CAPTURE_FLOW_REASON_TIMED_OUT", 3),
            ("CAPTURE_FLOW_REASON_REFUSED", 4),
            ("CAPTURE_FLOW_REASON_ABORTED", 5),
        ],
    ),
    (
        "CaptureCode",
        &[
            ("CAPTURE_CODE_NO_DEVICE", 1),
            ("CAPTURE_CODE_OPEN_DEVICE", 2),
            ("CAPTURE_CODE_COMPILE_FILTER", 3),
            ("CAPTURE_CODE_SET_FILTER", 4),
            ("CAPTURE_CODE_NOT_INITIALISED", 5),
            ("CAPTURE_CODE_OPEN_DIRECTORY", 6),
            ("CAPTURE_CODE_PROCESS_INIT", 35),
            ("CAPTURE_CODE_PROCESS_FORMAT", 36),
            ("CAPTURE_CODE_PROCESS_OPEN", 37),
            ("CAPTURE_CODE_PROCESS_OPEN_DIRECTORY", 38),
            ("CAPTURE_CODE_PACKET_FORMAT", 41),
            ("CAPTURE_CODE_ADDRESS_NOT_FOUND", 43),
            ("CAPTURE_CODE_INODE_NOT_FOUND", 44),
            ("CAPTURE_CODE_INVALID_ARGUMENT", 100),
            ("CAPTURE_CODE_BUSY", 101),
            ("CAPTURE_CODE_FORKED", 102),
            ("CAPTURE_CODE_ALREADY_OPEN", 103),
            ("CAPTURE_CODE_LOG_FILE", 104),
            ("CAPTURE_CODE_SAVEFILE", 105),
            ("CAPTURE_CODE_THREAD", 106),
            ("CAPTURE_CODE_SYSTEM_RESOURCE", 107),
            ("CAPTURE_CODE_SESSION_FAILED", 108),
            ("CAPTURE_CODE_INTERNAL", 109),
        ],
    ),
];

/// Every other constant.
const CONSTANTS: &[(&str, i64)] = &[
    ("CAPTURE_COMMAN_SIZE", 128),
    ("CAPTURE_CMDLINE_SIZE", 512),
    ("CAPTURE_ERROR_SIZE", 256),
    ("CAPTURE_OK", 0),
    ("CAPTURE_DISABLE_NETWORK", 1),
    ("CAPTURE_DISABLE_MEMORY", 2),
    ("CAPTURE_DISABLE_IO", 4),
    ("CAPTURE_DISABLE_DESCRIPTORS", 8),
    ("CAPTURE_DISABLE_COMMAND_LINE", 16),
    ("CAPTURE_DISABLE_PROBES", 32),
    ("CAPTURE_ENABLE_SWITCHES", 1),
    ("CAPTURE_ENABLE_CGROUPS", 2),
    ("CAPTURE_ENABLE_PROPORTIONAL", 4),
    ("CAPTURE_ENABLE_WAIT_FOR_ENDED", 8),
    ("CAPTURE_ENABLE_REPLAY_OWNERS", 16),
    ("CAPTURE_PROGRAMS_SOCKETS", 1),
    ("CAPTURE_PROGRAMS_CONNECTIONS", 2),
    ("CAPTURE_PROGRAMS_SENDS", 4),
    ("CAPTURE_PROGRAMS_RECEIVES", 8),
    ("CAPTURE_PROGRAMS_PACKETS", 16),
    ("CAPTURE_PROGRAMS_DIRECT_PACKETS", 32),
    ("CAPTURE_PROGRAMS_LATE_PACKETS", 64),
    ("CAPTURE_VALID_CPU", 1),
    ("CAPTURE_VALID_MEMORY", 2),
    ("CAPTURE_VALID_IO", 4),
    ("CAPTURE_VALID_DESCRIPTORS", 8),
    ("CAPTURE_VALID_COMMAND_LINE", 16),
    ("CAPTURE_VALID_USER", 32),
    ("CAPTURE_VALID_NETWORK", 64),
    ("CAPTURE_VALID_CPU_PERCENT", 128),
    ("CAPTURE_VALID_CONNECTIONS", 256),
    ("CAPTURE_FLOW_VALID_NAMESPACE", 1),
    ("CAPTURE_FLOW_VALID_OPENED", 2),
    ("CAPTURE_FLOW_VALID_ESTABLISHED", 4),
    ("CAPTURE_FLOW_VALID_ROLE", 8),
    ("CAPTURE_FLOW_VALID_TRAFFIC", 16),
    ("CAPTURE_FLOW_VALID_CONNECT_LATENCY", 32),
    ("CAPTURE_FLOW_VALID_SMOOTHED_RTT", 64),
    ("CAPTURE_FLOW_VALID_RETRANSMITS", 128),
    ("CAPTURE_FLOW_VALID_RESPONSE", 256),
    ("CAPTURE_FLOW_VALID_DURATION", 512),
    ("CAPTURE_FLOW_VALID_REASON", 1024),
    ("CAPTURE_FLOW_VALID_ERROR", 2048),
    ("CAPTURE_FLOW_VALID_TCP_STATE", 4096),
    ("CAPTURE_FLOW_VALID_COOKIE", 8192),
    ("CAPTURE_RESPONSE_BUCKETS", 32),
    ("CAPTURE_VALID_SWITCHES", 512),
    ("CAPTURE_VALID_CGROUP", 1024),
    ("CAPTURE_VALID_OWN_BYTES", 2048),
    ("CAPTURE_VALID_OWN_CHARS", 4096),
    ("CAPTURE_VALID_PROPORTIONAL", 8192),
];

/// Returns claims about the header. Each is a line that compiles in C and in C++ only if it is true.
fn claims() -> String {
    let mut text = String::from("#include <libcapture.h>\n");
    let mut claim = |what: &str| {
        // C99 has no static assertion, but rejects an array of negative size.
        let line = text.lines().count();
        writeln!(text, "typedef char claim_{line}[({what}) ? 1 : -1];").unwrap();
    };
    for structure in structures() {
        let Frozen { name, size, .. } = structure;
        claim(&format!("sizeof({name}) == {size}"));
        for Field { name: field, offset, .. } in structure.fields {
            claim(&format!("offsetof({name}, {field}) == {offset}"));
        }
    }
    for (name, values) in ENUMERATIONS {
        claim(&format!("sizeof({name}) == 4"));
        values.iter().for_each(|(value, number)| claim(&format!("{value} == {number}")));
    }
    CONSTANTS.iter().for_each(|(name, number)| claim(&format!("{name} == {number}")));
    // The tags that sources of the classic interface may use.
    claim("sizeof(struct Process_s) == 968 && sizeof(struct Packet_s) == 152");
    text + "int main(void) { return 0; }\n"
}

/// Returns claims about types, which only C++ can state.
fn type_claims() -> String {
    let mut text = String::from("#include <type_traits>\n");
    for structure in structures() {
        for Field { name: field, c_type, .. } in structure.fields {
            let claim = format!("std::is_same<decltype({}::{field}), {c_type}>::value", structure.name);
            writeln!(text, "static_assert({claim}, \"{field}\");").unwrap();
        }
    }
    let functions = [
        ("ProcessInfoCallback", "void (*)(CaptureAction, const Process_t *, uint32_t *)"),
        ("PacketCallback", "void (*)(const Packet_t *, uint32_t *)"),
        ("CaptureLogHandler", "void (*)(void *, CaptureLogLevel, const char *)"),
        ("CaptureProcessHandler", "void (*)(void *, CaptureAction, const CaptureProcess *, size_t, size_t)"),
        ("CaptureFlowHandler", "void (*)(void *, CaptureAction, const CaptureFlow *, size_t, size_t)"),
        ("CapturePacketHandler", "void (*)(void *, const CapturePacket *, size_t, size_t)"),
        ("decltype(&CaptureInit)", "int32_t (*)(const CaptureInitt *, ProcessInfoCallback, PacketCallback)"),
        ("decltype(&CaptureUpdate)", "int32_t (*)(int32_t)"),
        ("decltype(&CaptureExit)", "int32_t (*)()"),
        ("decltype(&CaptureSessionOpen)", "int32_t (*)(const CaptureOptions *, CaptureSession **)"),
        ("decltype(&CaptureSessionUpdate)", "int32_t (*)(CaptureSession *, const CaptureHandlers *)"),
        ("decltype(&CaptureSessionPackets)", "int32_t (*)(CaptureSession *, const CaptureHandlers *)"),
        ("decltype(&CaptureSessionDescriptor)", "int32_t (*)(const CaptureSession *)"),
        ("decltype(&CaptureSessionStats)", "int32_t (*)(const CaptureSession *, CaptureStats *)"),
        ("decltype(&CaptureSessionClose)", "int32_t (*)(CaptureSession *)"),
        ("decltype(&CaptureVersion)", "uint32_t (*)()"),
        ("decltype(&CaptureStrError)", "const char *(*)(int32_t)"),
        ("decltype(&CaptureErrorText)", "const char *(*)()"),
    ];
    for (name, signature) in functions {
        writeln!(text, "static_assert(std::is_same<{name}, {signature}>::value, \"{name}\");").unwrap();
    }
    text
}

fn compiles(name: &str, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    std::fs::write(&file, text).unwrap();
    let mut compile = compiler(name);
    let compiled = finished(compile.arg("-fsyntax-only").arg(&file), Duration::from_secs(60));
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
}

#[test]
fn c_sees_the_frozen_layout() {
    compiles("layout.c", &claims());
}

#[test]
fn cpp_sees_the_frozen_layout_and_types() {
    compiles("layout.cc", &(claims() + &type_claims()));
}

#[test]
fn rust_sees_the_frozen_layout() {
    for structure in structures() {
        assert_eq!(structure.rust_size, structure.size, "{}", structure.name);
        for field in structure.fields {
            assert_eq!(field.rust_offset, field.offset, "{}.{}", structure.name, field.name);
        }
    }
}

#[test]
fn nothing_of_the_header_is_missing_here() {
    let header = std::fs::read_to_string(crate::tools::package().join("include/libcapture.h")).unwrap();
    let named = |prefix: &str| header.lines().filter(|line| line.starts_with(prefix)).count();
    let structures = structures();
    let definitions = header.lines().filter(|line| line.starts_with("typedef struct") && line.ends_with('{'));
    assert_eq!(definitions.count(), structures.len());
    assert_eq!(named("typedef enum"), ENUMERATIONS.len());
    assert_eq!(named("#define CAPTURE_"), CONSTANTS.len() + 3, "all but the three numbers of the version");
    let members = |opening: &'static str| {
        let blocks = header.split(opening).skip(1).map(|rest| rest.split("\n}").next().unwrap());
        let lines = blocks.flat_map(str::lines).filter(|line| !line.contains("//"));
        lines.filter(|line| line.starts_with("    ") && line.ends_with([';', ','])).count()
    };
    let fields: usize = structures.iter().map(|structure| structure.fields.len()).sum();
    assert_eq!(members("typedef struct "), fields);
    let values: usize = ENUMERATIONS.iter().map(|(_, values)| values.len()).sum();
    assert_eq!(members("typedef enum "), values);
}
