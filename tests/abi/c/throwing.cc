/* Callbacks that throw: the exception reaches the caller of the update, and the session stays usable. */
#include "children.h"
#include "network.h"
#include "sessions.h"
#include "threads.h"
#include <string>

namespace {

struct Thrown {
    char where;
};

/* Where the next exception is thrown: at a removed process, at living ones, at packets, at a line of the log. */
char throw_at;
int removed, lives, packets, lines, destroyed;
pid_t watched;

/* Unwinding runs destructors on its way. */
struct Local {
    ~Local() { destroyed++; }
};

void shown(char what, int &count, int more) {
    Local local;
    if (throw_at == what) {
        throw_at = 0;
        throw Thrown{what};
    }
    count += more;
}

void classic_process(CaptureAction action, const Process_t *processes, uint32_t *size) {
    if (action == ACTION_UPDATE) {
        shown('U', lives, static_cast<int>(*size));
    } else if (processes->pid == watched) {
        shown('R', removed, 1);
    }
}

void classic_packets(const Packet_t *, uint32_t *size) { shown('P', packets, static_cast<int>(*size)); }

void session_process(void *, CaptureAction action, const CaptureProcess *processes, size_t count, size_t) {
    if (action == ACTION_UPDATE) {
        shown('U', lives, static_cast<int>(count));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (processes[i].pid == watched) {
            shown('R', removed, 1);
        }
    }
}

void session_packets(void *, const CapturePacket *, size_t count, size_t) {
    shown('P', packets, static_cast<int>(count));
}

void session_log(void *, CaptureLogLevel, const char *) { shown('L', lines, 1); }

void sleeper(const struct child *self) { next_step(self); }

/* Runs a call that throws from `where`, which it must let through. */
template <typename Call> void throws(char where, Call call) {
    throw_at = where;
    destroyed = 0;
    try {
        call();
    } catch (const Thrown &thrown) {
        CHECK_EQUAL(thrown.where, where);
        CHECK(destroyed > 0);
        return;
    }
    CHECK(false);
}

/* Updates until the callback at `where` has thrown. */
template <typename Call> void throws_at_last(char where, Call call) {
    throw_at = where;
    for (double began = now();;) {
        try {
            CHECK_EQUAL(call(), CAPTURE_OK);
        } catch (const Thrown &thrown) {
            CHECK_EQUAL(thrown.where, where);
            return;
        }
        WAIT_SINCE(began);
    }
}

/* What holds for both interfaces, given how each updates. */
template <typename Call> void throw_everywhere(Call update) {
    struct pair pair = connected(AF_INET);
    struct child child = start_child(sleeper);
    watched = child.pid;
    CHECK_EQUAL(update(), CAPTURE_OK);

    /* Packets were not shown yet when the living processes threw: they come with the next update. */
    send_datagram(&pair, 0, 10);
    throws('U', update);
    CHECK_EQUAL(packets, 0);
    for (double began = now(); packets == 0;) {
        lives = 0;
        CHECK_EQUAL(update(), CAPTURE_OK);
        CHECK(lives > 0);
        WAIT_SINCE(began);
    }
    CHECK_EQUAL(packets, 1);

    /* The ended process has been shown, although to a callback that threw: it does not come again. */
    order(&child);
    CHECK_EQUAL(end_of(&child), 0);
    lives = 0;
    throws_at_last('R', update);
    for (int i = 0; i < 3; i++) {
        lives = 0;
        CHECK_EQUAL(update(), CAPTURE_OK);
        CHECK(lives > 0);
    }
    CHECK_EQUAL(removed, 0);

    send_datagram(&pair, 1, 10);
    throws_at_last('P', update);
    send_datagram(&pair, 2, 10);
    for (double began = now(); packets != 2;) {
        CHECK_EQUAL(update(), CAPTURE_OK);
        WAIT_SINCE(began);
    }
    for (int i = 0; i < 100; i++) {
        throws('U', update);
    }
    CHECK_EQUAL(update(), CAPTURE_OK);
    close_pair(&pair);
}

void classic() {
    own_network();
    SUCCEEDS(CaptureInit(nullptr, classic_process, classic_packets));
    throw_everywhere([] { return CaptureUpdate(-1); });
    SUCCEEDS(CaptureExit());
    CHECK_EQUAL(threads_left(), 1);
}

/* One of several processes that ended together threw: the others come with the next update. */
void others_come_later() {
    struct child children[3];
    own_network();
    SUCCEEDS(CaptureInit(nullptr, classic_process, nullptr));
    for (auto &child : children) {
        child = start_child(sleeper);
    }
    SUCCEEDS(CaptureUpdate(-1));
    for (auto &child : children) {
        order(&child);
        CHECK_EQUAL(end_of(&child), 0);
    }
    /* By number, which is the order in which they come. */
    watched = children[0].pid;
    throws_at_last('R', [] { return CaptureUpdate(-1); });
    for (int i = 1; i < 3; i++) {
        watched = children[i].pid;
        CHECK_EQUAL(removed, 0);
        for (double began = now(); i == 1 && removed == 0;) {
            throws_at_last('U', [] { return CaptureUpdate(-1); });
            WAIT_SINCE(began);
        }
        removed = 0;
    }
    SUCCEEDS(CaptureExit());
}

void session() {
    CaptureOptions given = options();
    CaptureHandlers who = handlers(session_process, session_packets, nullptr);
    CaptureSession *made = nullptr;
    own_network();
    given.packet_bytes = 1 << 20;
    SUCCEEDS(CaptureSessionOpen(&given, &made));
    throw_everywhere([&] { return CaptureSessionUpdate(made, &who); });
    SUCCEEDS(CaptureSessionClose(made));
    CHECK_EQUAL(threads_left(), 1);
}

void log_lines() {
    const int before = descriptors();
    CaptureOptions given = options();
    CaptureHandlers who = handlers(session_process, nullptr, nullptr);
    own_network();
    given.log_handler = session_log;
    given.log_level = CAPTURE_LOG_LEVEL_DEBUG;
    for (int i = 0; i < 10; i++) {
        CaptureSession *made = nullptr;
        /* The session is open all the same, */
        throws('L', [&] { CaptureSessionOpen(&given, &made); });
        CHECK(made != nullptr);
        throws('L', [&] { CaptureSessionUpdate(made, &who); });
        lives = lines = 0;
        SUCCEEDS(CaptureSessionUpdate(made, &who));
        CHECK(lives > 0 && lines > 0);
        /* and closed all the same. */
        throws('L', [&] { CaptureSessionClose(made); });
        CHECK_EQUAL(threads_left(), 1);
        CHECK_EQUAL(descriptors(), before);
    }
}

} // namespace

SCENARIOS({"classic", classic}, {"others_come_later", others_come_later}, {"session", session},
          {"log_lines", log_lines})
