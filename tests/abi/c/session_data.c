/* What a session hands over besides processes: lines of the log, packets, and those of savefiles. */
#define _GNU_SOURCE
#include "network.h"
#include "savefiles.h"
#include "session_recorder.h"

static void log_handler(void) {
    CaptureOptions given = logged(CAPTURE_LOG_LEVEL_DEBUG);
    CaptureSession *session;
    FILE *file;
    char text[4096], path[4200];
    snprintf(path, sizeof path, "%s/log", arguments[0]);
    given.log_file = path;
    session = opened(&given);
    CHECK_HOLDS(lines.text, "session opened");
    CHECK(strstr(lines.text, "updated") == NULL);
    update(session);
    CHECK_HOLDS(lines.text, "updated");
    CHECK(strstr(lines.text, "session closed") == NULL);
    SUCCEEDS(CaptureSessionClose(session));
    CHECK_HOLDS(lines.text, "session closed");
    CHECK_EQUAL(lines.worst, CAPTURE_LOG_LEVEL_DEBUG);
    CHECK((file = fopen(path, "re")) != NULL);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    CHECK_HOLDS(text, "session opened");
    CHECK_HOLDS(text, "session closed");
    given = logged(CAPTURE_LOG_LEVEL_DEFAULT);
    session = opened(&given);
    update(session);
    CHECK(lines.lines > 0 && lines.worst <= CAPTURE_LOG_LEVEL_INFO);
    SUCCEEDS(CaptureSessionClose(session));
    given = logged(CAPTURE_LOG_LEVEL_OFF);
    session = opened(&given);
    update(session);
    SUCCEEDS(CaptureSessionClose(session));
    CHECK_EQUAL(lines.lines, 0);
}

static void packet_limit(void) {
    static const uint64_t asked[] = {1, 2, UINT64_MAX, 0};
    static const size_t taken[] = {1, 2, 2, 0};
    CaptureOptions given = options();
    CaptureSession *session;
    int number = 0;
    own_network();
    struct pair pair = connected(AF_INET6);
    given.packet_bytes = 1 << 20;
    given.snaplen = 100;
    session = opened(&given);
    for (int i = 0; i < 5; i++) {
        send_datagram(&pair, i, 200);
    }
    /* A packet is held before its frame is counted. */
    for (double began = now(); stats_of(session).frames < 5;) {
        WAIT_SINCE(began);
    }
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        SUCCEEDS(try_update(session, asked[i]));
        CHECK_EQUAL(seen.packet_count, taken[i]);
        for (size_t j = 0; j < taken[i]; j++) {
            CHECK_EQUAL(seen.bytes[j][HEADERS_V6], pattern(number, 0));
            CHECK_EQUAL(seen.bytes[j][99], pattern(number++, 99 - HEADERS_V6));
            CHECK_EQUAL(seen.packets[j].wire_length, HEADERS_V6 + 200);
            CHECK_EQUAL(seen.packets[j].captured_length, 100);
            CHECK_EQUAL(seen.packets[j].protocol, 17);
            CHECK_EQUAL(seen.packets[j].source_port, pair.sender_port);
            CHECK_EQUAL(seen.packets[j].destination_port, pair.receiver_port);
            CHECK(memcmp(seen.packets[j].source_address, &in6addr_loopback, 16) == 0);
            CHECK(memcmp(seen.packets[j].destination_address, &in6addr_loopback, 16) == 0);
        }
    }
    CHECK_EQUAL(stats_of(session).lost_packets, 0);
    SUCCEEDS(CaptureSessionClose(session));
}

/* A savefile is read to its end, which makes the descriptor readable, and its packets are shown. */
static void savefile(void) {
    static const unsigned char source[16] = {[10] = 0xff, 0xff, 10, 1, 2, 3};
    char path[4200];
    CaptureOptions given = options();
    CaptureSession *session;
    snprintf(path, sizeof path, "%s/saved", arguments[0]);
    write_savefile(path, 1, 5, SIZE_MAX);
    given.savefile = path;
    given.local_addresses = SAVED_SOURCE;
    given.packet_bytes = 1 << 20;
    session = opened(&given);
    for (double began = now(); stats_of(session).frames < 5;) {
        CHECK_EQUAL(readable(session, TIMEOUT * 1000), 1);
        WAIT_SINCE(began);
    }
    for (double began = now(); !stats_of(session).replay_finished;) {
        WAIT_SINCE(began);
    }
    CHECK_EQUAL(stats_of(session).sampled_ns, 0);
    take_packets(session);
    CHECK_EQUAL(seen.packet_count, 5);
    CHECK_EQUAL(seen.packets[4].time_ns, (SAVED_TIME + 4) * 1000000000ull);
    CHECK_EQUAL(seen.packets[4].wire_length, SAVED_PACKET);
    CHECK_EQUAL(seen.packets[4].captured_length, SAVED_PACKET);
    CHECK_EQUAL(seen.packets[4].source_port, 1001);
    CHECK_EQUAL(seen.packets[4].destination_port, 2002);
    CHECK(memcmp(seen.packets[4].source_address, source, 16) == 0);
    CHECK_EQUAL(seen.bytes[4][SAVED_PACKET - 1], 4);
    CHECK_EQUAL(stats_of(session).frame_bytes, 5 * SAVED_PACKET);
    CHECK_EQUAL(stats_of(session).bytes_not_local, 0);
    update(session);
    CHECK_EQUAL(seen.packet_count, 0);
    CHECK(stats_of(session).sampled_ns > 0 && stats_of(session).sampled_before_ns == 0);
    uint64_t first_ns = stats_of(session).sampled_ns;
    update(session);
    CHECK(stats_of(session).sampled_ns > first_ns && stats_of(session).sampled_before_ns == first_ns);
    SUCCEEDS(CaptureSessionClose(session));

    /* One that breaks off: all it held is delivered, and the fault is told once. */
    write_savefile(path, 1, 5, 24 + 4 * (16 + SAVED_PACKET) + 20);
    given.local_addresses = NULL;
    session = opened(&given);
    for (double began = now(); stats_of(session).frames < 4;) {
        WAIT_SINCE(began);
    }
    size_t shown = 0;
    int32_t code = CAPTURE_OK;
    for (double began = now(); code == CAPTURE_OK;) {
        CHECK_EQUAL(readable(session, TIMEOUT * 1000), 1);
        code = try_update(session, 0);
        shown += seen.packet_count;
        WAIT_SINCE(began);
    }
    CHECK_EQUAL(code, CAPTURE_CODE_SAVEFILE);
    CHECK_HOLDS(CaptureErrorText(), path);
    CHECK_EQUAL(shown, 4);
    CHECK_EQUAL(stats_of(session).bytes_not_local, 4 * SAVED_PACKET);
    update(session);
    SUCCEEDS(CaptureSessionClose(session));
}

SCENARIOS({"log_handler", log_handler}, {"packet_limit", packet_limit}, {"savefile", savefile})
