/* What passes through sockets, packet by packet. */

#ifndef CAPTURE_PACKETS_H
#define CAPTURE_PACKETS_H

#include "users.h"

/* Keeps a packet of a connection that is not there yet for the socket that its listener will make for it. */
SUBPROGRAM int count_embryo(struct __sk_buff *skb, __u64 listener, int direction,
						  const struct way *wire)
{
	static const struct traffic none = {};
	struct tuple tuple = {};
	struct traffic *embryo;

	if (!wire || !tuple_of_packet(skb, &tuple, direction))
		return 0;
	key_embryo(&tuple, listener);
	embryo = bpf_map_lookup_elem(&embryos, &tuple);
	if (!embryo) {
		bpf_map_update_elem(&embryos, &tuple, &none, BPF_NOEXIST);
		embryo = bpf_map_lookup_elem(&embryos, &tuple);
	}
	if (embryo)
		add_way(&embryo->way[direction & 1], wire);
	return 0;
}

/* A digest of the remote endpoint that a socket is connected to, to see cheaply that it has been connected to another. */
static ALWAYS_INLINE __u32 peer_of(struct bpf_sock *sk)
{
	if (sk->family == AF_INET)
		return sk->dst_ip4 * 0x165667b1 + sk->dst_port;
	/* Each word counts by itself: an address of IPv4 stands in two of them, and prefixes differ as well as ends. A sum
	 * of products, which do not wait for each other. */
	return sk->dst_ip6[0] * 0x9e3779b1 + sk->dst_ip6[1] * 0x85ebca77 + sk->dst_ip6[2] * 0xc2b2ae3d +
	       sk->dst_ip6[3] * 0x27d4eb2f + sk->dst_ip4 * 0x165667b1 + sk->dst_port;
}

/* Lets the endpoints of a packet of a socket that is not connected lead to that socket. True if they do already. */
SUBPROGRAM int enter_peer(__u64 cookie, struct record *record, const struct tuple *tuple, int direction)
{
	struct owned *known, owned;
	struct tuple key;

	if (!record || !tuple)
		return 0;
	key = *tuple;
	known = bpf_map_lookup_elem(&peers, &key);
	if (is_entered(known, cookie, record))
		return 1;
	/* Several sockets may receive it (multicast, raw): the one that sent there keeps it. */
	if (direction == RECEIVED && known && known->cookie != cookie && bpf_map_lookup_elem(&sockets, &known->cookie))
		return 0;
	fill_owned(&owned, cookie, record);
	succeed(&owned, known);
	bpf_map_update_elem(&peers, &key, &owned, BPF_ANY);
	return 0;
}

/* Puts the endpoints of a packet into the record of its socket. */
SUBPROGRAM int name_record(__u64 cookie, struct record *record, const struct tuple *tuple,
						 __u32 flags)
{
	struct tuple before;

	if (!record || !tuple || !begin_change(record))
		return 0;
	before = record->tuple;
	if (record->flags & NAMED)
		leave_tuple(cookie, &before, bpf_ktime_get_boot_ns());
	record->tuple = *tuple;
	set_flags(record, flags | NAMED);
	end_change(record);
	enter_tuple(cookie, record);
	return 0;
}

/* The endpoints of a connected socket. Those of a packet that it sends may be translated already (NAT). */
static ALWAYS_INLINE void tuple_of_connected(struct bpf_sock *sk, struct tuple *tuple)
{
	tuple->local_port = sk->src_port;
	tuple->remote_port = __builtin_bswap16(sk->dst_port);
	if (sk->family == AF_INET) {
		map_v4(tuple->local, sk->src_ip4);
		map_v4(tuple->remote, sk->dst_ip4);
		return;
	}
	for (int word = 0; word < 4; word++) {
		((__u32 *)tuple->local)[word] = sk->src_ip6[word];
		((__u32 *)tuple->remote)[word] = sk->dst_ip6[word];
	}
}

SUBPROGRAM int name_peer(struct __sk_buff *skb, __u64 cookie, struct record *record, int direction)
{
	struct bpf_sock *sk = skb->sk;
	struct tuple tuple = {};
	int is_connected;
	__u32 flags;

	if (!record || !sk)
		return 0;
	flags = record->flags;
	tuple.netns = record->tuple.netns;
	if (!tuple_of_packet(skb, &tuple, direction) || is_copy(&tuple, direction))
		return 0;
	is_connected = sk->state != BPF_TCP_CLOSE;
	record->peer = peer_of(sk);
	if (want_peers && !is_connected && enter_peer(cookie, record, &tuple, direction) && flags & NAMED)
		return 0;
	if (is_connected && has_ports(tuple.protocol) && tuple.protocol != IPPROTO_SCTP) {
		struct tuple wire = tuple;

		tuple_of_connected(sk, &tuple);
		if (want_peers && direction == SENT && !same_tuple(&wire, &tuple))
			enter_peer(cookie, record, &wire, direction);
	}
	if (!is_connected) {
		/* Its record is of all its peers. */
		__builtin_memset(tuple.remote, 0, 16);
		tuple.remote_port = 0;
		if (tuple.local[10] == 0xff && tuple.local[11] == 0xff)
			map_v4(tuple.remote, 0);
	}
	if (flags & NAMED && same_tuple(&tuple, &record->tuple))
		return 0;
	if (direction == RECEIVED && is_connected) {
		struct owned *known = bpf_map_lookup_elem(&tuples, &tuple);

		if (known && known->cookie != cookie && !known->ended_ns &&
		    bpf_map_lookup_elem(&sockets, &known->cookie))
			return 0;
	}
	name_record(cookie, record, &tuple, !(flags & NAMED) && direction == SENT ? BEGAN : 0);
	return 0;
}

/* Puts to account a packet of a socket that has no record yet: with TCP Fast Open there is data before the handshake is
 * over; and the socket by which an MPTCP socket listens that is older than the probes is held by no process. */
SUBPROGRAM int count_without_record(struct __sk_buff *skb, __u64 cookie, int direction)
{
	struct bpf_sock *sk = skb->sk;
	struct tuple tuple = {};
	struct record *record = 0;
	struct site site = {};
	struct link link = {};
	__u64 *parent, listener;
	struct tcp_sock *tcp;
	struct way wire;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	locate(skb, &site);
	link.device = skb->ifindex;
	link.header = site.header;
	wire = measure(skb, &link);
	if (sk->type == SOCK_RAW && is_icmp(sk->protocol)) {
		count_unknown_socket(site.netns, direction, &wire, LOSS_ANSWERED);
		return 0;
	}
	if (sk->state == BPF_TCP_LISTEN) {
		tcp = bpf_skc_to_tcp_sock(sk);
		if (tcp && tuple_of_packet(skb, &tuple, direction)) {
			tuple.netns = netns_of((struct sock *)tcp);
			listener = listener_of(&tuple);
			if (listener) {
				count_embryo(skb, listener, direction, &wire);
				return 0;
			}
		}
		count_unknown_socket(site.netns, direction, &wire, LOSS_UNKNOWN);
		return 0;
	}
	/* One that is closed is gone, or about to be: its record was read. */
	parent = sk->state == BPF_TCP_CLOSE ? 0 : bpf_sk_storage_get(&parents, sk, 0, 0);
	if (parent && tuple_of_packet(skb, &tuple, direction)) {
		adopt(*parent, cookie, &tuple);
		record = bpf_map_lookup_elem(&sockets, &cookie);
	}
	if (!record) {
		count_unknown_socket(site.netns, direction, &wire, LOSS_UNKNOWN);
		return 0;
	}
	add_way(way_of(record, direction), &wire);
	return 0;
}

/* Whether a socket without a tally, or whose tally was not looked for, is to have one: said now and then. */
static ALWAYS_INLINE int is_busy(const struct record *record)
{
	__u64 packets = record->sent.packets + record->received.packets;

	return packets >= BUSY && !(packets % (BUSY / 4));
}

/* Has a socket with many packets counted where it is found sooner. Its record says who uses it, where from and where to:
 * else it is still needed with each packet. */
SUBPROGRAM int begin_tally(struct __sk_buff *skb, __u64 cookie, struct record *record)
{
	struct tally *tally = place_of(cookie);
	struct bpf_sock *sk = skb->sk;
	__u64 last, last_cookie, free_ns;

	if (!sk || !tally || !record || !(record->flags & NAMED) || record->flags & (UNPROVEN | ENDED))
		return 0;
	last = tally->cookie;
	if (last && !(last & CLOSED)) {
		if (!tally->is_used) {
			close_tally(tally, last);
			relieve(last, tally);
		}
		tally->is_used = 0;
		return 0;
	}
	last_cookie = last & ~CLOSED;
	free_ns = tally->free_ns;
	if (free_ns == ~0ULL || (last_cookie != cookie && free_ns > bpf_ktime_get_boot_ns()))
		return 0;
	/* By it the reader finds the tally. There is none where the memory for options is used up (net.core.optmem_max). */
	if (keep_records && !bpf_sk_storage_get(&busy, sk, 0, BPF_SK_STORAGE_GET_F_CREATE))
		return 0;
	if (__sync_val_compare_and_swap(&tally->free_ns, free_ns, ~0ULL) != free_ns)
		return 0;
	relieve(last_cookie, tally);
	if (last_cookie != cookie) {
		/* What is left is that of a socket without a record. */
		tally->sent = tally->received = 0;
		tally->calls.sends = tally->calls.receives = 0;
		tally->sent_link.device = tally->received_link.device = 0;
	}
	name_user(tally, record);
	tally->calls.sent_ns = record->calls.sent_ns;
	tally->calls.unanswered = record->calls.unanswered;
	tally->is_used = 1;
	__atomic_exchange_n(&tally->cookie, cookie, __ATOMIC_SEQ_CST);
	if (UNLIKELY(record->flags & ENDED))
		retire_tally(cookie, record);
	return 0;
}

/* Whether another process may send this than the owner: known while it runs, where what is sent leaves at once. */
static ALWAYS_INLINE int is_sent_at_once(__u32 flags, int direction)
{
	return keep_records && direction == SENT && flags & DATAGRAM;
}

/* Makes the current process, which sends, the owner of a socket that no process has been seen to use. */
SUBPROGRAM int use_first(__u64 cookie, struct record *record)
{
	struct way none = {}, unread = {};

	if (!record || is_kernel_thread() || !begin_change(record))
		return 0;
	if (!is_current(&record->owner)) {
		unread.bytes = record->unread;
		unread.packets = unread.bytes / (average(&record->received) ?: 1);
		if (!(record->flags & UNUSED) && record->owner.tgid)
			set_apart(cookie, record, &none, &unread);
		current_user(record);
	}
	clear_flags(record, UNPROVEN);
	end_change(record);
	if (record->flags & NAMED)
		enter_tuple(cookie, record);
	return 0;
}

/* The number of the socket of a packet, for which it need not be called for most often. */
static ALWAYS_INLINE __u64 cookie_of_packet(struct __sk_buff *skb)
{
	struct sk_buff *packet = kernel_packet(skb);
	struct sock *sk = packet ? packet->sk : 0;

	return (sk ? sk->__sk_common.skc_cookie.counter : 0) ?: bpf_get_socket_cookie(skb);
}

/* Counts at its record a packet of a socket that is not busy. */
static ALWAYS_INLINE void count_at_record(struct __sk_buff *skb, __u64 cookie, struct record *record, int direction)
{
	struct bpf_sock *sk = skb->sk;
	struct way wire;

	if (!keep_records) {
		/* It only has to show when it is busy. */
		add(&way_of(record, direction)->packets, 1);
		return;
	}
	wire = measure(skb, &record->link);
	if (is_sent_at_once(record->flags, direction)) {
		add(&record->calls.sends, 1);
		time_datagram(&record->calls);
		if (UNLIKELY(record->flags & UNPROVEN)) {
			use_first(cookie, record);
		} else if (UNLIKELY(!is_current(&record->owner)) && !is_kernel_thread()) {
			count_at_sender(cookie, record, &wire);
			return;
		}
	}
	if (direction == RECEIVED && sk) {
		struct tcp_sock *tcp = record->flags & DATAGRAM ? 0 : bpf_skc_to_tcp_sock(sk);

		if (tcp)
			record->unread = wire.bytes + unread_of_stream(tcp, record, 0).bytes;
		else if (record->flags & DATAGRAM)
			add(&record->unread, wire.bytes);
	}
	add_way(way_of(record, direction), &wire);
}

/* Counts at its tally a packet of a busy socket. False where the record is needed. */
static ALWAYS_INLINE int count_at_tally(struct __sk_buff *skb, __u64 cookie, struct tally *tally, int direction)
{
	struct way wire;
	__u64 before;

	if (UNLIKELY(!tally->is_used))
		tally->is_used = 1;
	if (!keep_records)
		return 1;
	if (direction == SENT && tally->flags & DATAGRAM) {
		/* Of datagrams cut up later (UDP_SEGMENT), a call has sent many. */
		if (skb->gso_size || (!is_current_inline(&tally->owner) && !is_kernel_thread()))
			return 0;
		time_datagram(&tally->calls);
	}
	wire = measure(skb, direction == SENT ? &tally->sent_link : &tally->received_link);
	before = __sync_fetch_and_add(direction == SENT ? &tally->sent : &tally->received,
				      wire.packets << PACKED_BYTES | wire.bytes);
	/* The number has room for only as many packets again; or the tally was closed, and maybe emptied for the last time,
	 * before this packet was added. */
	if (UNLIKELY(before >> 63 || tally->cookie != cookie))
		relieve(cookie, tally);
	return 1;
}

static ALWAYS_INLINE int count_packet(struct __sk_buff *skb, int direction)
{
	struct bpf_sock *sk = skb->sk;
	struct record *record;
	struct tally *tally;
	int has_peers;
	__u64 cookie;
	__u32 state;

	if (!sk)
		return 1;
	state = sk->state;
	has_peers = want_peers && state == BPF_TCP_CLOSE;
	cookie = cookie_of_packet(skb);
	tally = has_peers ? 0 : tally_of(cookie);
	if (tally && state != BPF_TCP_LISTEN && tally->peer == peer_of(sk) &&
	    count_at_tally(skb, cookie, tally, direction))
		return 1;
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (UNLIKELY(!record)) {
		count_without_record(skb, cookie, direction);
		return 1;
	}
	if (UNLIKELY(state == BPF_TCP_LISTEN)) {
		struct way wire = measure(skb, &record->link);

		count_embryo(skb, cookie, direction, &wire);
		return 1;
	}
	count_at_record(skb, cookie, record, direction);
	if (!(record->flags & NAMED) || record->peer != peer_of(sk) || has_peers)
		name_peer(skb, cookie, record, direction);
	if (tally)
		tally->peer = record->peer;
	else if (is_busy(record))
		begin_tally(skb, cookie, record);
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

#endif
