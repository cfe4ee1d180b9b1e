/* Every argument that is wrong: each gives the documented code and a text that names it, and harms nothing. */
#define _GNU_SOURCE
#include "check.h"
#include "savefiles.h"
#include "sessions.h"
#include <limits.h>
#include <sys/stat.h>

static const char NOT_TEXT[] = "tcp \xff\xfe";

static void on_process(CaptureAction action, const Process_t *processes, uint32_t *size) {
    (void)action, (void)processes, (void)size;
}

static int lives;

static void on_processes(void *user_data, CaptureAction action, const CaptureProcess *processes, size_t count,
                         size_t element_size) {
    (void)user_data, (void)processes, (void)element_size;
    lives += action == ACTION_UPDATE ? (int)count : 0;
}

/* A plain session opens, sees this process, and closes. */
static void still_works(void) {
    pid_t self = getpid();
    CaptureOptions plain = options();
    CaptureHandlers who = handlers(on_processes, NULL, NULL);
    CaptureSession *session = NULL;
    plain.pids = &self;
    plain.pid_count = 1;
    plain.devices = "lo";
    plain.disable = geteuid() == 0 ? 0 : CAPTURE_DISABLE_NETWORK;
    CHECK_EQUAL(CaptureSessionOpen(&plain, &session), CAPTURE_OK);
    lives = 0;
    CHECK_EQUAL(CaptureSessionUpdate(session, &who), CAPTURE_OK);
    CHECK_EQUAL(lives, 1);
    CHECK_EQUAL(CaptureSessionClose(session), CAPTURE_OK);
}

/* The call failed with this code, and its text, which is one line, holds these words. */
static void check_failure(const char *what, int32_t code, int32_t wanted, const char *words) {
    const char *text = CaptureErrorText();
    if (code != wanted || strstr(text, words) == NULL || strchr(text, '\n') != NULL) {
        fprintf(stderr, "%s: code %d, not %d; text \"%s\" should hold \"%s\"\n", what, code, wanted, text, words);
        _exit(1);
    }
}

/* CaptureInit refuses a configuration, says why in both places, and opens afterwards. */
static void refused(const CaptureInitt *given, int32_t wanted, const char *words) {
    char room[CAPTURE_ERROR_SIZE + 1];
    CaptureInitt config = *given;
    memset(room, 'x', sizeof room);
    config.errorbuf = room;
    check_failure(words, CaptureInit(&config, on_process, NULL), wanted, words);
    CHECK_EQUAL(room[CAPTURE_ERROR_SIZE], 'x');
    CHECK(memchr(room, 0, CAPTURE_ERROR_SIZE) != NULL);
    if (strlen(CaptureErrorText()) < CAPTURE_ERROR_SIZE) {
        CHECK_TEXT(room, CaptureErrorText());
    } else {
        CHECK_EQUAL(strlen(room), CAPTURE_ERROR_SIZE - 1);
        CHECK(strncmp(room, CaptureErrorText(), CAPTURE_ERROR_SIZE - 1) == 0);
    }
    config.errorbuf = NULL;
    CHECK_EQUAL(CaptureInit(&config, on_process, NULL), wanted);
    CHECK_EQUAL(CaptureUpdate(-1), CAPTURE_CODE_NOT_INITIALISED);
    CHECK_EQUAL(CaptureExit(), CAPTURE_CODE_NOT_INITIALISED);
    CHECK_HOLDS(CaptureErrorText(), "CaptureInit");
}

static void classic(void) {
    static const struct {
        const char *logfile;
        int32_t ms, snaplen;
        const char *filter;
        int loop;
        int32_t code;
        const char *words;
    } rows[] = {
        {NULL, -1, 0, NULL, 0, 100, "ms is -1"},
        {NULL, INT_MIN, 0, NULL, 0, 100, "ms is -2147483648"},
        {NULL, 60001, 0, NULL, 0, 100, "60.001s; it must be 1ms to 60s"},
        {NULL, INT_MAX, 0, NULL, 0, 100, "timeout"},
        {NULL, 0, -1, NULL, 0, 100, "snaplen is -1"},
        {NULL, 0, INT_MIN, NULL, 0, 100, "snaplen"},
        {NULL, 0, 262145, NULL, 0, 100, "snaplen is 262145"},
        {NULL, 0, 0, NULL, 77, 100, "loop is 77"},
        {NULL, 0, 0, NULL, -1, 100, "loop is"},
        {NULL, 0, 0, NULL, 3, 100, "loop is 3"},
        {NULL, 0, 0, "tcp and and", 0, 3, "\"tcp and and\": "},
        {NULL, 0, 0, "tcp and and", 0, 3, "syntax error"},
        {NULL, 0, 0, "port 99999", 0, 3, "port 99999"},
        {NULL, 0, 0, NOT_TEXT, 0, 100, "fliter is not valid UTF-8"},
        {"/nonexistent/folder/log", 0, 0, NULL, 0, 104, "/nonexistent/folder/log"},
        {"/", 0, 0, NULL, 0, 104, "opening the log file / for appending"},
    };
    char *longest = malloc(5001);
    CaptureInitt config;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        memset(&config, 0, sizeof config);
        config.logfile = rows[i].logfile;
        config.ms = rows[i].ms;
        config.snaplen = rows[i].snaplen;
        config.fliter = rows[i].filter;
        memcpy(&config.loop, &rows[i].loop, sizeof rows[i].loop);
        refused(&config, rows[i].code, rows[i].words);
        still_works();
    }
    memset(longest, '(', 5000);
    longest[5000] = 0;
    memset(&config, 0, sizeof config);
    config.fliter = longest;
    refused(&config, 3, "((((");
    free(longest);

    memset(&config, 0, sizeof config);
    CHECK_EQUAL(CaptureInit(&config, on_process, NULL), CAPTURE_OK);
    CHECK_EQUAL(CaptureUpdate(-2), CAPTURE_CODE_INVALID_ARGUMENT);
    CHECK_HOLDS(CaptureErrorText(), "cnt is -2");
    CHECK_EQUAL(CaptureUpdate(INT_MIN), CAPTURE_CODE_INVALID_ARGUMENT);
    CHECK_EQUAL(CaptureInit(&config, on_process, NULL), CAPTURE_CODE_ALREADY_OPEN);
    CHECK_HOLDS(CaptureErrorText(), "CaptureExit");
    CHECK_EQUAL(CaptureUpdate(INT_MAX), CAPTURE_OK);
    CHECK_EQUAL(CaptureExit(), CAPTURE_OK);
    CHECK_EQUAL(CaptureExit(), CAPTURE_CODE_NOT_INITIALISED);
}

/* What is at the far ends of what is allowed, and what only looks wrong. */
static void classic_allowed(void) {
    char log[4200], error[CAPTURE_ERROR_SIZE];
    struct stat status;
    CaptureInitt config;
    memset(&config, 0, sizeof config);
    snprintf(log, sizeof log, "%s/log \xff\xfe", arguments[0]);
    config.logfile = log;
    config.ms = 60000;
    config.snaplen = 262144;
    config.promise = -5;
    config.fliter = "ip or ip6";
    config.loop = NONE;
    config.errorbuf = error;
    CHECK_EQUAL(CaptureInit(&config, on_process, NULL), CAPTURE_OK);
    CHECK_EQUAL(CaptureExit(), CAPTURE_OK);
    CHECK(stat(log, &status) == 0 && status.st_size > 0);
    memset(&config, 0, sizeof config);
    config.logfile = "";
    config.fliter = "";
    config.ms = 1;
    config.snaplen = 1;
    config.loop = EPOLL;
    CHECK_EQUAL(CaptureInit(&config, NULL, NULL), CAPTURE_OK);
    CHECK_EQUAL(CaptureUpdate(0), CAPTURE_OK);
    CHECK_EQUAL(CaptureExit(), CAPTURE_OK);
    CHECK_EQUAL(CaptureInit(NULL, on_process, NULL), CAPTURE_OK);
    CHECK_EQUAL(CaptureUpdate(-1), CAPTURE_OK);
    CHECK_EQUAL(CaptureExit(), CAPTURE_OK);
}

static CaptureOptions wrong;

/* CaptureSessionOpen refuses `wrong`, stores NULL, says why, and opens afterwards. */
static void wrong_is_refused(int32_t wanted, const char *words) {
    CaptureSession *session = (CaptureSession *)&wrong;
    check_failure(words, CaptureSessionOpen(&wrong, &session), wanted, words);
    CHECK(session == NULL);
    still_works();
    wrong = options();
}

static void session_options(void) {
    static const char *const users[] = {"root", NULL};
    static const pid_t pid = 1;
    int32_t level = 99;
    wrong = options();
    memcpy(&wrong.log_level, &level, sizeof level);
    wrong_is_refused(100, "log_level is 99");
    level = -1;
    memcpy(&wrong.log_level, &level, sizeof level);
    wrong_is_refused(100, "log_level is");
    wrong.disable = 64;
    wrong_is_refused(100, "disable is 0x40");
    wrong.disable = UINT32_MAX;
    wrong_is_refused(100, "known bits are 0x3f");
    wrong.enable = 32;
    wrong_is_refused(100, "enable is 0x20");
    wrong.promiscuous = 2;
    wrong_is_refused(100, "promiscuous is 2");
    wrong.snaplen = 262145;
    wrong_is_refused(100, "snaplen is 262145");
    wrong.snaplen = UINT32_MAX;
    wrong_is_refused(100, "snaplen");
    wrong.timeout_ms = 60001;
    wrong_is_refused(100, "timeout is 60.001s");
    wrong.interval_ms = 86400001;
    wrong_is_refused(100, "interval_ms is 86400001");
    wrong.buffer_bytes = 524287;
    wrong_is_refused(100, "buffer_bytes is 524287");
    wrong.buffer_bytes = (1u << 30) + 1;
    wrong_is_refused(100, "buffer_bytes is 1073741825");
    wrong.buffer_bytes = UINT64_MAX;
    wrong_is_refused(100, "buffer_bytes is 18446744073709551615");
    wrong.flow_limit = 16777217;
    wrong_is_refused(100, "flow_limit is 16777217");
    wrong.flow_limit = UINT64_MAX;
    wrong_is_refused(100, "flow_limit");
    wrong.packet_bytes = 1073741825;
    wrong_is_refused(100, "packet_bytes is 1073741825");
    wrong.flows = 2;
    wrong_is_refused(100, "flows is 2; it must be 0 or 1");
    wrong.ended_flow_limit = 16777217;
    wrong_is_refused(100, "ended_flow_limit is 16777217");
    wrong.filter = "not a filter";
    wrong_is_refused(3, "\"not a filter\": ");
    wrong.filter = NOT_TEXT;
    wrong_is_refused(100, "filter is not valid UTF-8");
    wrong.devices = "lo\xff";
    wrong_is_refused(100, "devices is not valid UTF-8");
    wrong.local_addresses = "\xff";
    wrong_is_refused(100, "local_addresses is not valid UTF-8");
    wrong.local_addresses = "127.0.0.1, 300.1.1.1";
    wrong_is_refused(100, "300.1.1.1");
    wrong.namespaces = "/nonexistent/ns";
    wrong_is_refused(100, "the network namespace /nonexistent/ns");
    wrong.namespaces = "all, /proc/self/ns/net";
    wrong_is_refused(100, "\"all\" is not an absolute path");
    wrong.namespaces = "/proc/self/ns/mnt";
    wrong_is_refused(100, "not a network namespace");
    wrong.log_file = "/nonexistent/log";
    wrong_is_refused(104, "/nonexistent/log");
    wrong.pid_count = 3;
    wrong_is_refused(100, "pids is 0x0 with 3 elements");
    wrong.user_count = 1;
    wrong_is_refused(100, "users is 0x0 with 1 elements");
    wrong.name_count = 1;
    wrong_is_refused(100, "names is 0x0 with 1 elements");
    wrong.pids = &pid;
    wrong.pid_count = SIZE_MAX;
    wrong_is_refused(100, "pids is 0x");
    wrong.users = users;
    wrong.user_count = 2;
    wrong_is_refused(100, "users[1] is NULL");
    wrong.names = users;
    wrong.name_count = 2;
    wrong_is_refused(100, "names[1] is NULL");
    wrong.devices = "lo";
    wrong.savefile = "/dev/null";
    wrong_is_refused(100, "both devices and savefile");
}

/* Needs the privilege to capture, without which devices are not looked at. */
static void session_devices(void) {
    wrong = options();
    wrong.devices = "nosuchdevice0";
    wrong_is_refused(1, "\"nosuchdevice0\"");
    wrong.devices = "lo, nosuchdevice0";
    wrong_is_refused(1, "there are: lo");
    wrong.devices = "a name that is far too long for any device of any kernel";
    wrong_is_refused(1, "there is no network device");
}

static void session_sizes(void) {
    struct {
        CaptureOptions known;
        uint64_t later[4];
    } longer;
    CaptureSession *session = NULL;
    static const size_t impossible[] = {0, 1, 8, offsetof(CaptureOptions, namespaces) - 1, 1 << 20, SIZE_MAX};
    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++) {
        wrong = options();
        wrong.size = impossible[i];
        wrong_is_refused(100, "sizeof(CaptureOptions)");
    }
    memset(&longer, 0, sizeof longer);
    longer.known = options();
    longer.known.size = sizeof longer;
    longer.known.disable = CAPTURE_DISABLE_NETWORK;
    CHECK_EQUAL(CaptureSessionOpen(&longer.known, &session), CAPTURE_OK);
    CHECK_EQUAL(CaptureSessionClose(session), CAPTURE_OK);
    longer.later[3] = 1;
    check_failure("tail", CaptureSessionOpen(&longer.known, &session), 100, "does not know");
    CHECK(session == NULL);
    longer.known.size = sizeof longer - 8;
    CHECK_EQUAL(CaptureSessionOpen(&longer.known, &session), CAPTURE_OK);
    CHECK_EQUAL(CaptureSessionClose(session), CAPTURE_OK);
}

static void session_calls(void) {
    struct {
        CaptureHandlers known;
        uint64_t later[2];
    } longer;
    struct {
        CaptureStats known;
        uint64_t later[2];
    } room;
    CaptureHandlers who = handlers(on_processes, NULL, NULL);
    CaptureOptions plain = options();
    CaptureSession *session = NULL;
    CaptureStats stats;
    check_failure("open", CaptureSessionOpen(NULL, NULL), 100, "session is NULL");
    check_failure("open", CaptureSessionOpen(&plain, NULL), 100, "session is NULL");
    check_failure("update", CaptureSessionUpdate(NULL, &who), 5, "session is NULL");
    check_failure("update", CaptureSessionUpdate(NULL, NULL), 5, "session is NULL");
    check_failure("stats", CaptureSessionStats(NULL, &stats), 5, "session is NULL");
    check_failure("close", CaptureSessionClose(NULL), 5, "session is NULL");
    CHECK_EQUAL(CaptureSessionDescriptor(NULL), -1);
    CHECK_HOLDS(CaptureErrorText(), "session is NULL");

    plain.disable = CAPTURE_DISABLE_NETWORK;
    CHECK_EQUAL(CaptureSessionOpen(&plain, &session), CAPTURE_OK);
    CHECK_EQUAL(CaptureSessionUpdate(session, NULL), CAPTURE_OK);
    who.size = 0;
    check_failure("handlers", CaptureSessionUpdate(session, &who), 100, "sizeof(CaptureHandlers)");
    who.size = offsetof(CaptureHandlers, flow) - 1;
    check_failure("handlers", CaptureSessionUpdate(session, &who), 100, "sizeof(CaptureHandlers)");
    who.size = SIZE_MAX;
    check_failure("handlers", CaptureSessionUpdate(session, &who), 100, "sizeof(CaptureHandlers)");
    /* That of the first version. */
    who.size = offsetof(CaptureHandlers, flow);
    CHECK_EQUAL(CaptureSessionUpdate(session, &who), CAPTURE_OK);
    memset(&longer, 0, sizeof longer);
    longer.known = handlers(on_processes, NULL, NULL);
    longer.known.size = sizeof longer;
    CHECK_EQUAL(CaptureSessionUpdate(session, &longer.known), CAPTURE_OK);
    longer.later[1] = 7;
    check_failure("handlers", CaptureSessionUpdate(session, &longer.known), 100, "does not know");
    who = handlers(on_processes, NULL, NULL);
    who.process = NULL;
    CHECK_EQUAL(CaptureSessionUpdate(session, &who), CAPTURE_OK);

    check_failure("packets", CaptureSessionPackets(session, NULL), 100, "handlers is NULL");
    check_failure("packets", CaptureSessionPackets(NULL, &who), 5, "session is NULL");
    CHECK_EQUAL(CaptureSessionPackets(session, &who), CAPTURE_OK);
    check_failure("stats", CaptureSessionStats(session, NULL), 100, "CaptureStats is NULL");
    static const size_t impossible[] = {0, 7, offsetof(CaptureStats, lost_flows) - 1, SIZE_MAX};
    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++) {
        memset(&stats, 0, sizeof stats);
        stats.size = impossible[i];
        check_failure("stats", CaptureSessionStats(session, &stats), 100, "sizeof(CaptureStats), which is 424");
        CHECK_EQUAL(stats.update_ns, 0);
    }
    /* Statistics are only written: what was in the structure before, also behind its known part, does not count. */
    memset(&room, 0xab, sizeof room);
    room.known.size = sizeof room;
    CHECK_EQUAL(CaptureSessionStats(session, &room.known), CAPTURE_OK);
    CHECK_EQUAL(room.known.size, sizeof room);
    CHECK_EQUAL(room.known.frames, 0);
    CHECK(room.known.update_ns > 0);
    CHECK_EQUAL(CaptureSessionStats(session, &room.known), CAPTURE_OK);
    CHECK_EQUAL(CaptureSessionClose(session), CAPTURE_OK);
    /* NULL options are the defaults. */
    CHECK_EQUAL(CaptureSessionOpen(NULL, &session), CAPTURE_OK);
    CHECK_EQUAL(CaptureSessionClose(session), CAPTURE_OK);
}

static void savefiles(void) {
    char path[4200];
    struct savefile_case {
        const char *name, *words;
        size_t length;
        uint32_t link;
    } cases[] = {
        {"missing", "missing", SIZE_MAX, 1},
        {"empty", "empty", 0, 1},
        {"cut header", "cut header", 11, 1},
        {"unknown link", "is not decoded", 1000, 147},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", arguments[0], cases[i].name);
        if (cases[i].length != SIZE_MAX) {
            write_savefile(path, cases[i].link, 1, cases[i].length);
        }
        wrong = options();
        wrong.savefile = path;
        wrong_is_refused(105, cases[i].words);
    }
    snprintf(path, sizeof path, "%s/random \xff", arguments[0]);
    write_noise(path, 100000);
    wrong.savefile = path;
    wrong_is_refused(105, "opening the savefile");
    wrong.savefile = arguments[0];
    wrong_is_refused(105, arguments[0]);
    snprintf(path, sizeof path, "%s/good", arguments[0]);
    write_savefile(path, 1, 3, SIZE_MAX);
    wrong.savefile = path;
    wrong.filter = "tcp or or";
    wrong_is_refused(3, "\"tcp or or\"");
}

static void words(void) {
    static const int32_t known[] = {1,   2,   3,   4,   5,   6,   35,  36,  37,  38,  41,  43, 44,
                                    100, 101, 102, 103, 104, 105, 106, 107, 108, 109};
    const size_t count = sizeof known / sizeof known[0];
    CHECK_TEXT(CaptureErrorText(), "");
    CHECK_TEXT(CaptureStrError(0), "success");
    CHECK_TEXT(CaptureStrError(3), "the filter expression does not compile");
    for (int32_t code = -200; code < 1000; code++) {
        size_t is_known = 0;
        for (size_t i = 0; i < count; i++) {
            is_known += known[i] == code;
        }
        CHECK(strlen(CaptureStrError(code)) > 5);
        CHECK_EQUAL(strcmp(CaptureStrError(code), "unknown code") != 0, is_known == 1 || code == 0);
        CHECK(CaptureStrError(code) == CaptureStrError(code));
    }
    CHECK_TEXT(CaptureStrError(INT32_MIN), "unknown code");
    CHECK_TEXT(CaptureStrError(INT32_MAX), "unknown code");
    CHECK_EQUAL(CaptureVersion(),
                CAPTURE_VERSION_MAJOR * 65536 + CAPTURE_VERSION_MINOR * 256 + CAPTURE_VERSION_PATCH);
    CHECK_EQUAL(CaptureExit(), CAPTURE_CODE_NOT_INITIALISED);
    CHECK(CaptureErrorText()[0] != 0);
}

SCENARIOS({"classic", classic}, {"classic_allowed", classic_allowed}, {"session_options", session_options},
          {"session_devices", session_devices}, {"session_sizes", session_sizes}, {"session_calls", session_calls},
          {"savefiles", savefiles}, {"words", words})
