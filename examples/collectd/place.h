/* Where an option stands in collectd's configuration: collectd itself keeps no line numbers.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef CAPTURE_PLACE_H
#define CAPTURE_PLACE_H

#include <stdbool.h>
#include <stddef.h>

/* An option of a plugin. Blocks that stand before the plugin is loaded do not count: collectd does not hand them
 * over. */
typedef struct Sought {
    const char *plugin;
    size_t block; /* In which block of the plugin: 0 for the first. */
    const char *key;
    size_t occurrence; /* How many options of the same key stand before it in that block. */
} Sought;

/* The configuration file that this process was started with; `fallback` when none was named. The caller frees it. */
char *place_main_file(const char *fallback);

/* Writes "file:line" of the option to `place`. `is_loaded` says whether blocks load their plugin themselves. False when
 * it is not found. */
bool place_find(char *place, size_t size, const char *main_file, bool is_loaded, const Sought *sought);

#endif
