/* Packets of sockets. */

#ifndef CAPTURE_PACKETS_H
#define CAPTURE_PACKETS_H

#include "owners.h"

/* Counts a packet of a request socket. The counts are moved to the socket that the listener creates for the
 * connection. An answer to a request that was not received has no owner: its destination is translated (NAT). */
SUBPROGRAM int count_request_sock(struct __sk_buff *skb, __u64 listener, int direction,
				  const struct direction_counters *wire, __u32 netns)
{
	static const struct traffic none = {};
	struct tuple tuple = {};
	struct traffic *pending;

	if (!wire || !tuple_of_packet(skb, &tuple, direction))
		return 0;
	set_request_sock_key(&tuple, listener);
	pending = bpf_map_lookup_elem(&request_socks, &tuple);
	if (!pending && direction == SENT) {
		count_unknown_socket(netns, direction, wire, LOSS_NO_RECORD);
		return 0;
	}
	if (!pending) {
		bpf_map_update_elem(&request_socks, &tuple, &none, BPF_NOEXIST);
		pending = bpf_map_lookup_elem(&request_socks, &tuple);
	}
	if (pending)
		add_counters(&pending->by_direction[direction & 1], wire);
	return 0;
}

/* Returns a digest of the remote endpoint of a socket, with which a new connection of the socket is detected at little
 * cost. */
static ALWAYS_INLINE __u32 digest_of_peer(struct bpf_sock *sk)
{
	if (sk->family == AF_INET)
		return sk->dst_ip4 * 0x165667b1 + sk->dst_port;
	/* Each word has a factor of its own, because an IPv4 address is in two of them, and IPv6 addresses differ in
	 * prefixes as well as in interface identifiers. The products do not depend on each other. */
	return sk->dst_ip6[0] * 0x9e3779b1 + sk->dst_ip6[1] * 0x85ebca77 + sk->dst_ip6[2] * 0xc2b2ae3d +
	       sk->dst_ip6[3] * 0x27d4eb2f + sk->dst_ip4 * 0x165667b1 + sk->dst_port;
}

/* Inserts the owner of the endpoints of a packet of an unconnected socket. Returns 1 if they were known. */
SUBPROGRAM int insert_peer_owner(__u64 cookie, struct record *record, const struct tuple *tuple, int direction)
{
	struct endpoint_owner *known, entry;
	struct tuple key;

	if (!record || !tuple)
		return 0;
	key = *tuple;
	known = bpf_map_lookup_elem(&peer_owners, &key);
	if (is_same_owner(known, cookie, record))
		return 1;
	/* Several sockets may receive the packet (multicast, raw). The one that has sent there stays the owner. */
	if (direction == RECEIVED && known && known->cookie != cookie && bpf_map_lookup_elem(&sockets, &known->cookie))
		return 0;
	fill_endpoint_owner(&entry, cookie, record);
	link_previous_owner(&entry, known);
	bpf_map_update_elem(&peer_owners, &key, &entry, BPF_ANY);
	return 0;
}

/* Sets the endpoints in the record of a socket. */
SUBPROGRAM int set_endpoints(__u64 cookie, struct record *record, const struct tuple *tuple, __u32 flags)
{
	struct tuple before;

	if (!record || !tuple || !begin_change(record))
		return 0;
	before = record->tuple;
	if (record->flags & HAS_ENDPOINTS)
		end_endpoint_owner(cookie, &before, bpf_ktime_get_boot_ns());
	record->tuple = *tuple;
	set_flags(record, flags | HAS_ENDPOINTS);
	end_change(record);
	insert_endpoint_owner(cookie, record);
	return 0;
}

/* Reads the endpoints of a connected socket. Those in its sent packets may be translated already (NAT). */
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

/* Updates the endpoints in the record of a socket from one of its packets. */
SUBPROGRAM int update_endpoints(struct __sk_buff *skb, __u64 cookie, struct record *record, int direction)
{
	struct bpf_sock *sk = skb->sk;
	struct tuple tuple = {};
	int is_connected;
	__u32 flags;

	if (!record || !sk)
		return 0;
	flags = record->flags;
	tuple.netns = record->tuple.netns;
	if (!tuple_of_packet(skb, &tuple, direction) || is_raw_copy(&tuple, direction))
		return 0;
	is_connected = sk->state != BPF_TCP_CLOSE;
	record->peer_digest = digest_of_peer(sk);
	if (want_peers && !is_connected && insert_peer_owner(cookie, record, &tuple, direction) &&
	    flags & HAS_ENDPOINTS)
		return 0;
	if (is_connected && has_ports(tuple.protocol) && tuple.protocol != IPPROTO_SCTP) {
		struct tuple wire = tuple;

		tuple_of_connected(sk, &tuple);
		if (want_peers && direction == SENT && !same_tuple(&wire, &tuple))
			insert_peer_owner(cookie, record, &wire, direction);
	}
	if (!is_connected) {
		/* The record is that of all peers. */
		__builtin_memset(tuple.remote, 0, 16);
		tuple.remote_port = 0;
		if (tuple.local[10] == 0xff && tuple.local[11] == 0xff)
			map_v4(tuple.remote, 0);
	}
	if (flags & HAS_ENDPOINTS && same_tuple(&tuple, &record->tuple))
		return 0;
	if (direction == RECEIVED && is_connected) {
		struct endpoint_owner *known = bpf_map_lookup_elem(&endpoint_owners, &tuple);

		if (known && known->cookie != cookie && !known->ended_ns &&
		    bpf_map_lookup_elem(&sockets, &known->cookie))
			return 0;
	}
	set_endpoints(cookie, record, &tuple, !(flags & HAS_ENDPOINTS) && direction == SENT ? SENT_FIRST : 0);
	return 0;
}

/* Counts a packet of a socket without a record. With TCP Fast Open, data arrives before the end of the handshake. The
 * listening TCP socket of an MPTCP socket has no record if it is older than the eBPF programs, because no process holds
 * it. */
SUBPROGRAM int count_without_record(struct __sk_buff *skb, __u64 cookie, int direction)
{
	struct bpf_sock *sk = skb->sk;
	struct tuple tuple = {};
	struct record *record = 0;
	struct packet_device device = {};
	struct link link = {};
	__u64 *parent, listener;
	struct tcp_sock *tcp;
	struct direction_counters wire;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	read_packet_device(skb, &device);
	link.device = skb->ifindex;
	link.header = device.header;
	wire = measure_packet(skb, &link);
	if (sk->type == SOCK_RAW && is_icmp(sk->protocol)) {
		count_unknown_socket(device.netns, direction, &wire, LOSS_KERNEL_REPLY);
		return 0;
	}
	if (sk->state == BPF_TCP_LISTEN) {
		tcp = bpf_skc_to_tcp_sock(sk);
		if (tcp && tuple_of_packet(skb, &tuple, direction)) {
			tuple.netns = netns_of((struct sock *)tcp);
			listener = listener_of(&tuple);
			if (listener) {
				count_request_sock(skb, listener, direction, &wire, device.netns);
				return 0;
			}
		}
		count_unknown_socket(device.netns, direction, &wire, LOSS_NO_RECORD);
		return 0;
	}
	/* A closed socket has ended or is about to, and its record was read. */
	parent = sk->state == BPF_TCP_CLOSE ? 0 : bpf_sk_storage_get(&parent_cookie, sk, 0, 0);
	if (parent && tuple_of_packet(skb, &tuple, direction)) {
		inherit_from_listener(*parent, cookie, &tuple);
		record = bpf_map_lookup_elem(&sockets, &cookie);
	}
	if (!record) {
		count_unknown_socket(device.netns, direction, &wire, LOSS_NO_RECORD);
		return 0;
	}
	add_counters(record_counters(record, direction), &wire);
	return 0;
}

/* Returns true for a busy socket, once in MIN_BUSY_PACKETS / 4 packets. Its caller has found no socket counters. */
static ALWAYS_INLINE int is_busy(const struct record *record)
{
	__u64 packets = record->sent.packets + record->received.packets;

	return packets >= MIN_BUSY_PACKETS && !(packets % (MIN_BUSY_PACKETS / 4));
}

/* Assigns socket counters to a busy socket. Its record must have a confirmed owner and endpoints. Otherwise each packet
 * needs the record. */
SUBPROGRAM int assign_sk_counters(struct __sk_buff *skb, __u64 cookie, struct record *record)
{
	struct sk_counters *counters = slot_of(cookie);
	struct bpf_sock *sk = skb->sk;
	__u64 last, last_cookie, reusable_ns;

	if (!sk || !counters || !record || !(record->flags & HAS_ENDPOINTS) || record->flags & (UNCONFIRMED | ENDED))
		return 0;
	last = counters->cookie;
	if (last && !(last & SLOT_RELEASED)) {
		if (!counters->is_used) {
			release_slot(counters, last);
			flush_by_cookie(last, counters);
		}
		counters->is_used = 0;
		return 0;
	}
	last_cookie = last & ~SLOT_RELEASED;
	reusable_ns = counters->reusable_ns;
	if (reusable_ns == ~0ULL || (last_cookie != cookie && reusable_ns > bpf_ktime_get_boot_ns()))
		return 0;
	/* The reader finds the counters by this storage. It fails if the memory for socket options is used up
	 * (net.core.optmem_max). */
	if (keep_records && !bpf_sk_storage_get(&busy_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE))
		return 0;
	if (__sync_val_compare_and_swap(&counters->reusable_ns, reusable_ns, ~0ULL) != reusable_ns)
		return 0;
	flush_by_cookie(last_cookie, counters);
	if (last_cookie != cookie) {
		/* The remaining counts belong to a socket without a record. */
		counters->sent = counters->received = 0;
		counters->calls.sends = counters->calls.receives = 0;
		counters->sent_link.device = counters->received_link.device = 0;
	}
	copy_owner(counters, record);
	counters->calls.sent_ns = record->calls.sent_ns;
	counters->calls.unanswered = record->calls.unanswered;
	counters->is_used = 1;
	__atomic_exchange_n(&counters->cookie, cookie, __ATOMIC_SEQ_CST);
	if (UNLIKELY(record->flags & ENDED))
		release_sk_counters(cookie, record);
	return 0;
}

/* Returns true if a packet leaves during the sender's call, so that the current process is its sender, which may not be
 * the owner. */
static ALWAYS_INLINE int is_sent_synchronously(__u32 flags, int direction)
{
	return keep_records && direction == SENT && flags & DATAGRAM;
}

/* Makes the current process, which sends, the owner of a socket with an unconfirmed owner. */
SUBPROGRAM int set_sender_as_owner(__u64 cookie, struct record *record)
{
	struct direction_counters none = {}, unread = {};

	if (!record || is_kernel_thread() || !begin_change(record))
		return 0;
	if (!is_current(&record->owner)) {
		unread.bytes = record->unread;
		unread.packets = unread.bytes / (average_size(&record->received) ?: 1);
		if (!(record->flags & UNUSED) && record->owner.tgid)
			move_to_share(cookie, record, &none, &unread);
		set_current_owner(record);
	}
	clear_flags(record, UNCONFIRMED);
	end_change(record);
	if (record->flags & HAS_ENDPOINTS)
		insert_endpoint_owner(cookie, record);
	return 0;
}

/* Returns the cookie of a packet's socket. Most sockets have one already, so that no helper is called. */
static ALWAYS_INLINE __u64 cookie_of_packet(struct __sk_buff *skb)
{
	struct sk_buff *packet = kernel_packet(skb);
	struct sock *sk = packet ? packet->sk : 0;

	return (sk ? sk->__sk_common.skc_cookie.counter : 0) ?: bpf_get_socket_cookie(skb);
}

/* Counts a packet in the record of its socket. */
static ALWAYS_INLINE void count_in_record(struct __sk_buff *skb, __u64 cookie, struct record *record, int direction)
{
	struct bpf_sock *sk = skb->sk;
	struct direction_counters wire;

	if (!keep_records) {
		/* The number only serves to detect busy sockets. */
		add(&record_counters(record, direction)->packets, 1);
		return;
	}
	wire = measure_packet(skb, &record->link);
	if (is_sent_synchronously(record->flags, direction)) {
		add(&record->calls.sends, 1);
		record_datagram_time(&record->calls);
		if (UNLIKELY(record->flags & UNCONFIRMED)) {
			set_sender_as_owner(cookie, record);
		} else if (UNLIKELY(!is_current(&record->owner)) && !is_kernel_thread()) {
			count_for_sender(cookie, record, &wire);
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
	add_counters(record_counters(record, direction), &wire);
}

/* Counts a packet in the socket counters of its socket. Returns 0 if the record is needed. */
static ALWAYS_INLINE int count_in_sk_counters(struct __sk_buff *skb, __u64 cookie, struct sk_counters *counters,
					      int direction)
{
	struct direction_counters wire;
	__u64 before;

	if (UNLIKELY(!counters->is_used))
		counters->is_used = 1;
	if (!keep_records)
		return 1;
	if (direction == SENT && counters->flags & DATAGRAM) {
		/* With UDP_SEGMENT, one call sends many datagrams, which are segmented later. */
		if (skb->gso_size || (!is_current_inline(&counters->owner) && !is_kernel_thread()))
			return 0;
		record_datagram_time(&counters->calls);
	}
	wire = measure_packet(skb, direction == SENT ? &counters->sent_link : &counters->received_link);
	before = __sync_fetch_and_add(direction == SENT ? &counters->sent : &counters->received,
				      wire.packets << PACKED_BYTE_BITS | wire.bytes);
	/* The packed sum is half full; or the slot was released, and possibly flushed for the last time, before this
	 * packet was added. */
	if (UNLIKELY(before >> 63 || counters->cookie != cookie))
		flush_by_cookie(cookie, counters);
	return 1;
}

static ALWAYS_INLINE int count_packet(struct __sk_buff *skb, int direction)
{
	struct bpf_sock *sk = skb->sk;
	struct record *record;
	struct sk_counters *counters;
	int has_peers;
	__u64 cookie;
	__u32 state;

	if (!sk)
		return 1;
	state = sk->state;
	has_peers = want_peers && state == BPF_TCP_CLOSE;
	cookie = cookie_of_packet(skb);
	counters = has_peers ? 0 : sk_counters_of(cookie);
	if (counters && state != BPF_TCP_LISTEN && counters->peer_digest == digest_of_peer(sk) &&
	    count_in_sk_counters(skb, cookie, counters, direction))
		return 1;
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (UNLIKELY(!record)) {
		count_without_record(skb, cookie, direction);
		return 1;
	}
	if (UNLIKELY(state == BPF_TCP_LISTEN)) {
		struct direction_counters wire = measure_packet(skb, &record->link);

		count_request_sock(skb, cookie, direction, &wire, record->tuple.netns);
		return 1;
	}
	count_in_record(skb, cookie, record, direction);
	if (!(record->flags & HAS_ENDPOINTS) || record->peer_digest != digest_of_peer(sk) || has_peers)
		update_endpoints(skb, cookie, record, direction);
	if (counters)
		counters->peer_digest = record->peer_digest;
	else if (is_busy(record))
		assign_sk_counters(skb, cookie, record);
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
