/* collectd's plugin "capture": network bytes, CPU, memory, descriptors and I/O of groups of processes.
 *
 * It uses only the session interface of libcapture. `make` builds it, a <Plugin capture> block configures it.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "dispatch.h"
#include "groups.h"
#include "options.h"

#include <libcapture.h>

#include <collectd/core/daemon/plugin.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Shortest and longest pause before a failed opening is retried, seconds. */
#define FIRST_PAUSE 1
#define LONGEST_PAUSE 64

/* Protects the variables below: collectd reads on any of its threads and shuts down on another one. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Options options = OPTIONS_DEFAULT;
static Groups groups;
static Health health;
static CaptureSession *session;
static bool is_running;
static time_t pause_length = FIRST_PAUSE, pause_end;
static char last_failure[1024];

static void on_log(void *user_data, CaptureLogLevel level, const char *text)
{
    (void)user_data;
    /* collectd drops LOG_DEBUG unless it was built for debugging, so debug lines are logged as LOG_INFO. */
    plugin_log(level == CAPTURE_LOG_LEVEL_ERROR  ? LOG_ERR
               : level == CAPTURE_LOG_LEVEL_WARN ? LOG_WARNING
                                                 : LOG_INFO,
               "capture plugin: %s", text);
}

static void on_processes(void *user_data, CaptureAction action, const CaptureProcess *processes, size_t count,
                         size_t element_size)
{
    (void)user_data;
    for (size_t i = 0; i < count; i++) {
        groups_take(&groups, action, (const CaptureProcess *)((const char *)processes + i * element_size));
    }
}

/* Returns the requested figures that the session can read. The others are not delivered; they are not 0. */
static uint32_t figures_known(void)
{
    static const struct {
        uint32_t figures, valid;
    } kinds[] = {{FIGURES_NETWORK, CAPTURE_VALID_NETWORK},
                 {FIGURES_CPU, CAPTURE_VALID_CPU},
                 {FIGURES_MEMORY, CAPTURE_VALID_MEMORY},
                 {FIGURES_IO, CAPTURE_VALID_IO},
                 {FIGURES_DESCRIPTORS, CAPTURE_VALID_DESCRIPTORS},
                 {FIGURES_PROCESSES, UINT32_MAX}};
    uint32_t known = 0;

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        known |= (groups.valid & kinds[i].valid) != 0 ? kinds[i].figures : 0;
    }
    return options.figures & known;
}

static void deliver(void *context, const char *label, const uint64_t counters[COUNTERS], const uint64_t levels[LEVELS])
{
    dispatch_group(context, figures_known(), label, counters, levels);
}

/* Logs a failure, once as long as the text stays the same. */
static void report(const char *what)
{
    char text[sizeof(last_failure)];

    snprintf(text, sizeof(text), "%s: %s", what, CaptureErrorText());
    if (strcmp(text, last_failure) != 0) {
        strcpy(last_failure, text);
        plugin_log(LOG_ERR, "capture plugin: %s", text);
    }
}

/* Returns monotonic time in seconds. */
static time_t seconds_now(void)
{
    struct timespec now = {0};

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

/* Closes the session. The next one is opened after a pause, which doubles each time. */
static void close_session(void)
{
    if (session != NULL) {
        CaptureSessionClose(session);
        session = NULL;
    }
    pause_end = seconds_now() + pause_length;
    if (pause_length < LONGEST_PAUSE) {
        pause_length *= 2;
    }
}

static bool open_session(void)
{
    CaptureOptions wanted = options_for_session(&options);
    int code;

    wanted.log_handler = on_log;
    code = CaptureSessionOpen(&wanted, &session);
    if (code != CAPTURE_OK) {
        report(code == CAPTURE_CODE_COMPILE_FILTER ? "option Filter: the session cannot be opened; it is retried"
                                                   : "the session cannot be opened; it is retried");
        close_session();
        return false;
    }
    groups_new_session(&groups);
    health_new_session(&health);
    return true;
}

static void update_session(void)
{
    CaptureHandlers handlers = {.size = sizeof(handlers), .process = on_processes};
    CaptureStats stats = {.size = sizeof(stats)};
    value_list_t list = VALUE_LIST_INIT;
    int code;

    strcpy(list.plugin, "capture");
    list.time = cdtime();
    groups_begin(&groups);
    code = CaptureSessionUpdate(session, &handlers);
    if (code != CAPTURE_OK) {
        report("the update failed");
        if (code == CAPTURE_CODE_SESSION_FAILED) {
            close_session();
        }
        return;
    }
    pause_length = FIRST_PAUSE;
    if (last_failure[0] != '\0') {
        last_failure[0] = '\0';
        plugin_log(LOG_NOTICE, "capture plugin: updates succeed again");
    }
    groups_deliver(&groups, deliver, &list);
    if (CaptureSessionStats(session, &stats) == CAPTURE_OK) {
        dispatch_health(&list, figures_known(), &health, &stats);
    }
}

static int capture_config(oconfig_item_t *block)
{
    return options_read(&options, block);
}

static int capture_init(void)
{
    if (!dispatch_knows_types()) {
        return -1;
    }
    pthread_mutex_lock(&lock);
    groups_start(&groups, &options.selection, (GroupBy)options.group_by, (size_t)options.top, (TopBy)options.top_by);
    is_running = true;
    open_session();
    pthread_mutex_unlock(&lock);
    return 0;
}

/* Always returns success: after a failure collectd would double the interval, up to a day. */
static int capture_read(void)
{
    pthread_mutex_lock(&lock);
    if (is_running && (session != NULL || (seconds_now() >= pause_end && open_session()))) {
        update_session();
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

static int capture_shutdown(void)
{
    pthread_mutex_lock(&lock);
    is_running = false;
    close_session();
    groups_clear(&groups);
    options_clear(&options);
    pthread_mutex_unlock(&lock);
    return 0;
}

__attribute__((visibility("default"))) void module_register(void)
{
    plugin_register_complex_config("capture", capture_config);
    plugin_register_init("capture", capture_init);
    plugin_register_read("capture", capture_read);
    plugin_register_shutdown("capture", capture_shutdown);
}
