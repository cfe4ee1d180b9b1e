/* Endpoints of sockets and of packets. */

#ifndef CAPTURE_ENDPOINTS_H
#define CAPTURE_ENDPOINTS_H

#include "core.h"
#include "sockets.h"

#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_HOPOPTS 0
#define IPPROTO_ROUTING 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_DSTOPTS 60
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#define IPPROTO_MPTCP 262
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_HLEN 14
#define ETH_ALEN 6

/* The maximum number of extension headers of a packet that are skipped. */
#define MAX_EXTENSION_HEADERS 6

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

/* Returns the inode of a socket's network namespace. */
static ALWAYS_INLINE __u32 netns_of(struct sock *sk)
{
	struct net *net = 0;
	__u32 netns = 0;

	READ(net, sk->__sk_common.skc_net.net);
	READ(netns, net->ns.inum);
	return netns;
}

/* Reads the present endpoints of a socket. Those that it does not have are 0. */
static ALWAYS_INLINE void tuple_of_sock(struct sock *sk, struct tuple *tuple)
{
	__builtin_memset(tuple, 0, sizeof(*tuple));
	tuple->netns = netns_of(sk);
	/* MPTCP's number, 262, becomes that of TCP, which is on the wire. */
	tuple->protocol = (__u8)sk->sk_protocol;
	tuple->local_port = sk->__sk_common.skc_num;
	tuple->remote_port = __builtin_bswap16(sk->__sk_common.skc_dport);
	if (sk->__sk_common.skc_family == AF_INET) {
		map_v4(tuple->local, sk->__sk_common.skc_rcv_saddr);
		map_v4(tuple->remote, sk->__sk_common.skc_daddr);
	} else if (HAS_MEMBER(sk->__sk_common.skc_v6_rcv_saddr)) {
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

/* The source of a packet's bytes: the context of an eBPF program for packets, or the kernel's buffer. Only one of them
 * is set, and it is known at compile time which, because each kind of eBPF program may only call its own helper. */
struct packet {
	struct __sk_buff *context;
	unsigned char *buffer;
	__be16 protocol;
};

/* Reads at an offset from the IP header, which is a multiple of 4 for more than a byte. Returns 0 if the packet is
 * shorter. Most headers can be read without a helper. */
static ALWAYS_INLINE int read_packet(const struct packet *packet, int is_context, __u32 offset, void *to, __u32 length)
{
	if (is_context) {
		const char *from = (const char *)(unsigned long)packet->context->data + offset;

		if (from + length <= (const char *)(unsigned long)packet->context->data_end) {
			__builtin_memcpy(to, length > 1 ? __builtin_assume_aligned(from, 4) : from, length);
			return 1;
		}
		return !bpf_skb_load_bytes(packet->context, offset, to, length);
	}
	return !bpf_probe_read_kernel(to, length, packet->buffer + offset);
}

/* Returns true for an extension header of IPv6 (RFC 8200, section 4). */
static ALWAYS_INLINE int is_extension_header(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING || protocol == IPPROTO_DSTOPTS ||
	       protocol == IPPROTO_FRAGMENT || protocol == IPPROTO_AH;
}

/* Skips the extension headers of an IPv6 packet, of which the first has this protocol number. Returns the offset of the
 * next header in the upper 24 bits, and its protocol in the lower 8. Returns 0 for a later fragment and for a truncated
 * packet. */
SUBPROGRAM __u32 skip_extension_headers(struct __sk_buff *skb, __u32 protocol)
{
	__u32 offset = 40;

	for (int count = 0; count < MAX_EXTENSION_HEADERS && is_extension_header(protocol); count++) {
		__u8 header[4];

		if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
			return 0;
		if (protocol == IPPROTO_FRAGMENT && (header[2] | (header[3] & 0xf8)))
			return 0;
		offset += protocol == IPPROTO_FRAGMENT ? 8
			  : protocol == IPPROTO_AH     ? (header[1] + 2) * 4
						       : (header[1] + 1) * 8;
		protocol = header[0];
	}
	return offset << 8 | (protocol & 0xff);
}

/* Returns true if messages of this protocol begin with two ports. */
static ALWAYS_INLINE int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE ||
	       protocol == IPPROTO_SCTP || protocol == IPPROTO_DCCP;
}

static ALWAYS_INLINE int is_icmp(__u32 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

/* Returns true if an ICMP message is a request with an identifier, which is then used as the sender's port. */
static ALWAYS_INLINE int is_icmp_request(__u8 protocol, __u8 kind)
{
	if (protocol == IPPROTO_ICMP)
		return kind == 8 || kind == 13 || kind == 15 || kind == 17 || kind == 42;
	return kind == 128 || kind == 160;
}

/* Returns true if an ICMP message is a reply with an identifier, which is then used as the receiver's port. */
static ALWAYS_INLINE int is_icmp_reply(__u8 protocol, __u8 kind)
{
	if (protocol == IPPROTO_ICMP)
		return kind == 0 || kind == 14 || kind == 16 || kind == 18 || kind == 43;
	return kind == 129 || kind == 161;
}

/* Reads the endpoints of an IP packet. The source of a sent packet is `local`. Returns 0 for a later fragment, which
 * has no ports, for a truncated packet, and for other protocols than IP. */
static ALWAYS_INLINE int read_endpoints(const struct packet *packet, int is_context, struct tuple *tuple, int direction)
{
	__u8 *source = direction == SENT ? tuple->local : tuple->remote;
	__u8 *destination = direction == SENT ? tuple->remote : tuple->local;
	__be16 ports[2] = {};
	__u8 protocol;
	__u32 offset;

	if (packet->protocol == __builtin_bswap16(ETH_P_IP)) {
		__u8 header[20] __attribute__((aligned(4)));

		if (!read_packet(packet, is_context, 0, header, sizeof(header)) || (header[6] & 0x1f) | header[7])
			return 0;
		offset = (header[0] & 15) * 4;
		protocol = header[9];
		map_v4(source, *(__be32 *)(header + 12));
		map_v4(destination, *(__be32 *)(header + 16));
	} else if (packet->protocol == __builtin_bswap16(ETH_P_IPV6)) {
		if (!read_packet(packet, is_context, 6, &protocol, 1) ||
		    !read_packet(packet, is_context, 8, source, 16) ||
		    !read_packet(packet, is_context, 24, destination, 16))
			return 0;
		offset = 40;
		if (is_context && is_extension_header(protocol)) {
			__u32 after = skip_extension_headers(packet->context, protocol);

			protocol = after & 0xff;
			offset = after >> 8 & 0x3fff;
			if (!offset)
				return 0;
		}
	} else {
		return 0;
	}
	if (has_ports(protocol)) {
		if (!read_packet(packet, is_context, offset, ports, sizeof(ports)))
			return 0;
	} else if (is_icmp(protocol)) {
		__u8 kind;

		if (!read_packet(packet, is_context, offset, &kind, 1))
			return 0;
		if (is_icmp_request(protocol, kind) && !read_packet(packet, is_context, offset + 4, &ports[0], 2))
			return 0;
		if (is_icmp_reply(protocol, kind) && !read_packet(packet, is_context, offset + 4, &ports[1], 2))
			return 0;
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

/* Returns true if the kernel itself handles a received packet, of which a raw socket only gets a copy. */
static ALWAYS_INLINE int is_raw_copy(const struct tuple *tuple, int direction)
{
	return direction == RECEIVED && is_icmp(tuple->protocol) && !tuple->local_port;
}

SUBPROGRAM int tuple_of_packet(struct __sk_buff *skb, struct tuple *tuple, int direction)
{
	struct packet packet = {.context = skb, .protocol = skb->protocol};

	if (!tuple)
		return 0;
	return read_endpoints(&packet, 1, tuple, direction);
}

/* Reads the endpoints of a packet in the kernel's buffer, with the network namespace of its device. */
static ALWAYS_INLINE int tuple_of_buffer(struct sk_buff *skb, struct tuple *tuple, int direction)
{
	struct packet packet = {.buffer = skb->head + skb->network_header, .protocol = skb->protocol};
	struct net_device *device = 0;
	struct net *net = 0;

	READ(device, skb->dev);
	READ(net, device->nd_net.net);
	READ(tuple->netns, net->ns.inum);
	return read_endpoints(&packet, 0, tuple, direction);
}

#endif
