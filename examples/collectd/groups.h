/* Figures of groups of processes: sums that never fall, levels, and the groups at the top.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef CAPTURE_GROUPS_H
#define CAPTURE_GROUPS_H

#include "labels.h"
#include "selection.h"
#include "table.h"

#include <libcapture.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Figures that only grow. */
typedef enum Counter {
    SEND_BYTES,
    RECEIVE_BYTES,
    SEND_PACKETS,
    RECEIVE_PACKETS,
    CPU_USER_NS,
    CPU_SYSTEM_NS,
    READ_BYTES,
    WRITE_BYTES,
    READ_CHARS,
    WRITE_CHARS,
    COUNTERS,
} Counter;

/* Current figures. */
typedef enum Level {
    RESIDENT_BYTES,
    PROPORTIONAL_BYTES,
    DESCRIPTORS,
    PROCESSES,
    THREADS,
    LEVELS,
} Level;

typedef enum GroupBy {
    GROUP_BY_NAME,
    GROUP_BY_USER,
    GROUP_BY_CGROUP,
    GROUP_BY_PID,
} GroupBy;

/* Criterion of the top groups: the growth of a counter in the latest interval, or a level. */
typedef enum TopBy {
    TOP_BY_NETWORK,
    TOP_BY_CPU,
    TOP_BY_MEMORY,
    TOP_BY_IO,
    TOP_BY_DESCRIPTORS,
} TopBy;

typedef struct Group {
    Link link;
    char label[LABEL_SIZE];
    uint32_t processes;        /* Living ones, and those that were in the group when they were last read. */
    uint32_t empty_readings;   /* Number of latest readings without a process. */
    uint32_t low_readings;     /* Number of latest readings in which it was not at the top. */
    bool is_top;               /* True if its growth in this reading goes to its own series. */
    bool is_shown;             /* True if the latest reading delivered it. */
    uint64_t rank;             /* Figure that the ranking compares. */
    uint64_t growth[COUNTERS]; /* Growth in this reading, not yet in any total. */
    uint64_t totals[COUNTERS]; /* Totals of its series. */
    uint64_t shown[COUNTERS];  /* Totals as last delivered. */
    uint64_t levels[LEVELS];
} Group;

typedef struct Groups {
    const Selection *selection;
    GroupBy by;
    size_t top; /* Number of groups with their own series; 0 for all. */
    TopBy top_by;
    Table processes, groups;
    Group other; /* Sum of the groups without their own series. */
    bool has_other;
    bool has_first;     /* True after the session's first reading. */
    uint32_t valid;     /* CAPTURE_VALID_ bits of all processes of the session. */
    uint64_t newest_ns; /* Latest start of a process in the first reading. */
    Group **ranking;    /* Array with room for all groups. */
    size_t ranking_size;
} Groups;

/* Receives one group's figures. */
typedef void (*Deliver)(void *context, const char *label, const uint64_t counters[COUNTERS],
                        const uint64_t levels[LEVELS]);

/* Initializes an empty set of groups. `selection` must outlive it. */
void groups_start(Groups *groups, const Selection *selection, GroupBy by, size_t top, TopBy top_by);

/* Drops the processes, because the next session counts them from 0. The totals of the groups stay. */
void groups_new_session(Groups *groups);

/* Begins a reading. */
void groups_begin(Groups *groups);

/* Adds the growth of a process since its last reading to its group. */
void groups_take(Groups *groups, CaptureAction action, const CaptureProcess *process);

/* Ends a reading: delivers all series. */
void groups_deliver(Groups *groups, Deliver deliver, void *context);

/* Releases all memory. */
void groups_clear(Groups *groups);

#endif
