/* What a <Plugin capture> block says.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "options.h"

#include "place.h"

#include <collectd/core/daemon/plugin.h>

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* More than anyone looks at, and ranked in no time. */
#define TOP_LIMIT 10000

/* What collectd reads where its command line names no file. CONFIGFILE of its headers is not what it was built with. */
#define DEFAULT_FILE "/etc/collectd/collectd.conf"

#define FAULT_SIZE 256
#define PLACE_SIZE 4096

/* Why an option is wrong. */
typedef char Fault[FAULT_SIZE];

typedef struct Choice {
    const char *word;
    int value;
} Choice;

typedef struct Key Key;

/* An option: how it is read, into which member, and what it may say. */
struct Key {
    const char *name;
    bool (*read)(Options *options, const Key *key, const oconfig_item_t *item, Fault fault);
    size_t member;
    const Choice *choices;
    uint32_t figures;
};

static bool fail(Fault fault, const char *text)
{
    snprintf(fault, FAULT_SIZE, "%s", text);
    return false;
}

static void *member_of(Options *options, const Key *key)
{
    return (char *)options + key->member;
}

static const char *text_of(const oconfig_item_t *item, Fault fault)
{
    if (item->values_num == 1 && item->values[0].type == OCONFIG_TYPE_STRING && item->values[0].value.string[0] != 0) {
        return item->values[0].value.string;
    }
    fail(fault, "takes one text in quotes");
    return NULL;
}

/* The number, or -1. */
static int number_of(const oconfig_item_t *item, int least, int most, Fault fault)
{
    if (item->values_num == 1 && item->values[0].type == OCONFIG_TYPE_NUMBER) {
        double number = item->values[0].value.number;
        if (number >= least && number <= most && number == floor(number)) {
            return (int)number;
        }
    }
    snprintf(fault, FAULT_SIZE, "takes one whole number from %d to %d", least, most);
    return -1;
}

/* Has a member hold another text, which is NULL when there was no memory for it. */
static bool replace(char **text, char *by, Fault fault)
{
    if (by == NULL) {
        return fail(fault, "memory is short");
    }
    free(*text);
    *text = by;
    return true;
}

static bool read_text(Options *options, const Key *key, const oconfig_item_t *item, Fault fault)
{
    const char *given = text_of(item, fault);

    return given != NULL && replace(member_of(options, key), strdup(given), fault);
}

static bool read_device(Options *options, const Key *key, const oconfig_item_t *item, Fault fault)
{
    char **devices = member_of(options, key);
    const char *device = text_of(item, fault);
    char *longer;

    if (device == NULL) {
        return false;
    }
    if (strchr(device, ',') != NULL) {
        return fail(fault, "takes one device; repeat the option for each");
    }
    if (asprintf(&longer, "%s%s%s", *devices != NULL ? *devices : "", *devices != NULL ? "," : "", device) < 0) {
        longer = NULL;
    }
    return replace(devices, longer, fault);
}

static bool read_pattern(Options *options, const Key *key, const oconfig_item_t *item, Fault fault)
{
    const char *text = text_of(item, fault);

    return text != NULL && patterns_add(member_of(options, key), text, fault, FAULT_SIZE);
}

static bool read_pid(Options *options, const Key *key, const oconfig_item_t *item, Fault fault)
{
    int pid = number_of(item, 1, INT_MAX, fault);

    return pid >= 0 && (selection_add_pid(member_of(options, key), pid) || fail(fault, "memory is short"));
}

static bool read_number(Options *options, const Key *key, const oconfig_item_t *item, Fault fault)
{
    int number = number_of(item, 0, TOP_LIMIT, fault);

    if (number >= 0) {
        *(int *)member_of(options, key) = number;
    }
    return number >= 0;
}

static bool read_choice(Options *options, const Key *key, const oconfig_item_t *item, Fault fault)
{
    const char *text = text_of(item, fault);
    size_t length;

    if (text == NULL) {
        return false;
    }
    length = (size_t)snprintf(fault, FAULT_SIZE, "must be");
    for (const Choice *choice = key->choices; choice->word != NULL; choice++) {
        if (strcasecmp(text, choice->word) == 0) {
            *(int *)member_of(options, key) = choice->value;
            return true;
        }
        length += (size_t)snprintf(fault + length, FAULT_SIZE - length, "%s \"%s\"",
                                   choice == key->choices ? "" : " or", choice->word);
    }
    return false;
}

static bool read_switch(Options *options, const Key *key, const oconfig_item_t *item, Fault fault)
{
    if (item->values_num != 1 || item->values[0].type != OCONFIG_TYPE_BOOLEAN) {
        return fail(fault, "takes true or false");
    }
    if (item->values[0].value.boolean) {
        options->figures |= key->figures;
    } else {
        options->figures &= ~key->figures;
    }
    return true;
}

static const Choice engines[] = {
    {"pcap", CAPTURE_ENGINE_PCAP}, {"kernel", CAPTURE_ENGINE_KERNEL}, {"auto", CAPTURE_ENGINE_AUTO}, {NULL, 0}};

static const Choice groupings[] = {{"name", GROUP_BY_NAME},
                                   {"user", GROUP_BY_USER},
                                   {"cgroup", GROUP_BY_CGROUP},
                                   {"pid", GROUP_BY_PID},
                                   {NULL, 0}};

static const Choice rankings[] = {{"network", TOP_BY_NETWORK},
                                  {"cpu", TOP_BY_CPU},
                                  {"memory", TOP_BY_MEMORY},
                                  {"io", TOP_BY_IO},
                                  {"descriptors", TOP_BY_DESCRIPTORS},
                                  {NULL, 0}};

static const Choice log_levels[] = {{"off", CAPTURE_LOG_LEVEL_OFF},      {"error", CAPTURE_LOG_LEVEL_ERROR},
                                    {"warning", CAPTURE_LOG_LEVEL_WARN}, {"info", CAPTURE_LOG_LEVEL_INFO},
                                    {"debug", CAPTURE_LOG_LEVEL_DEBUG},  {NULL, 0}};

static const Key keys[] = {
    {"Device", read_device, offsetof(Options, devices), NULL, 0},
    {"Filter", read_text, offsetof(Options, filter), NULL, 0},
    {"Engine", read_choice, offsetof(Options, engine), engines, 0},
    {"Namespaces", read_text, offsetof(Options, namespaces), NULL, 0},
    {"User", read_pattern, offsetof(Options, selection.users), NULL, 0},
    {"Name", read_pattern, offsetof(Options, selection.names), NULL, 0},
    {"Pid", read_pid, offsetof(Options, selection), NULL, 0},
    {"GroupBy", read_choice, offsetof(Options, group_by), groupings, 0},
    {"Top", read_number, offsetof(Options, top), NULL, 0},
    {"TopBy", read_choice, offsetof(Options, top_by), rankings, 0},
    {"Network", read_switch, 0, NULL, FIGURES_NETWORK},
    {"CPU", read_switch, 0, NULL, FIGURES_CPU},
    {"Memory", read_switch, 0, NULL, FIGURES_MEMORY},
    {"ProportionalMemory", read_switch, 0, NULL, FIGURES_PROPORTIONAL},
    {"IO", read_switch, 0, NULL, FIGURES_IO},
    {"Descriptors", read_switch, 0, NULL, FIGURES_DESCRIPTORS},
    {"Processes", read_switch, 0, NULL, FIGURES_PROCESSES},
    {"Log", read_choice, offsetof(Options, log_level), log_levels, 0},
};

static bool read_option(Options *options, const oconfig_item_t *item, Fault fault)
{
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (strcasecmp(item->key, keys[i].name) != 0) {
            continue;
        }
        return item->children_num == 0 ? keys[i].read(options, &keys[i], item, fault)
                                       : fail(fault, "is an option, not a block");
    }
    return fail(fault, "is not an option of this plugin");
}

/* Writes where the option stands that has this position in the block; the file alone when its line is not found. */
static void find_place(char place[PLACE_SIZE], const oconfig_item_t *block, size_t block_number, int position)
{
    Sought sought = {"capture", block_number, block->children[position].key, 0};
    const char *loads_itself = global_option_get("AutoLoadPlugin");
    char *main_file = place_main_file(DEFAULT_FILE);

    for (int i = 0; i < position; i++) {
        sought.occurrence += strcasecmp(block->children[i].key, sought.key) == 0;
    }
    if (main_file == NULL ||
        !place_find(place, PLACE_SIZE, main_file, loads_itself != NULL && strcasecmp(loads_itself, "true") == 0,
                    &sought)) {
        snprintf(place, PLACE_SIZE, "%s", main_file != NULL ? main_file : DEFAULT_FILE);
    }
    free(main_file);
}

int options_read(Options *options, const oconfig_item_t *block)
{
    static size_t block_count;
    size_t block_number = block_count++;
    char place[PLACE_SIZE];
    Fault fault;
    int status = 0;

    for (int i = 0; i < block->children_num; i++) {
        const oconfig_item_t *item = &block->children[i];
        if (!read_option(options, item, fault)) {
            find_place(place, block, block_number, i);
            plugin_log(LOG_ERR, "capture plugin: %s: %s %s", place, item->key, fault);
            status = -1;
        } else if (strcasecmp(item->key, "Filter") == 0) {
            find_place(place, block, block_number, i);
            free(options->filter_place);
            options->filter_place = strdup(place);
        }
    }
    return status;
}

CaptureOptions options_for_session(const Options *options)
{
    CaptureOptions capture = {0};
    uint32_t wanted = options->figures;

    if (options->top > 0) {
        static const uint32_t ranked[] = {[TOP_BY_NETWORK] = FIGURES_NETWORK,
                                          [TOP_BY_CPU] = FIGURES_CPU,
                                          [TOP_BY_MEMORY] = FIGURES_MEMORY,
                                          [TOP_BY_IO] = FIGURES_IO,
                                          [TOP_BY_DESCRIPTORS] = FIGURES_DESCRIPTORS};
        wanted |= ranked[options->top_by];
    }
    capture.size = sizeof(capture);
    capture.devices = options->devices;
    capture.filter = options->filter;
    capture.namespaces = options->namespaces;
    capture.engine = (CaptureEngine)options->engine;
    capture.log_level = (CaptureLogLevel)options->log_level;
    capture.pids = options->selection.pids;
    capture.pid_count = options->selection.pid_count;
    capture.disable = CAPTURE_DISABLE_COMMAND_LINE;
    capture.disable |= wanted & FIGURES_NETWORK ? 0 : CAPTURE_DISABLE_NETWORK;
    capture.disable |= wanted & FIGURES_MEMORY ? 0 : CAPTURE_DISABLE_MEMORY;
    capture.disable |= wanted & FIGURES_IO ? 0 : CAPTURE_DISABLE_IO;
    capture.disable |= wanted & FIGURES_DESCRIPTORS ? 0 : CAPTURE_DISABLE_DESCRIPTORS;
    /* A reading thread can wait, so that no process is missing from a reading. */
    capture.enable = CAPTURE_ENABLE_WAIT_FOR_ENDED;
    capture.enable |= options->group_by == GROUP_BY_CGROUP ? CAPTURE_ENABLE_CGROUPS : 0;
    capture.enable |= wanted & FIGURES_PROPORTIONAL ? CAPTURE_ENABLE_PROPORTIONAL : 0;
    return capture;
}

void options_clear(Options *options)
{
    free(options->devices);
    free(options->filter);
    free(options->filter_place);
    free(options->namespaces);
    selection_clear(&options->selection);
    *options = (Options)OPTIONS_DEFAULT;
}
