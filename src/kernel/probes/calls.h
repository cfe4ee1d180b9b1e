/* What processes send and receive, call by call, and how long they wait for answers. */

#ifndef CAPTURE_CALLS_H
#define CAPTURE_CALLS_H

#include "users.h"

#define MSG_PEEK 2

/* Packet sockets send below the IP layer, so what they say they sent is what counts. To datagrams (SOCK_DGRAM) the device adds
 * its header. */
SUBPROGRAM int count_packet_socket(__u64 cookie, __u32 netns, __u32 bytes)
{
	struct way wire = {.bytes = bytes, .packets = 1};
	struct share *share;

	if (!keep_records)
		return 0;
	share = share_of_current(cookie, netns);
	if (share) {
		share->is_packet_socket = 1;
		add_way(&share->traffic.way[SENT], &wire);
	} else {
		count_lost(LOSS_TABLE_FULL, netns, SENT, &wire);
	}
	return 0;
}

static ALWAYS_INLINE int is_stream(struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP || sk->sk_protocol == IPPROTO_MPTCP;
}

/* Only the reader of the records wants to know of calls. */
static ALWAYS_INLINE void note_send(struct calls *calls, int is_stream)
{
	if (!keep_records)
		return;
	add(&calls->sends, 1);
	if (is_stream)
		calls->sent_ns = bpf_ktime_get_boot_ns();
	else
		time_datagram(calls);
}

/* Notes that the current process has sent so many bytes. */
static ALWAYS_INLINE void note_send_call(struct sock *sk, int length)
{
	unsigned short family = sk->__sk_common.skc_family;
	struct payload call = {.sent = length};
	struct noted noted;

	if (family == AF_PACKET && length > 0) {
		if (keep_records)
			count_packet_socket(cookie_of(sk), netns_of(sk),
					    length + (sk->sk_type == SOCK_DGRAM ? ETH_HLEN : 0));
		return;
	}
	if (!is_internet(family) || length < 0)
		return;
	/* Noted as they left, with the process that sent them: count_packet(). */
	if (keep_records && kind_of(sk->sk_type) & DATAGRAM)
		return;
	noted = use_in_call(sk, &call);
	if (noted.tally) {
		note_send(&noted.tally->calls, is_stream(sk));
	} else if (noted.record) {
		note_send(&noted.record->calls, is_stream(sk));
		note_tcp(noted.record, sk);
	}
}

SEC("tp_btf/sock_send_length")
int capture_send(__u64 *context)
{
	note_send_call((struct sock *)context[0], (int)context[1]);
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

SUBPROGRAM int note_answer(struct record *record, __u64 time_ns)
{
	struct histogram *histogram;
	struct latency *latency;
	struct latency_key key = {.period = control.period};

	if (!record)
		return 0;
	key.owner = record->owner;
	latency = &record->latency;
	if (!latency->count || time_ns < latency->least_ns)
		latency->least_ns = time_ns;
	if (time_ns > latency->most_ns)
		latency->most_ns = time_ns;
	add(&latency->sum_ns, time_ns);
	add(&latency->count, 1);
	histogram = bpf_map_lookup_elem(&latencies, &key);
	if (!histogram) {
		static const struct histogram empty = {};

		bpf_map_update_elem(&latencies, &key, &empty, BPF_NOEXIST);
		histogram = bpf_map_lookup_elem(&latencies, &key);
		if (!histogram)
			return 0;
	}
	add(&histogram->buckets[bucket_of(time_ns)], 1);
	return 0;
}

static ALWAYS_INLINE void note_receive(struct calls *calls, struct record *record, __u64 cookie, int is_counted,
				       int has_data)
{
	__u64 sent_ns;

	if (is_counted)
		add(&calls->receives, 1);
	if (calls->unanswered)
		calls->unanswered = 0;
	if (!calls->sent_ns || !has_data)
		return;
	/* Of several that receive at a time one has the answer. */
	sent_ns = take(&calls->sent_ns);
	if (!record)
		record = bpf_map_lookup_elem(&sockets, &cookie);
	if (record && sent_ns)
		note_answer(record, bpf_ktime_get_boot_ns() - sent_ns);
}

/* Notes that the current process has received so many bytes. */
static ALWAYS_INLINE void note_receive_call(struct sock *sk, int length, int flags)
{
	/* What is only looked at is received when it is taken. */
	struct payload call = {.received = flags & MSG_PEEK ? 0 : length};
	struct record *record;
	struct noted noted;
	int is_counted;

	if (!is_internet(sk->__sk_common.skc_family))
		return;
	if (UNLIKELY(length < 0)) {
		/* A process that waits for a connection's data in vain has it; for those of others several may wait. */
		__u64 cookie = cookie_of(sk);

		record = bpf_map_lookup_elem(&sockets, &cookie);
		call.received = 0;
		if (record && record->flags & INHERITED)
			take_over(cookie, record, sk, 0, &call);
		return;
	}
	noted = use_in_call(sk, &call);
	if (flags & MSG_PEEK || !keep_records)
		return;
	/* Of a stream, nothing is its end. */
	is_counted = length || !is_stream(sk);
	if (noted.tally) {
		note_receive(&noted.tally->calls, 0, sk->__sk_common.skc_cookie.counter, is_counted, length);
	} else if (noted.record) {
		note_receive(&noted.record->calls, noted.record, 0, is_counted, length);
		noted.record->unread = unread(sk, noted.record, 0).bytes;
		note_tcp(noted.record, sk);
	}
}

SEC("tp_btf/sock_recv_length")
int capture_receive(__u64 *context)
{
	note_receive_call((struct sock *)context[0], (int)context[1], (int)context[2]);
	return 0;
}

/* The same where the kernel has not got these two tracepoints (before Linux 6.3): after the functions that they are in
 * front of. */

SEC("fexit/inet_sendmsg")
int capture_send4(__u64 *context)
{
	note_send_call(((struct socket *)context[0])->sk, (int)context[3]);
	return 0;
}

SEC("fexit/inet6_sendmsg")
int capture_send6(__u64 *context)
{
	note_send_call(((struct socket *)context[0])->sk, (int)context[3]);
	return 0;
}

SEC("fexit/inet_sendpage")
int capture_sendpage(__u64 *context)
{
	note_send_call(((struct socket *)context[0])->sk, (int)context[5]);
	return 0;
}

SEC("fexit/packet_sendmsg")
int capture_send_packet(__u64 *context)
{
	note_send_call(((struct socket *)context[0])->sk, (int)context[3]);
	return 0;
}

SEC("fexit/inet_recvmsg")
int capture_receive4(__u64 *context)
{
	note_receive_call(((struct socket *)context[0])->sk, (int)context[4], (int)context[3]);
	return 0;
}

SEC("fexit/inet6_recvmsg")
int capture_receive6(__u64 *context)
{
	note_receive_call(((struct socket *)context[0])->sk, (int)context[4], (int)context[3]);
	return 0;
}

#endif
