/* Hands figures to collectd.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef CAPTURE_DISPATCH_H
#define CAPTURE_DISPATCH_H

#include "groups.h"

#include <libcapture.h>

#include <collectd/core/daemon/plugin.h>

#include <stdbool.h>
#include <stdint.h>

/* Counts of the library's own. */
#define HEALTH_COUNTS 16

/* What the library says of itself, over all sessions. Zero it. */
typedef struct Health {
    uint64_t highest[HEALTH_COUNTS]; /* In this session. */
    uint64_t totals[HEALTH_COUNTS];
} Health;

/* Whether collectd knows all types; if not, says what to do. */
bool dispatch_knows_types(void);

/* Dispatches what `figures`, FIGURES_ bits, tells of a group. */
void dispatch_group(value_list_t *list, uint32_t figures, const char *label, const uint64_t counters[COUNTERS],
                    const uint64_t levels[LEVELS]);

/* Dispatches what the library says of itself. */
void dispatch_health(value_list_t *list, uint32_t figures, Health *health, const CaptureStats *stats);

/* The next statistics are those of another session. */
void health_new_session(Health *health);

#endif
