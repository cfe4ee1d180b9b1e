/* What passes through sockets, packet by packet. */

#ifndef CAPTURE_PACKETS_H
#define CAPTURE_PACKETS_H

#include "users.h"

/* Keeps a packet of a connection that is not there yet for the socket that will be made for it. */
static __attribute__((noinline)) int count_embryo(struct __sk_buff *skb, __u32 netns, int direction, __u64 bytes)
{
	struct tuple tuple = {.netns = netns};
	struct traffic fresh = {};
	struct traffic *embryo;

	if (!tuple_of_packet(skb, &tuple, direction))
		return 0;
	embryo = bpf_map_lookup_elem(&embryos, &tuple);
	if (embryo) {
		count_in_traffic(embryo, direction, bytes);
		return 0;
	}
	count_in_traffic(&fresh, direction, bytes);
	bpf_map_update_elem(&embryos, &tuple, &fresh, BPF_ANY);
	return 0;
}

static __attribute__((noinline)) int name_peer(struct __sk_buff *skb, __u64 cookie, struct record *record, int direction,
					       int is_connected)
{
	struct tuple tuple = {.netns = record->tuple.netns};

	if (!tuple_of_packet(skb, &tuple, direction))
		return 0;
	if ((record->flags & NAMED) && same_tuple(&tuple, &record->tuple))
		return 0;
	if (direction == RECEIVED) {
		/* Several sockets may receive it (multicast, raw): the one that sent there keeps it. */
		struct owned *known = bpf_map_lookup_elem(&tuples, &tuple);

		if (known && known->cookie != cookie && !known->ended_ns && bpf_map_lookup_elem(&sockets, &known->cookie))
			return 0;
	}
	if (!want_peers && !is_connected) {
		/* Not connected: its record is of all its peers. */
		__builtin_memset(tuple.remote, 0, 16);
		tuple.remote_port = 0;
		if (tuple.local[10] == 0xff && tuple.local[11] == 0xff)
			map_v4(tuple.remote, 0);
	}
	if (!(record->flags & NAMED) && direction == SENT)
		record->flags |= BEGAN;
	record->tuple = tuple;
	record->flags |= NAMED;
	enter_tuple(&tuple, cookie, record);
	return 0;
}

/* Puts to account a packet of a socket that has no record yet: with TCP Fast Open there is data before the handshake is
 * over; and the socket by which an MPTCP socket listens that is older than the probes is held by no process. */
static __attribute__((noinline)) int count_unknown(struct __sk_buff *skb, __u64 cookie, int direction, __u64 bytes)
{
	struct bpf_sock *sk = skb->sk;
	struct tuple tuple = {};
	struct record *record = 0;
	struct tcp_sock *tcp;
	__u64 *parent;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	if (sk->state == BPF_TCP_LISTEN) {
		tcp = bpf_skc_to_tcp_sock(sk);
		if (tcp && tuple_of_packet(skb, &tuple, direction)) {
			tuple.netns = ((struct sock *)tcp)->__sk_common.skc_net.net->ns.inum;
			if (listener_of(&tuple)) {
				count_embryo(skb, tuple.netns, direction, bytes);
				return 0;
			}
		}
		lose(LOSS_UNKNOWN, direction, bytes);
		return 0;
	}
	parent = bpf_sk_storage_get(&parents, sk, 0, 0);
	if (parent && tuple_of_packet(skb, &tuple, direction)) {
		adopt(*parent, cookie, &tuple);
		record = bpf_map_lookup_elem(&sockets, &cookie);
	}
	if (!record) {
		lose(LOSS_UNKNOWN, direction, bytes);
		return 0;
	}
	count_at_socket(record, direction, bytes);
	return 0;
}

/* Has a socket with many packets counted where it is found sooner. Its record says who uses it, where from and where to:
 * else it is still needed with each packet. */
static __attribute__((noinline)) int begin_tally(struct __sk_buff *skb, struct record *record)
{
	struct bpf_sock *sk = skb->sk;
	struct tally tally = {};

	if (!sk || !record || !(record->flags & NAMED) || record->flags & (INHERITED | HELD | SEVERAL | UNUSED | ENDED))
		return 0;
	name_user(&tally, record);
	tally.calls.sent_ns = record->calls.sent_ns;
	tally.calls.unanswered = record->calls.unanswered;
	bpf_sk_storage_get(&tallies, sk, &tally, BPF_SK_STORAGE_GET_F_CREATE);
	return 0;
}

static ALWAYS_INLINE int count_packet(struct __sk_buff *skb, int direction)
{
	struct bpf_sock *sk = skb->sk;
	__u64 cookie, bytes = skb->len;
	__u32 state, device = skb->ifindex & (DEVICES - 1);
	struct record *record;
	struct tally *tally;
	__u8 *link_header;

	if (!sk)
		return 1;
	state = sk->state;
	link_header = bpf_map_lookup_elem(&link_headers, &device);
	bytes += link_header && *link_header ? *link_header - 1 : ETH_HLEN;
	tally = bpf_sk_storage_get(&tallies, sk, 0, 0);
	if (tally && state != BPF_TCP_LISTEN && !(want_peers && state == BPF_TCP_CLOSE)) {
		if (keep_records)
			count(direction == SENT ? &tally->sent : &tally->received, bytes);
		return 1;
	}
	cookie = bpf_get_socket_cookie(skb);
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (UNLIKELY(!record)) {
		count_unknown(skb, cookie, direction, bytes);
		return 1;
	}
	if (UNLIKELY(state == BPF_TCP_LISTEN)) {
		count_embryo(skb, record->tuple.netns, direction, bytes);
		return 1;
	}
	count_at_socket(record, direction, bytes);
	/* A connected socket's endpoints do not change. */
	if (!(record->flags & NAMED) || (want_peers && state == BPF_TCP_CLOSE))
		name_peer(skb, cookie, record, direction, state != BPF_TCP_CLOSE);
	if (!tally && record->sent.packets + record->received.packets >= BUSY)
		begin_tally(skb, record);
	return 1;
}

SEC("cgroup_skb/egress")
int capture_egress(struct __sk_buff *skb)
{
	return count_packet(skb, SENT);
}

SEC("cgroup_skb/ingress")
int capture_ingress(struct __sk_buff *skb)
{
	return count_packet(skb, RECEIVED);
}

/* Adds a packet of a connection that has no socket any more to the record of the one it had. */
static ALWAYS_INLINE void count_late(__u64 cookie, int direction, __u64 bytes)
{
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);

	if (!record || !(record->flags & ENDED))
		return;
	count_at_socket(record, direction, bytes);
}

/* Takes note of the sender of a packet socket's packet. */
static __attribute__((noinline)) int note_packet_socket(struct sk_buff *skb, __u64 cookie)
{
	struct tuple tuple = {};
	struct record user = {};

	if (!skb || !tuple_of_buffer(skb, &tuple, SENT))
		return 0;
	/* The sender itself is running here: a packet socket passes its packets on at once. */
	current_user(&user);
	enter_tuple(&tuple, cookie, &user);
	return 0;
}

/* Packets that do not come from the IP layer: those of packet sockets, and the kernel's own acknowledgements for
 * connections in TIME_WAIT. */
SEC("tp_btf/net_dev_queue")
int capture_xmit(__u64 *context)
{
	struct sk_buff *skb = (struct sk_buff *)context[0];
	struct sock *sk = skb->sk;

	if (!sk)
		return 0;
	if (UNLIKELY(sk->__sk_common.skc_state == BPF_TCP_TIME_WAIT))
		count_late(sk->__sk_common.skc_cookie.counter, SENT, skb->len);
	else if (UNLIKELY(want_peers && sk->__sk_common.skc_family == AF_PACKET))
		note_packet_socket(skb, sk->__sk_common.skc_cookie.counter);
	return 0;
}

/* What arrives for a connection in TIME_WAIT is taken note of and thrown away. */
SEC("tp_btf/kfree_skb")
int capture_drop(__u64 *context)
{
	struct sk_buff *skb = (struct sk_buff *)context[0];
	struct tuple tuple;
	struct owned *owned;
	/* Said millions of times a second, maybe. */
	int full = ENUM_VALUE(enum skb_drop_reason, SKB_DROP_REASON_SOCKET_RCVBUFF);

	if (!keep_records || (int)context[2] == full || !skb->dev)
		return 0;
	__builtin_memset(&tuple, 0, sizeof(tuple));
	if (!tuple_of_buffer(skb, &tuple, RECEIVED) || tuple.protocol != IPPROTO_TCP)
		return 0;
	owned = bpf_map_lookup_elem(&tuples, &tuple);
	if (owned && owned->ended_ns)
		count_late(owned->cookie, RECEIVED, skb->len + (skb->transport_header - skb->network_header) + ETH_HLEN);
	return 0;
}

#endif
