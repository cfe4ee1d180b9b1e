/* Records that the socket probes share with their reader. Times are nanoseconds since boot (CLOCK_BOOTTIME). */

#ifndef CAPTURE_SOCKETS_H
#define CAPTURE_SOCKETS_H

#include <linux/types.h>

#define SENT 0
#define RECEIVED 1

/* Flags of a record. */
#define CONNECTED 1  /* it called connect(2) */
#define ACCEPTED 2   /* a listener made it */
#define LISTENER 4   /* it called listen(2) */
#define INHERITED 8  /* its user is its listener's: nobody has used it since */
#define ENDED 16     /* the kernel has destroyed it; its connection may have ended before */
#define HELD 32	     /* its user is who held a descriptor of it at the start */
#define SEVERAL 64   /* several processes held it at the start */
#define SWITCHED 128 /* more than one process has used it */
#define NAMED 256    /* its endpoints are in `tuples` */
#define BEGAN 512    /* its first packet was one that it sent */
#define UNUSED 1024  /* nobody has used it since it was created */
#define DATAGRAM 2048 /* what it sends leaves during the sender's call: UDP, ping, raw */

/* Its user is not known by any call of its own. */
#define UNPROVEN (INHERITED | HELD | SEVERAL | UNUSED)

/* Where bytes went that are in no record. */
#define LOSS_UNKNOWN 0	  /* the socket has no record: the kernel's own, or older than the probes and held by nobody */
#define LOSS_TABLE_FULL 1 /* there was no room for a record */
#define LOSS_ANSWERED 2	  /* the kernel has answered an ICMP message by itself */

#define NAME 16
#define BUCKETS 32

/* A process: the start time tells it from a later one with its number. */
struct process {
	__u64 start_ns;
	__u32 tgid;
	__u32 padding;
};

/* Two endpoints in a network namespace, the local one being the socket's. IPv4 is written as ::ffff:a.b.c.d. */
struct tuple {
	__u32 netns;
	__u16 local_port;
	__u16 remote_port;
	__u8 local[16];
	__u8 remote[16];
	__u8 protocol;
	__u8 padding[7];
} __attribute__((aligned(8)));

/* Bytes and packets as the wire carries them: with link headers, and each segment of an offloaded frame by itself. */
struct way {
	__u64 bytes;
	__u64 packets;
};

/* Both ways, by SENT and RECEIVED. */
struct traffic {
	struct way way[2];
};

/* Times from the last send to the first receive after it. */
struct latency {
	__u64 count;
	__u64 sum_ns;
	__u64 least_ns;
	__u64 most_ns;
};

/* What a socket's users have done with it. */
struct calls {
	__u64 sends;
	/* The last send that has not been answered yet, or 0. */
	__u64 sent_ns;
	__u64 receives;
	__u32 unanswered;
	__u32 padding;
};

/* A device and the length of its link header, as of the last packet: both stay the same for most sockets. */
struct link {
	__u32 device;
	__u32 header;
} __attribute__((aligned(8)));

/* What every packet changes stands together, and what every call changes, so that either touches few cache lines. */
struct record {
	/* Odd while owner, endpoints or what is apart are being changed. A copy from front to back is whole if `entered`
	 * is the same number. */
	__u32 version;
	__u32 flags;
	struct process owner;
	struct link link;
	struct way sent;
	struct way received;
	/* Bytes of `received` that no process has read yet, as of the last packet or call. */
	__u64 unread;
	/* Digest of the remote endpoint when `tuple` was read. */
	__u32 peer;
	/* errno of the connection at its end; 0 for an orderly one. */
	__u32 error;
	struct calls calls;
	__u32 smoothed_rtt_us;
	__u32 retransmits;
	/* The parts of both ways that stand in `shares` to the account of other users. */
	struct way sent_apart;
	struct way received_apart;
	__u64 cgroup;
	char name[NAME];
	__u32 uid;
	__u32 gid;
	struct tuple tuple;
	struct latency latency;
	__u64 opened_ns;
	__u64 connecting_ns;
	__u64 established_ns;
	__u64 ended_ns;
	/* The states before and at the last change of state. */
	__u8 state;
	__u8 last_state;
	/* How often connect(2) has sent a SYN. */
	__u16 connects;
	__u32 entered;
};

/* A packet that the kernel has sent for a connection in TIME_WAIT. */
struct late {
	__u64 packet;
	__u64 cookie;
	__u64 sent_ns;
};

/* How many sockets can have a tally: a power of two. */
#define TALLIES 1024
/* In the cookie of a tally: its socket has it no more, so that another socket's may take its place. */
#define CLOSED (1ULL << 63)
/* In both sums of a tally bytes are in this many of the lower bits and packets above. */
#define PACKED_BYTES 40

/* What has passed through a busy socket since its record was last brought up to date.
 *
 * Sending, receiving and the calls of the user may each be on a processor of their own, and a cache line that two of them
 * change goes to and fro between these: so each has a line (64 bytes) to itself. */
struct tally {
	__u64 cookie;
	/* Who has used the socket last, as in the record. */
	struct process owner;
	/* Of the record's flags those that do not change. */
	__u32 flags;
	/* As in the record. */
	__u32 peer;
	/* A packet changes one number: see PACKED_BYTES. */
	__u64 sent;
	struct link sent_link;
	/* When another socket may have the place, or the highest number while it is being filled in. */
	__u64 free_ns;
	/* Whether it has been used since another socket wanted its place. */
	__u64 is_used;

	/* As `sent`. */
	__u64 received;
	struct link received_link;
	__u64 to_line_end[6];

	struct calls calls;
	__u64 to_last_line_end[4];
};

/* What the reader sets for the programs. What is deleted while a program adds to it takes that with it. So what processes and
 * namespaces have to their accounts is kept by periods, and deleted when the next period has lasted for so long that no
 * program can still be adding to it. */
struct control {
	__u32 period;
	/* Set where there is no room for a record, until there is again. */
	__u32 is_full;
};

/* Where bytes went that are in no record, and in which network namespace. */
struct loss_key {
	__u32 netns;
	__u32 why;
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
	char name[NAME];
	__u32 uid;
	__u32 gid;
	__u32 netns;
	__u32 is_packet_socket;
};

struct owned {
	/* When the process started. */
	__u64 start_ns;
	__u64 cookie;
	/* When the endpoints became the socket's. */
	__u64 began_ns;
	/* The cookie of the socket that had the endpoints before, or 0: see `formers`. */
	__u64 former;
	/* When the socket ended, or 0: its endpoints may be another's by then. */
	__u64 ended_ns;
	__u64 cgroup;
	char name[NAME];
	__u32 tgid;
	__u32 uid;
	__u32 gid;
	__u32 flags;
};

/* Bucket n counts times of at least 2^n microseconds and less than twice that; the first also shorter ones. */
struct histogram {
	__u64 buckets[BUCKETS];
};

#endif
