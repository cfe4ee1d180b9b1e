/* A hash table of items that carry their own link.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "table.h"

#include <stdlib.h>

uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t length)
{
    const unsigned char *byte = bytes;

    /* FNV-1a: names are short. */
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ byte[i]) * 0x100000001b3u;
    }
    return hash;
}

static Link **head_of(const Table *table, uint64_t hash)
{
    /* The low bits of the hash are distributed best. */
    return &table->heads[hash & (table->head_count - 1)];
}

static Link *with_hash(Link *item, uint64_t hash)
{
    while (item != NULL && item->hash != hash) {
        item = item->next;
    }
    return item;
}

Link *table_first(const Table *table, uint64_t hash)
{
    return table->head_count == 0 ? NULL : with_hash(*head_of(table, hash), hash);
}

Link *table_next(const Link *item)
{
    return with_hash(item->next, item->hash);
}

static bool grow(Table *table)
{
    Table larger = {NULL, table->head_count == 0 ? 64 : table->head_count * 2, table->count};

    larger.heads = calloc(larger.head_count, sizeof(*larger.heads));
    if (larger.heads == NULL) {
        return false;
    }
    for (size_t i = 0; i < table->head_count; i++) {
        for (Link *item = table->heads[i], *next; item != NULL; item = next) {
            Link **head = head_of(&larger, item->hash);
            next = item->next;
            item->next = *head;
            *head = item;
        }
    }
    free(table->heads);
    *table = larger;
    return true;
}

bool table_add(Table *table, Link *item)
{
    Link **head;

    /* Without memory to grow, the table only becomes slower. */
    if (table->count == table->head_count && !grow(table) && table->head_count == 0) {
        return false;
    }
    head = head_of(table, item->hash);
    item->next = *head;
    *head = item;
    table->count++;
    return true;
}

void table_sweep(Table *table, bool (*is_done)(Link *item, void *context), void *context)
{
    for (size_t i = 0; i < table->head_count; i++) {
        Link **place = &table->heads[i];
        while (*place != NULL) {
            Link *item = *place;
            if (is_done(item, context)) {
                *place = item->next;
                free(item);
                table->count--;
            } else {
                place = &item->next;
            }
        }
    }
}

void table_remove(Table *table, Link *item)
{
    Link **place = head_of(table, item->hash);

    while (*place != item) {
        place = &(*place)->next;
    }
    *place = item->next;
    free(item);
    table->count--;
}

void table_clear(Table *table)
{
    for (size_t i = 0; i < table->head_count; i++) {
        for (Link *item = table->heads[i], *next; item != NULL; item = next) {
            next = item->next;
            free(item);
        }
    }
    free(table->heads);
    *table = (Table){0};
}
