/* A program that is built without libcapture: it loads the library at run time and has its own declarations.
 *
 *     cc -std=c11 exa_dlopen.c -o exa_dlopen -ldl
 *     ./exa_dlopen [library [rounds]]
 *
 * The library defaults to libcapture.so.1. The program stops after `rounds` updates; with 0 or without the argument, at
 * SIGINT or SIGTERM. The declarations below are all that it shares with the library; the layouts of a major version
 * never change.
 */

#define _POSIX_C_SOURCE 200809L

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define INTERVAL_SECONDS 3

typedef struct {
    const char *logfile;
    int32_t ms;
    int32_t snaplen;
    int32_t promise;
    const char *fliter;
    char *errorbuf;
    int32_t loop;
} CaptureInitt;

typedef struct {
    char name[128];
    char cmdline[512];
    char user[128];
    char group[128];
    pid_t pid;
    uid_t uid;
    gid_t gid;
    uint32_t fdCnt;
    uint64_t memory;
    double cpuPercent;
    double memPercent;
    uint64_t ioRead;
    uint64_t ioWrite;
    uint64_t recv;
    uint64_t send;
} Process_t;

typedef struct {
    char hash[128];
    int32_t family;
    unsigned char *packet;
    uint32_t packetSize;
} Packet_t;

_Static_assert(sizeof(void *) != 8 || sizeof(CaptureInitt) == 48, "layout of CaptureInitt");
_Static_assert(sizeof(Process_t) == 968, "layout of Process_t");
_Static_assert(sizeof(void *) != 8 || sizeof(Packet_t) == 152, "layout of Packet_t");

typedef void (*ProcessInfoCallback)(int32_t action, const Process_t *processes, uint32_t *size);
typedef void (*PacketCallback)(const Packet_t *packets, uint32_t *size);

/* The library's functions, found by name. */
static int32_t (*capture_init)(const CaptureInitt *, ProcessInfoCallback, PacketCallback);
static int32_t (*capture_update)(int32_t);
static int32_t (*capture_exit)(void);

static volatile sig_atomic_t stop_requested = 0;
static uint64_t packet_count, packet_bytes;

static void request_stop(int number)
{
    (void)number;
    stop_requested = 1;
}

/* Shows processes with traffic only; exa_capture.c shows every figure of every process. */
static void on_processes(int32_t action, const Process_t *processes, uint32_t *size)
{
    for (uint32_t i = 0; i < *size; i++) {
        const Process_t *p = &processes[i];
        if (p->recv + p->send == 0) {
            continue;
        }
        printf("%-5s %7d %13" PRIu64 " %13" PRIu64 "  ", action == 1 ? "ended" : "live", p->pid, p->recv, p->send);
        /* A name is any bytes that a process chose; control characters would spoil the terminal. */
        for (const char *c = p->name; *c != '\0'; c++) {
            putchar((unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c);
        }
        putchar('\n');
    }
}

static void on_packets(const Packet_t *packets, uint32_t *size)
{
    for (uint32_t i = 0; i < *size; i++) {
        packet_count++;
        packet_bytes += packets[i].packetSize;
    }
}

/* Stores the function of that name in `function`. It is copied because C has no conversion from the object pointer that
 * dlsym returns to a function pointer; POSIX guarantees that both have the same representation. */
static int find(void *library, const char *name, void *function, size_t size)
{
    void *symbol = dlsym(library, name);
    if (symbol == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 0;
    }
    memcpy(function, &symbol, size);
    return 1;
}

static int load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 0;
    }
    return find(library, "CaptureInit", &capture_init, sizeof capture_init) &&
           find(library, "CaptureUpdate", &capture_update, sizeof capture_update) &&
           find(library, "CaptureExit", &capture_exit, sizeof capture_exit);
}

static int handle_signals(void)
{
    struct sigaction action = {0};
    action.sa_handler = request_stop;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGINT, &action, NULL) == 0 && sigaction(SIGTERM, &action, NULL) == 0;
}

int main(int argc, char **argv)
{
    char error[256] = "";
    CaptureInitt config = {0};
    char *end = "";
    long rounds = 0;
    int32_t code;

    errno = 0;
    if (argc == 3) {
        rounds = strtol(argv[2], &end, 10);
    }
    if (argc > 3 || errno != 0 || *end != '\0' || rounds < 0) {
        fprintf(stderr, "usage: %s [library [rounds]]\n", argv[0]);
        return 2;
    }
    if (!handle_signals()) {
        perror("sigaction");
        return 1;
    }
    if (!load(argc > 1 ? argv[1] : "libcapture.so.1")) {
        return 1;
    }

    config.ms = 100;
    config.snaplen = 100;
    config.errorbuf = error;
    code = capture_init(&config, on_processes, on_packets);
    if (code != 0) {
        fprintf(stderr, "CaptureInit: code %" PRId32 ": %s\n", code, error);
        return 1;
    }

    for (long round = 1; !stop_requested; round++) {
        printf("round %ld\n%-5s %7s %13s %13s  %s\n", round, "STATE", "PID", "RECEIVED", "SENT", "NAME");
        code = capture_update(-1);
        if (code != 0) {
            fprintf(stderr, "CaptureUpdate: code %" PRId32 "\n", code);
            break;
        }
        printf("packets: %" PRIu64 " of %" PRIu64 " bytes\n", packet_count, packet_bytes);
        packet_count = packet_bytes = 0;
        fflush(stdout);
        if (round == rounds) {
            break;
        }
        sleep(INTERVAL_SECONDS); /* A signal ends it early. */
    }
    capture_exit();
    return code == 0 ? 0 : 1;
}
