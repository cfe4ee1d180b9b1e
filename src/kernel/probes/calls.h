/* Calls that send and receive, and response times. */

#ifndef CAPTURE_CALLS_H
#define CAPTURE_CALLS_H

#include "owners.h"

#define MSG_PEEK 2

/* Counts the call of a packet socket. It sends below the IP layer, so the length that the call returns is counted. The
 * device adds its header to datagrams (SOCK_DGRAM). */
SUBPROGRAM int count_packet_socket(__u64 cookie, __u32 netns, __u32 bytes)
{
	struct direction_counters wire = {.bytes = bytes, .packets = 1};
	struct share *share;

	if (!keep_records)
		return 0;
	share = current_share(cookie, netns);
	if (share) {
		share->is_packet_socket = 1;
		add_counters(&share->traffic.by_direction[SENT], &wire);
	} else {
		count_lost(LOSS_TABLE_FULL, netns, SENT, &wire);
	}
	return 0;
}

static ALWAYS_INLINE int is_stream(struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP || sk->sk_protocol == IPPROTO_MPTCP;
}

/* Records a send. Only the reader of the records needs counts of calls. */
static ALWAYS_INLINE void record_send(struct calls *calls, int is_stream)
{
	if (!keep_records)
		return;
	add(&calls->sends, 1);
	if (is_stream)
		calls->sent_ns = bpf_ktime_get_boot_ns();
	else
		record_datagram_time(calls);
}

/* Records that the current process has sent `length` bytes. */
static ALWAYS_INLINE void record_send_call(struct sock *sk, int length)
{
	unsigned short family = sk->__sk_common.skc_family;
	struct payload call = {.sent = length};
	struct call_target target;

	if (family == AF_PACKET && length > 0) {
		if (keep_records)
			count_packet_socket(cookie_of(sk), netns_of(sk),
					    length + (sk->sk_type == SOCK_DGRAM ? ETH_HLEN : 0));
		return;
	}
	if (!is_internet(family) || length < 0)
		return;
	/* Datagrams were counted as they left, with the process that sent them: count_packet(). */
	if (keep_records && datagram_flag(sk->sk_type) & DATAGRAM)
		return;
	target = find_call_target(sk, &call);
	if (target.counters) {
		record_send(&target.counters->calls, is_stream(sk));
	} else if (target.record) {
		record_send(&target.record->calls, is_stream(sk));
		record_tcp_info(target.record, sk);
	}
}

SEC("tp_btf/sock_send_length")
int capture_send(__u64 *context)
{
	record_send_call((struct sock *)context[0], (int)context[1]);
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

SUBPROGRAM int record_response_time(struct record *record, __u64 time_ns)
{
	struct histogram *histogram;
	struct latency *latency;
	struct latency_key key = {.period = control.period};

	if (!record)
		return 0;
	key.owner = record->owner;
	latency = &record->latency;
	if (!latency->count || time_ns < latency->min_ns)
		latency->min_ns = time_ns;
	if (time_ns > latency->max_ns)
		latency->max_ns = time_ns;
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

static ALWAYS_INLINE void record_receive(struct calls *calls, struct record *record, __u64 cookie, int is_counted,
					 int has_data)
{
	__u64 sent_ns;

	if (is_counted)
		add(&calls->receives, 1);
	if (calls->unanswered)
		calls->unanswered = 0;
	if (!calls->sent_ns || !has_data)
		return;
	/* If several threads receive at a time, one of them gets the response time. */
	sent_ns = fetch_and_clear(&calls->sent_ns);
	if (!record)
		record = bpf_map_lookup_elem(&sockets, &cookie);
	if (record && sent_ns)
		record_response_time(record, bpf_ktime_get_boot_ns() - sent_ns);
}

/* Records that the current process has received `length` bytes. */
static ALWAYS_INLINE void record_receive_call(struct sock *sk, int length, int flags)
{
	/* Bytes that are peeked at are counted when they are read. */
	struct payload call = {.received = flags & MSG_PEEK ? 0 : length};
	struct record *record;
	struct call_target target;
	int is_counted;

	if (!is_internet(sk->__sk_common.skc_family))
		return;
	if (UNLIKELY(length < 0)) {
		/* A process that waits for the data of an accepted connection without success is its user. Several
		 * processes may wait for data of other sockets. */
		__u64 cookie = cookie_of(sk);

		record = bpf_map_lookup_elem(&sockets, &cookie);
		call.received = 0;
		if (record && record->flags & INHERITED)
			update_owner(cookie, record, sk, 0, &call);
		return;
	}
	target = find_call_target(sk, &call);
	if (flags & MSG_PEEK || !keep_records)
		return;
	/* On a stream, length 0 means its end. */
	is_counted = length || !is_stream(sk);
	if (target.counters) {
		record_receive(&target.counters->calls, 0, sk->__sk_common.skc_cookie.counter, is_counted, length);
	} else if (target.record) {
		record_receive(&target.record->calls, target.record, 0, is_counted, length);
		target.record->unread = unread_wire(sk, target.record, 0).bytes;
		record_tcp_info(target.record, sk);
	}
}

SEC("tp_btf/sock_recv_length")
int capture_receive(__u64 *context)
{
	record_receive_call((struct sock *)context[0], (int)context[1], (int)context[2]);
	return 0;
}

/* Fallback for kernels without these two tracepoints (before Linux 6.3): the exits of the functions whose
 * results they report. */

SEC("fexit/inet_sendmsg")
int capture_send4(__u64 *context)
{
	record_send_call(((struct socket *)context[0])->sk, (int)context[3]);
	return 0;
}

SEC("fexit/inet6_sendmsg")
int capture_send6(__u64 *context)
{
	record_send_call(((struct socket *)context[0])->sk, (int)context[3]);
	return 0;
}

SEC("fexit/inet_sendpage")
int capture_sendpage(__u64 *context)
{
	record_send_call(((struct socket *)context[0])->sk, (int)context[5]);
	return 0;
}

SEC("fexit/packet_sendmsg")
int capture_send_packet(__u64 *context)
{
	record_send_call(((struct socket *)context[0])->sk, (int)context[3]);
	return 0;
}

SEC("fexit/inet_recvmsg")
int capture_receive4(__u64 *context)
{
	record_receive_call(((struct socket *)context[0])->sk, (int)context[4], (int)context[3]);
	return 0;
}

SEC("fexit/inet6_recvmsg")
int capture_receive6(__u64 *context)
{
	record_receive_call(((struct socket *)context[0])->sk, (int)context[4], (int)context[3]);
	return 0;
}

#endif
