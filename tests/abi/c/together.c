/* Calls at the same time: from several threads, from callbacks, and in forked children. */
#define _GNU_SOURCE
#include "network.h"
#include "sessions.h"
#include "threads.h"
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#define CALLERS 4
#define DATAGRAMS 200

static int calls, succeeded, refused, packets_seen, last_seen;
static uint64_t received;

static void count_processes(CaptureAction action, const Process_t *processes, uint32_t *size) {
    CHECK_EQUAL(__atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST), 0);
    for (uint32_t i = 0; action == ACTION_UPDATE && i < *size; i++) {
        if (processes[i].pid == getpid()) {
            CHECK(processes[i].recv >= received);
            received = processes[i].recv;
        }
    }
    nap(1);
    __atomic_fetch_sub(&calls, 1, __ATOMIC_SEQ_CST);
}

static void count_packets(const Packet_t *packets, uint32_t *size) {
    CHECK_EQUAL(__atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST), 0);
    for (uint32_t i = 0; i < *size; i++) {
        CHECK_EQUAL(packets[i].packet[HEADERS_V4], pattern(last_seen++, 0));
    }
    packets_seen += (int)*size;
    __atomic_fetch_sub(&calls, 1, __ATOMIC_SEQ_CST);
}

static void *update_often(void *nothing) {
    for (int i = 0; i < 50; i++) {
        int32_t code = CaptureUpdate(i % 3 == 0 ? 5 : -1);
        CHECK(code == CAPTURE_OK || code == CAPTURE_CODE_BUSY);
        __atomic_fetch_add(code == CAPTURE_OK ? &succeeded : &refused, 1, __ATOMIC_SEQ_CST);
    }
    return nothing;
}

/* Nothing is shown twice, nothing is lost, and no two callbacks run at once. */
static void several_threads(void) {
    pthread_t callers[CALLERS];
    own_network();
    struct pair pair = connected(AF_INET);
    SUCCEEDS(CaptureInit(NULL, count_processes, count_packets));
    for (int i = 0; i < CALLERS; i++) {
        CHECK(pthread_create(&callers[i], NULL, update_often, NULL) == 0);
    }
    for (int i = 0; i < DATAGRAMS; i++) {
        send_datagram(&pair, i, 100);
        nap(1);
    }
    for (int i = 0; i < CALLERS; i++) {
        CHECK(pthread_join(callers[i], NULL) == 0);
    }
    CHECK_EQUAL(succeeded + refused, 50 * CALLERS);
    CHECK(succeeded > 0 && refused > 0);
    for (double began = now(); received != DATAGRAMS * (HEADERS_V4 + 100) || packets_seen != DATAGRAMS;) {
        SUCCEEDS(CaptureUpdate(-1));
        WAIT_SINCE(began);
    }
    SUCCEEDS(CaptureExit());
}

static void *open_and_close(void *nothing) {
    for (int i = 0; i < 10; i++) {
        int32_t code = CaptureInit(NULL, count_processes, NULL);
        CHECK(code == CAPTURE_OK || code == CAPTURE_CODE_BUSY || code == CAPTURE_CODE_ALREADY_OPEN);
        code = CaptureUpdate(-1);
        CHECK(code == CAPTURE_OK || code == CAPTURE_CODE_BUSY || code == CAPTURE_CODE_NOT_INITIALISED);
        code = CaptureExit();
        CHECK(code == CAPTURE_OK || code == CAPTURE_CODE_BUSY || code == CAPTURE_CODE_NOT_INITIALISED);
        succeeded += code == CAPTURE_OK;
    }
    return nothing;
}

/* Init, update and exit in any order from several threads. */
static void disorder(void) {
    pthread_t callers[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        CHECK(pthread_create(&callers[i], NULL, open_and_close, NULL) == 0);
    }
    for (int i = 0; i < CALLERS; i++) {
        CHECK(pthread_join(callers[i], NULL) == 0);
    }
    CaptureExit();
    CHECK_EQUAL(CaptureExit(), CAPTURE_CODE_NOT_INITIALISED);
    CHECK_EQUAL(threads_left(), 1);
    SUCCEEDS(CaptureInit(NULL, count_processes, NULL));
    SUCCEEDS(CaptureUpdate(-1));
    SUCCEEDS(CaptureExit());
}

static void call_back(void) {
    CHECK_EQUAL(CaptureUpdate(-1), CAPTURE_CODE_BUSY);
    CHECK_HOLDS(CaptureErrorText(), "another call");
    CHECK_EQUAL(CaptureExit(), CAPTURE_CODE_BUSY);
    CHECK_EQUAL(CaptureInit(NULL, NULL, NULL), CAPTURE_CODE_BUSY);
    calls++;
}

static void calling_process(CaptureAction action, const Process_t *processes, uint32_t *size) {
    (void)action, (void)processes, (void)size;
    call_back();
}

static void calling_packets(const Packet_t *packets, uint32_t *size) {
    (void)packets, (void)size;
    call_back();
}

static void from_classic_callbacks(void) {
    own_network();
    struct pair pair = connected(AF_INET);
    SUCCEEDS(CaptureInit(NULL, calling_process, calling_packets));
    send_datagram(&pair, 0, 10);
    for (double began = now(); calls < 3;) {
        SUCCEEDS(CaptureUpdate(-1));
        WAIT_SINCE(began);
    }
    SUCCEEDS(CaptureExit());
}

static CaptureSession *session;
static int process_calls, packet_calls, log_calls;

static void call_session(void) {
    CaptureHandlers none = handlers(NULL, NULL, NULL);
    CHECK_EQUAL(CaptureSessionUpdate(session, &none), CAPTURE_CODE_BUSY);
    CHECK_EQUAL(CaptureSessionUpdate(session, NULL), CAPTURE_CODE_BUSY);
    CHECK_EQUAL(CaptureSessionClose(session), CAPTURE_CODE_BUSY);
    stats_of(session);
    CHECK(CaptureSessionDescriptor(session) >= 0);
}

static void session_process(void *user_data, CaptureAction action, const CaptureProcess *processes, size_t count,
                            size_t element_size) {
    (void)user_data, (void)action, (void)processes, (void)count, (void)element_size;
    call_session();
    process_calls++;
}

static void session_packet(void *user_data, const CapturePacket *packets, size_t count, size_t element_size) {
    (void)user_data, (void)packets, (void)count, (void)element_size;
    call_session();
    packet_calls++;
}

static void session_log(void *user_data, CaptureLogLevel level, const char *text) {
    (void)user_data, (void)level, (void)text;
    call_session();
    log_calls++;
}

/* Every handler, also the log's while the session is being opened and closed. */
static void from_session_handlers(void) {
    CaptureOptions given = options();
    CaptureHandlers who = handlers(session_process, session_packet, NULL);
    own_network();
    struct pair pair = connected(AF_INET);
    given.log_handler = session_log;
    given.log_level = CAPTURE_LOG_LEVEL_DEBUG;
    given.packet_bytes = 1 << 20;
    SUCCEEDS(CaptureSessionOpen(&given, &session));
    CHECK(log_calls > 0);
    send_datagram(&pair, 0, 10);
    for (double began = now(); packet_calls == 0 || process_calls == 0;) {
        log_calls = 0;
        SUCCEEDS(CaptureSessionUpdate(session, &who));
        CHECK(log_calls > 0);
        WAIT_SINCE(began);
    }
    log_calls = 0;
    SUCCEEDS(CaptureSessionClose(session));
    CHECK(log_calls > 0);
    CHECK_EQUAL(threads_left(), 1);
}

static void ignore(CaptureAction action, const Process_t *processes, uint32_t *size) {
    (void)action, (void)processes, (void)size;
}

static void ignore_all(void *user_data, CaptureAction action, const CaptureProcess *processes, size_t count,
                       size_t element_size) {
    (void)user_data, (void)action, (void)processes, (void)count, (void)element_size;
}

/* What a child may do with what its parent opened, and by itself. */
static void in_the_child(void) {
    CaptureHandlers who = handlers(ignore_all, NULL, NULL);
    CaptureOptions given = options();
    CaptureSession *own;
    CaptureStats stats;
    double began = now();
    alarm(TIMEOUT);
    CHECK_EQUAL(CaptureUpdate(-1), CAPTURE_CODE_FORKED);
    CHECK_HOLDS(CaptureErrorText(), "fork");
    CHECK_EQUAL(CaptureExit(), CAPTURE_CODE_FORKED);
    CHECK_EQUAL(CaptureSessionUpdate(session, &who), CAPTURE_CODE_FORKED);
    CHECK_EQUAL(CaptureSessionDescriptor(session), -1);
    CHECK_HOLDS(CaptureErrorText(), "fork");
    stats.size = sizeof stats;
    CHECK_EQUAL(CaptureSessionStats(session, &stats), CAPTURE_CODE_FORKED);
    CHECK_EQUAL(CaptureSessionClose(session), CAPTURE_CODE_FORKED);
    CHECK(now() - began < TIMEOUT / 2);
    SUCCEEDS(CaptureInit(NULL, ignore, NULL));
    SUCCEEDS(CaptureUpdate(-1));
    SUCCEEDS(CaptureExit());
    CHECK_EQUAL(CaptureExit(), CAPTURE_CODE_NOT_INITIALISED);
    given.devices = "lo";
    own = opened(&given);
    SUCCEEDS(CaptureSessionUpdate(own, &who));
    SUCCEEDS(CaptureSessionClose(own));
    CHECK_EQUAL(threads_left(), 1);
}

static volatile int stopping;

static void *update_until_stopped(void *nothing) {
    CaptureHandlers who = handlers(ignore_all, NULL, NULL);
    while (!stopping) {
        SUCCEEDS(CaptureUpdate(-1));
        SUCCEEDS(CaptureSessionUpdate(session, &who));
    }
    return nothing;
}

/* Forks again and again while another thread is inside the library. */
static void forks(void) {
    CaptureOptions given = options();
    pthread_t updater;
    own_network();
    given.devices = "lo";
    session = opened(&given);
    SUCCEEDS(CaptureInit(NULL, ignore, NULL));
    CHECK(pthread_create(&updater, NULL, update_until_stopped, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        int status;
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            in_the_child();
            exit(0);
        }
        CHECK_EQUAL(waitpid(child, &status, 0), child);
        CHECK_EQUAL(status, 0);
        nap(i * 3);
    }
    stopping = 1;
    CHECK(pthread_join(updater, NULL) == 0);
    SUCCEEDS(CaptureExit());
    SUCCEEDS(CaptureSessionClose(session));
}

SCENARIOS({"several_threads", several_threads}, {"disorder", disorder},
          {"from_classic_callbacks", from_classic_callbacks}, {"from_session_handlers", from_session_handlers},
          {"forks", forks})
