/* The record of a socket: opening it, changing it while others count in it, and ending it. */

#ifndef CAPTURE_RECORDS_H
#define CAPTURE_RECORDS_H

#include "endpoints.h"
#include "maps.h"
#include "tallies.h"

#define EEXIST 17

/* How often it is tried to change a record that another processor is changing. */
#define ATTEMPTS 32

/* As a record begins: being changed. */
static const struct record blank_record = {.version = 1, .entered = 2};

/* Has the record to itself until end_change(), for what is more than one number: user, endpoints and what is apart. False
 * where others change it all the time. Counting goes on meanwhile. */
SUBPROGRAM int begin_change(struct record *record)
{
	if (!record)
		return 0;
	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		__u32 version = *(volatile __u32 *)&record->version;

		if (!(version & 1) && __sync_val_compare_and_swap(&record->version, version, version + 1) == version) {
			/* A reader that copies the record from here on finds that it did. */
			__atomic_exchange_n(&record->entered, version + 2, __ATOMIC_SEQ_CST);
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

/* Makes the record of a socket, blank and being changed: to be filled in, and ended with end_change(). Nothing where there
 * is one already, or no room. */
static ALWAYS_INLINE struct record *open_record(__u64 cookie)
{
	long error = bpf_map_update_elem(&sockets, &cookie, &blank_record, BPF_NOEXIST);

	if (error) {
		if (error != -EEXIST)
			note_refused();
		return 0;
	}
	return bpf_map_lookup_elem(&sockets, &cookie);
}

/* Turns the endpoints of a connection that is not there yet into what its packets are kept by: its listener and its other
 * end. Its own end may be translated (NAT) in what is received and not yet so in what is sent. */
static ALWAYS_INLINE void key_embryo(struct tuple *tuple, __u64 listener)
{
	tuple->netns = 0;
	tuple->local_port = 0;
	((__u64 *)tuple->local)[0] = listener;
	((__u64 *)tuple->local)[1] = 0;
}

static ALWAYS_INLINE __u32 kind_of(__u32 type)
{
	return type == SOCK_DGRAM || type == SOCK_RAW ? DATAGRAM : 0;
}

/* Whether what is known of endpoints is this socket's and tells of its user as the record does. */
static ALWAYS_INLINE int is_entered(const struct owned *owned, __u64 cookie, const struct record *record)
{
	return owned && owned->cookie == cookie && owned->start_ns == record->owner.start_ns &&
	       owned->tgid == record->owner.tgid && !((owned->flags ^ record->flags) & UNPROVEN);
}

static ALWAYS_INLINE void fill_owned(struct owned *owned, __u64 cookie, const struct record *record)
{
	owned->start_ns = record->owner.start_ns;
	owned->cookie = cookie;
	owned->ended_ns = record->ended_ns;
	owned->cgroup = record->cgroup;
	__builtin_memcpy(owned->name, record->name, NAME);
	owned->tgid = record->owner.tgid;
	owned->uid = record->uid;
	owned->gid = record->gid;
	owned->flags = record->flags;
}

/* Takes over from what is known of endpoints since when they are the socket's, or keeps that it was another's. */
static ALWAYS_INLINE void succeed(struct owned *owned, struct owned *known)
{
	owned->former = 0;
	owned->began_ns = bpf_ktime_get_boot_ns();
	if (!known)
		return;
	if (known->cookie == owned->cookie) {
		owned->former = known->former;
		owned->began_ns = known->began_ns;
		return;
	}
	owned->former = known->cookie;
	if (!known->ended_ns)
		known->ended_ns = owned->began_ns;
	bpf_map_update_elem(&formers, &owned->former, known, BPF_ANY);
}

/* Lets the endpoints in a record lead to its socket and user. */
SUBPROGRAM int enter_tuple(__u64 cookie, struct record *record)
{
	struct owned owned, *known;
	struct tuple tuple;

	if (!record)
		return 0;
	tuple = record->tuple;
	known = want_peers || record->ended_ns ? bpf_map_lookup_elem(&tuples, &tuple) : 0;
	/* Once a connection has ended its endpoints may be another's. */
	if (record->ended_ns && known && known->cookie != cookie)
		return 0;
	fill_owned(&owned, cookie, record);
	succeed(&owned, want_peers ? known : 0);
	bpf_map_update_elem(&tuples, &tuple, &owned, BPF_ANY);
	return 0;
}

/* Lets the endpoints in a record tell that its user, who stays the same, has used the socket. */
SUBPROGRAM int prove_tuple(__u64 cookie, struct record *record)
{
	struct owned *owned;
	struct tuple tuple;

	if (!record)
		return 0;
	tuple = record->tuple;
	owned = bpf_map_lookup_elem(&tuples, &tuple);
	if (owned && owned->cookie == cookie && owned->tgid == record->owner.tgid &&
	    owned->start_ns == record->owner.start_ns)
		owned->flags = record->flags;
	else
		enter_tuple(cookie, record);
	return 0;
}

/* Notes since when endpoints are not a socket's any more, unless they are another's by now. */
static ALWAYS_INLINE void leave_tuple(__u64 cookie, const struct tuple *tuple, __u64 now_ns)
{
	struct owned *owned = bpf_map_lookup_elem(&tuples, tuple);

	if (owned && owned->cookie == cookie)
		owned->ended_ns = now_ns;
}

/* Notes that a socket does not listen where its record says, unless another does so by now. */
SUBPROGRAM int stop_listening(__u64 cookie, struct record *record)
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

/* Marks a record as that of a socket that is gone. */
SUBPROGRAM int end_record(__u64 cookie, struct record *record)
{
	struct tuple tuple;

	if (!record || record->flags & ENDED)
		return 0;
	tuple = record->tuple;
	retire_tally(cookie, record);
	/* A connection may have ended before its socket did. */
	if (!record->ended_ns)
		record->ended_ns = bpf_ktime_get_boot_ns();
	if (record->flags & NAMED)
		leave_tuple(cookie, &tuple, record->ended_ns);
	if (record->flags & LISTENER)
		stop_listening(cookie, record);
	set_flags(record, ENDED);
	/* From here on the reader may delete the record, so the tally is emptied before. One that began meanwhile is closed
	 * here, or by begin_tally(), which checks the flag. */
	retire_tally(cookie, record);
	if (!keep_records)
		bpf_map_delete_elem(&sockets, &cookie);
	return 0;
}

#endif
