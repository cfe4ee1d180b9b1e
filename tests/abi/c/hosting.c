/* Living inside somebody's process: its state, signals, threads and forks, and loading and unloading. */
#define _GNU_SOURCE
#include "network.h"
#include "recorder.h"
#include "threads.h"
#include <locale.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

extern char **environ;

static volatile sig_atomic_t signals_seen;
static volatile pid_t signalled_thread;

static void on_signal(int number) {
    (void)number;
    signals_seen++;
    signalled_thread = (pid_t)syscall(SYS_gettid);
}

/* A life of the library with everything that can be called. */
static void whole_life(void) {
    open_with(NULL, 0);
    CHECK_EQUAL(update(-1), 0);
    CHECK_EQUAL(update(-1), 0);
    CHECK_EQUAL(capture_update(-2), 100);
    CHECK_EQUAL(capture_init(NULL, NULL, NULL), 103);
    CHECK_EQUAL(capture_exit(), 0);
}

/* Text of what a host may notice of itself. Signals are asked about one by one, because glibc itself handles 32 and 33
 * from the first thread on. */
static void state_of_host(char *into, size_t room) {
    static const char *const lines[] = {"Umask:", "SigPnd:", "ShdPnd:", "SigBlk:", "CapInh:", "CapPrm:",
                                        "CapEff:", "CapAmb:", "NoNewPrivs:", "Seccomp:", "Groups:", "Uid:",
                                        "Gid:", "Name:", "CoreDumping:", "Cpus_allowed:"};
    char line[4096];
    struct rlimit limit;
    size_t used = 0;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        status_line("/proc/self/status", lines[i], line, sizeof line);
        used += (size_t)snprintf(into + used, room - used, "%s%s", lines[i], line);
    }
    CHECK(getcwd(line, sizeof line) != NULL);
    used += (size_t)snprintf(into + used, room - used, "cwd %s\nlocale %s\n", line, setlocale(LC_ALL, NULL));
    for (int i = 0; i < RLIMIT_NLIMITS; i++) {
        CHECK(getrlimit((__rlimit_resource_t)i, &limit) == 0);
        used += (size_t)snprintf(into + used, room - used, "limit %d %ld %ld\n", i, (long)limit.rlim_cur,
                                 (long)limit.rlim_max);
    }
    for (int i = 1; i < 65; i++) {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        if (sigaction(i, NULL, &action) == 0) {
            used += (size_t)snprintf(into + used, room - used, "signal %d %p %x\n", i,
                                     *(void **)&action.sa_handler, (unsigned)action.sa_flags);
        }
    }
    for (int i = 0; i < 3; i++) {
        used += (size_t)snprintf(into + used, room - used, "flags %d %d %d\n", i, fcntl(i, F_GETFL),
                                 fcntl(i, F_GETFD));
    }
    CHECK(used < room - 1);
}

/* Compares two states and shows the first line in which they differ. */
static void check_same(const char *after, const char *before) {
    const char *line = before;
    size_t i = 0;
    for (; after[i] == before[i] && before[i] != 0; i++) {
        if (before[i] == '\n') {
            line = before + i + 1;
        }
    }
    if (after[i] != before[i]) {
        const char *changed = after + (line - before);
        fprintf(stderr, "\"%.*s\" was \"%.*s\"\n", (int)strcspn(changed, "\n"), changed, (int)strcspn(line, "\n"), line);
        _exit(1);
    }
}

/* A sum over the environment, whose contents are nobody's business. */
static uint64_t sum_of_environment(void) {
    uint64_t sum = 0;
    for (char **variable = environ; *variable != NULL; variable++) {
        for (const char *byte = *variable; *byte != 0; byte++) {
            sum = sum * 31 + (unsigned char)*byte;
        }
        sum = sum * 31 + 1;
    }
    return sum;
}

static void host_state(void) {
    static char before[65536], during[65536], after[65536];
    uint64_t environment;
    sigset_t some;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(signal(SIGHUP, SIG_IGN) != SIG_ERR);
    sigemptyset(&some);
    sigaddset(&some, SIGUSR2);
    sigaddset(&some, SIGRTMIN + 3);
    CHECK(sigprocmask(SIG_BLOCK, &some, NULL) == 0);
    CHECK(setlocale(LC_ALL, "C.UTF-8") != NULL || setlocale(LC_ALL, "C") != NULL);
    CHECK(setlocale(LC_NUMERIC, "C") != NULL);
    umask(0137);
    CHECK(setenv("RUST_LOG", "trace", 1) == 0);
    CHECK(setenv("RUST_BACKTRACE", "full", 1) == 0);
    state_of_host(before, sizeof before);
    environment = sum_of_environment();
    load();
    state_of_host(during, sizeof during);
    check_same(during, before);
    open_with("udp", 0);
    CHECK_EQUAL(update(-1), 0);
    state_of_host(during, sizeof during);
    check_same(during, before);
    CHECK_EQUAL(capture_exit(), 0);
    whole_life();
    state_of_host(after, sizeof after);
    check_same(after, before);
    CHECK(sum_of_environment() == environment);
}

/* Loading starts nothing and opens nothing. */
static void loading(void) {
    const int threads_before = threads(), descriptors_before = descriptors();
    load();
    CHECK_EQUAL(threads(), threads_before);
    CHECK_EQUAL(descriptors(), descriptors_before);
    CHECK_EQUAL(capture_update(-1), 5);
    CHECK_EQUAL(threads(), threads_before);
    CHECK_EQUAL(descriptors(), descriptors_before);
    open_with(NULL, 0);
    CHECK_EQUAL(descriptors(), descriptors_before);
    CHECK(threads() > threads_before);
    CHECK_EQUAL(capture_exit(), 0);
    CHECK_EQUAL(threads_left(), threads_before);
    CHECK_EQUAL(descriptors(), descriptors_before);
}

static void signals(void) {
    char folder[64], blocked[256];
    int checked = 0;
    struct sigaction action;
    const pid_t self = (pid_t)syscall(SYS_gettid);
    sigset_t some;
    struct timespec patience = {TIMEOUT, 0};
    char log[4200];
    CaptureInitt config;
    load();
    memset(&config, 0, sizeof config);
    snprintf(log, sizeof log, "%s/log", arguments[0]);
    config.logfile = log;
    CHECK_EQUAL(capture_init(&config, on_process, on_packets), 0);
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
        unsigned long long mask, wanted = ~0ull;
        if (entry->d_name[0] == '.' || atoi(entry->d_name) == self) {
            continue;
        }
        snprintf(folder, sizeof folder, "/proc/self/task/%.20s/status", entry->d_name);
        status_line(folder, "SigBlk:", blocked, sizeof blocked);
        mask = strtoull(blocked, NULL, 16);
        /* Nobody can block SIGKILL and SIGSTOP, and glibc keeps 32 and 33 to itself. */
        wanted &= ~(1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1) | 1ull << 31 | 1ull << 32);
        CHECK_EQUAL(mask & wanted, wanted);
        checked++;
    }
    closedir(tasks);
    /* The log's, and those that capture where that is permitted. */
    CHECK(checked >= (geteuid() == 0 ? 3 : 1));
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    for (int i = 1; i <= 100; i++) {
        CHECK(kill(getpid(), SIGUSR1) == 0);
        CHECK_EQUAL(signals_seen, i);
        CHECK_EQUAL(signalled_thread, self);
        if (i % 20 == 0) {
            CHECK_EQUAL(update(-1), 0);
        }
    }
    /* A signal that the host blocks waits for the host; no thread of the library takes it. */
    sigemptyset(&some);
    sigaddset(&some, SIGTERM);
    CHECK(sigprocmask(SIG_BLOCK, &some, NULL) == 0);
    CHECK(kill(getpid(), SIGTERM) == 0);
    CHECK_EQUAL(update(-1), 0);
    CHECK_EQUAL(sigtimedwait(&some, NULL, &patience), SIGTERM);
    CHECK_EQUAL(capture_exit(), 0);
}

/* Signals that interrupt the host's thread at any moment do not make a call fail. */
static void interrupted(void) {
    struct sigaction action;
    struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    load();
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (int i = 0; i < 10; i++) {
        open_with(NULL, 0);
        for (int j = 0; j < 5; j++) {
            CHECK_EQUAL(update(-1), 0);
            CHECK(live(getpid()) != NULL);
        }
        CHECK_EQUAL(capture_exit(), 0);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(signals_seen > 100);
}

static void reload(void) {
    for (int i = 0; i < 5; i++) {
        void *library = load();
        open_with(NULL, 0);
        CHECK_EQUAL(update(-1), 0);
        CHECK(live(getpid()) != NULL);
        CHECK_EQUAL(capture_exit(), 0);
        CHECK_EQUAL(dlclose(library), 0);
        CHECK_EQUAL(threads_left(), 1);
    }
}

/* Unloads a library that captures; its threads go on, and so does the session when it is loaded again. */
static void unload_while_open(void) {
    void *library;
    own_network();
    struct pair pair = connected(AF_INET);
    library = load();
    open_with(NULL, 0);
    CHECK_EQUAL(update(-1), 0);
    CHECK_EQUAL(dlclose(library), 0);
    capture_update = NULL;
    for (int i = 0; i < 30; i++) {
        send_datagram(&pair, i, 500);
        nap(10);
    }
    load();
    for (double began = now(); live(getpid())->recv != 30 * (HEADERS_V4 + 500);) {
        CHECK_EQUAL(update(-1), 0);
        WAIT_SINCE(began);
    }
}

static void *last_words(void *nothing) {
    CHECK_EQUAL(capture_update(-2), 100);
    CHECK_EQUAL(update(-1), 0);
    return nothing;
}

/* A thread that has used the library ends, and the program returns from main with the session open. */
static void leave_open(void) {
    pthread_t thread;
    void *library = load();
    open_with(NULL, 0);
    CHECK(pthread_create(&thread, NULL, last_words, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(live(getpid()) != NULL);
    dlclose(library);
}

/* Init before the host goes into the background, as a daemon's plugin might: the child starts anew. */
static void into_the_background(void) {
    pid_t child;
    int status;
    load();
    open_with(NULL, 0);
    CHECK_EQUAL(update(-1), 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(TIMEOUT);
        CHECK_EQUAL(setsid(), getpid());
        CHECK_EQUAL(capture_update(-1), 102);
        CHECK_EQUAL(capture_exit(), 102);
        open_with(NULL, 0);
        CHECK_EQUAL(update(-1), 0);
        CHECK(live(getpid()) != NULL && live(getppid()) != NULL);
        CHECK_EQUAL(capture_exit(), 0);
        CHECK_EQUAL(threads_left(), 1);
        whole_life();
        exit(0);
    }
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
    CHECK_EQUAL(update(-1), 0);
    CHECK_EQUAL(capture_exit(), 0);
}

SCENARIOS({"host_state", host_state}, {"loading", loading},
          {"signals", signals}, {"interrupted", interrupted}, {"reload", reload},
          {"unload_while_open", unload_while_open}, {"leave_open", leave_open},
          {"into_the_background", into_the_background})
