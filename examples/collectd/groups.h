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

/* Figures that grow with time. */
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

/* Figures of the moment. */
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

/* What puts a group at the top: its growth in the latest interval, or its level. */
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
    uint32_t processes;        /* That live, or belonged to it when they were read last. */
    uint32_t empty_readings;   /* How many in a row had none. */
    uint32_t low_readings;     /* How many in a row it was not at the top. */
    bool is_top;               /* Whether its growth in this reading is its own. */
    bool is_shown;             /* Whether the latest reading delivered it. */
    uint64_t rank;             /* What decides whether it is at the top. */
    uint64_t growth[COUNTERS]; /* Of this reading, not yet in any total. */
    uint64_t totals[COUNTERS]; /* Of its series. */
    uint64_t shown[COUNTERS];  /* As delivered last. */
    uint64_t levels[LEVELS];
} Group;

typedef struct Groups {
    const Selection *selection;
    GroupBy by;
    size_t top; /* How many groups are delivered by themselves; 0 for all. */
    TopBy top_by;
    Table processes, groups;
    Group other; /* What has no series of its own. */
    bool has_other;
    bool has_first;     /* Whether the session's first reading is over. */
    uint32_t valid;     /* CAPTURE_VALID_ bits that any process of the session had. */
    uint64_t newest_ns; /* The latest start of a process of the first reading. */
    Group **ranking;    /* Room for all groups. */
    size_t ranking_size;
} Groups;

/* Receives one group's figures. */
typedef void (*Deliver)(void *context, const char *label, const uint64_t counters[COUNTERS],
                        const uint64_t levels[LEVELS]);

/* Begins with no groups. `selection` must outlive them. */
void groups_start(Groups *groups, const Selection *selection, GroupBy by, size_t top, TopBy top_by);

/* Forgets the processes, whose figures the next session counts anew. What was counted stays. */
void groups_new_session(Groups *groups);

/* Before the processes of each reading. */
void groups_begin(Groups *groups);

/* Adds what a process has grown by since its last reading to its group. */
void groups_take(Groups *groups, CaptureAction action, const CaptureProcess *process);

/* After the processes of each reading: delivers all series. */
void groups_deliver(Groups *groups, Deliver deliver, void *context);

/* Frees all. */
void groups_clear(Groups *groups);

#endif
