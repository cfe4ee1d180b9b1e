/* Figures of groups of processes: sums that never fall, levels, and the groups at the top.
 *
 * A series starts with its last delivered total, 0 if it is new, and grows with the next reading, so that rates include
 * the growth before the first value.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "groups.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Maximum number of groups, some 500 bytes each. Further groups count as other. */
#define GROUP_LIMIT 65536

/* Number of readings for which a group without processes is kept, and for which a group that has left the top is
 * delivered. The group of a pid never returns, so it is kept for one reading only. */
#define KEPT_READINGS 30

typedef struct Known {
    Link link;
    pid_t pid;
    uint64_t start_ns;
    uint64_t identity; /* Hash of the text that its group and its selection depend on. */
    Group *group;      /* NULL if it is not selected. */
    uint32_t based;    /* CAPTURE_VALID_ bits of the counters in `before`. */
    uint64_t before[COUNTERS];
    uint64_t own_before[COUNTERS]; /* I/O without that of children. */
} Known;

void groups_start(Groups *groups, const Selection *selection, GroupBy by, size_t top, TopBy top_by)
{
    *groups = (Groups){.selection = selection, .by = by, .top = top, .top_by = top_by, .has_other = top > 0};
    strcpy(groups->other.label, LABEL_OTHER);
}

/* Nothing was delivered without a session: the series starts once more with its last total. */
static bool set_aside(Link *item, void *context)
{
    Group *group = (Group *)item;

    (void)context;
    group->processes = 0;
    group->is_shown = false;
    return false;
}

void groups_new_session(Groups *groups)
{
    table_clear(&groups->processes);
    table_sweep(&groups->groups, set_aside, NULL);
    set_aside(&groups->other.link, NULL);
    groups->has_first = false;
    groups->valid = 0;
    groups->newest_ns = 0;
}

static bool clear_levels(Link *item, void *context)
{
    (void)context;
    memset(((Group *)item)->levels, 0, sizeof(((Group *)item)->levels));
    return false;
}

void groups_begin(Groups *groups)
{
    table_sweep(&groups->groups, clear_levels, NULL);
    clear_levels(&groups->other.link, NULL);
}

static uint64_t identity_of(const Groups *groups, const CaptureProcess *process)
{
    uint64_t hash = hash_bytes(HASH_START, process->name, process->name_length + 1);

    hash = hash_bytes(hash, process->user, strlen(process->user) + 1);
    return groups->by == GROUP_BY_CGROUP ? hash_bytes(hash, process->cgroup, process->cgroup_length) : hash;
}

static void write_label(const Groups *groups, const CaptureProcess *process, char label[LABEL_SIZE])
{
    char text[LABEL_SIZE + 16];
    size_t skipped;

    switch (groups->by) {
    case GROUP_BY_NAME:
        label_write(label, process->name, process->name_length);
        break;
    case GROUP_BY_USER:
        label_write(label, process->user, strlen(process->user));
        break;
    case GROUP_BY_CGROUP:
        /* All paths begin with a slash; that of the root is only the slash. */
        skipped = process->cgroup_length > 1;
        label_write(label, process->cgroup + skipped, process->cgroup_length - skipped);
        break;
    case GROUP_BY_PID:
        snprintf(text, sizeof(text), "%.*s[%d]", LABEL_SIZE, process->name, (int)process->pid);
        label_write(label, text, strlen(text));
        break;
    }
}

/* Reserves space in the ranking for one more group. */
static bool grow_ranking(Groups *groups)
{
    size_t size = groups->ranking_size == 0 ? 64 : groups->ranking_size * 2;
    Group **ranking;

    if (groups->groups.count < groups->ranking_size) {
        return true;
    }
    ranking = realloc(groups->ranking, size * sizeof(*ranking));
    if (ranking == NULL) {
        return false;
    }
    groups->ranking = ranking;
    groups->ranking_size = size;
    return true;
}

/* Returns the group of a selected process: its own, or `other` if the limit is reached. */
static Group *group_of(Groups *groups, const CaptureProcess *process)
{
    char label[LABEL_SIZE];
    uint64_t hash;
    Group *group = NULL;

    write_label(groups, process, label);
    hash = hash_bytes(HASH_START, label, strlen(label));
    for (Link *item = table_first(&groups->groups, hash); item != NULL; item = table_next(item)) {
        if (strcmp(((Group *)item)->label, label) == 0) {
            return (Group *)item;
        }
    }
    if (groups->groups.count < GROUP_LIMIT && grow_ranking(groups)) {
        group = calloc(1, sizeof(*group));
    }
    if (group != NULL) {
        group->link.hash = hash;
        strcpy(group->label, label);
        if (table_add(&groups->groups, &group->link)) {
            return group;
        }
        free(group);
    }
    groups->has_other = true;
    return &groups->other;
}

static Known *find_known(const Groups *groups, uint64_t hash, const CaptureProcess *process)
{
    for (Link *item = table_first(&groups->processes, hash); item != NULL; item = table_next(item)) {
        Known *known = (Known *)item;
        if (known->pid == process->pid && known->start_ns == process->start_time_ns) {
            return known;
        }
    }
    return NULL;
}

/* Moves a process to its current group. */
static void regroup(Groups *groups, Known *known, const CaptureProcess *process)
{
    uint64_t identity = identity_of(groups, process);

    if (known->identity == identity && known->group != &groups->other) {
        return;
    }
    if (known->group != NULL) {
        known->group->processes--;
    }
    known->group = selection_matches(groups->selection, process) ? group_of(groups, process) : NULL;
    if (known->group != NULL) {
        known->group->processes++;
    }
    known->identity = identity;
}

/* Records a figure and returns its growth, 0 if its last value is not known. */
static uint64_t growth_of(uint64_t *before, uint64_t now, bool is_based)
{
    uint64_t growth = is_based && now > *before ? now - *before : 0;

    if (now > *before) {
        *before = now;
    }
    return growth;
}

/* The kernel adds the I/O of children that were waited for to that of their parent, which a sum would count twice.
 * Therefore the process's own I/O counts if it is known. */
static void count_growth(Known *known, const CaptureProcess *process)
{
    const struct {
        uint32_t valid;
        uint64_t value;
        uint32_t own_valid;
        uint64_t own;
    } now[COUNTERS] = {
        [SEND_BYTES] = {CAPTURE_VALID_NETWORK, process->send_bytes},
        [RECEIVE_BYTES] = {CAPTURE_VALID_NETWORK, process->receive_bytes},
        [SEND_PACKETS] = {CAPTURE_VALID_NETWORK, process->send_packets},
        [RECEIVE_PACKETS] = {CAPTURE_VALID_NETWORK, process->receive_packets},
        [CPU_USER_NS] = {CAPTURE_VALID_CPU, process->cpu_user_ns},
        [CPU_SYSTEM_NS] = {CAPTURE_VALID_CPU, process->cpu_system_ns},
        [READ_BYTES] = {CAPTURE_VALID_IO, process->read_bytes, CAPTURE_VALID_OWN_BYTES, process->own_read_bytes},
        [WRITE_BYTES] = {CAPTURE_VALID_IO, process->write_bytes, CAPTURE_VALID_OWN_BYTES, process->own_write_bytes},
        [READ_CHARS] = {CAPTURE_VALID_IO, process->read_chars, CAPTURE_VALID_OWN_CHARS, process->own_read_chars},
        [WRITE_CHARS] = {CAPTURE_VALID_IO, process->write_chars, CAPTURE_VALID_OWN_CHARS, process->own_write_chars},
    };

    for (size_t i = 0; i < COUNTERS; i++) {
        uint64_t growth;

        if ((process->valid & now[i].valid) == 0) {
            continue;
        }
        growth = growth_of(&known->before[i], now[i].value, (known->based & now[i].valid) != 0);
        if ((process->valid & now[i].own_valid) != 0) {
            bool is_based = (known->based & now[i].own_valid) != 0;
            uint64_t own = growth_of(&known->own_before[i], now[i].own, is_based);

            growth = is_based ? own : growth;
        }
        if (known->group != NULL) {
            known->group->growth[i] += growth;
        }
    }
    /* I/O from the time when the own part was not known was counted together with that of the children. */
    known->based &= process->valid | ~(CAPTURE_VALID_OWN_BYTES | CAPTURE_VALID_OWN_CHARS);
    known->based |= process->valid;
}

void groups_take(Groups *groups, CaptureAction action, const CaptureProcess *process)
{
    uint64_t hash = hash_bytes(HASH_START, &process->pid, sizeof(process->pid));
    Known *known = find_known(groups, hash, process);

    groups->valid |= process->valid;
    if (known == NULL) {
        known = calloc(1, sizeof(*known));
        if (known == NULL) {
            return;
        }
        known->link.hash = hash;
        known->pid = process->pid;
        known->start_ns = process->start_time_ns;
        /* The figures of processes older than the session count from its first reading on. */
        known->based = groups->has_first && process->start_time_ns >= groups->newest_ns ? UINT32_MAX
                                                                                       : CAPTURE_VALID_NETWORK;
        if (!table_add(&groups->processes, &known->link)) {
            free(known);
            return;
        }
    }
    if (!groups->has_first && process->start_time_ns > groups->newest_ns) {
        groups->newest_ns = process->start_time_ns;
    }
    regroup(groups, known, process);
    count_growth(known, process);
    if (action == ACTION_REMOVE) {
        if (known->group != NULL) {
            known->group->processes--;
        }
        table_remove(&groups->processes, &known->link);
    } else if (known->group != NULL) {
        known->group->levels[RESIDENT_BYTES] += process->resident_bytes;
        known->group->levels[PROPORTIONAL_BYTES] += process->proportional_bytes;
        known->group->levels[DESCRIPTORS] += process->descriptors;
        known->group->levels[PROCESSES]++;
        known->group->levels[THREADS] += process->threads;
    }
}

static uint64_t rank_of(const Groups *groups, const Group *group)
{
    switch (groups->top_by) {
    case TOP_BY_CPU:
        return group->growth[CPU_USER_NS] + group->growth[CPU_SYSTEM_NS];
    case TOP_BY_MEMORY:
        return group->levels[RESIDENT_BYTES];
    case TOP_BY_IO:
        return group->growth[READ_BYTES] + group->growth[WRITE_BYTES];
    case TOP_BY_DESCRIPTORS:
        return group->levels[DESCRIPTORS];
    case TOP_BY_NETWORK:
        break;
    }
    return group->growth[SEND_BYTES] + group->growth[RECEIVE_BYTES];
}

typedef struct Delivery {
    Groups *groups;
    Deliver deliver;
    void *context;
    size_t ranked;
} Delivery;

/* Adds the candidates for the top to the ranking. */
static bool rank_group(Link *item, void *context)
{
    Group *group = (Group *)item;
    Delivery *delivery = context;

    group->rank = rank_of(delivery->groups, group);
    group->is_top = delivery->groups->top == 0;
    if (group->rank > 0 && !group->is_top) {
        delivery->groups->ranking[delivery->ranked++] = group;
    }
    return false;
}

/* Highest first; equal ranks by label, so that each reading chooses the same groups. */
static int compare_ranks(const void *left, const void *right)
{
    const Group *a = *(Group *const *)left;
    const Group *b = *(Group *const *)right;

    return a->rank != b->rank ? (a->rank < b->rank ? 1 : -1) : strcmp(a->label, b->label);
}

static void add_growth(Group *group)
{
    for (size_t i = 0; i < COUNTERS; i++) {
        group->totals[i] += group->growth[i];
        group->growth[i] = 0;
    }
}

static void give_growth(Group *from, Group *to)
{
    for (size_t i = 0; i < COUNTERS; i++) {
        to->growth[i] += from->growth[i];
        from->growth[i] = 0;
    }
}

static bool is_pending(const Group *group)
{
    return memcmp(group->shown, group->totals, sizeof(group->shown)) != 0;
}

static void show(Group *group, const Delivery *delivery)
{
    if (group->is_shown) {
        memcpy(group->shown, group->totals, sizeof(group->shown));
    }
    group->is_shown = true;
    delivery->deliver(delivery->context, group->label, group->shown, group->levels);
}

/* Delivers a group's series, if it has one. Returns true if the group is no longer needed. */
static bool deliver_group(Link *item, void *context)
{
    Group *group = (Group *)item;
    const Delivery *delivery = context;
    Groups *groups = delivery->groups;

    group->empty_readings = group->processes > 0 ? 0 : group->empty_readings + 1;
    group->low_readings = group->is_top ? 0 : group->low_readings + 1;
    if (group->is_top) {
        add_growth(group);
    } else {
        give_growth(group, &groups->other);
    }
    if (!is_pending(group) && group->empty_readings > (groups->by == GROUP_BY_PID ? 1 : KEPT_READINGS)) {
        return true;
    }
    if (group->is_top || is_pending(group) || (group->is_shown && group->low_readings <= KEPT_READINGS)) {
        show(group, delivery);
        return false;
    }
    group->is_shown = false;
    for (size_t i = 0; i < LEVELS; i++) {
        groups->other.levels[i] += group->levels[i];
    }
    return false;
}

void groups_deliver(Groups *groups, Deliver deliver, void *context)
{
    Delivery delivery = {groups, deliver, context, 0};

    table_sweep(&groups->groups, rank_group, &delivery);
    if (delivery.ranked > 0) {
        qsort(groups->ranking, delivery.ranked, sizeof(*groups->ranking), compare_ranks);
    }
    for (size_t i = 0; i < delivery.ranked && i < groups->top; i++) {
        groups->ranking[i]->is_top = true;
    }
    table_sweep(&groups->groups, deliver_group, &delivery);
    add_growth(&groups->other);
    if (groups->has_other) {
        show(&groups->other, &delivery);
    }
    groups->has_first = true;
}

void groups_clear(Groups *groups)
{
    table_clear(&groups->processes);
    table_clear(&groups->groups);
    free(groups->ranking);
    *groups = (Groups){0};
}
