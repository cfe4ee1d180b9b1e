/* Opening and updating sessions in few words, for programs that use our header. */
#ifndef SESSIONS_H
#define SESSIONS_H

#include "check.h"
#include <libcapture.h>

static inline CaptureOptions options(void) {
    CaptureOptions made;
    memset(&made, 0, sizeof made);
    made.size = sizeof made;
    return made;
}

static inline CaptureHandlers handlers(CaptureProcessHandler process, CapturePacketHandler packet, void *user_data) {
    CaptureHandlers made;
    memset(&made, 0, sizeof made);
    made.size = sizeof made;
    made.process = process;
    made.packet = packet;
    made.user_data = user_data;
    return made;
}

/* The call must succeed; its own words say why it did not. */
#define SUCCEEDS(call)                                                                                   \
    do {                                                                                                 \
        int32_t code_ = (call);                                                                          \
        if (code_ != CAPTURE_OK) {                                                                       \
            fprintf(stderr, "%s:%d: %s: %d, %s\n", __FILE__, __LINE__, #call, code_, CaptureErrorText()); \
            _exit(1);                                                                                    \
        }                                                                                                \
    } while (0)

static inline CaptureSession *opened(const CaptureOptions *given) {
    CaptureSession *session = NULL;
    SUCCEEDS(CaptureSessionOpen(given, &session));
    CHECK(session != NULL);
    return session;
}

static inline CaptureStats stats_of(const CaptureSession *session) {
    CaptureStats stats;
    memset(&stats, 0, sizeof stats);
    stats.size = sizeof stats;
    SUCCEEDS(CaptureSessionStats(session, &stats));
    return stats;
}

#endif
