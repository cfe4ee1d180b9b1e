/* Socket counters: the traffic of busy sockets that is not in their records yet.
 *
 * A lookup of a socket's record takes longer than the count itself, and so does each call of a kernel function.
 * Therefore a socket with many packets has counters in a slot of an array, which its cookie determines. They are added
 * to the record before the reader reads it, when another process becomes the owner, and at the socket's end. Of several
 * sockets with the same slot, one uses it until it is quiet. */

#ifndef CAPTURE_SK_COUNTERS_H
#define CAPTURE_SK_COUNTERS_H

#include "endpoints.h"
#include "maps.h"

/* The minimum number of packets of a busy socket. */
#define MIN_BUSY_PACKETS 64

/* The time until another socket may use a released slot. No eBPF program that found the slot before can still be adding
 * to it then. */
#define SLOT_REUSE_NS 10000000000ULL

/* Returns the slot that a cookie determines. */
static ALWAYS_INLINE struct sk_counters *slot_of(__u64 cookie)
{
	__u32 slot = cookie & (SK_COUNTERS_CAPACITY - 1);

	return bpf_map_lookup_elem(&sk_counters, &slot);
}

/* Returns the counters of a socket, or 0 if it has none. */
static ALWAYS_INLINE struct sk_counters *sk_counters_of(__u64 cookie)
{
	struct sk_counters *counters = slot_of(cookie);

	return counters && counters->cookie == cookie ? counters : 0;
}

/* Returns the counters that a socket has, or had last if no other socket has used the slot since. */
static ALWAYS_INLINE struct sk_counters *last_sk_counters_of(__u64 cookie)
{
	struct sk_counters *counters = slot_of(cookie);

	return counters && (counters->cookie & ~SLOT_RELEASED) == cookie ? counters : 0;
}

/* Releases the slot of a socket. The caller must then flush the counters, because the socket may end or change its
 * owner before the next reading. An eBPF program that adds a packet even later flushes it itself:
 * count_in_sk_counters(). */
static ALWAYS_INLINE void release_slot(struct sk_counters *counters, __u64 cookie)
{
	if (__sync_val_compare_and_swap(&counters->cookie, cookie, cookie | SLOT_RELEASED) == cookie)
		counters->reusable_ns = bpf_ktime_get_boot_ns() + SLOT_REUSE_NS;
}

/* Copies the owner from a record to the counters of its socket. */
static ALWAYS_INLINE void copy_owner(struct sk_counters *counters, const struct record *record)
{
	counters->owner = record->owner;
	counters->flags = record->flags & DATAGRAM;
	counters->peer_digest = record->peer_digest;
}

/* Returns a sum and sets it to 0, while other processors add to it. */
static ALWAYS_INLINE __u64 fetch_and_clear(__u64 *sum)
{
	return *sum ? __atomic_exchange_n(sum, 0, __ATOMIC_ACQ_REL) : 0;
}

static ALWAYS_INLINE void move_counters(struct direction_counters *total, struct direction_counters *source)
{
	struct direction_counters moved = {.bytes = fetch_and_clear(&source->bytes),
					   .packets = fetch_and_clear(&source->packets)};

	add_counters(total, &moved);
}

/* Moves a packed sum to a total, and returns its packets. */
static ALWAYS_INLINE __u64 move_packed(struct direction_counters *total, __u64 *source)
{
	__u64 packed = fetch_and_clear(source);
	struct direction_counters moved = {.bytes = packed & ((1ULL << PACKED_BYTE_BITS) - 1),
					   .packets = packed >> PACKED_BYTE_BITS};

	add_counters(total, &moved);
	return moved.packets;
}

/* Moves the counters of a socket to its record. */
SUBPROGRAM int flush_sk_counters(struct record *record, struct sk_counters *counters)
{
	__u64 packets;

	if (!record || !counters)
		return 0;
	packets = move_packed(&record->sent, &counters->sent);
	move_packed(&record->received, &counters->received);
	/* Each datagram in the counters was sent by one call. */
	add(&record->calls.sends, counters->flags & DATAGRAM ? packets : fetch_and_clear(&counters->calls.sends));
	add(&record->calls.receives, fetch_and_clear(&counters->calls.receives));
	return 0;
}

/* Moves the counters to the record with this cookie. */
SUBPROGRAM int flush_by_cookie(__u64 cookie, struct sk_counters *counters)
{
	return flush_sk_counters(bpf_map_lookup_elem(&sockets, &cookie), counters);
}

/* Releases the slot of a socket, if it has or had one, and moves the counters to its record. */
static ALWAYS_INLINE void release_sk_counters(__u64 cookie, struct record *record)
{
	struct sk_counters *counters = last_sk_counters_of(cookie);

	if (!counters)
		return;
	release_slot(counters, cookie);
	flush_sk_counters(record, counters);
}

static ALWAYS_INLINE void record_tcp_info(struct record *record, struct sock *sk)
{
	struct tcp_sock *tcp = sk->sk_protocol == IPPROTO_TCP ? bpf_skc_to_tcp_sock(sk) : 0;

	if (!tcp)
		return;
	/* tcp_disconnect() resets both. */
	if (tcp->srtt_us)
		/* The kernel stores eight times the smoothed time. */
		record->smoothed_rtt_us = tcp->srtt_us >> 3;
	if (tcp->total_retrans > record->retransmits)
		record->retransmits = tcp->total_retrans;
}

/* Returns true if counters have something to move to the record. */
static ALWAYS_INLINE int has_counts(const struct sk_counters *counters)
{
	return !!(counters->sent | counters->received | counters->calls.sends | counters->calls.receives);
}

/* The maximum number of unanswered sends of a datagram socket that are timed. A flood does not pay for the clock. */
#define MAX_UNANSWERED 16

/* Records the time of a sent datagram. */
static ALWAYS_INLINE void record_datagram_time(struct calls *calls)
{
	if (calls->unanswered < MAX_UNANSWERED) {
		calls->unanswered++;
		calls->sent_ns = bpf_ktime_get_boot_ns();
	} else if (calls->sent_ns) {
		calls->sent_ns = 0;
	}
}

#endif
