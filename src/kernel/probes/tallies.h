/* What has passed through busy sockets and is not in their records yet.
 *
 * To find a socket's record takes longer than to count. So a socket with many packets has its counters with it, and these
 * are added to its record before the reader reads it, when another process takes the socket over, and at its end. */

#ifndef CAPTURE_TALLIES_H
#define CAPTURE_TALLIES_H

#include "endpoints.h"
#include "maps.h"

/* Packets from which on a socket is taken for busy. */
#define BUSY 64

/* Copies the user that a record names to the tally of its socket. */
static ALWAYS_INLINE void name_user(struct tally *tally, const struct record *record)
{
	tally->owner = record->owner;
	tally->flags = record->flags & DATAGRAM;
	tally->peer = record->peer;
}

/* Takes what there is, while others go on counting. */
static ALWAYS_INLINE __u64 take(__u64 *sum)
{
	return *sum ? __atomic_exchange_n(sum, 0, __ATOMIC_ACQ_REL) : 0;
}

static ALWAYS_INLINE void take_way(struct way *total, struct way *news)
{
	struct way all = {.bytes = take(&news->bytes), .packets = take(&news->packets)};

	add_way(total, &all);
}

/* Adds to a record all that has passed through its socket since the last time. */
SUBPROGRAM int bring_up_to_date(struct record *record, struct tally *tally)
{
	if (!record || !tally)
		return 0;
	take_way(&record->sent, &tally->sent);
	take_way(&record->received, &tally->received);
	add(&record->calls.sends, take(&tally->calls.sends));
	add(&record->calls.receives, take(&tally->calls.receives));
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

#endif
