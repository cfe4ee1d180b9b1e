/* Selection of the delivered processes, by user, name and id.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef CAPTURE_SELECTION_H
#define CAPTURE_SELECTION_H

#include <libcapture.h>

#include <regex.h>
#include <stdbool.h>
#include <stddef.h>

/* A glob, see fnmatch(3); between slashes a regular expression, see regex(7). */
typedef struct Pattern {
    char *glob; /* NULL for a regular expression. */
    regex_t expression;
} Pattern;

typedef struct Patterns {
    Pattern *items;
    size_t count;
} Patterns;

/* A process must match one entry of each kind that has entries. All zero selects every process. */
typedef struct Selection {
    Patterns users, names;
    pid_t *pids;
    size_t pid_count;
} Selection;

/* Adds a pattern. On failure returns false and writes the reason to `error`. */
bool patterns_add(Patterns *patterns, const char *text, char *error, size_t error_size);

/* Adds an id. Returns false if out of memory. */
bool selection_add_pid(Selection *selection, pid_t pid);

bool selection_matches(const Selection *selection, const CaptureProcess *process);

/* Releases all memory and makes the selection empty. */
void selection_clear(Selection *selection);

#endif
