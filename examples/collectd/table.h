/* A hash table of items that carry their own link: one allocation for each item, none for each lookup.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef CAPTURE_TABLE_H
#define CAPTURE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* First member of each item. */
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

/* Returns `hash` extended by these bytes. The result is the same on every machine and in every run. */
uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t length);

/* Returns the first item with this hash; NULL if there is none. */
Link *table_first(const Table *table, uint64_t hash);

/* Returns the next item with the same hash; NULL if there is none. */
Link *table_next(const Link *item);

/* Adds an item whose hash is set. Returns false if out of memory. */
bool table_add(Table *table, Link *item);

/* Calls `is_done` for every item, and removes and frees those for which it returns true. */
void table_sweep(Table *table, bool (*is_done)(Link *item, void *context), void *context);

/* Removes and frees an item. */
void table_remove(Table *table, Link *item);

/* Releases all memory. */
void table_clear(Table *table);

#endif
