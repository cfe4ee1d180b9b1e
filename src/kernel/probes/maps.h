/* What the socket probes note, and what is noted where. */

#ifndef CAPTURE_MAPS_H
#define CAPTURE_MAPS_H

#include "core.h"
#include "sockets.h"

/* A hash map takes 16 bytes at once for each entry that it may ever hold, an LRU map room for all its entries. The loader
 * sets smaller sizes where the probes are loaded for less. */

/* Whether the peers of unconnected sockets are entered in `tuples` too: only who captures packets asks for them. */
const volatile __u8 want_peers = 1;

/* Whether somebody reads the records: those of sockets that have ended then stay until they have been read. */
const volatile __u8 keep_records = 0;

/* Whether the kernel tells of a packet that is thrown away which socket it had come to (since Linux 6.11). */
const volatile __u8 tells_receiver = 0;

/* Whether anybody asks for cgroups. */
const volatile __u8 want_cgroups = 0;

volatile struct control control = {};

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 262144);
	MAP_TYPE(key, __u64);
	MAP_TYPE(value, struct record);
} sockets SEC(".maps");

/* Those of busy sockets, each where its cookie leads to. An array is looked up without a call. One that a process may map
 * begins where a page does, and so each tally where a cache line does. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(map_flags, BPF_F_MMAPABLE);
	MAP_NUMBER(max_entries, TALLIES);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct tally);
} tallies SEC(".maps");

/* The sockets that have or had a tally, for who walks over them. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_SK_STORAGE);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, int);
	MAP_TYPE(value, __u32);
} busy SEC(".maps");

/* What earlier users of a shared socket have to their account, and the senders on packet sockets; by periods. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 16384);
	MAP_TYPE(key, struct share_key);
	MAP_TYPE(value, struct share);
} shares SEC(".maps");

/* The socket of each pair of endpoints, also for a while after its end: until the reader takes it out. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 262144);
	MAP_TYPE(key, struct tuple);
	MAP_TYPE(value, struct owned);
} tuples SEC(".maps");

/* The same for the peers of sockets that are not connected. A socket may have any number of them: the latest stay. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 4096);
	MAP_TYPE(key, struct tuple);
	MAP_TYPE(value, struct owned);
} peers SEC(".maps");

/* What was known of endpoints before they became another socket's, by the cookie of the socket that had them: packets that
 * were captured before may be asked about after. The latest stay. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 2048);
	MAP_TYPE(key, __u64);
	MAP_TYPE(value, struct owned);
} formers SEC(".maps");

/* Packets of connections that have no socket of their own yet: they pass through the listener's. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 4096);
	MAP_TYPE(key, struct tuple);
	MAP_TYPE(value, struct traffic);
} embryos SEC(".maps");

/* The sockets that listen at each local end, for connections that did not inherit their listener's cookie: it listened
 * before the probes were loaded, and out of their reach (MPTCP). */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 4096);
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

/* The packet for a connection in TIME_WAIT that was last counted on each processor. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct late);
} last_late SEC(".maps");

/* Times from request to answer of each process, by periods. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 8192);
	MAP_TYPE(key, struct latency_key);
	MAP_TYPE(value, struct histogram);
} latencies SEC(".maps");

/* What could not be put to any socket's account, by periods. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 8192);
	MAP_TYPE(key, struct loss_key);
	MAP_TYPE(value, struct traffic);
} losses SEC(".maps");

static ALWAYS_INLINE void add(__u64 *sum, __u64 value)
{
	__sync_fetch_and_add(sum, value);
}

static ALWAYS_INLINE void add_way(struct way *sum, const struct way *what)
{
	add(&sum->bytes, what->bytes);
	add(&sum->packets, what->packets);
}

static ALWAYS_INLINE struct way *way_of(struct record *record, int direction)
{
	return direction == SENT ? &record->sent : &record->received;
}

SUBPROGRAM int count_lost(__u32 why, __u32 netns, int direction, const struct way *what)
{
	static const struct traffic none = {};
	struct loss_key key = {.netns = netns, .why = why, .period = control.period};
	struct traffic *loss;

	if (!what)
		return 0;
	loss = bpf_map_lookup_elem(&losses, &key);
	if (!loss) {
		bpf_map_update_elem(&losses, &key, &none, BPF_NOEXIST);
		loss = bpf_map_lookup_elem(&losses, &key);
	}
	if (loss)
		add_way(&loss->way[direction & 1], what);
	return 0;
}

/* Notes that there was no room for a record, so that packets of its socket are told from those of unknown sockets. */
static ALWAYS_INLINE void note_refused(void)
{
	control.is_full = 1;
}

static ALWAYS_INLINE void count_unknown_socket(__u32 netns, int direction, const struct way *what, __u32 why)
{
	count_lost(control.is_full ? LOSS_TABLE_FULL : why, netns, direction, what);
}

#endif
