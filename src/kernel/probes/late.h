/* What passes beside sockets: packets of connections that have none any more, and those of packet sockets. */

#ifndef CAPTURE_LATE_H
#define CAPTURE_LATE_H

#include "users.h"

/* How long after a packet another one of the same connection may be at the same place in memory: a repeated FIN, which is
 * what is answered, comes milliseconds later. */
#define STACKED_NS 1000000ULL

/* Whether an acknowledgement for a connection in TIME_WAIT has been seen at another device: each of those that are built
 * upon each other (bridge, bond, VLAN, tunnel) says that it sends it, one from within the other, and so does a bridge that
 * has received it. */
static ALWAYS_INLINE int is_seen_again(struct sk_buff *skb, __u64 cookie)
{
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 zero = 0;
	struct late *last;

	if (skb->skb_iif)
		return 1;
	last = bpf_map_lookup_elem(&last_late, &zero);
	if (!last)
		return 0;
	if (last->packet == (__u64)skb && last->cookie == cookie && now - last->sent_ns < STACKED_NS)
		return 1;
	last->packet = (__u64)skb;
	last->cookie = cookie;
	last->sent_ns = now;
	return 0;
}

/* Adds a packet of a connection that has no socket any more to the record of the one it had. */
static ALWAYS_INLINE void count_late(__u64 cookie, int direction, __u64 bytes)
{
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);
	struct way wire = {.bytes = bytes, .packets = 1};

	if (!record)
		return;
	if (UNLIKELY(!(record->flags & ENDED))) {
		/* The kernel has been seen to leave out the programs for the end of one connection in thousands. */
		if (direction != SENT)
			return;
		end_record(cookie, record);
		if (!keep_records)
			return;
	}
	add_way(way_of(record, direction), &wire);
}

/* Lets the endpoints of a packet socket's packet lead to its sender. */
static SUBPROGRAM int note_packet_socket(struct sk_buff *skb, __u64 cookie)
{
	struct task_struct *leader = current_leader();
	struct tuple tuple = {};
	struct owned owned = {.cookie = cookie};

	if (!skb || !tuple_of_buffer(skb, &tuple, SENT))
		return 0;
	/* The sender itself is running here: a packet socket passes its packets on at once. */
	READ(owned.start_ns, leader->start_boottime);
	READ(owned.tgid, leader->tgid);
	read_ids(leader, &owned.uid, &owned.gid);
	bpf_probe_read_kernel(owned.name, NAME, &leader->comm);
	owned.cgroup = current_cgroup();
	bpf_map_update_elem(&peers, &tuple, &owned, BPF_ANY);
	return 0;
}

/* Packets that do not come from the IP layer: those of packet sockets, and the kernel's own acknowledgements for
 * connections in TIME_WAIT. */
SEC("tp_btf/net_dev_queue")
int capture_xmit(__u64 *context)
{
	struct sk_buff *skb = (struct sk_buff *)context[0];
	struct sock *sk = skb->sk;
	__u64 cookie;

	if (!sk)
		return 0;
	cookie = sk->__sk_common.skc_cookie.counter;
	if (UNLIKELY(sk->__sk_common.skc_state == BPF_TCP_TIME_WAIT)) {
		if (!is_seen_again(skb, cookie))
			count_late(cookie, SENT, skb->len);
	} else if (UNLIKELY(want_peers && sk->__sk_common.skc_family == AF_PACKET))
		note_packet_socket(skb, cookie);
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
	/* What a socket throws away it has counted, be it the packet that has ended its connection. */
	if (tells_receiver) {
		struct sock *receiver = (struct sock *)context[3];

		if (receiver && receiver->__sk_common.skc_state != BPF_TCP_TIME_WAIT)
			return 0;
	}
	/* Newer kernels say so of what has lain in the queue of a socket at its end, which has counted it. */
	if (HAS_ENUM_VALUE(enum skb_drop_reason, SKB_DROP_REASON_QUEUE_PURGE) &&
	    (int)context[2] == (int)ENUM_VALUE(enum skb_drop_reason, SKB_DROP_REASON_QUEUE_PURGE))
		return 0;
	/* TCP has not come to it. Others are in pieces, some of which are freed after their connection's end (kernels up
	 * to 6.1 say so here). */
	if (skb->data != skb->head + skb->transport_header)
		return 0;
	__builtin_memset(&tuple, 0, sizeof(tuple));
	if (!tuple_of_buffer(skb, &tuple, RECEIVED) || tuple.protocol != IPPROTO_TCP)
		return 0;
	owned = bpf_map_lookup_elem(&tuples, &tuple);
	if (owned && owned->ended_ns)
		count_late(owned->cookie, RECEIVED,
			   skb->len + (skb->transport_header - skb->network_header) + link_header_on(skb->dev, skb->dev->addr_len));
	return 0;
}

#endif
