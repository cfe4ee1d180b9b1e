/* Opening and closing again and again: descriptors, threads and memory stay what they were. */
#define _GNU_SOURCE
#include "network.h"
#include "sessions.h"
#include "threads.h"
#include <signal.h>
#include <sys/wait.h>

/* Rounds after which everything that is made once has been made. */
#define WARM 10

/* How much memory may have grown, kB: the allocator's own unevenness. */
#define SLACK 512

#define MAX_SESSIONS 4

static int lives;
static struct pair pair;

static void on_process(CaptureAction action, const Process_t *processes, uint32_t *size) {
    (void)processes;
    lives += action == ACTION_UPDATE ? (int)*size : 0;
}

static void on_packets(const Packet_t *packets, uint32_t *size) {
    CHECK(packets[*size - 1].packetSize > 0);
}

static void on_processes(void *user_data, CaptureAction action, const CaptureProcess *processes, size_t count,
                         size_t element_size) {
    (void)user_data, (void)processes, (void)element_size;
    lives += action == ACTION_UPDATE ? (int)count : 0;
}

static void classic_round(void) {
    CaptureInitt config;
    memset(&config, 0, sizeof config);
    config.logfile = arguments[1];
    config.ms = 1;
    SUCCEEDS(CaptureInit(&config, on_process, on_packets));
    send_datagram(&pair, 1, 100);
    SUCCEEDS(CaptureUpdate(-1));
    SUCCEEDS(CaptureExit());
}

/* Several sessions that are open at the same time. */
static void sessions_round(int count) {
    CaptureSession *sessions[MAX_SESSIONS];
    CaptureHandlers who = handlers(on_processes, NULL, NULL);
    CaptureOptions given = options();
    given.packet_bytes = 1 << 20;
    given.timeout_ms = 1;
    given.interval_ms = 1;
    for (int i = 0; i < count; i++) {
        sessions[i] = opened(&given);
    }
    send_datagram(&pair, 1, 100);
    for (int i = 0; i < count; i++) {
        lives = 0;
        SUCCEEDS(CaptureSessionUpdate(sessions[i], &who));
        CHECK(lives > 0);
    }
    for (int i = 0; i < count; i++) {
        SUCCEEDS(CaptureSessionClose(sessions[i]));
    }
}

static void session_round(void) {
    sessions_round(1);
}

static void several_round(void) {
    sessions_round(MAX_SESSIONS);
}

/* Rounds that fail late, when much has been set up. */
static void failing_round(void) {
    CaptureOptions given = options();
    CaptureSession *session;
    CaptureInitt config;
    memset(&config, 0, sizeof config);
    config.logfile = arguments[1];
    config.fliter = "no filter";
    CHECK_EQUAL(CaptureInit(&config, on_process, NULL), CAPTURE_CODE_COMPILE_FILTER);
    given.savefile = arguments[1];
    given.log_file = arguments[1];
    CHECK_EQUAL(CaptureSessionOpen(&given, &session), CAPTURE_CODE_SAVEFILE);
    lives++;
}

static int mappings(void) {
    int count = 0;
    FILE *file = fopen("/proc/self/maps", "re");
    for (int byte; (byte = fgetc(file)) != EOF;) {
        count += byte == '\n';
    }
    fclose(file);
    return count;
}

static void repeat(void (*play)(void)) {
    const int rounds = atoi(arguments[0]);
    int threads_then = 0, descriptors_then = 0, mappings_then = 0;
    long resident_then = 0;
    /* With several heaps, what the allocator keeps depends on which threads allocate at the same time. */
    CHECK(mallopt(M_ARENA_MAX, 1) == 1);
    own_network();
    pair = connected(AF_INET);
    for (int i = 0; i < rounds; i++) {
        lives = 0;
        play();
        CHECK(lives > 0);
        if (i == WARM) {
            threads_then = threads_left();
            descriptors_then = descriptors();
            resident_then = resident();
            mappings_then = mappings();
        }
    }
    CHECK_EQUAL(threads_then, 1);
    CHECK_EQUAL(threads_left(), threads_then);
    CHECK_EQUAL(descriptors(), descriptors_then);
    CHECK_NEAR(resident(), resident_then, SLACK);
    CHECK(mappings() <= mappings_then + 8);
    close_pair(&pair);
}

static void classic(void) {
    repeat(classic_round);
}

static void session(void) {
    repeat(session_round);
}

static void several(void) {
    repeat(several_round);
}

static void failures(void) {
    repeat(failing_round);
}

/* One session that lives long, while processes come and go of which nobody wants to hear. */
static void long_life(void) {
    CaptureOptions given = options();
    CaptureSession *session;
    long resident_then = 0;
    own_network();
    given.timeout_ms = 1;
    session = opened(&given);
    for (int i = 0; i < 300; i++) {
        pid_t children[20];
        for (int j = 0; j < 20; j++) {
            children[j] = fork();
            if (children[j] == 0) {
                pause();
                _exit(0);
            }
        }
        SUCCEEDS(CaptureSessionUpdate(session, NULL));
        for (int j = 0; j < 20; j++) {
            CHECK(kill(children[j], SIGKILL) == 0);
            CHECK_EQUAL(waitpid(children[j], NULL, 0), children[j]);
        }
        SUCCEEDS(CaptureSessionUpdate(session, NULL));
        if (i == WARM) {
            resident_then = resident();
        }
    }
    CHECK_NEAR(resident(), resident_then, SLACK);
    SUCCEEDS(CaptureSessionClose(session));
}

/* For a tool that looks for leaks: a whole life of both interfaces, with traffic, ended processes and failures. */
static void leaks(void) {
    CaptureOptions given = options();
    CaptureHandlers who = handlers(on_processes, NULL, NULL);
    CaptureSession *made;
    CaptureInitt config;
    own_network();
    pair = connected(AF_INET);
    memset(&config, 0, sizeof config);
    config.logfile = arguments[1];
    config.ms = 1;
    for (int i = 0; i < 2; i++) {
        SUCCEEDS(CaptureInit(&config, on_process, on_packets));
        for (int j = 0; j < 3; j++) {
            for (int k = 0; k < 10; k++) {
                send_datagram(&pair, k, 300);
            }
            SUCCEEDS(CaptureUpdate(-1));
        }
        CHECK_EQUAL(CaptureUpdate(-2), CAPTURE_CODE_INVALID_ARGUMENT);
        SUCCEEDS(CaptureExit());
        failing_round();
    }
    given.packet_bytes = 1 << 20;
    given.log_file = arguments[1];
    made = opened(&given);
    for (int j = 0; j < 3; j++) {
        send_datagram(&pair, j, 300);
        SUCCEEDS(CaptureSessionUpdate(made, &who));
    }
    SUCCEEDS(CaptureSessionClose(made));
    close_pair(&pair);
}

SCENARIOS({"classic", classic}, {"session", session}, {"several", several}, {"failures", failures}, {"long_life", long_life},
          {"leaks", leaks})
