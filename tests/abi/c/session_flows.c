/* What a session hands over of flows: living ones, ended ones, and what those of a process did together. */
#define _GNU_SOURCE
#include "network.h"
#include "sessions.h"
#include <pthread.h>

static struct {
    CaptureFlow living[8], ended[8];
    size_t living_count, ended_count;
    CaptureConnections own;
    int has_own, calls;
} seen;

static pthread_t caller;

static void on_process(void *user_data, CaptureAction action, const CaptureProcess *processes, size_t count,
                       size_t element_size) {
    CHECK(user_data == &seen);
    CHECK(element_size >= sizeof *processes);
    for (size_t i = 0; i < count; i++) {
        const CaptureProcess *process = (const void *)((const char *)processes + i * element_size);
        CHECK((process->connections != NULL) == ((process->valid & CAPTURE_VALID_CONNECTIONS) != 0));
        if (action == ACTION_UPDATE && process->pid == getpid() && process->connections != NULL) {
            seen.own = *process->connections;
            seen.has_own = 1;
        }
    }
}

static void on_flow(void *user_data, CaptureAction action, const CaptureFlow *flows, size_t count,
                    size_t element_size) {
    CHECK(user_data == &seen);
    CHECK(pthread_equal(caller, pthread_self()));
    CHECK(element_size >= sizeof *flows && element_size % 8 == 0);
    CHECK(count > 0);
    /* Those that ended come first. */
    CHECK(action == ACTION_UPDATE || seen.living_count == 0);
    seen.calls++;
    for (size_t i = 0; i < count; i++) {
        const CaptureFlow *flow = (const void *)((const char *)flows + i * element_size);
        if (action == ACTION_UPDATE) {
            CHECK(seen.living_count < 8);
            CHECK(flow->state != CAPTURE_FLOW_STATE_ENDED);
            seen.living[seen.living_count++] = *flow;
        } else {
            CHECK_EQUAL(action, ACTION_REMOVE);
            CHECK(seen.ended_count < 8);
            CHECK_EQUAL(flow->state, CAPTURE_FLOW_STATE_ENDED);
            seen.ended[seen.ended_count++] = *flow;
        }
    }
}

static void update(CaptureSession *session) {
    CaptureHandlers who = handlers(on_process, NULL, &seen);
    who.flow = on_flow;
    seen.living_count = 0;
    seen.has_own = 0;
    caller = pthread_self();
    SUCCEEDS(CaptureSessionUpdate(session, &who));
}

static const CaptureFlow *with_role(const CaptureFlow *flows, size_t count, CaptureFlowRole role) {
    for (size_t i = 0; i < count; i++) {
        if (flows[i].role == role) {
            return &flows[i];
        }
    }
    return NULL;
}

/* Opens a connection to itself, asks and answers. */
static void converse(int *client, int *server, uint16_t *port) {
    char bytes[16];
    uint16_t near;
    int listener = bound(AF_INET, SOCK_STREAM, port);
    CHECK(listen(listener, 1) == 0);
    *client = bound(AF_INET, SOCK_STREAM, &near);
    connect_to(*client, AF_INET, *port);
    *server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(*server >= 0);
    close(listener);
    CHECK_EQUAL(write(*client, "question", 8), 8);
    CHECK_EQUAL(read(*server, bytes, sizeof bytes), 8);
    CHECK_EQUAL(write(*server, "answer", 6), 6);
    CHECK_EQUAL(read(*client, bytes, sizeof bytes), 6);
}

static void flows(void) {
    static const unsigned char loopback[16] = {[10] = 0xff, 0xff, 127, 0, 0, 1};
    static const uint32_t known = CAPTURE_FLOW_VALID_OPENED | CAPTURE_FLOW_VALID_ESTABLISHED | CAPTURE_FLOW_VALID_ROLE |
                                  CAPTURE_FLOW_VALID_TRAFFIC | CAPTURE_FLOW_VALID_RESPONSE |
                                  CAPTURE_FLOW_VALID_DURATION | CAPTURE_FLOW_VALID_NAMESPACE;
    CaptureOptions given = options();
    const CaptureFlow *opened_one, *accepted_one;
    CaptureSession *session;
    uint64_t ids[2];
    uint16_t port;
    int client, server;
    own_network();
    given.flows = 1;
    session = opened(&given);
    converse(&client, &server, &port);
    for (double began = now();;) {
        update(session);
        opened_one = with_role(seen.living, seen.living_count, CAPTURE_FLOW_ROLE_OPENED);
        accepted_one = with_role(seen.living, seen.living_count, CAPTURE_FLOW_ROLE_ACCEPTED);
        if (opened_one != NULL && accepted_one != NULL && opened_one->response_count == 1 && opened_one->pid != 0 &&
            accepted_one->pid != 0 && seen.has_own && seen.own.sends == 2) {
            break;
        }
        WAIT_SINCE(began);
    }
    CHECK_EQUAL(seen.living_count, 2);
    CHECK_EQUAL(seen.ended_count, 0);
    CHECK_EQUAL(opened_one->valid & known, known);
    CHECK(opened_one->valid & CAPTURE_FLOW_VALID_CONNECT_LATENCY);
    CHECK_EQUAL(accepted_one->valid & known, known);
    CHECK_EQUAL(opened_one->pid, getpid());
    CHECK(opened_one->owner_quality != CAPTURE_OWNER_QUALITY_NONE && opened_one->process_start_ns != 0);
    CHECK_EQUAL(opened_one->protocol, 6);
    CHECK_EQUAL(opened_one->state, CAPTURE_FLOW_STATE_OPEN);
    CHECK_EQUAL(opened_one->tcp_state, 1);
    CHECK_EQUAL(opened_one->remote_port, port);
    CHECK_EQUAL(accepted_one->local_port, port);
    CHECK_EQUAL(opened_one->local_port, accepted_one->remote_port);
    CHECK(memcmp(opened_one->local_address, loopback, 16) == 0);
    CHECK(memcmp(opened_one->remote_address, loopback, 16) == 0);
    CHECK_EQUAL(opened_one->send_bytes, accepted_one->receive_bytes);
    CHECK_EQUAL(opened_one->receive_packets, accepted_one->send_packets);
    CHECK_EQUAL(opened_one->response_sum_ns, opened_one->response_maximum_ns);
    CHECK(opened_one->response_minimum_ns > 0 && opened_one->cookie != accepted_one->cookie);
    CHECK_EQUAL(seen.own.connects, 1);
    CHECK_EQUAL(seen.own.accepts, 1);
    CHECK_EQUAL(seen.own.closes, 0);
    CHECK_EQUAL(seen.own.receives, 2);
    uint64_t responses = 0;
    for (int i = 0; i < CAPTURE_RESPONSE_BUCKETS; i++) {
        responses += seen.own.responses[i];
    }
    CHECK_EQUAL(responses, 1);
    ids[0] = opened_one->id;
    ids[1] = accepted_one->id;
    close(client);
    close(server);
    for (double began = now(); seen.ended_count < 2;) {
        /* Without a handler for flows those that ended stay. */
        SUCCEEDS(CaptureSessionUpdate(session, NULL));
        update(session);
        WAIT_SINCE(began);
    }
    opened_one = with_role(seen.ended, seen.ended_count, CAPTURE_FLOW_ROLE_OPENED);
    accepted_one = with_role(seen.ended, seen.ended_count, CAPTURE_FLOW_ROLE_ACCEPTED);
    CHECK(opened_one != NULL && accepted_one != NULL);
    CHECK_EQUAL(opened_one->id, ids[0]);
    CHECK_EQUAL(accepted_one->id, ids[1]);
    CHECK(opened_one->valid & CAPTURE_FLOW_VALID_REASON);
    CHECK_EQUAL(opened_one->reason, CAPTURE_FLOW_REASON_ORDERLY);
    CHECK_EQUAL(accepted_one->reason, CAPTURE_FLOW_REASON_ORDERLY);
    CHECK_EQUAL(opened_one->error, 0);
    CHECK_EQUAL(seen.living_count, 0);
    CHECK_EQUAL(stats_of(session).lost_flows, 0);
    SUCCEEDS(CaptureSessionClose(session));
}

static void nobody_asked(void) {
    CaptureOptions given = options();
    CaptureSession *session;
    uint16_t port;
    int client, server;
    own_network();
    session = opened(&given);
    converse(&client, &server, &port);
    for (double began = now(); stats_of(session).flows < 2;) {
        WAIT_SINCE(began);
    }
    update(session);
    CHECK_EQUAL(seen.calls, 0);
    CHECK(!seen.has_own);
    SUCCEEDS(CaptureSessionClose(session));
}

SCENARIOS({"flows", flows}, {"nobody_asked", nobody_asked})
