/* What the socket probes note, and what is noted where. */

#ifndef CAPTURE_MAPS_H
#define CAPTURE_MAPS_H

#include "core.h"
#include "sockets.h"

/* Whether the peers of unconnected sockets are entered in `tuples` too: only who captures packets asks for them. */
const volatile __u8 want_peers = 1;

/* Whether somebody reads the records: those of sockets that have ended then stay until they have been read. */
const volatile __u8 keep_records = 0;

/* Whether anybody asks for cgroups. */
const volatile __u8 want_cgroups = 0;

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 262144);
	MAP_TYPE(key, __u64);
	MAP_TYPE(value, struct record);
} sockets SEC(".maps");

/* Of the sockets in `sockets` those that are busy. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_SK_STORAGE);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, int);
	MAP_TYPE(value, struct tally);
} tallies SEC(".maps");

/* What earlier users of a shared socket have to their account, and the senders on packet sockets. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 65536);
	MAP_TYPE(key, struct share_key);
	MAP_TYPE(value, struct share);
} shares SEC(".maps");

/* The socket of each pair of endpoints, also for a while after its end. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 131072);
	MAP_TYPE(key, struct tuple);
	MAP_TYPE(value, struct owned);
} tuples SEC(".maps");

/* Packets of connections that have no socket of their own yet: they pass through the listener's. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 16384);
	MAP_TYPE(key, struct tuple);
	MAP_TYPE(value, struct traffic);
} embryos SEC(".maps");

/* The sockets that listen at each local end, for connections that did not inherit their listener's cookie: it listened
 * before the probes were loaded, and out of their reach (MPTCP). */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 8192);
	MAP_TYPE(key, struct tuple);
	MAP_TYPE(value, __u64);
} listeners SEC(".maps");

/* The listener's cookie, which the kernel copies to every socket that the listener makes. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_SK_STORAGE);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	MAP_TYPE(key, int);
	MAP_TYPE(value, __u64);
} parents SEC(".maps");

/* Times from request to answer, of each process. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 16384);
	MAP_TYPE(key, struct process);
	MAP_TYPE(value, struct histogram);
} latencies SEC(".maps");

/* Length of the link header of each device, plus one; 0 stands for Ethernet's. Filled by the reader. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, DEVICES);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u8);
} link_headers SEC(".maps");

/* What could not be put to any socket's account. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, LOSSES);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct traffic);
} losses SEC(".maps");

static ALWAYS_INLINE void add(__u64 *sum, __u64 value)
{
	__sync_fetch_and_add(sum, value);
}

/* Counts one packet. */
static ALWAYS_INLINE void count(struct way *way, __u64 bytes)
{
	add(&way->bytes, bytes);
	add(&way->packets, 1);
}

static ALWAYS_INLINE void count_in_traffic(struct traffic *traffic, int direction, __u64 bytes)
{
	count(&traffic->way[direction & 1], bytes);
}

static ALWAYS_INLINE void count_at_socket(struct record *record, int direction, __u64 bytes)
{
	count(direction == SENT ? &record->sent : &record->received, bytes);
}

static ALWAYS_INLINE void lose(__u32 why, int direction, __u64 bytes)
{
	struct traffic *loss = bpf_map_lookup_elem(&losses, &why);

	if (loss)
		count_in_traffic(loss, direction, bytes);
}

#endif
