/* What the library takes of its host: little stack, no descriptors, and nothing that children keep. */
#define _GNU_SOURCE
#include "network.h"
#include "sessions.h"
#include "threads.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* The stack that the header asks for. */
#define STACK_BYTES (32 * 1024)

static void on_processes(void *user_data, CaptureAction action, const CaptureProcess *processes, size_t count,
                         size_t element_size) {
    (void)action;
    (void)processes;
    (void)element_size;
    *(size_t *)user_data += count;
}

static void on_classic(CaptureAction action, const Process_t *processes, uint32_t *size) {
    (void)action;
    (void)processes;
    (void)size;
}

static void on_line(void *user_data, CaptureLogLevel level, const char *text) {
    (void)user_data;
    (void)level;
    (void)text;
}

/* Opens with an engine, updates and closes. */
static void live_with(CaptureEngine engine, uint32_t disable) {
    CaptureOptions given = options();
    CaptureSession *session;
    size_t count = 0;
    CaptureHandlers wanted = handlers(on_processes, NULL, &count);
    given.engine = engine;
    given.disable = disable;
    given.flows = 1;
    given.log_handler = on_line;
    session = opened(&given);
    SUCCEEDS(CaptureSessionUpdate(session, &wanted));
    CHECK(count > 0);
    CHECK(CaptureSessionDescriptor(session) >= 0);
    (void)stats_of(session);
    SUCCEEDS(CaptureSessionUpdate(session, &wanted));
    SUCCEEDS(CaptureSessionClose(session));
}

static void *live_on_it(void *unused) {
    CaptureInitt config;
    live_with(CAPTURE_ENGINE_PCAP, CAPTURE_DISABLE_PROBES);
    live_with(CAPTURE_ENGINE_PCAP, 0);
    live_with(CAPTURE_ENGINE_KERNEL, 0);
    memset(&config, 0, sizeof config);
    SUCCEEDS(CaptureInit(&config, on_classic, NULL));
    SUCCEEDS(CaptureUpdate(-1));
    SUCCEEDS(CaptureUpdate(-1));
    SUCCEEDS(CaptureExit());
    return unused;
}

/* Every engine is opened, updated and closed by a thread that has no more stack. */
static void small_stack(void) {
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, STACK_BYTES) == 0);
    CHECK(pthread_create(&thread, &attributes, live_on_it, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* The host's own descriptors are the only ones that it has while sessions are open. */
static void own_table(void) {
    const int before = descriptors();
    CaptureOptions given = options();
    CaptureSession *session;
    given.interval_ms = 1;
    session = opened(&given);
    CHECK_EQUAL(descriptors(), before);
    SUCCEEDS(CaptureSessionUpdate(session, NULL));
    CHECK_EQUAL(descriptors(), before);
    CHECK(CaptureSessionDescriptor(session) >= 0);
    CHECK_EQUAL(CaptureSessionDescriptor(session), CaptureSessionDescriptor(session));
    CHECK_EQUAL(descriptors(), before + 1);
    SUCCEEDS(CaptureSessionClose(session));
    CHECK_EQUAL(descriptors(), before);
}

/* A host that closes everything it did not open itself does not harm the session. */
static void closefrom_by_host(void) {
    CaptureOptions given = options();
    CaptureHandlers wanted;
    CaptureSession *session;
    size_t count = 0;
    given.engine = CAPTURE_ENGINE_AUTO;
    session = opened(&given);
    for (int i = 3; i < 1024; i++) {
        close(i);
    }
    wanted = handlers(on_processes, NULL, &count);
    for (int i = 0; i < 3; i++) {
        SUCCEEDS(CaptureSessionUpdate(session, &wanted));
    }
    CHECK(count > 0);
    SUCCEEDS(CaptureSessionClose(session));
}

static atomic_int has_opened_all;

static void *open_often(void *unused) {
    for (int i = 0; i < 8; i++) {
        CaptureOptions given = options();
        given.disable = i % 2 == 0 ? CAPTURE_DISABLE_PROBES : 0;
        SUCCEEDS(CaptureSessionClose(opened(&given)));
    }
    atomic_store(&has_opened_all, 1);
    return unused;
}

/* Descriptors that are sockets, or of the kernel's programs and events. Files are open in the host's table for moments, as
 * names of users are looked up. */
static int lasting_descriptors(void) {
    int count = 0;
    for (int i = 0; i < 1024; i++) {
        char path[64], target[64];
        ssize_t length;
        snprintf(path, sizeof path, "/proc/self/fd/%d", i);
        length = readlink(path, target, sizeof target);
        count += length > 7 && (memcmp(target, "socket:", 7) == 0 || memcmp(target, "anon_in", 7) == 0);
    }
    return count;
}

/* Children that are forked while sessions open and close have nothing of them. */
static void children(void) {
    pthread_t thread;
    const int before = lasting_descriptors();
    int count = 0, status;
    CHECK(pthread_create(&thread, NULL, open_often, NULL) == 0);
    while (!atomic_load(&has_opened_all)) {
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            _exit(lasting_descriptors() == before ? 0 : 1);
        }
        CHECK(waitpid(child, &status, 0) == child);
        CHECK_EQUAL(status, 0);
        count++;
    }
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(count > 0);
}

/* Lines of a file that hold `word`. */
static int lines_with(const char *path, const char *word) {
    char line[4096];
    int count = 0;
    FILE *file = fopen(path, "re");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        count += strstr(line, word) != NULL;
    }
    fclose(file);
    return count;
}

/* A child that was forked before the closing keeps no ring, and with it no socket. */
static void closed_while_forked(void) {
    char maps[64];
    int status, before;
    pid_t child;
    CaptureOptions given = options();
    CaptureSession *session;
    own_network();
    before = lines_with("/proc/net/packet", "");
    for (int i = 0; i < 2; i++) {
        given.disable = i == 0 ? CAPTURE_DISABLE_PROBES : 0;
        session = opened(&given);
        CHECK(lines_with("/proc/self/maps", " socket:[") > 0);
        CHECK(lines_with("/proc/net/packet", "") > before);
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            pause();
            _exit(0);
        }
        SUCCEEDS(CaptureSessionClose(session));
        snprintf(maps, sizeof maps, "/proc/%d/maps", (int)child);
        CHECK_EQUAL(lines_with(maps, " socket:["), 0);
        CHECK_EQUAL(lines_with("/proc/net/packet", ""), before);
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
    }
}

static void limit_descriptors(rlim_t count) {
    const struct rlimit limit = {count, count};
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

/* Sends datagrams to itself, as an engine is to count them. */
static void is_counted(CaptureEngine engine, uint32_t disable) {
    struct pair pair = connected(AF_INET);
    CaptureOptions given = options();
    CaptureSession *session;
    given.engine = engine;
    given.disable = disable;
    given.timeout_ms = 1;
    session = opened(&given);
    for (int i = 0; i < 10; i++) {
        send_datagram(&pair, i, 100);
    }
    for (double began = now();; ) {
        CaptureStats stats;
        SUCCEEDS(CaptureSessionUpdate(session, NULL));
        stats = stats_of(session);
        if (stats.bytes_exact + stats.bytes_shared + stats.bytes_guessed >= 20 * (HEADERS_V4 + 100)) {
            break;
        }
        WAIT_SINCE(began);
    }
    SUCCEEDS(CaptureSessionClose(session));
    close_pair(&pair);
}

/* Every engine counts. */
static void counts(void) {
    own_network();
    is_counted(CAPTURE_ENGINE_PCAP, CAPTURE_DISABLE_PROBES);
    is_counted(CAPTURE_ENGINE_PCAP, 0);
    is_counted(CAPTURE_ENGINE_KERNEL, 0);
}

/* Sockets whose every pair is a flow at both its ends. */
#define NEIGHBOURS 400

/* Moves to the control group whose file is named by CAPTURE_OTHER_GROUP and sends between all sockets, both ways. */
static void converse(void) {
    const char *group = getenv("CAPTURE_OTHER_GROUP");
    FILE *file = fopen(group == NULL ? "" : group, "we");
    int sockets[NEIGHBOURS];
    struct sockaddr_in addresses[NEIGHBOURS];
    CHECK(file != NULL);
    CHECK(fprintf(file, "%d", (int)getpid()) > 0 && fclose(file) == 0);
    for (int i = 0; i < NEIGHBOURS; i++) {
        socklen_t size = sizeof addresses[i];
        memset(&addresses[i], 0, sizeof addresses[i]);
        addresses[i].sin_family = AF_INET;
        addresses[i].sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        sockets[i] = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(sockets[i] >= 0 && bind(sockets[i], (struct sockaddr *)&addresses[i], size) == 0);
        CHECK(getsockname(sockets[i], (struct sockaddr *)&addresses[i], &size) == 0);
    }
    for (int i = 0; i < NEIGHBOURS; i++) {
        for (int j = 0; j < i; j++) {
            /* What finds no room at its receiver is a flow, too. */
            (void)sendto(sockets[i], "a", 1, 0, (struct sockaddr *)&addresses[j], sizeof addresses[j]);
            (void)sendto(sockets[j], "b", 1, 0, (struct sockaddr *)&addresses[i], sizeof addresses[i]);
        }
        usleep(10000);
    }
    _exit(0);
}

static void on_flow(void *user_data, CaptureAction action, const CaptureFlow *flows, size_t count, size_t element_size) {
    (void)action;
    (void)flows;
    (void)element_size;
    *(size_t *)user_data += count;
}

/* However many flows others make, no more are held than memory allows, and it goes on. */
static void amid_flows(void) {
    own_network();
    for (int i = 0; i < 2; i++) {
        CaptureOptions given = options();
        CaptureSession *session;
        CaptureStats stats;
        size_t count = 0;
        int status;
        CaptureHandlers wanted = handlers(NULL, NULL, &count);
        pid_t child;
        wanted.flow = on_flow;
        given.disable = i == 0 ? CAPTURE_DISABLE_PROBES : 0;
        given.flows = 1;
        session = opened(&given);
        child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            converse();
        }
        while (waitpid(child, &status, WNOHANG) == 0) {
            SUCCEEDS(CaptureSessionUpdate(session, &wanted));
            usleep(100000);
        }
        CHECK_EQUAL(status, 0);
        SUCCEEDS(CaptureSessionUpdate(session, &wanted));
        stats = stats_of(session);
        CHECK(count > 0);
        CHECK(stats.flows_evicted > 0);
        /* A quarter of 64 MiB, 1,050 bytes each. */
        CHECK(stats.flows <= 15978);
        SUCCEEDS(CaptureSessionClose(session));
    }
}

/* It does so with 64 descriptors. */
static void few_descriptors(void) {
    limit_descriptors(64);
    counts();
}

/* With less than it takes, opening or updating says so. */
static void too_few_descriptors(void) {
    own_network();
    for (rlim_t limit = 10; limit >= 4; limit--) {
        CaptureOptions given = options();
        CaptureSession *session = NULL;
        int32_t code;
        limit_descriptors(limit);
        code = CaptureSessionOpen(&given, &session);
        if (code == CAPTURE_OK) {
            code = CaptureSessionUpdate(session, NULL);
            CHECK_EQUAL(code, CAPTURE_CODE_SYSTEM_RESOURCE);
            CHECK_HOLDS(CaptureErrorText(), "RLIMIT_NOFILE");
            SUCCEEDS(CaptureSessionClose(session));
        } else {
            CHECK_EQUAL(code, CAPTURE_CODE_SYSTEM_RESOURCE);
            CHECK_HOLDS(CaptureErrorText(), "RLIMIT_NOFILE");
        }
    }
}

/* However little address space there is, opening succeeds or names the limit. */
static void little_address_space(void) {
    static const struct {
        CaptureEngine engine;
        uint32_t disable;
    } kinds[] = {{CAPTURE_ENGINE_PCAP, CAPTURE_DISABLE_PROBES}, {CAPTURE_ENGINE_PCAP, 0}, {CAPTURE_ENGINE_KERNEL, 0}};
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
    own_network();
    for (rlim_t megabytes = 20; megabytes <= 1000; megabytes += megabytes < 300 ? 10 : 50) {
        for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
            CaptureOptions given = options();
            CaptureSession *session = NULL;
            int32_t code;
            given.engine = kinds[i].engine;
            given.disable = kinds[i].disable;
            limit.rlim_cur = megabytes << 20;
            CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
            code = CaptureSessionOpen(&given, &session);
            if (code == CAPTURE_OK) {
                SUCCEEDS(CaptureSessionUpdate(session, NULL));
                SUCCEEDS(CaptureSessionClose(session));
            } else {
                CHECK_EQUAL(code, CAPTURE_CODE_SYSTEM_RESOURCE);
                CHECK_HOLDS(CaptureErrorText(), "RLIMIT_AS");
            }
        }
    }
}

/* The resident set, in megabytes. */
static unsigned long resident_megabytes(void) {
    unsigned long kilobytes = 0;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status != NULL);
    while (fgets(line, sizeof line, status) && sscanf(line, "VmRSS: %lu kB", &kilobytes) != 1) {
    }
    (void)fclose(status);
    CHECK(kilobytes > 0);
    return kilobytes / 1024;
}

/* What is reserved and hardly used is resident where all that is mapped is locked. */
static void locked(void) {
    CaptureOptions given = options();
    CaptureSession *session;
    given.flows = 1;
    own_network();
    CHECK(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
    session = opened(&given);
    SUCCEEDS(CaptureSessionUpdate(session, NULL));
    CHECK(resident_megabytes() > 100);
    CHECK(resident_megabytes() < 450);
    SUCCEEDS(CaptureSessionClose(session));
}

SCENARIOS({"small_stack", small_stack}, {"own_table", own_table}, {"closefrom", closefrom_by_host},
          {"children", children}, {"closed_while_forked", closed_while_forked},
          {"counts", counts}, {"few_descriptors", few_descriptors}, {"too_few_descriptors", too_few_descriptors},
          {"little_address_space", little_address_space}, {"amid_flows", amid_flows}, {"locked", locked})
