#!/usr/bin/env python3
"""The session interface from Python: every three seconds the processes with traffic, in natural units.

    ./exa_capture.py [rounds] [--flows] [--library PATH]

It stops after `rounds` updates; with 0 or without the argument, at SIGINT or SIGTERM. With --flows it also shows each
flow, and the reason of its end. It requires only Python. The library defaults to libcapture.so.1. Network figures
require CAP_NET_RAW.
"""

import argparse
import ctypes
import ipaddress
import signal
import sys
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_int, c_int32, c_size_t, c_uint8, c_uint16, c_uint32
from ctypes import c_uint64, c_void_p

INTERVAL_SECONDS = 3
VALID_CPU_PERCENT = 128
VALID_NETWORK = 64
ACTION_REMOVE = 1
LOG_LEVEL_WARN = 2
FLOW_CONNECT_LATENCY = 32
FLOW_SMOOTHED_RTT = 64
FLOW_STATES = ["unknown", "opening", "open", "closing", "ended"]
FLOW_REASONS = ["", "orderly", "reset", "timed out", "refused", "aborted"]

# The declarations of libcapture.h. pid_t is an int, uid_t and gid_t are unsigned ints on Linux.
LogHandler = CFUNCTYPE(None, c_void_p, c_int, c_char_p)


class Options(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("devices", c_char_p), ("savefile", c_char_p), ("filter", c_char_p),
        ("local_addresses", c_char_p), ("pids", POINTER(c_int)), ("pid_count", c_size_t),
        ("users", POINTER(c_char_p)), ("user_count", c_size_t), ("names", POINTER(c_char_p)),
        ("name_count", c_size_t), ("log_file", c_char_p), ("log_handler", LogHandler), ("log_user_data", c_void_p),
        ("log_level", c_int), ("disable", c_uint32), ("promiscuous", c_uint32), ("snaplen", c_uint32),
        ("timeout_ms", c_uint32), ("interval_ms", c_uint32), ("buffer_bytes", c_uint64), ("flow_limit", c_uint64),
        ("packet_bytes", c_uint64), ("namespaces", c_char_p), ("engine", c_int), ("flows", c_uint32),
        ("ended_flow_limit", c_uint32), ("enable", c_uint32),
    ]


class Process(ctypes.Structure):
    _fields_ = [
        ("valid", c_uint32), ("pid", c_int), ("parent", c_int), ("uid", c_uint32), ("gid", c_uint32),
        ("threads", c_uint32), ("descriptors", c_uint32), ("state", c_uint32), ("name", c_void_p),
        ("name_length", c_size_t), ("command_line", c_void_p), ("command_line_length", c_size_t), ("user", c_char_p),
        ("group", c_char_p), ("start_time_ns", c_uint64), ("cpu_user_ns", c_uint64), ("cpu_system_ns", c_uint64),
        ("cpu_percent", c_double), ("resident_bytes", c_uint64), ("virtual_bytes", c_uint64),
        ("memory_percent", c_double), ("read_chars", c_uint64), ("write_chars", c_uint64), ("read_bytes", c_uint64),
        ("write_bytes", c_uint64), ("send_bytes", c_uint64), ("receive_bytes", c_uint64), ("send_packets", c_uint64),
        ("receive_packets", c_uint64), ("uncertain_bytes", c_uint64), ("connections", c_void_p),
        ("minor_faults", c_uint64), ("major_faults", c_uint64), ("voluntary_switches", c_uint64),
        ("involuntary_switches", c_uint64), ("cgroup", c_char_p), ("cgroup_length", c_size_t),
        ("shared_bytes", c_uint64), ("proportional_bytes", c_uint64), ("own_read_chars", c_uint64),
        ("own_write_chars", c_uint64), ("own_read_bytes", c_uint64), ("own_write_bytes", c_uint64),
    ]


class Packet(ctypes.Structure):
    _fields_ = [
        ("time_ns", c_uint64), ("data", POINTER(c_uint8)), ("captured_length", c_uint32), ("wire_length", c_uint32),
        ("source_address", c_uint8 * 16), ("destination_address", c_uint8 * 16), ("source_port", c_uint16),
        ("destination_port", c_uint16), ("protocol", c_uint32),
    ]


class Flow(ctypes.Structure):
    _fields_ = [
        ("id", c_uint64), ("valid", c_uint32), ("protocol", c_uint32), ("local_address", c_uint8 * 16),
        ("remote_address", c_uint8 * 16), ("local_port", c_uint16), ("remote_port", c_uint16), ("owner_quality", c_int),
        ("pid", c_int), ("state", c_int), ("process_start_ns", c_uint64), ("namespace_inode", c_uint64),
        ("cookie", c_uint64), ("role", c_int), ("tcp_state", c_uint32), ("opened_ns", c_uint64),
        ("established_ns", c_uint64), ("last_ns", c_uint64), ("send_bytes", c_uint64), ("receive_bytes", c_uint64),
        ("send_packets", c_uint64), ("receive_packets", c_uint64), ("connect_latency_ns", c_uint64),
        ("smoothed_rtt_ns", c_uint64), ("retransmits", c_uint64), ("response_count", c_uint64),
        ("response_sum_ns", c_uint64), ("response_minimum_ns", c_uint64), ("response_maximum_ns", c_uint64),
        ("duration_ns", c_uint64), ("reason", c_int), ("error", c_int32),
    ]


ProcessHandler = CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_size_t, c_size_t)
PacketHandler = CFUNCTYPE(None, c_void_p, c_void_p, c_size_t, c_size_t)
FlowHandler = CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_size_t, c_size_t)


class Handlers(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("user_data", c_void_p), ("process", ProcessHandler), ("packet", PacketHandler),
        ("packet_limit", c_uint64), ("flow", FlowHandler),
    ]


class Stats(ctypes.Structure):
    _fields_ = [
        ("size", c_size_t), ("frames", c_uint64), ("frame_bytes", c_uint64), ("undecoded_truncated", c_uint64),
        ("undecoded_not_ip", c_uint64), ("undecoded_malformed", c_uint64), ("lost_in_kernel", c_uint64),
        ("lost_in_device", c_uint64), ("lost_packets", c_uint64), ("lost_log_lines", c_uint64), ("devices", c_uint64),
        ("flows", c_uint64), ("flows_expired", c_uint64), ("flows_evicted", c_uint64), ("flows_waiting", c_uint64),
        ("bytes_exact", c_uint64), ("bytes_shared", c_uint64), ("bytes_guessed", c_uint64),
        ("bytes_pending", c_uint64), ("bytes_no_socket", c_uint64), ("bytes_no_holder", c_uint64),
        ("bytes_ambiguous", c_uint64), ("bytes_not_permitted", c_uint64), ("bytes_queue_full", c_uint64),
        ("bytes_fragment", c_uint64), ("bytes_not_local", c_uint64), ("bytes_no_ports", c_uint64),
        ("bytes_owner_ended", c_uint64), ("bytes_unreadable", c_uint64), ("processes_skipped", c_uint64),
        ("update_ns", c_uint64), ("missing_capabilities", c_uint64), ("early_lookup_packets", c_uint64),
        ("early_lookup_found", c_uint64), ("early_lookup_too_late", c_uint64), ("early_lookup_not_found", c_uint64),
        ("early_lookup_queue_full", c_uint64), ("early_lookup_evicted", c_uint64), ("connections_checked", c_uint64),
        ("connections_incomplete", c_uint64), ("bytes_recovered", c_uint64), ("close_events_lost", c_uint64),
        ("devices_pending", c_uint64), ("lost_flows", c_uint64), ("offloaded_frames", c_uint64),
        ("offloaded_packets", c_uint64), ("estimated_bytes", c_uint64), ("engine", c_int), ("socket_probes", c_int),
        ("sample_probes", c_int), ("socket_programs", c_uint32),
    ]


def records(kind, address, count, element_size):
    """Returns the elements of an array; a later library may have larger elements than `kind`."""
    return [kind.from_address(address + index * element_size) for index in range(count)]


def text(address, length):
    """Returns text that a process chose, with unprintable characters replaced."""
    shown = ctypes.string_at(address, length).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in shown)


def socket_name(address, port):
    address = ipaddress.IPv6Address(bytes(address))
    return f"{address.ipv4_mapped}:{port}" if address.ipv4_mapped else f"[{address}]:{port}"


@LogHandler
def on_log(_user_data, _level, line):
    print(line.decode(errors="replace"), file=sys.stderr)


@ProcessHandler
def on_processes(_user_data, action, address, count, element_size):
    state = "ended" if action == ACTION_REMOVE else "live"
    busy = [p for p in records(Process, address, count, element_size) if p.receive_bytes or p.send_bytes]
    for p in sorted(busy, key=lambda p: p.receive_bytes + p.send_bytes, reverse=True):
        cpu = f"{p.cpu_percent:.2f}" if p.valid & VALID_CPU_PERCENT else "-"
        cpu_seconds = (p.cpu_user_ns + p.cpu_system_ns) / 1e9
        print(f"{state:5} {p.pid:7} {p.receive_bytes:13} {p.send_bytes:13} {p.receive_packets:9} {p.send_packets:9} "
              f"{p.uncertain_bytes:9} {cpu:>6} {cpu_seconds:9.2f} {p.resident_bytes:13} {chr(p.state)} {p.threads:4} "
              f"{p.user.decode(errors='replace'):12} {text(p.name, p.name_length):16} "
              f"{text(p.command_line, p.command_line_length)}")
    if state == "live" and not any(p.valid & VALID_NETWORK for p in records(Process, address, count, element_size)):
        print("packets are not being captured, so there are no network figures")


@PacketHandler
def on_packets(_user_data, address, count, element_size):
    packets = records(Packet, address, count, element_size)
    for p in packets[-3:]:
        print(f"packet of {p.wire_length} bytes, {p.captured_length} captured: protocol {p.protocol}, "
              f"{socket_name(p.source_address, p.source_port)} to "
              f"{socket_name(p.destination_address, p.destination_port)}")


@FlowHandler
def on_flows(_user_data, _action, address, count, element_size):
    for f in records(Flow, address, count, element_size):
        connecting = f"{f.connect_latency_ns / 1e6:.3f}" if f.valid & FLOW_CONNECT_LATENCY else "-"
        rtt = f"{f.smoothed_rtt_ns / 1e6:.3f}" if f.valid & FLOW_SMOOTHED_RTT else "-"
        response = f"{f.response_sum_ns / f.response_count / 1e6:.3f}" if f.response_count else "-"
        print(f"flow {FLOW_STATES[f.state]:7} protocol {f.protocol} {socket_name(f.local_address, f.local_port)} "
              f"{socket_name(f.remote_address, f.remote_port)} of {f.pid or '-'}: received {f.receive_bytes}, "
              f"sent {f.send_bytes}, connecting {connecting} ms, round trip {rtt} ms, response {response} ms "
              f"{FLOW_REASONS[f.reason]}".rstrip())


class Library:
    """The functions in use; each raises an OSError if it returns an error code."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.CaptureErrorText.restype = c_char_p
        self.open = self.function("CaptureSessionOpen", POINTER(Options), POINTER(c_void_p))
        self.update = self.function("CaptureSessionUpdate", c_void_p, POINTER(Handlers))
        self.stats = self.function("CaptureSessionStats", c_void_p, POINTER(Stats))
        self.close = self.function("CaptureSessionClose", c_void_p)

    def function(self, name, *arguments):
        function = self.library[name]
        function.argtypes = arguments
        function.restype = c_int32
        function.errcheck = self.check
        return function

    def check(self, code, function, _arguments):
        if code != 0:
            raise OSError(code, f"{function.__name__}: {self.library.CaptureErrorText().decode(errors='replace')}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=int, nargs="?", default=0, help="how many; 0 for no end")
    parser.add_argument("--flows", action="store_true", help="show each connection, too")
    parser.add_argument("--library", default="libcapture.so.1", help="the library to load")
    arguments = parser.parse_args()

    # Blocked signals stay pending until sigtimedwait below, so that they never interrupt an update.
    stop_signals = [signal.SIGINT, signal.SIGTERM]
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)

    library = Library(arguments.library)
    options = Options(size=ctypes.sizeof(Options), log_handler=on_log, log_level=LOG_LEVEL_WARN, packet_bytes=1 << 20,
                      flows=arguments.flows)
    handlers = Handlers(size=ctypes.sizeof(Handlers), process=on_processes, packet=on_packets, flow=on_flows)
    stats = Stats(size=ctypes.sizeof(Stats))
    session = c_void_p()
    library.open(ctypes.byref(options), ctypes.byref(session))
    try:
        round_number = 1
        while True:
            print(f"round {round_number}")
            print(f"{'STATE':5} {'PID':>7} {'RECEIVED':>13} {'SENT':>13} {'RECV PKT':>9} {'SENT PKT':>9} "
                  f"{'UNCERTAIN':>9} {'CPU%':>6} {'CPU/s':>9} {'RESIDENT':>13} S {'THR':>4} {'USER':12} {'NAME':16} "
                  f"COMMAND")
            library.update(session, ctypes.byref(handlers))
            library.stats(session, ctypes.byref(stats))
            print(f"frames: {stats.frames} of {stats.frame_bytes} bytes; lost: {stats.lost_in_kernel} in the kernel, "
                  f"{stats.lost_in_device} in devices", flush=True)
            if round_number == arguments.rounds or signal.sigtimedwait(stop_signals, INTERVAL_SECONDS):
                break
            round_number += 1
    finally:
        library.close(session)


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(str(error))
