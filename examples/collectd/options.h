/* The options of a <Plugin capture> block.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef CAPTURE_PLUGIN_OPTIONS_H
#define CAPTURE_PLUGIN_OPTIONS_H

#include "groups.h"
#include "selection.h"

#include <libcapture.h>

#include <collectd/liboconfig/oconfig.h>

#include <stddef.h>
#include <stdint.h>

/* Kinds of figures of a group: bits of `figures`. */
enum {
    FIGURES_NETWORK = 1,
    FIGURES_CPU = 2,
    FIGURES_MEMORY = 4,
    FIGURES_IO = 8,
    FIGURES_DESCRIPTORS = 16,
    FIGURES_PROCESSES = 32,
    FIGURES_ALL = 63,
    FIGURES_PROPORTIONAL = 64, /* Off by default, because reading it takes long. */
};

typedef struct Options {
    char *devices; /* Separated by commas. */
    char *filter;
    char *namespaces;
    Selection selection;
    int top;       /* 0 for all groups. */
    int engine;    /* One of CaptureEngine. */
    int group_by;  /* One of GroupBy. */
    int top_by;    /* One of TopBy. */
    int log_level; /* One of CaptureLogLevel. */
    uint32_t figures;
} Options;

/* Default options. */
#define OPTIONS_DEFAULT                                                                                                \
    {                                                                                                                  \
        .engine = CAPTURE_ENGINE_AUTO, .figures = FIGURES_ALL                                                          \
    }

/* Adds the options of a block to those of the blocks before. Logs each wrong option with its key, its value and the
 * reason; returns -1 if there is one. */
int options_read(Options *options, const oconfig_item_t *block);

/* Returns the options of the library's session. Their texts belong to `options`. */
CaptureOptions options_for_session(const Options *options);

/* Releases all memory. */
void options_clear(Options *options);

#endif
