/* Structures that the socket eBPF programs share with their reader. Times are nanoseconds since boot
 * (CLOCK_BOOTTIME). */

#ifndef CAPTURE_SOCKETS_H
#define CAPTURE_SOCKETS_H

#include <linux/types.h>

#define SENT 0
#define RECEIVED 1

/* Flags of a record. */
#define CONNECTED 1        /* it called connect(2) */
#define ACCEPTED 2         /* created by a listener */
#define LISTENER 4         /* it called listen(2) */
#define INHERITED 8        /* its owner is the listener's: no process has used it since */
#define ENDED 16           /* the kernel has destroyed it; its connection may have ended before */
#define HELD 32            /* its owner is a holder that a walk over all descriptors found */
#define SEVERAL_HOLDERS 64 /* the walk found several holders */
#define SHARED 128         /* more than one process has used it */
#define HAS_ENDPOINTS 256  /* its endpoints are in `endpoint_owners` */
#define SENT_FIRST 512     /* its first packet was a sent one */
#define UNUSED 1024        /* no process has used it since its creation */
#define DATAGRAM 2048      /* its packets leave during the sender's call: UDP, ping, raw */

/* The flags of an owner that has not been confirmed by one of its own calls. */
#define UNCONFIRMED (INHERITED | HELD | SEVERAL_HOLDERS | UNUSED)

/* Reasons why bytes are in no record. */
#define LOSS_NO_RECORD 0    /* the kernel's own socket, or an older one without a holder */
#define LOSS_TABLE_FULL 1   /* a map had no room */
#define LOSS_KERNEL_REPLY 2 /* the kernel itself has answered an ICMP message */

#define TASK_COMM_LEN 16
#define BUCKETS 32

/* A process. The start time distinguishes it from a later process with the same pid. */
struct process {
	__u64 start_ns;
	__u32 tgid;
	__u32 padding;
};

/* Two endpoints in a network namespace. The local one is the socket's. IPv4 addresses are mapped: ::ffff:a.b.c.d. */
struct tuple {
	__u32 netns;
	__u16 local_port;
	__u16 remote_port;
	__u8 local[16];
	__u8 remote[16];
	__u8 protocol;
	__u8 padding[7];
} __attribute__((aligned(8)));

/* Bytes and packets in one direction, as on the wire: with link headers, and each segment of an offloaded frame counted
 * separately. */
struct direction_counters {
	__u64 bytes;
	__u64 packets;
};

/* Both directions, indexed by SENT and RECEIVED. */
struct traffic {
	struct direction_counters by_direction[2];
};

/* Response times: from the last send to the first receive after it. */
struct latency {
	__u64 count;
	__u64 sum_ns;
	__u64 min_ns;
	__u64 max_ns;
};

/* Counts of the calls of a socket's users. */
struct calls {
	__u64 sends;
	/* Time of the last send that has not been answered, or 0. */
	__u64 sent_ns;
	__u64 receives;
	__u32 unanswered;
	__u32 padding;
};

/* A device and the length of its link header, as of the last packet. Both stay the same for most sockets. */
struct link {
	__u32 device;
	__u32 header;
} __attribute__((aligned(8)));

/* The record of a socket. Fields that every packet changes are adjacent, and so are fields that every call changes, so
 * that each touches few cache lines. */
struct record {
	/* Odd while owner, endpoints or share totals are being changed. A copy from front to back is consistent if
	 * `next_version` is the same number. */
	__u32 version;
	__u32 flags;
	struct process owner;
	struct link link;
	struct direction_counters sent;
	struct direction_counters received;
	/* Bytes of `received` that no process had read at the last packet or call. */
	__u64 unread;
	/* Digest of the remote endpoint at the time when `tuple` was read. */
	__u32 peer_digest;
	/* errno of the connection at its end; 0 after an orderly end. */
	__u32 error;
	struct calls calls;
	__u32 smoothed_rtt_us;
	__u32 retransmits;
	/* The parts of `sent` and `received` that are credited to other users in `shares`. */
	struct direction_counters sent_in_shares;
	struct direction_counters received_in_shares;
	__u64 cgroup;
	char name[TASK_COMM_LEN];
	__u32 uid;
	__u32 gid;
	struct tuple tuple;
	struct latency latency;
	__u64 opened_ns;
	__u64 connecting_ns;
	__u64 established_ns;
	__u64 ended_ns;
	/* The TCP states after and before the last change. */
	__u8 state;
	__u8 last_state;
	/* Number of times that connect(2) has sent a SYN. */
	__u16 connects;
	__u32 next_version;
};

/* A packet that the kernel has sent for a connection in TIME_WAIT. */
struct time_wait_packet {
	__u64 packet;
	__u64 cookie;
	__u64 sent_ns;
};

/* The number of slots for socket counters: a power of two. */
#define SK_COUNTERS_CAPACITY 1024
/* Flag in the cookie of a slot: its socket no longer uses the slot, so that another socket may. */
#define SLOT_RELEASED (1ULL << 63)
/* The number of lower bits of a packed sum that hold bytes. The upper bits hold packets. */
#define PACKED_BYTE_BITS 40

/* Socket counters: the traffic of a busy socket since its record was last updated.
 *
 * Sends, receives and the user's calls may each run on a different processor. Each group has a cache line (64 bytes) of
 * its own, so that the lines do not move between processors. */
struct sk_counters {
	__u64 cookie;
	/* The last user of the socket, as in the record. */
	struct process owner;
	/* The flags of the record that do not change. */
	__u32 flags;
	/* As in the record. */
	__u32 peer_digest;
	/* Packed sum: a packet changes one number. See PACKED_BYTE_BITS. */
	__u64 sent;
	struct link sent_link;
	/* Time from which another socket may use the slot. The maximum value while the slot is being assigned. */
	__u64 reusable_ns;
	/* Set if the slot has been used since another socket requested it. */
	__u64 is_used;

	/* Packed sum, as `sent`. */
	__u64 received;
	struct link received_link;
	__u64 line_padding[6];

	struct calls calls;
	__u64 last_line_padding[4];
};

/* Variables that the reader sets for the eBPF programs.
 *
 * If an entry is deleted while an eBPF program adds to it, the addition is lost. Therefore accounts of processes and
 * namespaces are kept by period, and deleted once the next period has lasted so long that no eBPF program can still be
 * adding to them. */
struct control {
	__u32 period;
	/* Set while a map has no room for a record. */
	__u32 is_full;
};

/* The reason and the network namespace of bytes that are in no record. */
struct loss_key {
	__u32 netns;
	__u32 reason;
	__u32 period;
};

struct share_key {
	struct process owner;
	__u64 cookie;
	__u32 period;
	__u32 padding;
};

struct latency_key {
	struct process owner;
	__u32 period;
	__u32 padding;
};

struct share {
	struct traffic traffic;
	__u64 cgroup;
	char name[TASK_COMM_LEN];
	__u32 uid;
	__u32 gid;
	__u32 netns;
	__u32 is_packet_socket;
};

struct endpoint_owner {
	/* The start time of the process. */
	__u64 start_ns;
	__u64 cookie;
	/* Time at which the socket got the endpoints. */
	__u64 since_ns;
	/* The cookie of the socket that had the endpoints before, or 0: the key in `previous_owners`. */
	__u64 previous_cookie;
	/* Time at which the socket ended, or 0. After it, another socket may have the endpoints. */
	__u64 ended_ns;
	__u64 cgroup;
	char name[TASK_COMM_LEN];
	__u32 tgid;
	__u32 uid;
	__u32 gid;
	__u32 flags;
};

/* Bucket n counts times from 2^n to less than 2^(n+1) microseconds. The first bucket also counts shorter ones. */
struct histogram {
	__u64 buckets[BUCKETS];
};

#endif
