// The classic agent in C++: every three seconds all figures of every process, and the traffic since the last update.
//
//     c++ -std=c++11 exa_capture.cpp -o exa_capture $(pkg-config --cflags --libs capture)
//     ./exa_capture [rounds]
//
// It stops after `rounds` updates; with 0 or without the argument, at SIGINT or SIGTERM. Network figures require
// CAP_NET_RAW; I/O and descriptors of other users require CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. exa_capture.log
// names what is missing.

#include <libcapture.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

namespace {

const unsigned interval_seconds = 3;
const std::size_t conversations_shown = 5;

volatile std::sig_atomic_t stop_requested = 0;

void request_stop(int) { stop_requested = 1; }

struct Traffic {
    std::uint64_t packets = 0;
    std::uint64_t bytes = 0;

    void add(std::uint64_t length) {
        ++packets;
        bytes += length;
    }
};

// Traffic of this round; the classic callbacks have no argument for user data.
Traffic traffic_by_type[2];
std::map<std::string, Traffic> conversations;

// Names and arguments are any bytes that a process chose; control characters would spoil the terminal.
std::string printable(const char *text) {
    std::string result(text);
    std::replace_if(
        result.begin(), result.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
    return result;
}

void print_header() {
    std::printf("%-5s %7s %13s %13s %6s %6s %10s %5s %14s %14s %6s %6s %-12s %-12s %-16s %s\n", "STATE", "PID",
                "RECEIVED", "SENT", "CPU%", "MEM%", "MEMORY/kB", "FDS", "READ", "WRITTEN", "UID", "GID", "USER",
                "GROUP", "NAME", "COMMAND");
}

void print_process(const char *state, const Process_t &p) {
    std::printf("%-5s %7d %13" PRIu64 " %13" PRIu64 " %6.2f %6.2f %10" PRIu64 " %5" PRIu32 " %14" PRIu64
                " %14" PRIu64 " %6u %6u %-12s %-12s %-16s %s\n",
                state, p.pid, p.recv, p.send, p.cpuPercent, p.memPercent, p.memory, p.fdCnt, p.ioRead, p.ioWrite,
                p.uid, p.gid, printable(p.user).c_str(), printable(p.group).c_str(), printable(p.name).c_str(),
                printable(p.cmdline).c_str());
}

bool has_more_traffic(const Process_t *a, const Process_t *b) {
    const std::uint64_t of_a = a->recv + a->send;
    const std::uint64_t of_b = b->recv + b->send;
    return of_a != of_b ? of_a > of_b : a->pid < b->pid;
}

void on_processes(CaptureAction action, const Process_t *processes, std::uint32_t *size) {
    // Processes with most traffic come first. The records belong to the library, so their pointers are sorted.
    std::vector<const Process_t *> order;
    for (std::uint32_t i = 0; i < *size; ++i) {
        order.push_back(&processes[i]);
    }
    std::sort(order.begin(), order.end(), has_more_traffic);
    for (const Process_t *process : order) {
        print_process(action == ACTION_REMOVE ? "ended" : "live", *process);
    }
}

void on_packets(const Packet_t *packets, std::uint32_t *size) {
    for (std::uint32_t i = 0; i < *size; ++i) {
        traffic_by_type[packets[i].family == P_TCP ? 0 : 1].add(packets[i].packetSize);
        conversations[packets[i].hash].add(packets[i].packetSize);
    }
}

void print_packets() {
    std::printf("packets: %" PRIu64 " TCP of %" PRIu64 " bytes, %" PRIu64 " UDP of %" PRIu64 " bytes\n",
                traffic_by_type[0].packets, traffic_by_type[0].bytes, traffic_by_type[1].packets,
                traffic_by_type[1].bytes);
    std::vector<std::pair<std::string, Traffic>> order(conversations.begin(), conversations.end());
    std::sort(order.begin(), order.end(),
              [](const std::pair<std::string, Traffic> &a, const std::pair<std::string, Traffic> &b) {
                  return a.second.bytes > b.second.bytes;
              });
    order.resize(std::min(order.size(), conversations_shown));
    for (const auto &conversation : order) {
        std::printf("    %s: %" PRIu64 " packets, %" PRIu64 " bytes\n", conversation.first.c_str(),
                    conversation.second.packets, conversation.second.bytes);
    }
    traffic_by_type[0] = traffic_by_type[1] = Traffic();
    conversations.clear();
}

bool handle_signals() {
    struct sigaction action = {};
    action.sa_handler = request_stop;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGINT, &action, nullptr) == 0 && sigaction(SIGTERM, &action, nullptr) == 0;
}

// Returns the number of rounds in the arguments: 0 for no limit, -1 if they are invalid.
long rounds_of(int argc, char **argv) {
    if (argc < 2) {
        return 0;
    }
    char *end = nullptr;
    errno = 0;
    const long rounds = std::strtol(argv[1], &end, 10);
    return argc == 2 && errno == 0 && end != argv[1] && *end == '\0' ? rounds : -1;
}

}  // namespace

int main(int argc, char **argv) {
    const long rounds = rounds_of(argc, argv);
    if (rounds < 0) {
        std::fprintf(stderr, "usage: %s [rounds]\n", argv[0]);
        return 2;
    }
    if (!handle_signals()) {
        std::perror("sigaction");
        return 1;
    }

    char error[CAPTURE_ERROR_SIZE] = "";
    CaptureInitt config = {};
    config.logfile = "exa_capture.log";
    config.ms = 100;
    config.snaplen = 100;
    config.errorbuf = error;
    int code = CaptureInit(&config, on_processes, on_packets);
    if (code != CAPTURE_OK) {
        std::fprintf(stderr, "CaptureInit: %s: %s\n", CaptureStrError(code), error);
        return 1;
    }

    for (long round = 1; !stop_requested; ++round) {
        std::printf("round %ld\n", round);
        print_header();
        code = CaptureUpdate(-1);
        if (code != CAPTURE_OK) {
            std::fprintf(stderr, "CaptureUpdate: %s: %s\n", CaptureStrError(code), CaptureErrorText());
            break;
        }
        print_packets();
        std::fflush(stdout);
        if (round == rounds) {
            break;
        }
        sleep(interval_seconds);  // A signal ends it early.
    }
    CaptureExit();
    return code == CAPTURE_OK ? 0 : 1;
}
