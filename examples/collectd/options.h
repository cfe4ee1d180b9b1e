/* What a <Plugin capture> block says.
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

/* What may be delivered of a group: bits of `figures`. */
enum {
    FIGURES_NETWORK = 1,
    FIGURES_CPU = 2,
    FIGURES_MEMORY = 4,
    FIGURES_IO = 8,
    FIGURES_DESCRIPTORS = 16,
    FIGURES_PROCESSES = 32,
    FIGURES_ALL = 63,
    FIGURES_PROPORTIONAL = 64, /* Takes so long that it has to be asked for. */
};

typedef struct Options {
    char *devices; /* Separated by commas. */
    char *filter;
    char *filter_place; /* Where it stands, since it is compiled later. */
    char *namespaces;
    Selection selection;
    int top;       /* 0 for all groups. */
    int engine;    /* One of CaptureEngine. */
    int group_by;  /* One of GroupBy. */
    int top_by;    /* One of TopBy. */
    int log_level; /* One of CaptureLogLevel. */
    uint32_t figures;
} Options;

/* What holds where nothing is said. */
#define OPTIONS_DEFAULT                                                                                                \
    {                                                                                                                  \
        .engine = CAPTURE_ENGINE_AUTO, .figures = FIGURES_ALL                                                          \
    }

/* Takes over what a block says, on top of the blocks before. Logs each option that is wrong with its file and line; -1
 * when there is one. */
int options_read(Options *options, const oconfig_item_t *block);

/* What the library is to gather. The text belongs to the options. */
CaptureOptions options_for_session(const Options *options);

/* Frees all. */
void options_clear(Options *options);

#endif
