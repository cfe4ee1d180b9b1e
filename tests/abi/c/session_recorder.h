/* Handlers of a session that write down what they are shown, and check what holds for every call. */
#ifndef SESSION_RECORDER_H
#define SESSION_RECORDER_H

#include "sessions.h"
#include <poll.h>
#include <pthread.h>

#define MOST 32768

/* What the last update has shown; its address is the user data. */
static struct seen {
    CaptureProcess live[MOST], removed[MOST];
    size_t live_count, removed_count, packet_count;
    CapturePacket packets[64];
    unsigned char bytes[64][2048];
    char name[64], cgroup[4096];
    int updates;
} seen;

static pthread_t caller;
static int is_inside;

static inline void on_process(void *user_data, CaptureAction action, const CaptureProcess *processes, size_t count,
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
        CHECK((process->valid & ~16383u) == 0);
        CHECK((process->connections != NULL) == ((process->valid & CAPTURE_VALID_CONNECTIONS) != 0));
        CHECK_EQUAL(strlen(process->cgroup), process->cgroup_length);
        CHECK((process->cgroup[0] == '/') == ((process->valid & CAPTURE_VALID_CGROUP) != 0));
        (action == ACTION_UPDATE ? into->live : into->removed)[i] = *process;
        if (process->pid == getpid()) {
            CHECK(process->name_length < sizeof into->name);
            strcpy(into->name, process->name);
            CHECK(process->cgroup_length < sizeof into->cgroup);
            strcpy(into->cgroup, process->cgroup);
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

static inline void on_packet(void *user_data, const CapturePacket *packets, size_t count, size_t element_size) {
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

static inline int32_t try_update(CaptureSession *session, uint64_t packet_limit) {
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

static inline void update(CaptureSession *session) {
    SUCCEEDS(try_update(session, 0));
}

/* Takes the packets without an update. */
static inline void take_packets(CaptureSession *session) {
    CaptureHandlers who = handlers(on_process, on_packet, &seen);
    seen.packet_count = seen.updates = 0;
    caller = pthread_self();
    is_inside = 1;
    SUCCEEDS(CaptureSessionPackets(session, &who));
    is_inside = 0;
    CHECK_EQUAL(seen.updates, 0);
}

static inline const CaptureProcess *live(pid_t pid) {
    for (size_t i = 0; i < seen.live_count; i++) {
        if (seen.live[i].pid == pid) {
            return &seen.live[i];
        }
    }
    return NULL;
}

static inline const CaptureProcess *self(void) {
    const CaptureProcess *found = live(getpid());
    CHECK(found != NULL);
    return found;
}

static inline int readable(const CaptureSession *session, int milliseconds) {
    struct pollfd polled = {CaptureSessionDescriptor(session), POLLIN, 0};
    CHECK(polled.fd >= 0);
    return poll(&polled, 1, milliseconds);
}

static struct log {
    int lines, worst;
    char text[1 << 20];
} lines;

static inline void on_log(void *user_data, CaptureLogLevel level, const char *text) {
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

static inline CaptureOptions logged(CaptureLogLevel level) {
    CaptureOptions given = options();
    memset(&lines, 0, sizeof lines);
    caller = pthread_self();
    given.log_handler = on_log;
    given.log_user_data = &lines;
    given.log_level = level;
    return given;
}

#endif
