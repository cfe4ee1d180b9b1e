/* What the kernel says of this process: its threads, descriptors and memory. */
#ifndef THREADS_H
#define THREADS_H

#include "check.h"
#include <dirent.h>
#include <malloc.h>

/* Entries of a folder of /proc/self, the descriptor that reads it not counted. */
static inline int entries_of(const char *folder) {
    DIR *opened = opendir(folder);
    int count = 0;
    CHECK(opened != NULL);
    for (struct dirent *entry; (entry = readdir(opened)) != NULL;) {
        count += entry->d_name[0] != '.';
    }
    closedir(opened);
    return strcmp(folder, "/proc/self/fd") == 0 ? count - 1 : count;
}

static inline int threads(void) {
    return entries_of("/proc/self/task");
}

/* Threads that are left. Those of the library have ended when it says so, but the kernel may still list them for a moment. */
static inline int threads_left(void) {
    for (double began = now(); threads() > 1 && now() - began < 5;) {
        nap(1);
    }
    return threads();
}

static inline int descriptors(void) {
    return entries_of("/proc/self/fd");
}

/* The rest of the line of /proc/self/<file> that begins with `label`. */
static inline void status_line(const char *file, const char *label, char *into, size_t room) {
    FILE *opened = fopen(file, "re");
    CHECK(opened != NULL);
    while (fgets(into, (int)room, opened) != NULL) {
        if (strncmp(into, label, strlen(label)) == 0) {
            memmove(into, into + strlen(label), strlen(into + strlen(label)) + 1);
            fclose(opened);
            return;
        }
    }
    fprintf(stderr, "%s has no %s\n", file, label);
    _exit(1);
}

/* Resident memory, kB, without what the allocator keeps although nobody uses it. */
static inline long resident(void) {
    char line[256];
    malloc_trim(0);
    status_line("/proc/self/status", "VmRSS:", line, sizeof line);
    return atol(line);
}

#endif
