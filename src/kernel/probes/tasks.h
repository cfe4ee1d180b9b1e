/* Records that the walk over all tasks writes for its reader, one behind another. */

#ifndef CAPTURE_TASKS_H
#define CAPTURE_TASKS_H

#include <linux/types.h>

/* What a record is. */
#define PROCESS 1 /* the main thread, with what its process has as a whole */
#define THREAD 2  /* any other thread */
#define NAME 3	  /* the name of the kernel thread whose record it follows */

/* Groups of figures that are asked for. */
#define GROUP_MEMORY 1
#define GROUP_IO 2
#define GROUP_DESCRIPTORS 4
#define GROUP_CGROUP 8

/* In place of a number of descriptors: there are too many to be counted here. */
#define UNCOUNTED 0xffffffff

/* What every thread has, and the sum over those that have ended. */
struct figures {
	__u64 user_ns;
	__u64 system_ns;
	__u64 runtime_ns;
	__u64 minor_faults;
	__u64 major_faults;
	__u64 read_chars;
	__u64 write_chars;
	__u64 read_bytes;
	__u64 write_bytes;
};

struct process {
	__u32 kind;
	__u32 pid;
	__u32 parent;
	__u32 threads;
	/* Changes with the sums over ended threads; odd while they are changed. */
	__u32 sequence;
	/* The sequence was another one when all had been read. */
	__u32 torn;
	__u32 state;
	__u32 exit_state;
	__u32 flags;
	__u32 uid;
	__u32 gid;
	__u32 descriptors;
	__u64 start_ns;
	/* Counts the program images that have been executed. */
	__u64 image;
	/* Of the main thread and of all that have ended. */
	struct figures figures;
	/* CPU times as the kernel told them last. */
	__u64 told_user_ns;
	__u64 told_system_ns;
	/* Of the main thread. */
	__u64 voluntary_switches;
	__u64 involuntary_switches;
	__u64 virtual_pages;
	__u64 resident_pages;
	__u64 cgroup;
	/* The inode of its network namespace; 0 when it has begun to exit. */
	__u32 network_namespace;
	/* Threads have ended, and children were waited for: what both have read and written stands together below. */
	__u32 has_mixed_io;
	/* The part of `figures` that children had which were waited for; of chars also that of threads that have ended. */
	__u64 children_read_chars;
	__u64 children_write_chars;
	__u64 children_read_bytes;
	__u64 children_write_bytes;
	/* The part of the resident set that is of files or shared memory. */
	__u64 shared_pages;
	/* 16 bytes of text, ended by NUL where it is shorter. */
	__u64 name[2];
};

struct thread {
	__u32 kind;
	__u32 pid;
	__u32 sequence;
	/* It is about to be added to the sums of its process, or has been. */
	__u32 ended;
	struct figures figures;
};

struct name {
	__u32 kind;
	/* At work for `work` now, rather than before. */
	__u32 busy;
	char name[64];
	/* What a worker of a queue works for; empty for other threads. */
	char work[32];
};

/* A name that a process was given while the programs were loaded. */
struct given_name {
	__u64 start_ns;
	/* Ended by NUL. */
	char name[16];
};

#endif
