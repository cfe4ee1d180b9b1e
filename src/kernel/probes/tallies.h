/* What has passed through busy sockets and is not in their records yet.
 *
 * To find a socket's record takes longer than to count, and so does each call of a function of the kernel. So a socket with
 * many packets has counters in an array, where its cookie leads to. They are added to its record before the reader reads
 * it, when another process takes the socket over, and at its end. Of sockets that lead to the same place one has it, until
 * it is quiet. */

#ifndef CAPTURE_TALLIES_H
#define CAPTURE_TALLIES_H

#include "endpoints.h"
#include "maps.h"

/* Packets from which on a socket is taken for busy. */
#define BUSY 64

/* How long a place rests before it is another socket's: nobody who found the tally before has still to add to it then. */
#define REST_NS 10000000000ULL

/* What has a socket's cookie in it, or had it last. */
static ALWAYS_INLINE struct tally *place_of(__u64 cookie)
{
	__u32 place = cookie & (TALLIES - 1);

	return bpf_map_lookup_elem(&tallies, &place);
}

/* The tally of a socket, if it has one. */
static ALWAYS_INLINE struct tally *tally_of(__u64 cookie)
{
	struct tally *tally = place_of(cookie);

	return tally && tally->cookie == cookie ? tally : 0;
}

/* The tally that a socket has, or had last while no other socket has taken the place. */
static ALWAYS_INLINE struct tally *last_tally_of(__u64 cookie)
{
	struct tally *tally = place_of(cookie);

	return tally && (tally->cookie & ~CLOSED) == cookie ? tally : 0;
}

/* Takes a tally from its socket. The caller must bring the record up to date after that: the socket may end, or change its
 * owner, before the next reading. A program that adds a packet still later moves it by itself: count_at_tally(). */
static ALWAYS_INLINE void close_tally(struct tally *tally, __u64 cookie)
{
	if (__sync_val_compare_and_swap(&tally->cookie, cookie, cookie | CLOSED) == cookie)
		tally->free_ns = bpf_ktime_get_boot_ns() + REST_NS;
}

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

/* Adds what a tally has, and returns the packets of it. */
static ALWAYS_INLINE __u64 take_packed(struct way *total, __u64 *news)
{
	__u64 all = take(news);
	struct way way = {.bytes = all & ((1ULL << PACKED_BYTES) - 1), .packets = all >> PACKED_BYTES};

	add_way(total, &way);
	return way.packets;
}

/* Adds to a record all that has passed through its socket since the last time. */
SUBPROGRAM int bring_up_to_date(struct record *record, struct tally *tally)
{
	__u64 packets;

	if (!record || !tally)
		return 0;
	packets = take_packed(&record->sent, &tally->sent);
	take_packed(&record->received, &tally->received);
	/* Each datagram in a tally is one that a call has sent. */
	add(&record->calls.sends, tally->flags & DATAGRAM ? packets : take(&tally->calls.sends));
	add(&record->calls.receives, take(&tally->calls.receives));
	return 0;
}

/* Empties a tally into the record of its socket. */
SUBPROGRAM int relieve(__u64 cookie, struct tally *tally)
{
	return bring_up_to_date(bpf_map_lookup_elem(&sockets, &cookie), tally);
}

/* Closes the tally of a socket, if it has or had one, and adds its counts to the record. */
static ALWAYS_INLINE void retire_tally(__u64 cookie, struct record *record)
{
	struct tally *tally = last_tally_of(cookie);

	if (!tally)
		return;
	close_tally(tally, cookie);
	bring_up_to_date(record, tally);
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
	return !!(tally->sent | tally->received | tally->calls.sends | tally->calls.receives);
}

/* Sends without an answer after which a datagram socket's sends are no longer timed, so that a flood pays no clock. */
#define UNANSWERED 16

/* Notes when a datagram was sent. */
static ALWAYS_INLINE void time_datagram(struct calls *calls)
{
	if (calls->unanswered < UNANSWERED) {
		calls->unanswered++;
		calls->sent_ns = bpf_ktime_get_boot_ns();
	} else if (calls->sent_ns) {
		calls->sent_ns = 0;
	}
}

#endif
