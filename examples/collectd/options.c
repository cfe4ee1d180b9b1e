/* The options of a <Plugin capture> block.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "options.h"

#include <collectd/core/daemon/plugin.h>

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Maximum of the option Top. */
#define TOP_LIMIT 10000

#define FAULT_SIZE 256

/* Room for the values of an option in an error text. */
#define VALUES_SIZE 256

/* Text of the reason that an option is wrong. */
typedef char Fault[FAULT_SIZE];

typedef struct Choice {
    const char *word;
    int value;
} Choice;

typedef struct Key Key;

/* An option: its parser, the member that it sets, and its possible values. */
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

/* Returns the number, or -1 if it is not a whole number from `min` to `max`. */
static int number_of(const oconfig_item_t *item, int min, int max, Fault fault)
{
    if (item->values_num == 1 && item->values[0].type == OCONFIG_TYPE_NUMBER) {
        double number = item->values[0].value.number;
        if (number >= min && number <= max && number == floor(number)) {
            return (int)number;
        }
    }
    snprintf(fault, FAULT_SIZE, "takes one whole number from %d to %d", min, max);
    return -1;
}

/* Replaces the text of a member. `by` is NULL if its allocation failed. */
static bool replace(char **text, char *by, Fault fault)
{
    if (by == NULL) {
        return fail(fault, "out of memory");
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

    return pid >= 0 && (selection_add_pid(member_of(options, key), pid) || fail(fault, "out of memory"));
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
                                       : fail(fault, "must be an option, not a block");
    }
    return fail(fault, "is not an option of this plugin");
}

/* Writes the values of an option as collectd has parsed them, cut to `size`. */
static void write_values(char *text, size_t size, const oconfig_item_t *item)
{
    size_t length = 0;

    text[0] = '\0';
    for (int i = 0; i < item->values_num && length < size; i++) {
        const oconfig_value_t *value = &item->values[i];
        int added;
        if (value->type == OCONFIG_TYPE_STRING) {
            added = snprintf(text + length, size - length, " \"%s\"", value->value.string);
        } else if (value->type == OCONFIG_TYPE_NUMBER) {
            added = snprintf(text + length, size - length, " %.15g", value->value.number);
        } else {
            added = snprintf(text + length, size - length, " %s", value->value.boolean ? "true" : "false");
        }
        length += added > 0 ? (size_t)added : 0;
    }
}

int options_read(Options *options, const oconfig_item_t *block)
{
    Fault fault;
    int status = 0;

    for (int i = 0; i < block->children_num; i++) {
        const oconfig_item_t *item = &block->children[i];
        if (!read_option(options, item, fault)) {
            char values[VALUES_SIZE];
            write_values(values, sizeof(values), item);
            plugin_log(LOG_ERR, "capture plugin: option %s%s: %s", item->key, values, fault);
            status = -1;
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
    /* A reading thread of collectd may wait, so that no process is missing from a reading. */
    capture.enable = CAPTURE_ENABLE_WAIT_FOR_ENDED;
    capture.enable |= options->group_by == GROUP_BY_CGROUP ? CAPTURE_ENABLE_CGROUPS : 0;
    capture.enable |= wanted & FIGURES_PROPORTIONAL ? CAPTURE_ENABLE_PROPORTIONAL : 0;
    return capture;
}

void options_clear(Options *options)
{
    free(options->devices);
    free(options->filter);
    free(options->namespaces);
    selection_clear(&options->selection);
    *options = (Options)OPTIONS_DEFAULT;
}
