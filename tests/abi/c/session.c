/* The session interface in use: processes, validity, the descriptor, statistics, and missing privileges. */
#define _GNU_SOURCE
#include "children.h"
#include "network.h"
#include "session_recorder.h"
#include "threads.h"
#include <pwd.h>
#include <sys/resource.h>

/* Everything as it comes: figures in natural units, of this program and of a machine's worth of others. */
static void defaults(void) {
    uint32_t always = CAPTURE_VALID_CPU | CAPTURE_VALID_MEMORY | CAPTURE_VALID_IO | CAPTURE_VALID_DESCRIPTORS |
                            CAPTURE_VALID_COMMAND_LINE | CAPTURE_VALID_USER | CAPTURE_VALID_NETWORK |
                            CAPTURE_VALID_OWN_BYTES | CAPTURE_VALID_OWN_CHARS;
    char line[256];
    struct timespec time;
    CaptureSession *session;
    own_network();
    struct pair pair = connected(AF_INET);
    session = opened(NULL);
    update(session);
    if (stats_of(session).sample_probes == CAPTURE_PROBE_STATE_ACTIVE) {
        always |= CAPTURE_VALID_SWITCHES;
    }
    CHECK_EQUAL(self()->valid, always);
    for (int i = 0; i < 3; i++) {
        send_datagram(&pair, i, 100);
    }
    for (double began = now(); update(session), self()->receive_packets != 3;) {
        WAIT_SINCE(began);
    }
    CHECK_EQUAL(self()->valid, always | CAPTURE_VALID_CPU_PERCENT);
    CHECK_EQUAL(self()->receive_bytes, 3 * (HEADERS_V4 + 100));
    CHECK_EQUAL(self()->send_bytes, 3 * (HEADERS_V4 + 100));
    CHECK_EQUAL(self()->send_packets, 3);
    CHECK_EQUAL(self()->uncertain_bytes, 0);
    CHECK_EQUAL(self()->parent, getppid());
    CHECK_EQUAL(self()->uid, geteuid());
    CHECK_EQUAL(self()->gid, getegid());
    CHECK_EQUAL(self()->threads, threads());
    /* Its main thread waits for the library's, or is about to. */
    CHECK(self()->state == 'S' || self()->state == 'R');
    CHECK_TEXT(seen.name, "program");
    status_line("/proc/self/status", "VmSize:", line, sizeof line);
    CHECK_NEAR(self()->virtual_bytes, strtoull(line, NULL, 10) * 1024, 1 << 20);
    status_line("/proc/self/status", "VmRSS:", line, sizeof line);
    CHECK_NEAR(self()->resident_bytes, strtoull(line, NULL, 10) * 1024, 1 << 20);
    clock_gettime(CLOCK_REALTIME, &time);
    CHECK_NEAR((double)self()->start_time_ns / 1e9, time.tv_sec, TIMEOUT + 5);
    CHECK(seen.live_count > 1 && seen.packet_count == 0);
    CHECK_EQUAL(stats_of(session).frames, 3);
    CHECK_EQUAL(stats_of(session).frame_bytes, 3 * (HEADERS_V4 + 100));
    CHECK_EQUAL(stats_of(session).bytes_exact, 6 * (HEADERS_V4 + 100));
    CHECK_EQUAL(stats_of(session).devices, 1);
    CHECK(stats_of(session).update_ns > 0);
    SUCCEEDS(CaptureSessionClose(session));
}

static void named(const struct child *child) {
    prctl(PR_SET_NAME, "odd name");
    next_step(child);
}

static void selections(void) {
    struct child child = start_child(named);
    const pid_t pids[] = {getpid(), child.pid};
    const char *const names[] = {"no such name", "odd name"};
    const char *const users[] = {"no such user", getpwuid(getuid())->pw_name};
    char number[16];
    const char *const numbers[] = {number};
    CaptureOptions given = options();
    CaptureSession *session;
    given.disable = CAPTURE_DISABLE_NETWORK;
    given.pids = pids;
    given.pid_count = 2;
    session = opened(&given);
    update(session);
    CHECK_EQUAL(seen.live_count, 2);
    CHECK(live(child.pid) != NULL && live(getpid()) != NULL);
    SUCCEEDS(CaptureSessionClose(session));
    given.names = names;
    given.name_count = 2;
    session = opened(&given);
    update(session);
    CHECK_EQUAL(seen.live_count, 1);
    CHECK(live(child.pid) != NULL);
    order(&child);
    CHECK_EQUAL(end_of(&child), 0);
    update(session);
    CHECK_EQUAL(seen.live_count, 0);
    CHECK_EQUAL(seen.removed_count, 1);
    CHECK_EQUAL(seen.removed[0].pid, child.pid);
    SUCCEEDS(CaptureSessionClose(session));
    given = options();
    given.disable = CAPTURE_DISABLE_NETWORK;
    given.users = users;
    given.user_count = 2;
    session = opened(&given);
    update(session);
    CHECK(live(getpid()) != NULL);
    for (size_t i = 0; i < seen.live_count; i++) {
        CHECK_EQUAL(seen.live[i].uid, geteuid());
    }
    SUCCEEDS(CaptureSessionClose(session));
    snprintf(number, sizeof number, "%u", geteuid() + 1);
    given.users = numbers;
    given.user_count = 1;
    session = opened(&given);
    update(session);
    CHECK(live(getpid()) == NULL);
    SUCCEEDS(CaptureSessionClose(session));
}

/* Disabled figures are 0 and not valid; the others are unaffected. */
static void disabling(void) {
    static const struct {
        uint32_t disable, valid;
    } bits[] = {
        {CAPTURE_DISABLE_NETWORK, CAPTURE_VALID_NETWORK},
        {CAPTURE_DISABLE_MEMORY, CAPTURE_VALID_MEMORY},
        {CAPTURE_DISABLE_IO, CAPTURE_VALID_IO},
        {CAPTURE_DISABLE_DESCRIPTORS, CAPTURE_VALID_DESCRIPTORS},
        {CAPTURE_DISABLE_COMMAND_LINE, CAPTURE_VALID_COMMAND_LINE},
    };
    for (size_t i = 0; i < sizeof bits / sizeof bits[0]; i++) {
        CaptureOptions given = options();
        CaptureSession *session;
        const CaptureProcess *process;
        int is_root = geteuid() == 0;
        given.disable = bits[i].disable;
        session = opened(&given);
        update(session);
        process = self();
        for (size_t j = 0; j < sizeof bits / sizeof bits[0]; j++) {
            if (j == 0 && !is_root) {
                continue;
            }
            CHECK_EQUAL((process->valid & bits[j].valid) != 0, i != j);
        }
        CHECK_EQUAL(process->resident_bytes != 0, i != 1);
        CHECK_EQUAL(process->virtual_bytes != 0, i != 1);
        CHECK_EQUAL(process->memory_percent > 0, i != 1);
        CHECK_EQUAL(process->read_chars != 0, i != 2);
        CHECK_EQUAL(process->descriptors != 0, i != 3);
        CHECK_EQUAL(process->command_line_length != 0, i != 4);
        CHECK((process->valid & CAPTURE_VALID_CPU) != 0 && process->threads > 0);
        SUCCEEDS(CaptureSessionClose(session));
    }
}

/* Context switches, cgroups and proportional memory each need another read of /proc and are off by default. */
static void enabling(void) {
    for (uint32_t enabled = 0; enabled < 8; enabled++) {
        char cgroup[4096];
        CaptureOptions given = options();
        CaptureSession *session;
        struct rusage usage;
        given.disable = CAPTURE_DISABLE_NETWORK | CAPTURE_DISABLE_PROBES;
        given.enable = enabled;
        session = opened(&given);
        usleep(1000);
        update(session);
        CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
        CHECK_EQUAL((self()->valid & CAPTURE_VALID_SWITCHES) != 0, (enabled & CAPTURE_ENABLE_SWITCHES) != 0);
        CHECK_EQUAL(self()->voluntary_switches > 0, (enabled & CAPTURE_ENABLE_SWITCHES) != 0);
        CHECK_EQUAL((self()->valid & CAPTURE_VALID_CGROUP) != 0, (enabled & CAPTURE_ENABLE_CGROUPS) != 0);
        CHECK_EQUAL((self()->valid & CAPTURE_VALID_PROPORTIONAL) != 0, (enabled & CAPTURE_ENABLE_PROPORTIONAL) != 0);
        CHECK_EQUAL(self()->proportional_bytes > 0, (enabled & CAPTURE_ENABLE_PROPORTIONAL) != 0);
        CHECK(self()->shared_bytes > 0 && self()->shared_bytes <= self()->resident_bytes);
        status_line("/proc/self/cgroup", "0::", cgroup, sizeof cgroup);
        cgroup[strcspn(cgroup, "\n")] = 0;
        CHECK_TEXT(seen.cgroup, enabled & CAPTURE_ENABLE_CGROUPS ? cgroup : "");
        CHECK(self()->minor_faults > 0 && self()->minor_faults <= (uint64_t)usage.ru_minflt);
        CHECK_EQUAL(stats_of(session).sample_probes, CAPTURE_PROBE_STATE_OFF);
        SUCCEEDS(CaptureSessionClose(session));
        given.enable = 32;
        CHECK_EQUAL(CaptureSessionOpen(&given, &session), CAPTURE_CODE_INVALID_ARGUMENT);
    }
}

static void descriptor(void) {
    CaptureOptions given = options();
    CaptureSession *session;
    own_network();
    struct pair pair = connected(AF_INET);
    given.disable = CAPTURE_DISABLE_NETWORK;
    given.interval_ms = 50;
    session = opened(&given);
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(readable(session, TIMEOUT * 1000), 1);
        CHECK_EQUAL(readable(session, 0), 1);
        update(session);
    }
    SUCCEEDS(CaptureSessionClose(session));
    given.interval_ms = 86400000;
    session = opened(&given);
    CHECK_EQUAL(readable(session, 0), 0);
    SUCCEEDS(CaptureSessionClose(session));
    /* Packets make it readable, until they have been taken. */
    given = options();
    given.packet_bytes = 1 << 20;
    session = opened(&given);
    update(session);
    CHECK_EQUAL(readable(session, 0), 0);
    send_datagram(&pair, 0, 10);
    CHECK_EQUAL(readable(session, TIMEOUT * 1000), 1);
    update(session);
    CHECK_EQUAL(seen.packet_count, 1);
    /* A notice may have come between the beginning of the update and the taking; it may wake the host in vain. */
    for (double began = now(); readable(session, 0);) {
        update(session);
        CHECK_EQUAL(seen.packet_count, 0);
        WAIT_SINCE(began);
    }
    SUCCEEDS(CaptureSessionClose(session));
}

static CaptureSession *shared;
static volatile int stopping;
static int read_while_updating;

static void *read_stats(void *nothing) {
    uint64_t last = 0;
    while (!stopping) {
        CaptureStats stats = stats_of(shared);
        CHECK(stats.frames >= last);
        last = stats.frames;
        read_while_updating += is_inside;
        CHECK(CaptureSessionDescriptor(shared) >= 0);
    }
    return nothing;
}

/* Statistics may be read while another thread updates. */
static void statistics(void) {
    pthread_t reader;
    own_network();
    struct pair pair = connected(AF_INET);
    shared = opened(NULL);
    CHECK(pthread_create(&reader, NULL, read_stats, NULL) == 0);
    for (double began = now(); read_while_updating < 100;) {
        send_datagram(&pair, 0, 10);
        update(shared);
        WAIT_SINCE(began);
    }
    stopping = 1;
    CHECK(pthread_join(reader, NULL) == 0);
    SUCCEEDS(CaptureSessionClose(shared));
}

/* Run as nobody: what may be read is read, and what is missing is said. */
static void unprivileged(void) {
    CaptureOptions given = logged(CAPTURE_LOG_LEVEL_DEFAULT);
    CaptureSession *session;
    CHECK(geteuid() != 0);
    session = opened(&given);
    CHECK_HOLDS(lines.text, "CAP_NET_RAW");
    CHECK_HOLDS(lines.text, "CAP_SYS_PTRACE");
    CHECK_EQUAL(stats_of(session).missing_capabilities, (uint64_t)3 << 38 | 1 << 2 | 1 << 12 | 1 << 13 | 1 << 19);
    update(session);
    CHECK((self()->valid & CAPTURE_VALID_NETWORK) == 0);
    CHECK((self()->valid & CAPTURE_VALID_IO) != 0 && (self()->valid & CAPTURE_VALID_DESCRIPTORS) != 0);
    CHECK_EQUAL(self()->uid, geteuid());
    /* An update may have files of /proc open while it looks. */
    CHECK_NEAR(self()->descriptors, descriptors() + 1, 1);
    CHECK(self()->read_chars > 0);
    CHECK(live(1) != NULL);
    CHECK((live(1)->valid & (CAPTURE_VALID_IO | CAPTURE_VALID_NETWORK)) == 0);
    CHECK((live(1)->valid & CAPTURE_VALID_CPU) != 0);
    CHECK_EQUAL(live(1)->read_chars + live(1)->write_chars + live(1)->read_bytes + live(1)->write_bytes, 0);
    /* Since Linux 6.2 everybody may know how many descriptors there are. */
    CHECK_EQUAL((live(1)->valid & CAPTURE_VALID_DESCRIPTORS) != 0, live(1)->descriptors != 0);
    SUCCEEDS(CaptureSessionClose(session));
}

SCENARIOS({"defaults", defaults}, {"selections", selections}, {"disabling", disabling}, {"enabling", enabling}, {"descriptor", descriptor},
          {"statistics", statistics}, {"unprivileged", unprivileged})
