/* The session interface in use: what is delivered, when, to whom, and what the statistics say. */
#define _GNU_SOURCE
#include "children.h"
#include "network.h"
#include "savefiles.h"
#include "sessions.h"
#include "threads.h"
#include <pthread.h>
#include <poll.h>
#include <pwd.h>

#define MOST 32768

/* What the last update has shown; its address is the user data. */
static struct seen {
    CaptureProcess live[MOST], removed[MOST];
    size_t live_count, removed_count, packet_count;
    CapturePacket packets[64];
    unsigned char bytes[64][2048];
    char name[64];
    int updates;
} seen;

static pthread_t caller;
static int is_inside;

static void on_process(void *user_data, CaptureAction action, const CaptureProcess *processes, size_t count,
                       size_t element_size) {
    struct seen *into = user_data;
    CHECK(into == &seen);
    CHECK(is_inside && pthread_equal(caller, pthread_self()));
    CHECK(element_size >= sizeof *processes && element_size % 8 == 0);
    CHECK(count <= MOST);
    for (size_t i = 0; i < count; i++) {
        const CaptureProcess *process = (const void *)((const char *)processes + i * element_size);
        CHECK_EQUAL(strlen(process->name), process->name_length);
        CHECK(process->command_line[process->command_line_length] == 0);
        CHECK(process->user[0] != 0 && process->group[0] != 0);
        CHECK((process->valid & ~255u) == 0);
        (action == ACTION_UPDATE ? into->live : into->removed)[i] = *process;
        if (process->pid == getpid()) {
            CHECK(process->name_length < sizeof into->name);
            strcpy(into->name, process->name);
        }
    }
    *(action == ACTION_UPDATE ? &into->live_count : &into->removed_count) = count;
    if (action == ACTION_UPDATE) {
        into->updates++;
    } else {
        CHECK_EQUAL(action, ACTION_REMOVE);
        CHECK(count > 0 && into->updates == 0);
    }
}

static void on_packet(void *user_data, const CapturePacket *packets, size_t count, size_t element_size) {
    struct seen *into = user_data;
    CHECK(into == &seen);
    CHECK(is_inside && pthread_equal(caller, pthread_self()));
    CHECK(element_size >= sizeof *packets);
    CHECK(count > 0 && count <= 64);
    for (size_t i = 0; i < count; i++) {
        const CapturePacket *packet = (const void *)((const char *)packets + i * element_size);
        into->packets[i] = *packet;
        memcpy(into->bytes[i], packet->data, packet->captured_length < 2048 ? packet->captured_length : 2048);
    }
    into->packet_count = count;
}

static int32_t try_update(CaptureSession *session, uint64_t packet_limit) {
    CaptureHandlers who = handlers(on_process, on_packet, &seen);
    int32_t code;
    who.packet_limit = packet_limit;
    seen.live_count = seen.removed_count = seen.packet_count = 0;
    seen.updates = 0;
    caller = pthread_self();
    is_inside = 1;
    code = CaptureSessionUpdate(session, &who);
    is_inside = 0;
    CHECK_EQUAL(seen.updates, 1);
    return code;
}

static void update(CaptureSession *session) {
    SUCCEEDS(try_update(session, 0));
}

static const CaptureProcess *live(pid_t pid) {
    for (size_t i = 0; i < seen.live_count; i++) {
        if (seen.live[i].pid == pid) {
            return &seen.live[i];
        }
    }
    return NULL;
}

static const CaptureProcess *self(void) {
    const CaptureProcess *found = live(getpid());
    CHECK(found != NULL);
    return found;
}

/* Everything as it comes: figures in natural units, of this program and of a machine's worth of others. */
static void defaults(void) {
    const uint32_t always = CAPTURE_VALID_CPU | CAPTURE_VALID_MEMORY | CAPTURE_VALID_IO | CAPTURE_VALID_DESCRIPTORS |
                            CAPTURE_VALID_COMMAND_LINE | CAPTURE_VALID_USER | CAPTURE_VALID_NETWORK;
    char line[256];
    struct timespec time;
    CaptureSession *session;
    own_network();
    struct pair pair = connected(AF_INET);
    session = opened(NULL);
    update(session);
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
    CHECK_EQUAL(self()->state, 'R');
    CHECK_TEXT(seen.name, "program");
    status_line("/proc/self/status", "VmSize:", line, sizeof line);
    CHECK_NEAR(self()->virtual_bytes, strtoull(line, NULL, 10) * 1024, 1 << 20);
    status_line("/proc/self/status", "VmRSS:", line, sizeof line);
    CHECK_NEAR(self()->resident_bytes, strtoull(line, NULL, 10) * 1024, 1 << 20);
    clock_gettime(CLOCK_REALTIME, &time);
    CHECK_NEAR((double)self()->start_time_ns / 1e9, time.tv_sec, PATIENCE + 5);
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
    given.skip = CAPTURE_SKIP_NETWORK;
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
    given.skip = CAPTURE_SKIP_NETWORK;
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

/* What is skipped is 0 and marked as not known; the rest is not touched. */
static void skipping(void) {
    static const struct {
        uint32_t skip, valid;
    } bits[] = {
        {CAPTURE_SKIP_NETWORK, CAPTURE_VALID_NETWORK},
        {CAPTURE_SKIP_MEMORY, CAPTURE_VALID_MEMORY},
        {CAPTURE_SKIP_IO, CAPTURE_VALID_IO},
        {CAPTURE_SKIP_DESCRIPTORS, CAPTURE_VALID_DESCRIPTORS},
        {CAPTURE_SKIP_COMMAND_LINE, CAPTURE_VALID_COMMAND_LINE},
    };
    for (size_t i = 0; i < sizeof bits / sizeof bits[0]; i++) {
        CaptureOptions given = options();
        CaptureSession *session;
        const CaptureProcess *process;
        int is_root = geteuid() == 0;
        given.skip = bits[i].skip;
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

static int readable(const CaptureSession *session, int milliseconds) {
    struct pollfd polled = {CaptureSessionDescriptor(session), POLLIN, 0};
    CHECK(polled.fd >= 0);
    return poll(&polled, 1, milliseconds);
}

static void descriptor(void) {
    CaptureOptions given = options();
    CaptureSession *session;
    own_network();
    struct pair pair = connected(AF_INET);
    given.skip = CAPTURE_SKIP_NETWORK;
    given.interval_ms = 50;
    session = opened(&given);
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(readable(session, PATIENCE * 1000), 1);
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
    CHECK_EQUAL(readable(session, PATIENCE * 1000), 1);
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

static struct log {
    int lines, worst;
    char text[1 << 20];
} lines;

static void on_log(void *user_data, CaptureLogLevel level, const char *text) {
    struct log *into = user_data;
    CHECK(into == &lines);
    CHECK(pthread_equal(caller, pthread_self()));
    CHECK(level >= CAPTURE_LOG_LEVEL_ERROR && level <= CAPTURE_LOG_LEVEL_TRACE);
    CHECK(text[0] != 0 && strchr(text, '\n') == NULL);
    CHECK(strlen(into->text) + strlen(text) + 2 < sizeof into->text);
    strcat(strcat(into->text, text), "\n");
    into->worst = (int)level > into->worst ? (int)level : into->worst;
    into->lines++;
}

static CaptureOptions logged(CaptureLogLevel level) {
    CaptureOptions given = options();
    memset(&lines, 0, sizeof lines);
    caller = pthread_self();
    given.log_handler = on_log;
    given.log_user_data = &lines;
    given.log_level = level;
    return given;
}

static void log_handler(void) {
    CaptureOptions given = logged(CAPTURE_LOG_LEVEL_DEBUG);
    CaptureSession *session;
    FILE *file;
    char text[4096], path[4200];
    snprintf(path, sizeof path, "%s/log", arguments[0]);
    given.log_file = path;
    session = opened(&given);
    CHECK_HOLDS(lines.text, "session opened");
    CHECK(strstr(lines.text, "updated") == NULL);
    update(session);
    CHECK_HOLDS(lines.text, "updated");
    CHECK(strstr(lines.text, "session closed") == NULL);
    SUCCEEDS(CaptureSessionClose(session));
    CHECK_HOLDS(lines.text, "session closed");
    CHECK_EQUAL(lines.worst, CAPTURE_LOG_LEVEL_DEBUG);
    CHECK((file = fopen(path, "re")) != NULL);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    CHECK_HOLDS(text, "session opened");
    CHECK_HOLDS(text, "session closed");
    given = logged(CAPTURE_LOG_LEVEL_DEFAULT);
    session = opened(&given);
    update(session);
    CHECK(lines.lines > 0 && lines.worst <= CAPTURE_LOG_LEVEL_INFO);
    SUCCEEDS(CaptureSessionClose(session));
    given = logged(CAPTURE_LOG_LEVEL_OFF);
    session = opened(&given);
    update(session);
    SUCCEEDS(CaptureSessionClose(session));
    CHECK_EQUAL(lines.lines, 0);
}

static void packet_limit(void) {
    static const uint64_t asked[] = {1, 2, UINT64_MAX, 0};
    static const size_t taken[] = {1, 2, 2, 0};
    CaptureOptions given = options();
    CaptureSession *session;
    int number = 0;
    own_network();
    struct pair pair = connected(AF_INET6);
    given.packet_bytes = 1 << 20;
    given.snaplen = 100;
    session = opened(&given);
    for (int i = 0; i < 5; i++) {
        send_datagram(&pair, i, 200);
    }
    /* A packet is held before its frame is counted. */
    for (double began = now(); stats_of(session).frames < 5;) {
        WAIT_SINCE(began);
    }
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        SUCCEEDS(try_update(session, asked[i]));
        CHECK_EQUAL(seen.packet_count, taken[i]);
        for (size_t j = 0; j < taken[i]; j++) {
            CHECK_EQUAL(seen.bytes[j][HEADERS_V6], pattern(number, 0));
            CHECK_EQUAL(seen.bytes[j][99], pattern(number++, 99 - HEADERS_V6));
            CHECK_EQUAL(seen.packets[j].wire_length, HEADERS_V6 + 200);
            CHECK_EQUAL(seen.packets[j].captured_length, 100);
            CHECK_EQUAL(seen.packets[j].protocol, 17);
            CHECK_EQUAL(seen.packets[j].source_port, pair.sender_port);
            CHECK_EQUAL(seen.packets[j].destination_port, pair.receiver_port);
            CHECK(memcmp(seen.packets[j].source_address, &in6addr_loopback, 16) == 0);
            CHECK(memcmp(seen.packets[j].destination_address, &in6addr_loopback, 16) == 0);
        }
    }
    CHECK_EQUAL(stats_of(session).lost_packets, 0);
    SUCCEEDS(CaptureSessionClose(session));
}

/* A savefile is read to its end, which makes the descriptor readable, and its packets are shown. */
static void savefile(void) {
    static const unsigned char source[16] = {[10] = 0xff, 0xff, 10, 1, 2, 3};
    char path[4200];
    CaptureOptions given = options();
    CaptureSession *session;
    snprintf(path, sizeof path, "%s/saved", arguments[0]);
    write_savefile(path, 1, 5, SIZE_MAX);
    given.savefile = path;
    given.local_addresses = SAVED_SOURCE;
    given.packet_bytes = 1 << 20;
    session = opened(&given);
    for (double began = now(); stats_of(session).frames < 5;) {
        CHECK_EQUAL(readable(session, PATIENCE * 1000), 1);
        WAIT_SINCE(began);
    }
    update(session);
    CHECK_EQUAL(seen.packet_count, 5);
    CHECK_EQUAL(seen.packets[4].time_ns, (SAVED_TIME + 4) * 1000000000ull);
    CHECK_EQUAL(seen.packets[4].wire_length, SAVED_PACKET);
    CHECK_EQUAL(seen.packets[4].captured_length, SAVED_PACKET);
    CHECK_EQUAL(seen.packets[4].source_port, 1001);
    CHECK_EQUAL(seen.packets[4].destination_port, 2002);
    CHECK(memcmp(seen.packets[4].source_address, source, 16) == 0);
    CHECK_EQUAL(seen.bytes[4][SAVED_PACKET - 1], 4);
    CHECK_EQUAL(stats_of(session).frame_bytes, 5 * SAVED_PACKET);
    CHECK_EQUAL(stats_of(session).bytes_not_local, 0);
    update(session);
    CHECK_EQUAL(seen.packet_count, 0);
    SUCCEEDS(CaptureSessionClose(session));

    /* One that breaks off: all it held is delivered, and the fault is told once. */
    write_savefile(path, 1, 5, 24 + 4 * (16 + SAVED_PACKET) + 20);
    given.local_addresses = NULL;
    session = opened(&given);
    for (double began = now(); stats_of(session).frames < 4;) {
        WAIT_SINCE(began);
    }
    size_t shown = 0;
    int32_t code = CAPTURE_OK;
    for (double began = now(); code == CAPTURE_OK;) {
        CHECK_EQUAL(readable(session, PATIENCE * 1000), 1);
        code = try_update(session, 0);
        shown += seen.packet_count;
        WAIT_SINCE(began);
    }
    CHECK_EQUAL(code, CAPTURE_CODE_SAVEFILE);
    CHECK_HOLDS(CaptureErrorText(), path);
    CHECK_EQUAL(shown, 4);
    CHECK_EQUAL(stats_of(session).bytes_not_local, 4 * SAVED_PACKET);
    update(session);
    SUCCEEDS(CaptureSessionClose(session));
}

/* Run as nobody: what may be read is read, and what is missing is said. */
static void unprivileged(void) {
    CaptureOptions given = logged(CAPTURE_LOG_LEVEL_DEFAULT);
    CaptureSession *session;
    CHECK(geteuid() != 0);
    session = opened(&given);
    CHECK_HOLDS(lines.text, "CAP_NET_RAW");
    CHECK_HOLDS(lines.text, "CAP_SYS_PTRACE");
    CHECK_EQUAL(stats_of(session).missing_capabilities, 1 << 2 | 1 << 13 | 1 << 19);
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

SCENARIOS({"defaults", defaults}, {"selections", selections}, {"skipping", skipping}, {"descriptor", descriptor},
          {"statistics", statistics}, {"log_handler", log_handler}, {"packet_limit", packet_limit},
          {"savefile", savefile}, {"unprivileged", unprivileged})
