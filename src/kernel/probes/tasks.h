/* Records that the BPF iterator over all tasks writes one after another. */

#ifndef CAPTURE_TASKS_H
#define CAPTURE_TASKS_H

#include <linux/types.h>

/* Kinds of a record. */
#define PROCESS 1      /* a main thread, with the figures of its process */
#define THREAD 2       /* any other thread */
#define KTHREAD_NAME 3 /* the name of a kernel thread, after its record */

/* Requested groups of figures. */
#define GROUP_MEMORY 1
#define GROUP_IO 2
#define GROUP_DESCRIPTORS 4
#define GROUP_CGROUP 8

/* Number of descriptors if there are too many to be counted here. */
#define UNCOUNTED 0xffffffff

/* Figures of a thread, or their sum over ended threads. */
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
	/* Sequence number of the sums over ended threads; odd while they are changed. */
	__u32 sequence;
	/* Set if the sequence number has changed during the read. */
	__u32 torn;
	__u32 state;
	__u32 exit_state;
	__u32 flags;
	__u32 uid;
	__u32 gid;
	__u32 descriptors;
	__u64 start_ns;
	/* Number of program images that the process has executed. */
	__u64 image;
	/* Sum over the main thread and all ended threads. */
	struct figures figures;
	/* CPU times that the kernel reported last. */
	__u64 reported_user_ns;
	__u64 reported_system_ns;
	/* Of the main thread. */
	__u64 voluntary_switches;
	__u64 involuntary_switches;
	__u64 virtual_pages;
	__u64 resident_pages;
	__u64 cgroup;
	/* The inode of the network namespace; 0 once the process has begun to exit. */
	__u32 network_namespace;
	/* Set if threads have ended and children were waited for: the I/O fields below then include both. */
	__u32 has_mixed_io;
	/* The part of `figures` that belongs to children that were waited for. The chars include those of ended
	 * threads. */
	__u64 children_read_chars;
	__u64 children_write_chars;
	__u64 children_read_bytes;
	__u64 children_write_bytes;
	/* The part of the resident set that belongs to files or shared memory. */
	__u64 shared_pages;
	/* 16 bytes of text, ended by NUL if shorter. */
	__u64 name[2];
};

struct thread {
	__u32 kind;
	__u32 pid;
	__u32 sequence;
	/* Set if the figures are about to be added to the sums of the process, or have been. */
	__u32 ended;
	struct figures figures;
};

struct kthread_name {
	__u32 kind;
	/* Set if the worker is processing `work` now. */
	__u32 busy;
	char name[64];
	/* The description of a workqueue worker's work; empty for other threads. */
	char work[32];
};

/* A name that a process was given while the eBPF programs were loaded. */
struct given_name {
	__u64 start_ns;
	/* Ended by NUL. */
	char name[16];
};

#endif
