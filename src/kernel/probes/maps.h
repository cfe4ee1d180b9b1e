/* The maps of the socket eBPF programs, and the constants that the loader sets. */

#ifndef CAPTURE_MAPS_H
#define CAPTURE_MAPS_H

#include "core.h"
#include "sockets.h"

/* A hash map allocates 16 bytes in advance for each entry of its capacity, an LRU map the memory of all its entries.
 * The loader reduces capacities of maps that are not needed for its purpose. */

/* Set if the endpoints of unconnected sockets' peers are recorded in `peer_owners`. Only capturing of packets needs
 * them. */
const volatile __u8 want_peers = 1;

/* Set if a reader reads the records. The record of an ended socket is then kept until the reader deletes it. */
const volatile __u8 keep_records = 0;

/* Set if the kernel reports the receiving socket of a dropped packet (since Linux 6.11). */
const volatile __u8 drop_has_socket = 0;

/* Set if cgroups are recorded. */
const volatile __u8 want_cgroups = 0;

volatile struct control control = {};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u64);
	__type(value, struct record);
} sockets SEC(".maps");

/* Socket counters of busy sockets, indexed by the lower bits of the cookie. An array is looked up without a call. The
 * memory of a mappable array begins at a page, so that each element begins at a cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SK_COUNTERS_CAPACITY);
	__type(key, __u32);
	__type(value, struct sk_counters);
} sk_counters SEC(".maps");

/* The sockets that have or had socket counters. capture_flush() walks over them. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} busy_sockets SEC(".maps");

/* Accounts of the previous users of shared sockets, and of the senders on packet sockets, by period. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct share_key);
	__type(value, struct share);
} shares SEC(".maps");

/* The owner of each pair of endpoints. After the end of the socket, the reader deletes the entry with a delay. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct tuple);
	__type(value, struct endpoint_owner);
} endpoint_owners SEC(".maps");

/* The same for the peers of unconnected sockets. A socket may have any number of peers, and the most recent are
 * kept. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tuple);
	__type(value, struct endpoint_owner);
} peer_owners SEC(".maps");

/* Former entries of `endpoint_owners` and `peer_owners` whose endpoints were reused by another socket, by the cookie of
 * the former socket. Packets that were captured before the reuse may be looked up after it. The most recent entries are
 * kept. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, __u64);
	__type(value, struct endpoint_owner);
} previous_owners SEC(".maps");

/* Packets of request sockets: of connections whose own socket does not exist yet, so that the packets belong to the
 * listener's socket. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tuple);
	__type(value, struct traffic);
} request_socks SEC(".maps");

/* The listener at each local endpoint, for connections that did not inherit a listener's cookie: their listener is older
 * than the eBPF programs and out of their reach (MPTCP). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct tuple);
	__type(value, __u64);
} listeners SEC(".maps");

/* The listener's cookie, which the kernel copies to each socket that the listener creates. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, __u64);
} parent_cookie SEC(".maps");

/* The last packet on each processor that was counted for a connection in TIME_WAIT. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct time_wait_packet);
} last_time_wait SEC(".maps");

/* Response times of each process, by period. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct latency_key);
	__type(value, struct histogram);
} latencies SEC(".maps");

/* Bytes that no socket's record could take, by period. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct loss_key);
	__type(value, struct traffic);
} losses SEC(".maps");

static ALWAYS_INLINE void add(__u64 *sum, __u64 value)
{
	__sync_fetch_and_add(sum, value);
}

static ALWAYS_INLINE void add_counters(struct direction_counters *sum, const struct direction_counters *added)
{
	add(&sum->bytes, added->bytes);
	add(&sum->packets, added->packets);
}

static ALWAYS_INLINE struct direction_counters *record_counters(struct record *record, int direction)
{
	return direction == SENT ? &record->sent : &record->received;
}

SUBPROGRAM int count_lost(__u32 reason, __u32 netns, int direction, const struct direction_counters *added)
{
	static const struct traffic none = {};
	struct loss_key key = {.netns = netns, .reason = reason, .period = control.period};
	struct traffic *loss;

	if (!added)
		return 0;
	loss = bpf_map_lookup_elem(&losses, &key);
	if (!loss) {
		bpf_map_update_elem(&losses, &key, &none, BPF_NOEXIST);
		loss = bpf_map_lookup_elem(&losses, &key);
	}
	if (loss)
		add_counters(&loss->by_direction[direction & 1], added);
	return 0;
}

/* Records that a map had no room for a record, so that the packets of such sockets are distinguished from those of
 * unknown sockets. */
static ALWAYS_INLINE void mark_table_full(void)
{
	control.is_full = 1;
}

static ALWAYS_INLINE void count_unknown_socket(__u32 netns, int direction, const struct direction_counters *added,
					       __u32 reason)
{
	count_lost(control.is_full ? LOSS_TABLE_FULL : reason, netns, direction, added);
}

#endif
