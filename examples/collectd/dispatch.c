/* Dispatches figures to collectd.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "dispatch.h"

#include "options.h"

#include <stddef.h>
#include <string.h>

_Static_assert(LABEL_SIZE <= DATA_MAX_NAME_LEN, "collectd has room for labels");

/* Types of a group's figures, as in types.db, with the pair of counters of each. */
static const struct {
    const char *type;
    uint32_t figures;
    Counter first, second;
    uint64_t unit; /* Number of the library's units in one unit of the type. */
} pairs[] = {
    {"network_bytes", FIGURES_NETWORK, SEND_BYTES, RECEIVE_BYTES, 1},
    {"network_packets", FIGURES_NETWORK, SEND_PACKETS, RECEIVE_PACKETS, 1},
    {"cpu_us", FIGURES_CPU, CPU_USER_NS, CPU_SYSTEM_NS, 1000},
    {"io_bytes", FIGURES_IO, READ_BYTES, WRITE_BYTES, 1},
    {"io_chars", FIGURES_IO, READ_CHARS, WRITE_CHARS, 1},
};

#define COUNT(kind, name, member) {kind, name, offsetof(CaptureStats, member)}

/* Statistics that only grow during a session. */
static const struct {
    const char *type;
    const char *instance;
    size_t member;
} counts[HEALTH_COUNTS] = {
    COUNT("owner_bytes", "exact", bytes_exact),
    COUNT("owner_bytes", "shared", bytes_shared),
    COUNT("owner_bytes", "guessed", bytes_guessed),
    COUNT("owner_bytes", "none_no_socket", bytes_no_socket),
    COUNT("owner_bytes", "none_no_holder", bytes_no_holder),
    COUNT("owner_bytes", "none_ambiguous", bytes_ambiguous),
    COUNT("owner_bytes", "none_not_permitted", bytes_not_permitted),
    COUNT("owner_bytes", "none_queue_full", bytes_queue_full),
    COUNT("owner_bytes", "none_fragment", bytes_fragment),
    COUNT("owner_bytes", "none_not_local", bytes_not_local),
    COUNT("owner_bytes", "none_no_ports", bytes_no_ports),
    COUNT("owner_bytes", "none_owner_ended", bytes_owner_ended),
    COUNT("owner_bytes", "none_unreadable", bytes_unreadable),
    COUNT("lost_packets", "kernel", lost_in_kernel),
    COUNT("lost_packets", "device", lost_in_device),
    COUNT("processes_skipped", "", processes_skipped),
};

bool dispatch_knows_types(void)
{
    static const char *const types[] = {"network_bytes",    "network_packets", "cpu_us",      "io_bytes",
                                        "io_chars",         "resident_bytes",  "process_count", "open_descriptors",
                                        "owner_bytes",      "pending_bytes",   "lost_packets", "held_flows",
                                        "update_us",        "processes_skipped", "proportional_bytes"};

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (plugin_get_ds(types[i]) == NULL) {
            plugin_log(LOG_ERR,
                       "capture plugin: the type %s is unknown; add the plugin's types.db to collectd's "
                       "configuration, as in TypesDB \"/usr/share/collectd/types.db\" "
                       "\"/usr/share/collectd/capture-types.db\"",
                       types[i]);
            return false;
        }
    }
    return true;
}

static void dispatch(value_list_t *list, const char *type, const char *instance, value_t *values, size_t count)
{
    strcpy(list->type, type);
    strcpy(list->type_instance, instance);
    list->values = values;
    list->values_len = count;
    plugin_dispatch_values(list);
}

static void dispatch_count(value_list_t *list, const char *type, const char *instance, uint64_t count)
{
    value_t value = {.derive = (derive_t)count};

    dispatch(list, type, instance, &value, 1);
}

static void dispatch_level(value_list_t *list, const char *type, uint64_t level)
{
    value_t value = {.gauge = (gauge_t)level};

    dispatch(list, type, "", &value, 1);
}

void dispatch_group(value_list_t *list, uint32_t figures, const char *label, const uint64_t counters[COUNTERS],
                    const uint64_t levels[LEVELS])
{
    strcpy(list->plugin_instance, label);
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        if ((figures & pairs[i].figures) != 0) {
            value_t values[] = {{.derive = (derive_t)(counters[pairs[i].first] / pairs[i].unit)},
                                {.derive = (derive_t)(counters[pairs[i].second] / pairs[i].unit)}};
            dispatch(list, pairs[i].type, "", values, 2);
        }
    }
    if ((figures & FIGURES_MEMORY) != 0) {
        dispatch_level(list, "resident_bytes", levels[RESIDENT_BYTES]);
    }
    if ((figures & FIGURES_PROPORTIONAL) != 0) {
        dispatch_level(list, "proportional_bytes", levels[PROPORTIONAL_BYTES]);
    }
    if ((figures & FIGURES_DESCRIPTORS) != 0) {
        dispatch_level(list, "open_descriptors", levels[DESCRIPTORS]);
    }
    if ((figures & FIGURES_PROCESSES) != 0) {
        value_t values[] = {{.gauge = (gauge_t)levels[PROCESSES]}, {.gauge = (gauge_t)levels[THREADS]}};
        dispatch(list, "process_count", "", values, 2);
    }
}

void dispatch_health(value_list_t *list, uint32_t figures, Health *health, const CaptureStats *stats)
{
    list->plugin_instance[0] = '\0';
    for (size_t i = 0; i < HEALTH_COUNTS; i++) {
        uint64_t now;
        memcpy(&now, (const char *)stats + counts[i].member, sizeof(now));
        /* The count of bytes without an owner falls if an owner is found later; a counter must not fall. */
        if (now > health->highest[i]) {
            health->totals[i] += now - health->highest[i];
            health->highest[i] = now;
        }
        if ((figures & FIGURES_NETWORK) != 0 || counts[i].instance[0] == '\0') {
            dispatch_count(list, counts[i].type, counts[i].instance, health->totals[i]);
        }
    }
    if ((figures & FIGURES_NETWORK) != 0) {
        dispatch_level(list, "pending_bytes", stats->bytes_pending);
        dispatch_level(list, "held_flows", stats->flows);
    }
    dispatch_level(list, "update_us", stats->update_ns / 1000);
}

void health_new_session(Health *health)
{
    memset(health->highest, 0, sizeof(health->highest));
}
