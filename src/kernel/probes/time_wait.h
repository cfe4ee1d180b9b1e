/* Packets that bypass sockets: those of connections in TIME_WAIT, and those of packet sockets. */

#ifndef CAPTURE_TIME_WAIT_H
#define CAPTURE_TIME_WAIT_H

#include "owners.h"

/* The time within which the same packet buffer with the same connection is the same packet at another device. The
 * kernel's answer to a repeated FIN comes milliseconds later. */
#define STACKED_DEVICES_NS 1000000ULL

/* Returns true if an acknowledgement for a connection in TIME_WAIT was counted at another device. Each of several
 * stacked devices (bridge, bond, VLAN, tunnel) reports the transmission, one from within the other, and so does a
 * bridge that has received the packet. */
static ALWAYS_INLINE int is_counted_already(struct sk_buff *skb, __u64 cookie)
{
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 zero = 0;
	struct time_wait_packet *last;

	if (skb->skb_iif)
		return 1;
	last = bpf_map_lookup_elem(&last_time_wait, &zero);
	if (!last)
		return 0;
	if (last->packet == (__u64)skb && last->cookie == cookie && now - last->sent_ns < STACKED_DEVICES_NS)
		return 1;
	last->packet = (__u64)skb;
	last->cookie = cookie;
	last->sent_ns = now;
	return 0;
}

/* Adds a packet of a connection whose socket is gone to the record of that socket. */
static ALWAYS_INLINE void count_after_end(__u64 cookie, int direction, __u64 bytes)
{
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);
	struct direction_counters wire = {.bytes = bytes, .packets = 1};

	if (!record)
		return;
	if (UNLIKELY(!(record->flags & ENDED))) {
		/* For one connection in thousands, the kernel was observed not to run the eBPF programs at its end. */
		if (direction != SENT)
			return;
		end_record(cookie, record);
		if (!keep_records)
			return;
	}
	add_counters(record_counters(record, direction), &wire);
}

/* Records the sender on a packet socket as the owner of its packet's endpoints. */
static SUBPROGRAM int record_packet_socket(struct sk_buff *skb, __u64 cookie)
{
	struct task_struct *leader = current_leader();
	struct tuple tuple = {};
	struct endpoint_owner entry = {.cookie = cookie};

	if (!skb || !tuple_of_buffer(skb, &tuple, SENT))
		return 0;
	/* The current process is the sender, because a packet socket transmits at once. */
	READ(entry.start_ns, leader->start_boottime);
	READ(entry.tgid, leader->tgid);
	read_ids(leader, &entry.uid, &entry.gid);
	bpf_probe_read_kernel(entry.name, TASK_COMM_LEN, &leader->comm);
	entry.cgroup = current_cgroup();
	bpf_map_update_elem(&peer_owners, &tuple, &entry, BPF_ANY);
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
		if (!is_counted_already(skb, cookie))
			count_after_end(cookie, SENT, skb->len);
	} else if (UNLIKELY(want_peers && sk->__sk_common.skc_family == AF_PACKET))
		record_packet_socket(skb, cookie);
	return 0;
}

/* The kernel processes a packet for a connection in TIME_WAIT and then drops it. */
SEC("tp_btf/kfree_skb")
int capture_drop(__u64 *context)
{
	struct sk_buff *skb = (struct sk_buff *)context[0];
	struct tuple tuple;
	struct endpoint_owner *entry;
	/* This reason may be reported millions of times a second. */
	int full = ENUM_VALUE(enum skb_drop_reason, SKB_DROP_REASON_SOCKET_RCVBUFF);

	if (!keep_records || (int)context[2] == full || !skb->dev)
		return 0;
	/* A packet that a socket drops has been counted, including the one that ended its connection. */
	if (drop_has_socket) {
		struct sock *receiver = (struct sock *)context[3];

		if (receiver && receiver->__sk_common.skc_state != BPF_TCP_TIME_WAIT)
			return 0;
	}
	/* Newer kernels report this reason for packets in the queue of a socket at its end. These have been counted. */
	if (HAS_ENUM_VALUE(enum skb_drop_reason, SKB_DROP_REASON_QUEUE_PURGE) &&
	    (int)context[2] == (int)ENUM_VALUE(enum skb_drop_reason, SKB_DROP_REASON_QUEUE_PURGE))
		return 0;
	/* TCP has not processed this packet. Other ones are split, and some parts are freed after the end of their
	 * connection (kernels up to 6.1 report them here). */
	if (skb->data != skb->head + skb->transport_header)
		return 0;
	__builtin_memset(&tuple, 0, sizeof(tuple));
	if (!tuple_of_buffer(skb, &tuple, RECEIVED) || tuple.protocol != IPPROTO_TCP)
		return 0;
	entry = bpf_map_lookup_elem(&endpoint_owners, &tuple);
	if (entry && entry->ended_ns)
		count_after_end(entry->cookie, RECEIVED,
				skb->len + (skb->transport_header - skb->network_header) +
					link_header_on(skb->dev, skb->dev->addr_len));
	return 0;
}

#endif
