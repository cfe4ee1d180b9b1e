/* Figures of groups against a model: what Prometheus would make of all series is what all processes did.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#include "check.h"

#include "groups.h"

#include <stdbool.h>
#include <string.h>

#define PROCESS_LIMIT 200
#define SERIES_LIMIT 32768
#define NAME_SIZE 16

/* A process of the model, with figures as the library would tell them. */
typedef struct Model {
    bool lives;
    CaptureProcess figures;
    char name[NAME_SIZE], user[NAME_SIZE];
    uint64_t counted[COUNTERS]; /* What the library last told of it. */
} Model;

/* What a reader of one series has seen. */
typedef struct Series {
    Link link;
    char label[LABEL_SIZE];
    bool is_shown, was_shown;
    uint64_t latest[COUNTERS];
    uint64_t increase[COUNTERS]; /* As Prometheus computes it, for which a fall is a new start at 0. */
} Series;

typedef struct World {
    Groups groups;
    Selection selection;
    Model processes[PROCESS_LIMIT];
    Series series[SERIES_LIMIT];
    size_t series_count;
    Table by_label;
    size_t grown; /* Series beside the other one that have grown in this reading. */
    size_t delivered;
    uint64_t levels[LEVELS];          /* Delivered in this reading. */
    uint64_t expected[COUNTERS];      /* What all processes did. */
    uint64_t start_ns;
    pid_t next_pid;
} World;

static uint64_t *counter_of(CaptureProcess *process, size_t counter)
{
    uint64_t *const members[COUNTERS] = {
        [SEND_BYTES] = &process->send_bytes,         [RECEIVE_BYTES] = &process->receive_bytes,
        [SEND_PACKETS] = &process->send_packets,     [RECEIVE_PACKETS] = &process->receive_packets,
        [CPU_USER_NS] = &process->cpu_user_ns,       [CPU_SYSTEM_NS] = &process->cpu_system_ns,
        [READ_BYTES] = &process->read_bytes,         [WRITE_BYTES] = &process->write_bytes,
        [READ_CHARS] = &process->read_chars,         [WRITE_CHARS] = &process->write_chars,
    };

    return members[counter];
}

static Series *series_of(World *world, const char *label)
{
    uint64_t hash = hash_bytes(HASH_START, label, strlen(label));
    Series *series;

    for (Link *item = table_first(&world->by_label, hash); item != NULL; item = table_next(item)) {
        if (strcmp(((Series *)item)->label, label) == 0) {
            return (Series *)item;
        }
    }
    CHECK(world->series_count < SERIES_LIMIT);
    series = &world->series[world->series_count++];
    strcpy(series->label, label);
    series->link.hash = hash;
    CHECK(table_add(&world->by_label, &series->link));
    return series;
}

static void on_series(void *context, const char *label, const uint64_t counters[COUNTERS],
                      const uint64_t levels[LEVELS])
{
    World *world = context;
    Series *series = series_of(world, label);
    bool has_grown = false;

    CHECK(!series->is_shown);
    series->is_shown = true;
    world->delivered++;
    for (size_t i = 0; i < COUNTERS; i++) {
        if (!series->was_shown) {
            /* A rate sees nothing of what a first value already holds. */
            CHECK(counters[i] == 0 || counters[i] == series->latest[i]);
        } else {
            CHECK(counters[i] >= series->latest[i]);
            series->increase[i] += counters[i] - series->latest[i];
            has_grown |= counters[i] > series->latest[i];
        }
        series->latest[i] = counters[i];
    }
    for (size_t i = 0; i < LEVELS; i++) {
        world->levels[i] += levels[i];
    }
    world->grown += has_grown && strcmp(label, LABEL_OTHER) != 0;
}

static void set_text(Model *process, const char *name, const char *user)
{
    snprintf(process->name, NAME_SIZE, "%s", name);
    snprintf(process->user, NAME_SIZE, "%s", user);
    process->figures.name = process->name;
    process->figures.name_length = strlen(process->name);
    process->figures.user = process->user;
}

static void start_process(World *world, Model *process)
{
    char name[NAME_SIZE], user[NAME_SIZE];

    snprintf(name, sizeof(name), "name%d", (int)random_below(40));
    snprintf(user, sizeof(user), "user%d", (int)random_below(5));
    *process = (Model){.lives = true};
    set_text(process, random_below(20) == 0 ? LABEL_OTHER : name, user);
    process->figures.pid = ++world->next_pid % 500 + 1;
    process->figures.start_time_ns = world->start_ns += 10000000;
    process->figures.valid = CAPTURE_VALID_NETWORK | CAPTURE_VALID_CPU | CAPTURE_VALID_IO;
}

static void tell(World *world, CaptureAction action, Model *process, bool is_counted)
{
    for (size_t i = 0; i < COUNTERS; i++) {
        uint64_t now = *counter_of(&process->figures, i);
        if (is_counted) {
            world->expected[i] += now - process->counted[i];
        }
        process->counted[i] = now;
    }
    groups_take(&world->groups, action, &process->figures);
}

/* Lets processes live for one interval. */
static void live(World *world)
{
    for (size_t i = 0; i < PROCESS_LIMIT; i++) {
        Model *process = &world->processes[i];
        uint64_t most = random_below(4) == 0 ? 0 : 1 + random_below(1000000);
        if (!process->lives) {
            if (random_below(3) == 0) {
                start_process(world, process);
            }
            continue;
        }
        if (random_below(30) == 0) {
            set_text(process, "renamed", process->user);
        }
        for (size_t k = 0; k < COUNTERS; k++) {
            *counter_of(&process->figures, k) += most == 0 ? 0 : random_below(most);
        }
        process->figures.resident_bytes = random_below(1000000);
        process->figures.descriptors = (uint32_t)random_below(100);
        process->figures.threads = 1 + (uint32_t)random_below(5);
    }
}

/* One reading, at which some of the processes have ended, or all of them. */
static void read_all(World *world, uint64_t ending, bool is_counted)
{
    uint64_t levels[LEVELS] = {0};

    groups_begin(&world->groups);
    for (size_t i = 0; i < PROCESS_LIMIT; i++) {
        Model *process = &world->processes[i];
        if (process->lives && random_below(100) < ending) {
            tell(world, ACTION_REMOVE, process, is_counted);
            process->lives = false;
        }
    }
    for (size_t i = 0; i < PROCESS_LIMIT; i++) {
        Model *process = &world->processes[i];
        if (process->lives) {
            tell(world, ACTION_UPDATE, process, is_counted);
            levels[RESIDENT_BYTES] += process->figures.resident_bytes;
            levels[DESCRIPTORS] += process->figures.descriptors;
            levels[PROCESSES]++;
            levels[THREADS] += process->figures.threads;
        }
    }
    world->grown = world->delivered = 0;
    memset(world->levels, 0, sizeof(world->levels));
    for (size_t i = 0; i < world->series_count; i++) {
        world->series[i].was_shown = world->series[i].is_shown;
        world->series[i].is_shown = false;
    }
    groups_deliver(&world->groups, on_series, world);
    CHECK(world->selection.names.count > 0 || memcmp(levels, world->levels, sizeof(levels)) == 0);
}

static World *new_world(GroupBy by, size_t top, TopBy top_by)
{
    World *world = calloc(1, sizeof(*world));

    CHECK(world != NULL);
    groups_start(&world->groups, &world->selection, by, top, top_by);
    /* The first reading finds nobody, so that all that follows counts. */
    read_all(world, 0, true);
    return world;
}

static void free_world(World *world)
{
    groups_clear(&world->groups);
    selection_clear(&world->selection);
    free(world->by_label.heads); /* The items are not its own. */
    free(world);
}

static void check_sums(const World *world)
{
    uint64_t increase[COUNTERS] = {0};

    for (size_t i = 0; i < world->series_count; i++) {
        for (size_t k = 0; k < COUNTERS; k++) {
            increase[k] += world->series[i].increase[k];
        }
    }
    for (size_t k = 0; k < COUNTERS; k++) {
        CHECK(increase[k] == world->expected[k] && increase[k] > 0);
    }
}

static void check_history(GroupBy by, size_t top, TopBy top_by)
{
    World *world = new_world(by, top, top_by);
    size_t before = 0;

    for (int reading = 0; reading < 300; reading++) {
        live(world);
        read_all(world, 20, true);
        /* Those that were new at the top in the reading before grow in this one, too. */
        CHECK(top == 0 || world->grown <= 2 * top);
        CHECK(top == 0 || world->delivered <= 32 * top + 1);
        before += world->grown;
    }
    CHECK(before > 0);
    read_all(world, 100, true);
    read_all(world, 0, true);
    check_sums(world);
    /* Nothing is kept for ever of groups whose processes have ended. */
    for (int reading = 0; reading < 32; reading++) {
        read_all(world, 0, true);
    }
    CHECK(world->delivered == (top > 0));
    CHECK(world->groups.groups.count == 0 && world->groups.processes.count == 0);
    check_sums(world);
    free_world(world);
}

/* Each name's growth is at its own series when all are delivered. */
static void check_each_group(void)
{
    World *world = new_world(GROUP_BY_NAME, 0, TOP_BY_NETWORK);
    Model *slow = &world->processes[0];
    Model *fast = &world->processes[1];

    start_process(world, slow);
    start_process(world, fast);
    set_text(slow, "slow", "user");
    set_text(fast, "fast", "user");
    for (uint64_t i = 1; i <= 5; i++) {
        slow->figures.send_bytes = i;
        fast->figures.send_bytes = i * 1000;
        read_all(world, 0, true);
        CHECK(series_of(world, "slow")->latest[SEND_BYTES] == (i == 1 ? 0 : i));
        CHECK(series_of(world, "fast")->latest[SEND_BYTES] == (i == 1 ? 0 : i * 1000));
    }
    /* What it does under another name does not take away what it did. */
    set_text(fast, "slow", "user");
    fast->figures.send_bytes += 7;
    read_all(world, 0, true);
    CHECK(series_of(world, "slow")->latest[SEND_BYTES] == 12);
    CHECK(series_of(world, "fast")->latest[SEND_BYTES] == 5000);
    free_world(world);
}

/* Who has done most is at the top; what the others did is not lost, and stays with the rest. */
static void check_top(TopBy top_by, Counter counter)
{
    World *world = new_world(GROUP_BY_NAME, 1, top_by);
    static const char *const names[] = {"a", "b", "c"};
    static const uint64_t growth[][3] = {{1, 2, 3}, {9, 8, 7}, {5, 6, 5}, {0, 0, 0}, {0, 0, 0}};

    for (size_t i = 0; i < 5; i++) {
        for (size_t k = 0; k < 3; k++) {
            if (i == 0) {
                start_process(world, &world->processes[k]);
                set_text(&world->processes[k], names[k], "user");
            }
            *counter_of(&world->processes[k].figures, counter) += growth[i][k];
        }
        read_all(world, 0, true);
    }
    CHECK(series_of(world, "a")->increase[counter] == 9);
    CHECK(series_of(world, "b")->increase[counter] == 6);
    CHECK(series_of(world, "c")->increase[counter] == 3);
    CHECK(series_of(world, LABEL_OTHER)->increase[counter] == 3 + 15 + 10);
    free_world(world);
}

/* A figure that falls and recovers has not grown. */
static void check_falling(void)
{
    World *world = new_world(GROUP_BY_NAME, 0, TOP_BY_NETWORK);
    static const uint64_t times[] = {10, 10, 7, 9, 12};

    start_process(world, &world->processes[0]);
    for (size_t i = 0; i < 5; i++) {
        world->processes[0].figures.cpu_user_ns = times[i];
        read_all(world, 0, false);
    }
    CHECK(world->series_count == 1 && world->series[0].latest[CPU_USER_NS] == 12);
    free_world(world);
}

/* What came and went between two readings is delivered: first as 0, then in full. */
static void check_short_life(void)
{
    World *world = new_world(GROUP_BY_PID, 0, TOP_BY_NETWORK);
    Model *process = &world->processes[0];
    Series *series;

    start_process(world, process);
    set_text(process, "short", "user");
    process->figures.send_bytes = 77;
    process->figures.valid = CAPTURE_VALID_NETWORK;
    read_all(world, 100, true);
    CHECK(world->series_count == 1);
    series = &world->series[0];
    CHECK(strncmp(series->label, "short[", 6) == 0 && series->is_shown && series->latest[SEND_BYTES] == 0);
    read_all(world, 0, true);
    CHECK(series->is_shown && series->latest[SEND_BYTES] == 77);
    read_all(world, 0, true);
    CHECK(!series->is_shown && world->groups.groups.count == 0);
    free_world(world);
}

/* Of processes that were there before the session, the network counts in full, the rest from the first reading on. */
static void check_earlier_processes(void)
{
    World *world = calloc(1, sizeof(*world));
    Model *earlier = &world->processes[0];
    Model *later = &world->processes[1];
    Series *series;

    CHECK(world != NULL);
    groups_start(&world->groups, &world->selection, GROUP_BY_USER, 0, TOP_BY_NETWORK);
    start_process(world, earlier);
    set_text(earlier, "earlier", "user");
    earlier->figures.send_bytes = 5;
    earlier->figures.cpu_user_ns = 1000;
    earlier->figures.read_bytes = 1000;
    /* Its I/O is known a reading later. */
    earlier->figures.valid = CAPTURE_VALID_NETWORK | CAPTURE_VALID_CPU;
    read_all(world, 0, false);
    earlier->figures.valid |= CAPTURE_VALID_IO;
    start_process(world, later);
    set_text(later, "later", "user");
    later->figures.cpu_user_ns = 30;
    read_all(world, 0, false);
    series = series_of(world, "user");
    CHECK(series->latest[SEND_BYTES] == 5 && series->latest[CPU_USER_NS] == 30 && series->latest[READ_BYTES] == 0);
    earlier->figures.cpu_user_ns += 4;
    earlier->figures.read_bytes += 2;
    read_all(world, 0, false);
    CHECK(series->latest[SEND_BYTES] == 5 && series->latest[CPU_USER_NS] == 34 && series->latest[READ_BYTES] == 2);

    /* Another session counts the network anew; the series goes on. */
    groups_new_session(&world->groups);
    earlier->figures.send_bytes = 3;
    earlier->figures.cpu_user_ns += 500;
    read_all(world, 0, false);
    CHECK(series->latest[SEND_BYTES] == 5 && series->latest[CPU_USER_NS] == 34);
    earlier->figures.cpu_user_ns += 1;
    read_all(world, 0, false);
    CHECK(series->latest[SEND_BYTES] == 8 && series->latest[CPU_USER_NS] == 35);
    free_world(world);
}

/* A process that is moved goes on in its new control group; the root and the unknown one have labels as well. */
static void check_cgroups(void)
{
    static const char *const paths[] = {"/web.slice/a", "/web.slice/a", "/", "", "/db"};
    static const char *const labels[] = {"web.slice%2Fa", "%2F", LABEL_UNKNOWN, "db"};
    static const uint64_t sums[] = {20, 10, 10, 10};
    World *world = new_world(GROUP_BY_CGROUP, 0, TOP_BY_NETWORK);
    Model *process = &world->processes[0];

    start_process(world, process);
    for (size_t i = 0; i < 5; i++) {
        process->figures.cgroup = paths[i];
        process->figures.cgroup_length = strlen(paths[i]);
        process->figures.send_bytes += 10;
        read_all(world, 0, true);
    }
    read_all(world, 0, true);
    CHECK(world->series_count == 4);
    for (size_t i = 0; i < 4; i++) {
        CHECK(series_of(world, labels[i])->latest[SEND_BYTES] == sums[i]);
    }
    free_world(world);
}

/* Who is not selected is not counted; who comes to be selected is from then on. */
/* A child's I/O that its parent's figures take over when it has waited for the child is counted once where the parent's own
 * is known, and from the next reading on where it becomes known. */
static void check_io_of_children(void)
{
    World *world = new_world(GROUP_BY_USER, 0, TOP_BY_NETWORK);
    Model *parent = &world->processes[0], *child = &world->processes[1];
    const uint32_t own = CAPTURE_VALID_OWN_BYTES | CAPTURE_VALID_OWN_CHARS;

    read_all(world, 0, false);
    for (Model *process = parent; process <= child; process++) {
        start_process(world, process);
        set_text(process, "sh", "user");
        process->figures.valid |= own;
    }
    child->figures.write_chars = child->figures.own_write_chars = 1000;
    child->figures.write_bytes = child->figures.own_write_bytes = 4096;
    parent->figures.write_chars = parent->figures.own_write_chars = 10;
    read_all(world, 0, false);
    child->lives = false;
    groups_begin(&world->groups);
    groups_take(&world->groups, ACTION_REMOVE, &child->figures);
    parent->figures.write_chars += 1000 + 5;
    parent->figures.own_write_chars += 5;
    parent->figures.write_bytes += 4096;
    read_all(world, 0, false);
    read_all(world, 0, false);
    CHECK(world->series_count == 1 && world->series[0].latest[WRITE_CHARS] == 1015);
    CHECK(world->series[0].latest[WRITE_BYTES] == 4096);
    /* All is counted while nothing better is known, and not again when it is. */
    parent->figures.valid &= ~own;
    parent->figures.write_chars += 7;
    read_all(world, 0, false);
    parent->figures.valid |= own;
    parent->figures.own_write_chars += 7 + 2;
    parent->figures.write_chars += 2;
    read_all(world, 0, false);
    read_all(world, 0, false);
    CHECK(world->series[0].latest[WRITE_CHARS] == 1024);
    free_world(world);
}

static void check_selection(void)
{
    World *world = new_world(GROUP_BY_NAME, 0, TOP_BY_NETWORK);
    char error[256];
    Model *process = &world->processes[0];

    CHECK(patterns_add(&world->selection.names, "web*", error, sizeof(error)));
    CHECK(patterns_add(&world->selection.names, "/^(db|mail)[0-9]+$/", error, sizeof(error)));
    CHECK(patterns_add(&world->selection.users, "www-*", error, sizeof(error)));
    CHECK(!patterns_add(&world->selection.users, "/(/", error, sizeof(error)));
    start_process(world, process);
    for (int i = 0; i < 5; i++) {
        static const char *const names[] = {"web-1", "db7", "db7x", "mail12", "web-1"};
        static const char *const users[] = {"root", "www-data", "www-data", "www-data", "www-data"};
        set_text(process, names[i], users[i]);
        process->figures.send_bytes += 10;
        read_all(world, 0, true);
    }
    read_all(world, 0, true);
    CHECK(world->series_count == 3);
    CHECK(series_of(world, "db7")->latest[SEND_BYTES] == 10);
    CHECK(series_of(world, "mail12")->latest[SEND_BYTES] == 10);
    CHECK(series_of(world, "web-1")->latest[SEND_BYTES] == 10);
    free_world(world);
}

static void count_series(void *context, const char *label, const uint64_t counters[COUNTERS],
                         const uint64_t levels[LEVELS])
{
    uint64_t *sums = context;

    (void)label;
    sums[0]++;
    sums[1] += counters[SEND_BYTES];
    sums[2] += levels[PROCESSES];
}

/* Of more processes than there may be groups nothing is lost. */
static void check_many(void)
{
    enum { MANY = 70000 };
    Selection selection = {0};
    Groups groups;
    uint64_t sums[3];

    groups_start(&groups, &selection, GROUP_BY_PID, 0, TOP_BY_NETWORK);
    for (int reading = 0; reading < 7; reading++) {
        memset(sums, 0, sizeof(sums));
        groups_begin(&groups);
        for (pid_t pid = reading < 4 ? 1 : MANY - 9; pid <= MANY; pid++) {
            CaptureProcess process = {.valid = CAPTURE_VALID_NETWORK, .pid = pid, .name = "x", .name_length = 1};
            process.user = "user";
            process.send_bytes = 3;
            groups_take(&groups, reading == 3 && pid < MANY - 9 ? ACTION_REMOVE : ACTION_UPDATE, &process);
        }
        groups_deliver(&groups, count_series, sums);
        if (reading < 3) {
            CHECK(sums[0] < MANY && sums[0] > MANY / 2 && sums[2] == MANY);
            CHECK(sums[1] == (reading == 0 ? 0 : 3 * MANY));
        }
    }
    /* When there is room again each has a series of its own. */
    CHECK(sums[0] == 10 + 1 && sums[2] == 10 && groups.groups.count == 10);
    groups_clear(&groups);
}

int main(void)
{
    for (TopBy top_by = TOP_BY_NETWORK; top_by <= TOP_BY_DESCRIPTORS; top_by++) {
        check_history(GROUP_BY_NAME, 1, top_by);
        check_history(GROUP_BY_NAME, 7, top_by);
        check_history(GROUP_BY_PID, 3, top_by);
    }
    check_history(GROUP_BY_NAME, 1000, TOP_BY_NETWORK);
    check_history(GROUP_BY_NAME, 0, TOP_BY_NETWORK);
    check_history(GROUP_BY_USER, 2, TOP_BY_CPU);
    check_history(GROUP_BY_PID, 0, TOP_BY_NETWORK);
    check_each_group();
    check_top(TOP_BY_NETWORK, RECEIVE_BYTES);
    check_top(TOP_BY_CPU, CPU_SYSTEM_NS);
    check_top(TOP_BY_IO, WRITE_BYTES);
    check_falling();
    check_short_life();
    check_earlier_processes();
    check_cgroups();
    check_io_of_children();
    check_selection();
    check_many();
    return 0;
}
