/* What has passed through busy sockets and is not in their records yet.
 *
 * To find a socket's record takes longer than to count. So a socket with many packets has its counters with it, and these
 * are added to its record when somebody is going to look: the reader, another user, or nobody any more. */

#ifndef CAPTURE_TALLIES_H
#define CAPTURE_TALLIES_H

#include "endpoints.h"
#include "maps.h"

/* Packets from which on a socket is taken for busy. */
#define BUSY 64

/* Has a tally name the user that its record names. */
static ALWAYS_INLINE void name_user(struct tally *tally, const struct record *record)
{
	tally->owner = record->owner;
	tally->is_switched = !!(record->flags & SWITCHED);
}

static ALWAYS_INLINE void move(struct way *to, const struct way *what, __s64 sign)
{
	add(&to->bytes, sign * what->bytes);
	add(&to->packets, sign * what->packets);
}

/* Takes what there is, while others go on counting. */
static ALWAYS_INLINE __u64 take(__u64 *sum)
{
	return *sum ? __atomic_exchange_n(sum, 0, __ATOMIC_ACQ_REL) : 0;
}

/* Adds what has passed since the last time. Of that, a user who has called since has what had passed at its last call. */
static ALWAYS_INLINE void bring_way_up_to_date(struct way *total, struct way *claimed_of_total, struct way *news,
					       const struct way *claimed, int has_called)
{
	struct way part = *claimed, all = {.bytes = take(&news->bytes), .packets = take(&news->packets)};

	if (has_called) {
		/* A call that came in between may have claimed what is not there any more. */
		claimed_of_total->bytes = total->bytes + (part.bytes < all.bytes ? part.bytes : all.bytes);
		claimed_of_total->packets = total->packets + (part.packets < all.packets ? part.packets : all.packets);
	}
	move(total, &all, 1);
}

/* Has a record tell all that has passed through its socket. */
static __attribute__((noinline)) int bring_up_to_date(struct record *record, struct tally *tally)
{
	__u64 sends, receives;

	if (!record || !tally)
		return 0;
	sends = take(&tally->calls.sends);
	receives = take(&tally->calls.receives);
	bring_way_up_to_date(&record->sent, &record->calls.claimed_sent, &tally->sent, &tally->calls.claimed_sent,
			     !!sends);
	bring_way_up_to_date(&record->received, &record->calls.claimed_received, &tally->received,
			     &tally->calls.claimed_received, !!receives);
	add(&record->calls.sends, sends);
	add(&record->calls.receives, receives);
	return 0;
}

static ALWAYS_INLINE void note_tcp(struct record *record, struct sock *sk)
{
	struct tcp_sock *tcp = sk->sk_protocol == IPPROTO_TCP ? bpf_skc_to_tcp_sock(sk) : 0;

	if (!tcp)
		return;
	/* Both are set back when a connection is taken apart. */
	if (tcp->srtt_us)
		/* The kernel keeps eight times the smoothed time. */
		record->smoothed_rtt_us = tcp->srtt_us >> 3;
	if (tcp->total_retrans > record->retransmits)
		record->retransmits = tcp->total_retrans;
}

/* Whether a record lacks something that a tally has. */
static ALWAYS_INLINE int has_news(const struct tally *tally)
{
	return tally->sent.packets | tally->received.packets | tally->calls.sends | tally->calls.receives;
}

/* Every socket with a tally, before the records are read. */
SEC("iter/bpf_sk_storage_map")
int capture_collect(struct bpf_iter__bpf_sk_storage_map *context)
{
	struct sock *sk = context->sk;
	struct tally *tally;
	struct record *record;
	__u64 cookie;

	if (!sk)
		return 0;
	tally = bpf_sk_storage_get(&tallies, sk, 0, 0);
	if (!tally || !has_news(tally))
		return 0;
	cookie = sk->__sk_common.skc_cookie.counter;
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (!record)
		return 0;
	bring_up_to_date(record, tally);
	note_tcp(record, sk);
	return 0;
}

#endif
