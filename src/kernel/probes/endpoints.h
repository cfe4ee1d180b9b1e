/* The endpoints of a socket or of a packet. */

#ifndef CAPTURE_ENDPOINTS_H
#define CAPTURE_ENDPOINTS_H

#include "core.h"
#include "sockets.h"

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#define IPPROTO_MPTCP 262
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_HLEN 14

static ALWAYS_INLINE int is_internet(unsigned short family)
{
	return family == AF_INET || family == AF_INET6;
}

static ALWAYS_INLINE void map_v4(__u8 address[16], __be32 v4)
{
	__u32 *words = (__u32 *)address;

	words[0] = 0;
	words[1] = 0;
	words[2] = __builtin_bswap32(0xffff);
	words[3] = v4;
}

/* The endpoints of a socket as they are now; 0 where there is none yet. */
static ALWAYS_INLINE void tuple_of_sock(struct sock *sk, struct tuple *tuple)
{
	__builtin_memset(tuple, 0, sizeof(*tuple));
	tuple->netns = sk->__sk_common.skc_net.net->ns.inum;
	/* The number of MPTCP, 262, becomes TCP's, which it has on the wire. */
	tuple->protocol = (__u8)sk->sk_protocol;
	tuple->local_port = sk->__sk_common.skc_num;
	tuple->remote_port = __builtin_bswap16(sk->__sk_common.skc_dport);
	if (sk->__sk_common.skc_family == AF_INET) {
		map_v4(tuple->local, sk->__sk_common.skc_rcv_saddr);
		map_v4(tuple->remote, sk->__sk_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(tuple->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(tuple->remote, 16, &sk->__sk_common.skc_v6_daddr);
	}
}

static ALWAYS_INLINE int same_tuple(const struct tuple *one, const struct tuple *other)
{
	const __u64 *left = (const __u64 *)one, *right = (const __u64 *)other;

	for (unsigned int word = 0; word < sizeof(*one) / 8; word++)
		if (left[word] != right[word])
			return 0;
	return 1;
}

/* Reads the endpoints of an IP packet, `local` being the source of one that is sent. False for what has no ports. */
static ALWAYS_INLINE int tuple_of_packet(struct __sk_buff *skb, struct tuple *tuple, int direction)
{
	__u8 protocol;
	__u32 offset;
	__be16 ports[2] = {};
	__u8 *source = direction == SENT ? tuple->local : tuple->remote;
	__u8 *destination = direction == SENT ? tuple->remote : tuple->local;

	if (skb->protocol == __builtin_bswap16(ETH_P_IP)) {
		__u8 header[20];

		if (bpf_skb_load_bytes(skb, 0, header, sizeof(header)))
			return 0;
		/* Later fragments carry no ports. */
		if ((header[6] & 0x1f) | header[7])
			return 0;
		offset = (header[0] & 15) * 4;
		protocol = header[9];
		map_v4(source, *(__be32 *)(header + 12));
		map_v4(destination, *(__be32 *)(header + 16));
	} else if (skb->protocol == __builtin_bswap16(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, 6, &protocol, 1) || bpf_skb_load_bytes(skb, 8, source, 16) ||
		    bpf_skb_load_bytes(skb, 24, destination, 16))
			return 0;
		offset = 40;
	} else {
		return 0;
	}
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE ||
	    protocol == IPPROTO_SCTP || protocol == IPPROTO_DCCP) {
		if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
			return 0;
	} else if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6) {
		__u8 kind;

		if (bpf_skb_load_bytes(skb, offset, &kind, 1))
			return 0;
		/* Where a message has an identifier it stands for both ports. */
		if (protocol == IPPROTO_ICMP
			    ? kind == 0 || kind == 8 || (kind >= 13 && kind <= 18) || kind == 42 || kind == 43
			    : kind == 128 || kind == 129 || kind == 160 || kind == 161) {
			if (bpf_skb_load_bytes(skb, offset + 4, ports, 2))
				return 0;
			ports[1] = ports[0];
		}
	}
	tuple->protocol = protocol;
	if (direction == SENT) {
		tuple->local_port = __builtin_bswap16(ports[0]);
		tuple->remote_port = __builtin_bswap16(ports[1]);
	} else {
		tuple->local_port = __builtin_bswap16(ports[1]);
		tuple->remote_port = __builtin_bswap16(ports[0]);
	}
	return 1;
}

/* Reads the endpoints of a packet as the kernel holds it. */
static ALWAYS_INLINE int tuple_of_buffer(struct sk_buff *skb, struct tuple *tuple, int direction)
{
	unsigned char *network = skb->head + skb->network_header;
	__u8 *source = direction == SENT ? tuple->local : tuple->remote;
	__u8 *destination = direction == SENT ? tuple->remote : tuple->local;
	__be16 ports[2] = {};
	__u32 offset;

	tuple->netns = skb->dev->nd_net.net->ns.inum;
	if (skb->protocol == __builtin_bswap16(ETH_P_IP)) {
		__u8 header[20];

		if (bpf_probe_read_kernel(header, sizeof(header), network))
			return 0;
		if ((header[6] & 0x1f) | header[7])
			return 0;
		offset = (header[0] & 15) * 4;
		tuple->protocol = header[9];
		map_v4(source, *(__be32 *)(header + 12));
		map_v4(destination, *(__be32 *)(header + 16));
	} else if (skb->protocol == __builtin_bswap16(ETH_P_IPV6)) {
		if (bpf_probe_read_kernel(&tuple->protocol, 1, network + 6) ||
		    bpf_probe_read_kernel(source, 16, network + 8) ||
		    bpf_probe_read_kernel(destination, 16, network + 24))
			return 0;
		offset = 40;
	} else {
		return 0;
	}
	if (tuple->protocol == IPPROTO_TCP || tuple->protocol == IPPROTO_UDP) {
		if (bpf_probe_read_kernel(ports, sizeof(ports), network + offset))
			return 0;
	}
	if (direction == SENT) {
		tuple->local_port = __builtin_bswap16(ports[0]);
		tuple->remote_port = __builtin_bswap16(ports[1]);
	} else {
		tuple->local_port = __builtin_bswap16(ports[1]);
		tuple->remote_port = __builtin_bswap16(ports[0]);
	}
	return 1;
}

#endif
