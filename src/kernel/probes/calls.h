/* What processes send and receive, call by call, and how long they wait for answers. */

#ifndef CAPTURE_CALLS_H
#define CAPTURE_CALLS_H

#include "users.h"

/* Sends without an answer after which a datagram socket's sends are no longer timed, so that a flood pays no clock. */
#define UNANSWERED 16

/* Receives up to which each claims what has arrived, and of which later one does. */
#define CLAIMING 32

#define MSG_PEEK 2

/* Packet sockets send below the IP layer, so what they say they sent is what counts. */
static __attribute__((noinline)) int count_packet_socket(__u64 cookie, __u32 netns, __u64 bytes)
{
	struct share_key key = {.cookie = cookie};
	struct record user = {};
	struct share fresh = {};
	struct share *share;

	current_user(&user);
	key.owner = user.owner;
	share = bpf_map_lookup_elem(&shares, &key);
	if (!share) {
		fresh.uid = user.uid;
		fresh.gid = user.gid;
		fresh.netns = netns;
		fresh.is_packet_socket = 1;
		fresh.cgroup = user.cgroup;
		__builtin_memcpy(fresh.name, user.name, NAME);
		bpf_map_update_elem(&shares, &key, &fresh, BPF_NOEXIST);
		share = bpf_map_lookup_elem(&shares, &key);
		if (!share) {
			lose(LOSS_TABLE_FULL, SENT, bytes);
			return 0;
		}
	}
	count_in_traffic(&share->traffic, SENT, bytes);
	return 0;
}

static ALWAYS_INLINE int is_stream(struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP || sk->sk_protocol == IPPROTO_MPTCP;
}

/* Calls are of interest to who reads the records. */
static ALWAYS_INLINE void note_send(struct calls *calls, const struct way *sent, int is_stream)
{
	if (!keep_records)
		return;
	add(&calls->sends, 1);
	calls->claimed_sent = *sent;
	if (is_stream) {
		calls->sent_ns = bpf_ktime_get_boot_ns();
	} else if (calls->unanswered < UNANSWERED) {
		calls->unanswered++;
		calls->sent_ns = bpf_ktime_get_boot_ns();
	} else if (calls->sent_ns) {
		calls->sent_ns = 0;
	}
}

SEC("tp_btf/sock_send_length")
int capture_send(__u64 *context)
{
	struct sock *sk = (struct sock *)context[0];
	int length = (int)context[1];
	unsigned short family = sk->__sk_common.skc_family;
	struct noted noted;

	if (family == AF_PACKET && length > 0) {
		count_packet_socket(bpf_get_socket_cookie(sk), sk->__sk_common.skc_net.net->ns.inum, length);
		return 0;
	}
	if (!is_internet(family) || length < 0)
		return 0;
	noted = use_in_call(sk);
	if (noted.tally) {
		note_send(&noted.tally->calls, &noted.tally->sent, is_stream(sk));
	} else if (noted.record) {
		note_send(&noted.record->calls, &noted.record->sent, is_stream(sk));
		note_tcp(noted.record, sk);
	}
	return 0;
}

static ALWAYS_INLINE __u32 bucket_of(__u64 time_ns)
{
	__u64 time_us = time_ns / 1000;
	__u32 bucket = 0;

#pragma unroll
	for (int step = 16; step; step >>= 1) {
		if (time_us >> step) {
			time_us >>= step;
			bucket += step;
		}
	}
	return bucket & (BUCKETS - 1);
}

static __attribute__((noinline)) int note_answer(struct record *record, __u64 time_ns)
{
	struct histogram *histogram;
	struct latency *latency = &record->latency;

	if (!latency->count || time_ns < latency->least_ns)
		latency->least_ns = time_ns;
	if (time_ns > latency->most_ns)
		latency->most_ns = time_ns;
	latency->sum_ns += time_ns;
	latency->count++;
	histogram = bpf_map_lookup_elem(&latencies, &record->owner);
	if (!histogram) {
		static const struct histogram empty = {};

		bpf_map_update_elem(&latencies, &record->owner, &empty, BPF_NOEXIST);
		histogram = bpf_map_lookup_elem(&latencies, &record->owner);
		if (!histogram)
			return 0;
	}
	add(&histogram->buckets[bucket_of(time_ns)], 1);
	return 0;
}

/* Notes that something was received, and that what has arrived so far is its user's. Looking at what arrives has its
 * price (see struct tally), so that after many calls only some do it, as long as the socket has had no other user. */
static ALWAYS_INLINE void note_receive(struct calls *calls, const struct way *received, struct record *record,
				       __u64 cookie, int is_switched, int is_counted, int has_data)
{
	if (!keep_records)
		return;
	if (is_counted)
		add(&calls->receives, 1);
	if (is_switched || calls->receives < CLAIMING || !(calls->receives % CLAIMING))
		calls->claimed_received = *received;
	if (calls->unanswered)
		calls->unanswered = 0;
	if (calls->sent_ns && has_data) {
		if (!record)
			record = bpf_map_lookup_elem(&sockets, &cookie);
		if (record)
			note_answer(record, bpf_ktime_get_boot_ns() - calls->sent_ns);
		calls->sent_ns = 0;
	}
}

SEC("tp_btf/sock_recv_length")
int capture_receive(__u64 *context)
{
	struct sock *sk = (struct sock *)context[0];
	int length = (int)context[1], flags = (int)context[2], is_counted;
	struct record *record;
	struct noted noted;

	if (!is_internet(sk->__sk_common.skc_family))
		return 0;
	if (UNLIKELY(length < 0)) {
		/* Who waits for a connection's data in vain has it; of others several may be trying. */
		__u64 cookie = bpf_get_socket_cookie(sk);

		record = bpf_map_lookup_elem(&sockets, &cookie);
		if (record && record->flags & INHERITED)
			take_over(record, cookie, 0);
		return 0;
	}
	/* Of a stream, nothing is its end. */
	is_counted = length || !is_stream(sk);
	noted = use_in_call(sk);
	/* What is only looked at is received when it is taken. */
	if (flags & MSG_PEEK)
		return 0;
	if (noted.tally) {
		note_receive(&noted.tally->calls, &noted.tally->received, 0, sk->__sk_common.skc_cookie.counter,
			     noted.tally->is_switched, is_counted, length);
	} else if (noted.record) {
		note_receive(&noted.record->calls, &noted.record->received, noted.record, 0,
			     noted.record->flags & SWITCHED, is_counted, length);
		note_tcp(noted.record, sk);
	}
	return 0;
}

#endif
