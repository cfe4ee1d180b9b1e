/* A hash table of items that carry their own link: one allocation for each item, none for each look-up.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef CAPTURE_TABLE_H
#define CAPTURE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The first member of each item. */
typedef struct Link {
    struct Link *next;
    uint64_t hash;
} Link;

/* All zero is an empty table. */
typedef struct Table {
    Link **heads;
    size_t head_count;
    size_t count;
} Table;

#define HASH_START 0xcbf29ce484222325u

/* The hash of these bytes after what `hash` has seen: the same on every machine and in every run. */
uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t length);

/* The first item with this hash; NULL when there is none. */
Link *table_first(const Table *table, uint64_t hash);

/* The next item with the same hash; NULL when there are no more. */
Link *table_next(const Link *item);

/* Adds an item whose hash is set. False when memory is short. */
bool table_add(Table *table, Link *item);

/* Calls `is_done` for every item and takes out, and frees, those for which it returns true. */
void table_sweep(Table *table, bool (*is_done)(Link *item, void *context), void *context);

/* Takes an item out, and frees it. */
void table_remove(Table *table, Link *item);

/* Frees all. */
void table_clear(Table *table);

#endif
