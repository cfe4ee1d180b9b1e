/* The classic interface through a program that was compiled without our header: order of the calls, and packets. */
#define _GNU_SOURCE
#include "children.h"
#include "network.h"
#include "recorder.h"

static struct pair pair;

static void sleeper(const struct child *self) {
    next_step(self);
}

/* Sends 5 datagrams of 1000 bytes, then 3 more as the last thing it does. */
static void sender(const struct child *self) {
    char bytes[1000] = {0};
    /* Each process is then the one that holds its end. */
    close(pair.receiver);
    next_step(self);
    for (int i = 0; i < 5; i++) {
        CHECK_EQUAL(send(pair.sender, bytes, sizeof bytes, 0), sizeof bytes);
    }
    next_step(self);
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(send(pair.sender, bytes, sizeof bytes, 0), sizeof bytes);
    }
}

/* The calls of an update: ended processes, then once those that live, then at most once packets. */
static void check_order(void) {
    const char *calls = calls_for_the_living();
    CHECK(strcmp(calls, "U") == 0 || strcmp(calls, "UP") == 0);
}

/* Updates until the process is shown as ended. */
static Process_t last_of(pid_t pid) {
    for (double began = now();;) {
        CHECK_EQUAL(update(0), 0);
        check_order();
        CHECK(live(pid) == NULL);
        if (removed(pid) != NULL) {
            return *removed(pid);
        }
        WAIT_SINCE(began);
    }
}

static void order_of_calls(void) {
    struct child children[3];
    CaptureInitt config;
    load();
    memset(&config, 0, sizeof config);
    CHECK_EQUAL(capture_init(&config, on_process, on_packets), 0);
    for (int i = 0; i < 3; i++) {
        children[i] = start_child(sleeper);
    }
    CHECK_EQUAL(update(-1), 0);
    check_order();
    for (int i = 0; i < 3; i++) {
        CHECK(live(children[i].pid) != NULL && removed(children[i].pid) == NULL);
    }
    CHECK(live(getpid()) != NULL && live(1) != NULL);
    for (int i = 0; i < 2; i++) {
        order(&children[i]);
        CHECK_EQUAL(end_of(&children[i]), 0);
    }
    int seen[2] = {0, 0};
    for (double began = now(); seen[0] + seen[1] < 2;) {
        CHECK_EQUAL(update(-1), 0);
        check_order();
        for (int i = 0; i < 2; i++) {
            CHECK(live(children[i].pid) == NULL);
            seen[i] += removed(children[i].pid) != NULL;
        }
        CHECK(live(children[2].pid) != NULL && removed(children[2].pid) == NULL);
        WAIT_SINCE(began);
    }
    /* And never again. */
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(update(-1), 0);
        check_order();
        CHECK(removed(children[0].pid) == NULL && removed(children[1].pid) == NULL);
        CHECK(live(children[0].pid) == NULL && live(children[1].pid) == NULL);
    }
    order(&children[2]);
    CHECK_EQUAL(end_of(&children[2]), 0);
    last_of(children[2].pid);
    CHECK_EQUAL(capture_exit(), 0);
}

static void last_figures(void) {
    const uint64_t datagram = HEADERS_V4 + 1000;
    struct child child;
    Process_t last;
    own_network();
    load();
    pair = connected(AF_INET);
    child = start_child(sender);
    close(pair.sender);
    open_with(NULL, 0);
    CHECK_EQUAL(update(0), 0);
    order(&child);
    for (double began = now(); live(child.pid)->send != 5 * datagram;) {
        CHECK_EQUAL(update(0), 0);
        CHECK(live(child.pid) != NULL);
        CHECK(live(child.pid)->send <= 5 * datagram);
        WAIT_SINCE(began);
    }
    order(&child);
    CHECK_EQUAL(end_of(&child), 0);
    last = last_of(child.pid);
    CHECK_EQUAL(last.send, 8 * datagram);
    CHECK_EQUAL(last.recv, 0);
    CHECK_EQUAL(last.uid, getuid());
    CHECK_TEXT(last.name, "program");
    CHECK_HOLDS(last.cmdline, "program last_figures");
    CHECK(last.memory > 0 && last.fdCnt > 0);
    CHECK_EQUAL(capture_exit(), 0);
}

/* Waits until this process has received so many bytes, without taking packets. */
static void await_received(uint64_t bytes) {
    for (double began = now();;) {
        CHECK_EQUAL(update(0), 0);
        CHECK_EQUAL(shown.packet_count, 0);
        CHECK(strchr(shown.calls, 'P') == NULL);
        CHECK(live(getpid())->recv <= bytes);
        if (live(getpid())->recv == bytes) {
            return;
        }
        WAIT_SINCE(began);
    }
}

static void packet_counts(void) {
    static const int32_t asked[] = {1, 2, 0, -1, -1, 7};
    static const size_t taken[] = {1, 2, 0, 2, 0, 0};
    int number = 0;
    own_network();
    load();
    pair = connected(AF_INET);
    open_with(NULL, 0);
    for (int i = 0; i < 5; i++) {
        send_datagram(&pair, i, 100);
    }
    await_received(5 * (HEADERS_V4 + 100));
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        CHECK_EQUAL(update(asked[i]), 0);
        CHECK_TEXT(calls_for_the_living(), taken[i] == 0 ? "U" : "UP");
        CHECK_EQUAL(shown.packet_count, taken[i]);
        for (size_t j = 0; j < taken[i]; j++) {
            CHECK_EQUAL(shown.bytes[j][HEADERS_V4], pattern(number++, 0));
        }
    }
    CHECK_EQUAL(number, 5);
    CHECK_EQUAL(update(-2), 100);
    CHECK_TEXT(shown.calls, "");
    CHECK_EQUAL(capture_exit(), 0);
}

/* One datagram as it must be shown: link header, addresses, payload, as far as the bytes are kept. */
static void check_packet(int index, int family, int number, size_t payload) {
    const size_t headers = family == AF_INET ? HEADERS_V4 : HEADERS_V6;
    const size_t ports = headers - 8;
    const size_t kept = headers + payload < snaplen ? headers + payload : snaplen;
    const unsigned char *bytes = shown.bytes[index];
    const char *host = family == AF_INET ? "127.0.0.1" : "[::1]";
    char hash[128];
    snprintf(hash, sizeof hash, "%s:%u-%s:%u", host, pair.sender_port, host, pair.receiver_port);
    CHECK_TEXT(shown.packets[index].hash, hash);
    CHECK_EQUAL(shown.packets[index].family, P_UDP);
    CHECK_EQUAL(shown.packets[index].packetSize, headers + payload);
    CHECK_EQUAL(bytes[12] << 8 | bytes[13], family == AF_INET ? 0x0800 : 0x86dd);
    CHECK_EQUAL(bytes[14] >> 4, family == AF_INET ? 4 : 6);
    CHECK_EQUAL(bytes[ports] << 8 | bytes[ports + 1], pair.sender_port);
    CHECK_EQUAL(bytes[ports + 2] << 8 | bytes[ports + 3], pair.receiver_port);
    for (size_t i = headers; i < kept; i++) {
        CHECK_EQUAL(bytes[i], pattern(number, i - headers));
    }
}

static void datagrams(int family, int32_t bytes) {
    const size_t headers = family == AF_INET ? HEADERS_V4 : HEADERS_V6;
    pair = connected(family);
    open_with("udp", bytes);
    send_datagram(&pair, 1, 1000);
    send_datagram(&pair, 2, 0);
    send_datagram(&pair, 3, 100);
    await_received(3 * headers + 1100);
    CHECK_EQUAL(live(getpid())->send, 3 * headers + 1100);
    CHECK_EQUAL(update(-1), 0);
    CHECK_EQUAL(shown.packet_count, 3);
    check_packet(0, family, 1, 1000);
    check_packet(1, family, 2, 0);
    check_packet(2, family, 3, 100);
    CHECK_EQUAL(capture_exit(), 0);
    close_pair(&pair);
}

static void packets_v4(void) {
    own_network();
    load();
    datagrams(AF_INET, 0);
    datagrams(AF_INET, 100);
    datagrams(AF_INET, 65535);
}

static void packets_v6(void) {
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int probe;
    own_network();
    load();
    probe = socket(AF_INET6, SOCK_DGRAM, 0);
    if (probe < 0 || bind(probe, (struct sockaddr *)&here, sizeof here) != 0) {
        fprintf(stderr, "there is no IPv6 here\n");
        exit(LEFT_OUT);
    }
    close(probe);
    datagrams(AF_INET6, 0);
    datagrams(AF_INET6, 100);
    datagrams(AF_INET6, 65535);
}

/* A connection to a port where nobody listens: two packets of known size, one in each direction. */
static void packets_tcp(void) {
    uint16_t from_port, to_port;
    char there[64], back[64];
    struct sockaddr_in to = {.sin_family = AF_INET};
    int reserved, from;
    own_network();
    load();
    reserved = bound(AF_INET, SOCK_STREAM, &to_port);
    from = bound(AF_INET, SOCK_STREAM, &from_port);
    to.sin_port = htons(to_port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    open_with("tcp", 0);
    CHECK(connect(from, (struct sockaddr *)&to, sizeof to) == -1 && errno == ECONNREFUSED);
    for (double began = now(); shown.packet_count != 1;) {
        CHECK_EQUAL(update(1), 0);
        WAIT_SINCE(began);
    }
    snprintf(there, sizeof there, "127.0.0.1:%u-127.0.0.1:%u", from_port, to_port);
    snprintf(back, sizeof back, "127.0.0.1:%u-127.0.0.1:%u", to_port, from_port);
    CHECK_TEXT(shown.packets[0].hash, there);
    CHECK_EQUAL(shown.packets[0].family, P_TCP);
    CHECK_EQUAL(shown.bytes[0][14 + 20 + 13], 0x02);
    for (double began = now(); update(1) == 0 && shown.packet_count != 1;) {
        WAIT_SINCE(began);
    }
    CHECK_TEXT(shown.packets[0].hash, back);
    CHECK_EQUAL(shown.packets[0].family, P_TCP);
    CHECK_EQUAL(shown.packets[0].packetSize, 14 + 20 + 20);
    CHECK_EQUAL(shown.bytes[0][14 + 20 + 13], 0x14);
    CHECK_EQUAL(capture_exit(), 0);
    close(from);
    close(reserved);
}

/* Either callback may be missing; the other one gets what it always gets. */
static void missing_callbacks(void) {
    own_network();
    load();
    pair = connected(AF_INET);
    CHECK_EQUAL(capture_init(NULL, NULL, NULL), 0);
    CHECK_EQUAL(update(-1), 0);
    CHECK_TEXT(shown.calls, "");
    CHECK_EQUAL(capture_exit(), 0);
    CHECK_EQUAL(capture_init(NULL, on_process, NULL), 0);
    send_datagram(&pair, 1, 10);
    await_received(HEADERS_V4 + 10);
    CHECK_EQUAL(update(-1), 0);
    CHECK_TEXT(calls_for_the_living(), "U");
    CHECK_EQUAL(capture_exit(), 0);
    CHECK_EQUAL(capture_init(NULL, NULL, on_packets), 0);
    send_datagram(&pair, 1, 10);
    for (double began = now(); shown.packet_count == 0;) {
        CHECK_EQUAL(update(-1), 0);
        WAIT_SINCE(began);
    }
    CHECK_TEXT(shown.calls, "P");
    CHECK_EQUAL(shown.packet_count, 1);
    CHECK_EQUAL(shown.packets[0].packetSize, HEADERS_V4 + 10);
    CHECK_EQUAL(capture_exit(), 0);
}

static void codes(void) {
    CaptureInitt config;
    load();
    memset(&config, 0, sizeof config);
    for (int i = 0; i < 2; i++) {
        CHECK_EQUAL(capture_update(-1), 5);
        CHECK_EQUAL(capture_exit(), 5);
        CHECK_EQUAL(capture_init(&config, on_process, on_packets), 0);
        CHECK_EQUAL(capture_init(&config, on_process, on_packets), 103);
        CHECK_EQUAL(update(-1), 0);
        CHECK_EQUAL(capture_exit(), 0);
    }
    CHECK_EQUAL(capture_exit(), 5);
}

SCENARIOS({"order_of_calls", order_of_calls}, {"last_figures", last_figures}, {"packet_counts", packet_counts},
          {"packets_v4", packets_v4}, {"packets_v6", packets_v6}, {"packets_tcp", packets_tcp},
          {"missing_callbacks", missing_callbacks}, {"codes", codes})
