/* Callbacks of the classic interface that write down what they are shown, and check what holds for every call. */
#ifndef RECORDER_H
#define RECORDER_H

#include "old_interface.h"
#include <pthread.h>

#define MAX_PROCESSES 32768
#define MAX_PACKETS 64

/* What the last update has shown. */
static struct {
    /* One letter for each call: R for an ended process, U for those that live, P for packets. */
    char calls[4096];
    size_t call_count;
    Process_t removed[4096];
    size_t removed_count;
    Process_t live[MAX_PROCESSES];
    size_t live_count;
    Packet_t packets[MAX_PACKETS];
    unsigned char bytes[MAX_PACKETS][2048];
    size_t packet_count;
} shown;

static int is_inside;
static pthread_t caller;
static uint32_t snaplen = 128;

static inline void note_call(char letter) {
    CHECK(is_inside);
    CHECK(pthread_equal(pthread_self(), caller));
    CHECK(shown.call_count < sizeof shown.calls - 1);
    shown.calls[shown.call_count++] = letter;
}

static inline void on_process(CaptureAction action, const Process_t *processes, uint32_t *size) {
    note_call(action == ACTION_REMOVE ? 'R' : 'U');
    for (uint32_t i = 0; i < *size; i++) {
        const Process_t *process = &processes[i];
        CHECK(memchr(process->name, 0, sizeof process->name) != NULL);
        CHECK(memchr(process->cmdline, 0, sizeof process->cmdline) != NULL);
        CHECK(memchr(process->user, 0, sizeof process->user) != NULL);
        CHECK(memchr(process->group, 0, sizeof process->group) != NULL);
        CHECK(process->pid > 0);
        CHECK(process->cpuPercent >= 0 && process->cpuPercent <= 100);
        CHECK(process->memPercent >= 0 && process->memPercent <= 100);
    }
    if (action == ACTION_REMOVE) {
        CHECK_EQUAL(*size, 1);
        CHECK(shown.removed_count < 4096);
        shown.removed[shown.removed_count++] = processes[0];
    } else {
        CHECK_EQUAL(action, ACTION_UPDATE);
        CHECK(*size > 0 && *size <= MAX_PROCESSES);
        shown.live_count = *size;
        memcpy(shown.live, processes, *size * sizeof *processes);
    }
}

static inline void on_packets(const Packet_t *packets, uint32_t *size) {
    note_call('P');
    CHECK(*size > 0);
    shown.packet_count = *size;
    for (uint32_t i = 0; i < *size && i < MAX_PACKETS; i++) {
        const uint32_t length = packets[i].packetSize < snaplen ? packets[i].packetSize : snaplen;
        CHECK(memchr(packets[i].hash, 0, sizeof packets[i].hash) != NULL);
        shown.packets[i] = packets[i];
        memcpy(shown.bytes[i], packets[i].packet, length < 2048 ? length : 2048);
    }
}

/* Updates, and leaves what was shown in `shown`. */
static inline int32_t update(int32_t cnt) {
    int32_t code;
    shown.call_count = shown.removed_count = shown.live_count = shown.packet_count = 0;
    caller = pthread_self();
    is_inside = 1;
    code = capture_update(cnt);
    is_inside = 0;
    shown.calls[shown.call_count] = 0;
    return code;
}

/* The calls but for those about ended processes, of which others on the machine may cause any number. */
static inline const char *calls_for_the_living(void) {
    return shown.calls + strspn(shown.calls, "R");
}

/* The living process with this id, or NULL. */
static inline const Process_t *live(pid_t pid) {
    const Process_t *found = NULL;
    for (size_t i = 0; i < shown.live_count; i++) {
        if (shown.live[i].pid == pid) {
            CHECK(found == NULL);
            found = &shown.live[i];
        }
    }
    return found;
}

/* The ended process with this id, or NULL. */
static inline const Process_t *removed(pid_t pid) {
    const Process_t *found = NULL;
    for (size_t i = 0; i < shown.removed_count; i++) {
        if (shown.removed[i].pid == pid) {
            CHECK(found == NULL);
            found = &shown.removed[i];
        }
    }
    return found;
}

/* Opens with everything zero but what is given. */
static inline void open_with(const char *filter, int32_t bytes) {
    char error[256];
    CaptureInitt config;
    memset(&config, 0, sizeof config);
    config.fliter = filter;
    config.snaplen = bytes;
    config.errorbuf = error;
    snaplen = bytes == 0 ? 128 : (uint32_t)bytes;
    error[0] = 0;
    if (capture_init(&config, on_process, on_packets) != 0) {
        fprintf(stderr, "CaptureInit: %s\n", error);
        _exit(1);
    }
}

#endif
