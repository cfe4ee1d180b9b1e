/* The classic interface as programs have it that were compiled years ago: a copy of their own, not our header. */
#ifndef OLD_INTERFACE_H
#define OLD_INTERFACE_H

#include "check.h"
#include <dlfcn.h>
#include <stdint.h>
#include <sys/types.h>

typedef enum { SELECT, EPOLL, NONE } LoopType;
typedef enum { P_TCP, P_UDP } PacketType;
typedef enum { ACTION_UPDATE, ACTION_REMOVE } CaptureAction;

typedef struct {
    const char *logfile;
    int32_t ms;
    int32_t snaplen;
    int32_t promise;
    const char *fliter;
    char *errorbuf;
    LoopType loop;
} CaptureInitt;

typedef struct Process_s {
    char name[128];
    char cmdline[512];
    char user[128];
    char group[128];
    pid_t pid;
    uid_t uid;
    gid_t gid;
    uint32_t fdCnt;
    uint64_t memory;
    double cpuPercent;
    double memPercent;
    uint64_t ioRead;
    uint64_t ioWrite;
    uint64_t recv;
    uint64_t send;
} Process_t;

typedef struct Packet_s {
    char hash[128];
    PacketType family;
    unsigned char *packet;
    uint32_t packetSize;
} Packet_t;

typedef void (*ProcessInfoCallback)(CaptureAction action, const Process_t *processes, uint32_t *size);
typedef void (*PacketCallback)(const Packet_t *packets, uint32_t *size);

static int32_t (*capture_init)(const CaptureInitt *config, ProcessInfoCallback, PacketCallback);
static int32_t (*capture_update)(int32_t cnt);
static int32_t (*capture_exit)(void);

static inline void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    CHECK(found != NULL);
    return found;
}

/* Loads the library and finds its functions, as a host of plugins does. */
static inline void *load(void) {
    void *library = dlopen(getenv("CAPTURE_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        _exit(1);
    }
    *(void **)&capture_init = symbol(library, "CaptureInit");
    *(void **)&capture_update = symbol(library, "CaptureUpdate");
    *(void **)&capture_exit = symbol(library, "CaptureExit");
    return library;
}

#endif
