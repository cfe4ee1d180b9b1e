/* The size of packets on the wire, and the part of a socket's traffic that belongs to a call.
 *
 * At the IP layer, one packet may stand for many segments: the device, or the kernel for it, splits the packet later
 * (GSO), or the kernel has merged segments before (GRO). Each segment has headers of its own. */

#ifndef CAPTURE_WIRE_H
#define CAPTURE_WIRE_H

#include "endpoints.h"
#include "maps.h"

#define UDP_HEADER 8
#define TCP_HEADER 20

/* A special segment size: the segments are listed one by one (SCTP), include/linux/skbuff.h. */
#define GSO_BY_FRAGS 0xFFFF
#define SCTP_HEADER 12

/* Returns the length of the link header that is counted for a packet on a device: Ethernet's, or none. Tunnels may also
 * have headers and addresses, but of other lengths. The device type is not used, because any type can be set for a tun
 * device. */
static ALWAYS_INLINE __u32 link_header_on(struct net_device *device, unsigned char address_length)
{
	const struct header_ops *operations = 0;
	int (*create)(void) = 0;

	READ(operations, device->header_ops);
	if (operations)
		READ(create, operations->create);
	return create && address_length == ETH_ALEN ? ETH_HLEN : 0;
}

/* The device that a packet is on. */
struct packet_device {
	/* The inode of the device's network namespace. */
	__u32 netns;
	/* The length of the device's link header. */
	__u32 header;
};

/* Reads the device from the kernel's own structure of a packet, because a device number is only unique within its
 * network namespace. */
SUBPROGRAM int read_packet_device(struct __sk_buff *skb, struct packet_device *result)
{
	struct sk_buff *packet = kernel_packet(skb);
	unsigned char address_length = 0;
	struct net_device *device = 0;
	struct net *net = 0;

	if (!result)
		return 0;
	if (packet) {
		device = packet->dev;
		if (device) {
			address_length = device->addr_len;
			net = device->nd_net.net;
			if (net)
				result->netns = net->ns.inum;
		}
	} else {
		packet = (struct sk_buff *)address_of(skb);
		READ(device, packet->dev);
		if (device) {
			READ(address_length, device->addr_len);
			READ(net, device->nd_net.net);
		}
		if (net)
			READ(result->netns, net->ns.inum);
	}
	result->header = device ? link_header_on(device, address_length) : ETH_HLEN;
	return 0;
}

static ALWAYS_INLINE __u32 link_header(struct __sk_buff *skb, struct link *link)
{
	__u32 device = skb->ifindex;

	if (UNLIKELY(link->device != device)) {
		struct packet_device found = {};

		read_packet_device(skb, &found);
		link->header = found.header;
		link->device = device;
	}
	return link->header;
}

/* Returns a byte of a packet at an offset from its IP header. Most headers can be read without a helper. */
static ALWAYS_INLINE __u8 byte_at(struct __sk_buff *skb, __u32 offset)
{
	const __u8 *byte = (const __u8 *)(unsigned long)skb->data + offset;
	__u8 copy = 0;

	if (byte + 1 <= (const __u8 *)(unsigned long)skb->data_end)
		return *byte;
	bpf_skb_load_bytes(skb, offset, &copy, 1);
	return copy;
}

/* Counts the segments of a packet, and adds the headers that the segments will have and the packet does not have. */
SUBPROGRAM int measure_segments(struct __sk_buff *skb, struct direction_counters *wire)
{
	__u32 size = skb->gso_size, headers, payload, segments, dropped = 0;
	__u8 protocol;

	if (!size || !wire)
		return 0;
	if (skb->protocol == __builtin_bswap16(ETH_P_IP)) {
		protocol = byte_at(skb, 9);
		headers = (byte_at(skb, 0) & 15) * 4;
	} else {
		protocol = byte_at(skb, 6);
		headers = 40;
		if (protocol == 0) {
			/* The jumbogram option, which segments do not have. */
			protocol = byte_at(skb, headers);
			dropped = (byte_at(skb, headers + 1) + 1) * 8;
			headers += dropped;
		}
	}
	switch (protocol) {
	case IPPROTO_TCP:
		headers += (byte_at(skb, headers + 12) >> 4) * 4;
		break;
	case IPPROTO_UDP:
		headers += UDP_HEADER;
		break;
	case IPPROTO_SCTP:
		headers += SCTP_HEADER;
		break;
	default:
		/* Another extension header is in between. */
		headers += TCP_HEADER;
	}
	if (skb->len <= headers)
		return 0;
	payload = skb->len - headers;
	segments = size == GSO_BY_FRAGS ? skb->gso_segs : (payload + size - 1) / size;
	if (!segments)
		return 0;
	wire->packets = segments;
	wire->bytes = payload + segments * (__u64)(headers - dropped);
	return 0;
}

static ALWAYS_INLINE struct direction_counters measure_packet(struct __sk_buff *skb, struct link *link)
{
	struct direction_counters wire = {.bytes = skb->len, .packets = 1};
	__u32 header = link_header(skb, link);

	if (skb->gso_size)
		measure_segments(skb, &wire);
	wire.bytes += wire.packets * header;
	return wire;
}

/* Estimates the size on the wire of payload in segments of this size. Each has headers of the average length in the
 * packets that carried `carried` bytes. */
static ALWAYS_INLINE struct direction_counters estimate_wire(__u64 payload, __u32 segment,
							     const struct direction_counters *total, __u64 carried)
{
	struct direction_counters wire = {.bytes = payload};
	__u64 packets = total->packets, bytes = total->bytes;

	if (!payload)
		return wire;
	wire.packets = segment ? (payload + segment - 1) / segment : 1;
	if (packets && bytes > carried)
		wire.bytes += wire.packets * ((bytes - carried) / packets);
	return wire;
}

static ALWAYS_INLINE __u32 sequence_distance(__u32 later, __u32 earlier)
{
	__s32 difference = later - earlier;

	return difference > 0 ? difference : 0;
}

/* Returns the average size of a socket's datagrams on the wire. */
static ALWAYS_INLINE __u64 average_size(const struct direction_counters *counters)
{
	__u64 packets = counters->packets;

	return packets ? counters->bytes / packets : 0;
}

/* Returns the size on the wire of a datagram with this payload, which a process has just read. */
static ALWAYS_INLINE __u64 datagram_wire_size(struct sock *sk, const struct record *record, __u32 payload)
{
	int is_v4 = sk->__sk_common.skc_family == AF_INET ||
		    (record->tuple.local[10] == 0xff && record->tuple.local[11] == 0xff);

	if (sk->sk_protocol != IPPROTO_UDP && sk->sk_protocol != IPPROTO_UDPLITE)
		return average_size(&record->received);
	return record->link.header + (is_v4 ? 20 : 40) + UDP_HEADER + payload;
}

/* Estimates the received traffic of a connection that no process has read: the socket's queue, and `payload`, which has
 * just been read. */
static ALWAYS_INLINE struct direction_counters unread_of_stream(struct tcp_sock *tcp, const struct record *record,
								__u64 payload)
{
	return estimate_wire(sequence_distance(tcp->rcv_nxt, tcp->copied_seq) + payload, tcp->advmss, &record->received,
			     tcp->bytes_received);
}

/* Estimates the received traffic on the wire that no process has read: the socket's queue, and `payload`, which has
 * just been read. */
static ALWAYS_INLINE struct direction_counters unread_wire(struct sock *sk, const struct record *record, __u64 payload)
{
	struct direction_counters wire = {.bytes = payload, .packets = !!payload};
	__u32 queued;

	if (sk->sk_protocol == IPPROTO_TCP) {
		struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

		return tcp ? unread_of_stream(tcp, record, payload) : wire;
	}
	if (!(record->flags & DATAGRAM))
		return wire;
	queued = sk->sk_receive_queue.qlen;
	if (sk->sk_protocol == IPPROTO_UDP || sk->sk_protocol == IPPROTO_UDPLITE) {
		__u32 moved = 0;

		bpf_probe_read_kernel(&moved, sizeof(moved), &((struct udp_sock *)sk)->reader_queue.qlen);
		queued += moved;
	}
	if (payload)
		queued++;
	wire.bytes = queued * average_size(&record->received);
	wire.packets = queued;
	return wire;
}

/* Estimates the traffic sent since the beginning of the call in progress, which sends `payload`. Datagrams are counted
 * as they leave, during the call. */
static ALWAYS_INLINE struct direction_counters sent_since_call(struct sock *sk, const struct record *record,
							       __u64 payload)
{
	struct direction_counters wire = {};
	struct tcp_sock *tcp;

	if (record->flags & DATAGRAM)
		return wire;
	tcp = sk->sk_protocol == IPPROTO_TCP ? bpf_skc_to_tcp_sock(sk) : 0;
	if (tcp)
		return estimate_wire(sequence_distance(tcp->snd_nxt, tcp->write_seq - (__u32)payload), tcp->mss_cache,
				     &record->sent, tcp->bytes_sent);
	wire.bytes = payload;
	wire.packets = !!payload;
	return wire;
}

#endif
