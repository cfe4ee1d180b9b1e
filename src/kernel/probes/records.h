/* The record of a socket: its creation, changes while other eBPF programs count in it, and its end. */

#ifndef CAPTURE_RECORDS_H
#define CAPTURE_RECORDS_H

#include "endpoints.h"
#include "maps.h"
#include "sk_counters.h"

#define EEXIST 17

/* The maximum number of attempts to change a record that another processor is changing. */
#define MAX_ATTEMPTS 32

/* The initial content of a record. The version marks it as being changed. */
static const struct record blank_record = {.version = 1, .next_version = 2};

/* Reserves the record for a change of several numbers (owner, endpoints, share totals) until end_change(). Returns 0 if
 * other eBPF programs change it all the time. Counting continues meanwhile. */
SUBPROGRAM int begin_change(struct record *record)
{
	if (!record)
		return 0;
	for (int attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
		__u32 version = *(volatile __u32 *)&record->version;

		if (!(version & 1) && __sync_val_compare_and_swap(&record->version, version, version + 1) == version) {
			/* A reader whose copy begins after this line recognizes that from the number. */
			__atomic_exchange_n(&record->next_version, version + 2, __ATOMIC_SEQ_CST);
			return 1;
		}
	}
	return 0;
}

static ALWAYS_INLINE void end_change(struct record *record)
{
	__u32 version = record->version;

	__atomic_exchange_n(&record->version, version + 1, __ATOMIC_SEQ_CST);
}

static ALWAYS_INLINE void set_flags(struct record *record, __u32 flags)
{
	__sync_fetch_and_or(&record->flags, flags);
}

static ALWAYS_INLINE void clear_flags(struct record *record, __u32 flags)
{
	__sync_fetch_and_and(&record->flags, ~flags);
}

/* Creates the record of a socket, blank and marked as being changed. The caller fills it in and calls end_change().
 * Returns 0 if the socket has a record or the map has no room. */
static ALWAYS_INLINE struct record *create_record(__u64 cookie)
{
	long error = bpf_map_update_elem(&sockets, &cookie, &blank_record, BPF_NOEXIST);

	if (error) {
		if (error != -EEXIST)
			mark_table_full();
		return 0;
	}
	return bpf_map_lookup_elem(&sockets, &cookie);
}

/* Converts the endpoints of a connection that is not established yet to the key of its request socket: its listener and
 * its remote endpoint. The local endpoint may be translated (NAT) in received packets and not yet in sent ones. */
static ALWAYS_INLINE void set_request_sock_key(struct tuple *tuple, __u64 listener)
{
	tuple->netns = 0;
	tuple->local_port = 0;
	((__u64 *)tuple->local)[0] = listener;
	((__u64 *)tuple->local)[1] = 0;
}

static ALWAYS_INLINE __u32 datagram_flag(__u32 type)
{
	return type == SOCK_DGRAM || type == SOCK_RAW ? DATAGRAM : 0;
}

/* Returns true if the entry belongs to this socket and has the same owner as the record. */
static ALWAYS_INLINE int is_same_owner(const struct endpoint_owner *entry, __u64 cookie, const struct record *record)
{
	return entry && entry->cookie == cookie && entry->start_ns == record->owner.start_ns &&
	       entry->tgid == record->owner.tgid && !((entry->flags ^ record->flags) & UNCONFIRMED);
}

static ALWAYS_INLINE void fill_endpoint_owner(struct endpoint_owner *entry, __u64 cookie, const struct record *record)
{
	entry->start_ns = record->owner.start_ns;
	entry->cookie = cookie;
	entry->ended_ns = record->ended_ns;
	entry->cgroup = record->cgroup;
	__builtin_memcpy(entry->name, record->name, TASK_COMM_LEN);
	entry->tgid = record->owner.tgid;
	entry->uid = record->uid;
	entry->gid = record->gid;
	entry->flags = record->flags;
}

/* Copies to a new entry the time since which the socket has the endpoints or, if the known entry belongs to another
 * socket, stores that one as the previous owner. */
static ALWAYS_INLINE void link_previous_owner(struct endpoint_owner *entry, struct endpoint_owner *known)
{
	entry->previous_cookie = 0;
	entry->since_ns = bpf_ktime_get_boot_ns();
	if (!known)
		return;
	if (known->cookie == entry->cookie) {
		entry->previous_cookie = known->previous_cookie;
		entry->since_ns = known->since_ns;
		return;
	}
	entry->previous_cookie = known->cookie;
	if (!known->ended_ns)
		known->ended_ns = entry->since_ns;
	bpf_map_update_elem(&previous_owners, &entry->previous_cookie, known, BPF_ANY);
}

/* Inserts the owner of the endpoints in a record. */
SUBPROGRAM int insert_endpoint_owner(__u64 cookie, struct record *record)
{
	struct endpoint_owner entry, *known;
	struct tuple tuple;

	if (!record)
		return 0;
	tuple = record->tuple;
	known = want_peers || record->ended_ns ? bpf_map_lookup_elem(&endpoint_owners, &tuple) : 0;
	/* After the end of a connection, another socket may have its endpoints. */
	if (record->ended_ns && known && known->cookie != cookie)
		return 0;
	fill_endpoint_owner(&entry, cookie, record);
	link_previous_owner(&entry, want_peers ? known : 0);
	bpf_map_update_elem(&endpoint_owners, &tuple, &entry, BPF_ANY);
	return 0;
}

/* Marks the owner of a record's endpoints as confirmed, because it has used the socket now. */
SUBPROGRAM int confirm_endpoint_owner(__u64 cookie, struct record *record)
{
	struct endpoint_owner *entry;
	struct tuple tuple;

	if (!record)
		return 0;
	tuple = record->tuple;
	entry = bpf_map_lookup_elem(&endpoint_owners, &tuple);
	if (entry && entry->cookie == cookie && entry->tgid == record->owner.tgid &&
	    entry->start_ns == record->owner.start_ns)
		entry->flags = record->flags;
	else
		insert_endpoint_owner(cookie, record);
	return 0;
}

/* Records the time since which endpoints no longer belong to a socket, unless another socket has them by now. */
static ALWAYS_INLINE void end_endpoint_owner(__u64 cookie, const struct tuple *tuple, __u64 now_ns)
{
	struct endpoint_owner *entry = bpf_map_lookup_elem(&endpoint_owners, tuple);

	if (entry && entry->cookie == cookie)
		entry->ended_ns = now_ns;
}

/* Removes the listener at the endpoints of its record, unless another socket listens there by now. */
SUBPROGRAM int remove_listener(__u64 cookie, struct record *record)
{
	struct tuple tuple;
	__u64 *listener;

	if (!record)
		return 0;
	tuple = record->tuple;
	listener = bpf_map_lookup_elem(&listeners, &tuple);
	if (listener && *listener == cookie)
		bpf_map_delete_elem(&listeners, &tuple);
	return 0;
}

/* Marks a record as that of an ended socket. */
SUBPROGRAM int end_record(__u64 cookie, struct record *record)
{
	struct tuple tuple;

	if (!record || record->flags & ENDED)
		return 0;
	tuple = record->tuple;
	release_sk_counters(cookie, record);
	/* A connection may have ended before its socket did. */
	if (!record->ended_ns)
		record->ended_ns = bpf_ktime_get_boot_ns();
	if (record->flags & HAS_ENDPOINTS)
		end_endpoint_owner(cookie, &tuple, record->ended_ns);
	if (record->flags & LISTENER)
		remove_listener(cookie, record);
	set_flags(record, ENDED);
	/* From here on the reader may delete the record, so the socket counters are flushed before. Counters that were
	 * assigned meanwhile are flushed here, or by assign_sk_counters(), which checks the flag. */
	release_sk_counters(cookie, record);
	if (!keep_records)
		bpf_map_delete_elem(&sockets, &cookie);
	return 0;
}

#endif
