/* The classic agent in C99: every three seconds all figures of every process, and the number of packets.
 *
 *     cc -std=c99 exa_capture.c -o exa_capture $(pkg-config --cflags --libs capture)
 *     ./exa_capture [rounds]
 *
 * It stops after `rounds` updates; with 0 or without the argument, at SIGINT or SIGTERM. Network figures require
 * CAP_NET_RAW; I/O and descriptors of other users require CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. exa_capture.log
 * names what is missing.
 */

#define _POSIX_C_SOURCE 200809L

#include <libcapture.h>

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define INTERVAL_SECONDS 3

static volatile sig_atomic_t stop_requested = 0;

/* Packets and bytes of this round, by PacketType. */
static uint64_t packet_count[2], packet_bytes[2];

static void request_stop(int number)
{
    (void)number;
    stop_requested = 1;
}

/* Names and arguments are any bytes that a process chose; control characters would spoil the terminal. Prints at
 * least `width` bytes. */
static void print_text(const char *text, int width)
{
    for (; *text != '\0'; text++, width--) {
        unsigned char c = (unsigned char)*text;
        putchar(c < 0x20 || c == 0x7f ? '?' : c);
    }
    for (; width > 0; width--) {
        putchar(' ');
    }
}

static void print_header(void)
{
    printf("%-5s %7s %13s %13s %6s %6s %10s %5s %14s %14s %6s %6s %-12s %-12s %-16s %s\n", "STATE", "PID",
           "RECEIVED", "SENT", "CPU%", "MEM%", "MEMORY/kB", "FDS", "READ", "WRITTEN", "UID", "GID", "USER", "GROUP",
           "NAME", "COMMAND");
}

static void print_process(const char *state, const Process_t *p)
{
    printf("%-5s %7d %13" PRIu64 " %13" PRIu64 " %6.2f %6.2f %10" PRIu64 " %5" PRIu32 " %14" PRIu64 " %14" PRIu64
           " %6u %6u ",
           state, p->pid, p->recv, p->send, p->cpuPercent, p->memPercent, p->memory, p->fdCnt, p->ioRead, p->ioWrite,
           p->uid, p->gid);
    print_text(p->user, 12);
    putchar(' ');
    print_text(p->group, 12);
    putchar(' ');
    print_text(p->name, 16);
    putchar(' ');
    print_text(p->cmdline, 0);
    putchar('\n');
}

static void on_processes(CaptureAction action, const Process_t *processes, uint32_t *size)
{
    /* Processes with traffic come first: one pass for them, one for the others. */
    for (int quiet = 0; quiet < 2; quiet++) {
        for (uint32_t i = 0; i < *size; i++) {
            const Process_t *process = &processes[i];
            if ((process->recv + process->send == 0) == quiet) {
                print_process(action == ACTION_REMOVE ? "ended" : "live", process);
            }
        }
    }
}

static void on_packets(const Packet_t *packets, uint32_t *size)
{
    for (uint32_t i = 0; i < *size; i++) {
        int type = packets[i].family == P_TCP ? 0 : 1;
        packet_count[type]++;
        packet_bytes[type] += packets[i].packetSize;
    }
    if (*size > 0) {
        const Packet_t *last = &packets[*size - 1];
        printf("last packet: %s, %" PRIu32 " bytes\n", last->hash, last->packetSize);
    }
}

static void print_packets(void)
{
    printf("packets: %" PRIu64 " TCP of %" PRIu64 " bytes, %" PRIu64 " UDP of %" PRIu64 " bytes\n", packet_count[0],
           packet_bytes[0], packet_count[1], packet_bytes[1]);
    packet_count[0] = packet_count[1] = packet_bytes[0] = packet_bytes[1] = 0;
}

static int handle_signals(void)
{
    struct sigaction action = {0};
    action.sa_handler = request_stop;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGINT, &action, NULL) == 0 && sigaction(SIGTERM, &action, NULL) == 0;
}

/* Returns the number of rounds in the arguments: 0 for no limit, -1 if they are invalid. */
static long rounds_of(int argc, char **argv)
{
    char *end = NULL;
    long rounds;

    if (argc < 2) {
        return 0;
    }
    errno = 0;
    rounds = strtol(argv[1], &end, 10);
    return argc == 2 && errno == 0 && end != argv[1] && *end == '\0' ? rounds : -1;
}

int main(int argc, char **argv)
{
    char error[CAPTURE_ERROR_SIZE] = "";
    CaptureInitt config = {0};
    long rounds = rounds_of(argc, argv);
    int code;

    if (rounds < 0) {
        fprintf(stderr, "usage: %s [rounds]\n", argv[0]);
        return 2;
    }
    if (!handle_signals()) {
        perror("sigaction");
        return 1;
    }

    config.logfile = "exa_capture.log";
    config.ms = 100;
    config.snaplen = 100;
    config.errorbuf = error;
    code = CaptureInit(&config, on_processes, on_packets);
    if (code != CAPTURE_OK) {
        fprintf(stderr, "CaptureInit: %s: %s\n", CaptureStrError(code), error);
        return 1;
    }

    for (long round = 1; !stop_requested; round++) {
        printf("round %ld\n", round);
        print_header();
        code = CaptureUpdate(-1);
        if (code != CAPTURE_OK) {
            fprintf(stderr, "CaptureUpdate: %s: %s\n", CaptureStrError(code), CaptureErrorText());
            break;
        }
        print_packets();
        fflush(stdout);
        if (round == rounds) {
            break;
        }
        sleep(INTERVAL_SECONDS); /* A signal ends it early. */
    }
    CaptureExit();
    return code == CAPTURE_OK ? 0 : 1;
}
