/* Dispatches figures to collectd.
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

/* Number of the library's own counters. */
#define HEALTH_COUNTS 16

/* Totals of the library's own counters over all sessions. All zero is valid. */
typedef struct Health {
    uint64_t highest[HEALTH_COUNTS]; /* Of the current session. */
    uint64_t totals[HEALTH_COUNTS];
} Health;

/* Returns true if collectd knows all types. Otherwise logs the missing one and the remedy. */
bool dispatch_knows_types(void);

/* Dispatches the figures of a group that `figures`, FIGURES_ bits, selects. */
void dispatch_group(value_list_t *list, uint32_t figures, const char *label, const uint64_t counters[COUNTERS],
                    const uint64_t levels[LEVELS]);

/* Dispatches the library's own counters. */
void dispatch_health(value_list_t *list, uint32_t figures, Health *health, const CaptureStats *stats);

/* Begins another session, whose statistics start from 0. */
void health_new_session(Health *health);

#endif
