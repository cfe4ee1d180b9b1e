/* The figures of processes in the classic interface, against what the kernel says of them elsewhere. */
#define _GNU_SOURCE
#include "children.h"
#include "recorder.h"
#include <dirent.h>
#include <grp.h>
#include <pwd.h>
#include <time.h>

/* The number behind `label` in a file of /proc. */
static uint64_t number_in(const char *path, const char *label) {
    char line[4096];
    FILE *file = fopen(path, "re");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, label, strlen(label)) == 0) {
            fclose(file);
            return strtoull(line + strlen(label), NULL, 10);
        }
    }
    fprintf(stderr, "%s has no %s\n", path, label);
    _exit(1);
}

static uint64_t number_of(pid_t pid, const char *name, const char *label) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    return number_in(path, label);
}

static uint32_t descriptors_of(pid_t pid) {
    char path[64];
    uint32_t count = 0;
    DIR *folder;
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    CHECK((folder = opendir(path)) != NULL);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        count += entry->d_name[0] != '.';
    }
    closedir(folder);
    return count;
}

/* CPU time of a process and of the machine, ticks. */
static void ticks(pid_t pid, double *of_process, double *of_machine) {
    char path[64], text[4096];
    unsigned long user, system;
    unsigned long long all[7];
    FILE *file;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    CHECK((file = fopen(path, "re")) != NULL);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    CHECK(sscanf(strrchr(text, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) ==
          2);
    *of_process = (double)(user + system);
    CHECK((file = fopen("/proc/stat", "re")) != NULL);
    CHECK(fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu", &all[0], &all[1], &all[2], &all[3], &all[4],
                 &all[5], &all[6]) == 7);
    fclose(file);
    *of_machine = 0;
    for (int i = 0; i < 7; i++) {
        *of_machine += (double)all[i];
    }
}

static void check_identity(const Process_t *process) {
    char expected[512] = "";
    FILE *file = fopen("/proc/self/cmdline", "re");
    size_t length = fread(expected, 1, sizeof expected - 1, file);
    fclose(file);
    for (size_t i = 0; i + 1 < length; i++) {
        expected[i] = expected[i] == 0 ? ' ' : expected[i];
    }
    CHECK_TEXT(process->cmdline, expected);
    CHECK_EQUAL(process->uid, geteuid());
    CHECK_EQUAL(process->gid, getegid());
    CHECK_TEXT(process->user, getpwuid(geteuid())->pw_name);
    CHECK_TEXT(process->group, getgrgid(getegid())->gr_name);
}

/* This process itself, whose figures move on while they are read. */
static void self(void) {
    const Process_t *process;
    uint64_t read_before, written_before, memory;
    const long page = sysconf(_SC_PAGESIZE) / 1024;
    load();
    CHECK(prctl(PR_SET_NAME, "a (b) R\nc") == 0);
    for (int i = 0; i < 20; i++) {
        CHECK(dup(0) >= 0);
    }
    open_with(NULL, 0);
    CHECK_EQUAL(update(-1), 0);
    CHECK(live(getpid())->cpuPercent == 0);
    read_before = number_in("/proc/self/io", "rchar:");
    written_before = number_in("/proc/self/io", "wchar:");
    CHECK_EQUAL(update(-1), 0);
    process = live(getpid());
    check_identity(process);
    CHECK_TEXT(process->name, "a (b) R\nc");
    CHECK_HOLDS(process->cmdline, "program self two words  -x=\"y\"");
    /* An update may have files of /proc open while it looks. */
    CHECK(process->fdCnt >= descriptors_of(getpid()) - 1 && process->fdCnt <= descriptors_of(getpid()) + 2);
    memory = number_in("/proc/self/status", "VmRSS:");
    CHECK_NEAR(process->memory, memory, 256 * page);
    CHECK_NEAR(process->memPercent,
               (double)process->memory * 100 / (double)number_in("/proc/meminfo", "MemTotal:"), 1e-6);
    CHECK(process->ioRead >= read_before && process->ioRead <= number_in("/proc/self/io", "rchar:"));
    CHECK(process->ioWrite >= written_before && process->ioWrite <= number_in("/proc/self/io", "wchar:"));
    CHECK_EQUAL(capture_exit(), 0);
}

/* Does work of every kind and then stands still. */
static void worker(const struct child *child) {
    static char memory[20 << 20];
    FILE *zero = fopen("/dev/zero", "re"), *null = fopen("/dev/null", "we");
    memset(memory, 1, sizeof memory);
    CHECK(read(fileno(zero), memory, 123457) == 123457);
    CHECK(write(fileno(null), memory, 7654321) == 7654321);
    for (int i = 0; i < 30; i++) {
        CHECK(dup(0) >= 0);
    }
    CHECK(prctl(PR_SET_NAME, "worker \xc3\xa9") == 0);
    next_step(child);
}

/* A process that stands still: every figure must be exact. */
static void other(void) {
    struct child child = start_child(worker);
    const Process_t *process;
    load();
    open_with(NULL, 0);
    CHECK_EQUAL(update(-1), 0);
    process = live(child.pid);
    check_identity(process);
    CHECK_TEXT(process->name, "worker \xc3\xa9");
    CHECK_EQUAL(process->fdCnt, descriptors_of(child.pid));
    CHECK(process->fdCnt >= 30);
    CHECK_EQUAL(process->ioRead, number_of(child.pid, "io", "rchar:"));
    CHECK_EQUAL(process->ioWrite, number_of(child.pid, "io", "wchar:"));
    CHECK(process->ioRead >= 123457 && process->ioWrite >= 7654321);
    CHECK(process->memory >= 20 << 10);
    CHECK_EQUAL(process->memory, number_of(child.pid, "status", "VmRSS:"));
    CHECK(process->recv == 0 && process->send == 0);
    CHECK_EQUAL(update(-1), 0);
    CHECK(live(child.pid)->cpuPercent == 0);
    /* A kernel thread has a name and nothing else. */
    if ((process = live(2)) != NULL && strcmp(process->name, "kthreadd") == 0) {
        CHECK_TEXT(process->cmdline, "");
        CHECK_EQUAL(process->memory, 0);
    }
    order(&child);
    CHECK_EQUAL(end_of(&child), 0);
    CHECK_EQUAL(capture_exit(), 0);
}

/* Spins until it is killed. */
static void burner(const struct child *child) {
    next_step(child);
    for (volatile unsigned long spins = 0;; spins++) {
    }
}

/* The share of CPU time, against the same sum made from outside around the same moments. */
static void cpu(void) {
    struct child child = start_child(burner);
    double process[4], machine[4], least, most, shares = 0;
    int status;
    load();
    open_with(NULL, 0);
    release(&child);
    /* Read on both sides of each update: the share lies between what the four readings allow. */
    ticks(child.pid, &process[0], &machine[0]);
    CHECK_EQUAL(update(-1), 0);
    ticks(child.pid, &process[1], &machine[1]);
    nap(1000);
    ticks(child.pid, &process[2], &machine[2]);
    CHECK_EQUAL(update(-1), 0);
    ticks(child.pid, &process[3], &machine[3]);
    least = (process[2] - process[1]) * 100 / (machine[3] - machine[0]);
    most = (process[3] - process[0]) * 100 / (machine[2] - machine[1]);
    CHECK(least > 2);
    /* Process and machine are read one after the other, a tick or two apart. */
    CHECK(live(child.pid)->cpuPercent >= least - 2 && live(child.pid)->cpuPercent <= most + 2);
    for (size_t i = 0; i < shown.live_count; i++) {
        shares += shown.live[i].cpuPercent;
    }
    CHECK(shares <= 102);
    kill(child.pid, SIGKILL);
    CHECK_EQUAL(waitpid(child.pid, &status, 0), child.pid);
    CHECK_EQUAL(capture_exit(), 0);
}

/* Run as nobody: opens all the same, and shows what everybody may read. */
static void unprivileged(void) {
    char log[4200], text[4096];
    CaptureInitt config;
    FILE *file;
    CHECK(geteuid() != 0);
    load();
    memset(&config, 0, sizeof config);
    snprintf(log, sizeof log, "%s", arguments[0]);
    config.logfile = log;
    CHECK_EQUAL(capture_init(&config, on_process, on_packets), 0);
    CHECK_EQUAL(update(-1), 0);
    CHECK_TEXT(calls_for_the_living(), "U");
    CHECK_TEXT(live(getpid())->name, "program");
    CHECK_EQUAL(live(getpid())->uid, geteuid());
    CHECK(live(getpid())->memory > 0 && live(getpid())->fdCnt > 0 && live(getpid())->ioRead > 0);
    CHECK_EQUAL(live(getpid())->recv + live(getpid())->send, 0);
    CHECK(live(1) != NULL && live(1)->ioRead == 0 && live(1)->ioWrite == 0);
    CHECK_EQUAL(capture_exit(), 0);
    CHECK((file = fopen(log, "re")) != NULL);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    CHECK_HOLDS(text, "CAP_NET_RAW");
}

SCENARIOS({"self", self}, {"other", other}, {"cpu", cpu}, {"unprivileged", unprivileged})
