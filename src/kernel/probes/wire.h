/* How much of the wire a packet takes, and which part of what a socket has carried a call stands for.
 *
 * Where the IP layer hands packets on, one may stand for many: the device, or the kernel on its behalf, cuts it up after
 * this point (GSO), or has put it together before (GRO). Each of the many has headers of its own. */

#ifndef CAPTURE_WIRE_H
#define CAPTURE_WIRE_H

#include "endpoints.h"
#include "maps.h"

#define UDP_HEADER 8
#define TCP_HEADER 20

/* In place of the size of segments: these are listed one by one (SCTP), include/linux/skbuff.h. */
#define GSO_BY_FRAGS 0xFFFF
#define SCTP_HEADER 12

/* The length of the link header that is counted for a packet on a device: Ethernet's, or none. Tunnels, too, can have headers
 * of their own and addresses, but shorter or longer ones; and any type can be set for a tun device, so that says nothing. */
static ALWAYS_INLINE __u32 link_header_on(struct net_device *device, unsigned char address_length)
{
	const struct header_ops *operations = 0;
	int (*create)(void) = 0;

	READ(operations, device->header_ops);
	if (operations)
		READ(create, operations->create);
	return create && address_length == ETH_ALEN ? ETH_HLEN : 0;
}

/* Where a packet is. */
struct site {
	/* The network namespace of its device. */
	__u32 netns;
	/* The length of the link header that it has there. */
	__u32 header;
};

/* Looks at the device that a packet is on, in the kernel's own packet: the number of a device means something in its network
 * namespace only. */
SUBPROGRAM int locate(struct __sk_buff *skb, struct site *site)
{
	struct sk_buff *packet = kernel_packet(skb);
	unsigned char address_length = 0;
	struct net_device *device = 0;
	struct net *net = 0;

	if (!site)
		return 0;
	if (packet) {
		device = packet->dev;
		if (device) {
			address_length = device->addr_len;
			net = device->nd_net.net;
			if (net)
				site->netns = net->ns.inum;
		}
	} else {
		packet = (struct sk_buff *)address_of(skb);
		READ(device, packet->dev);
		if (device) {
			READ(address_length, device->addr_len);
			READ(net, device->nd_net.net);
		}
		if (net)
			READ(site->netns, net->ns.inum);
	}
	site->header = device ? link_header_on(device, address_length) : ETH_HLEN;
	return 0;
}

static ALWAYS_INLINE __u32 link_header(struct __sk_buff *skb, struct link *link)
{
	__u32 device = skb->ifindex;

	if (UNLIKELY(link->device != device)) {
		struct site site = {};

		locate(skb, &site);
		link->header = site.header;
		link->device = device;
	}
	return link->header;
}

/* A byte of a packet from its IP header on. The headers are most often where no helper is needed to read them. */
static ALWAYS_INLINE __u8 byte_at(struct __sk_buff *skb, __u32 offset)
{
	const __u8 *byte = (const __u8 *)(unsigned long)skb->data + offset;
	__u8 copy = 0;

	if (byte + 1 <= (const __u8 *)(unsigned long)skb->data_end)
		return *byte;
	bpf_skb_load_bytes(skb, offset, &copy, 1);
	return copy;
}

/* Counts the segments that a packet stands for, and adds the headers that they have and it has not. */
SUBPROGRAM int measure_segments(struct __sk_buff *skb, struct way *wire)
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
			/* The option for jumbograms, which segments do not have. */
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
		/* Another extension header stands in between. */
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

static ALWAYS_INLINE struct way measure(struct __sk_buff *skb, struct link *link)
{
	struct way wire = {.bytes = skb->len, .packets = 1};
	__u32 header = link_header(skb, link);

	if (skb->gso_size)
		measure_segments(skb, &wire);
	wire.bytes += wire.packets * header;
	return wire;
}

/* How much of the wire so many bytes of payload take in segments of this size, each with headers as the packets that carried
 * `carried` bytes had on average. */
static ALWAYS_INLINE struct way on_wire(__u64 payload, __u32 segment, const struct way *total, __u64 carried)
{
	struct way wire = {.bytes = payload};
	__u64 packets = total->packets, bytes = total->bytes;

	if (!payload)
		return wire;
	wire.packets = segment ? (payload + segment - 1) / segment : 1;
	if (packets && bytes > carried)
		wire.bytes += wire.packets * ((bytes - carried) / packets);
	return wire;
}

static ALWAYS_INLINE __u32 since(__u32 later, __u32 earlier)
{
	__s32 difference = later - earlier;

	return difference > 0 ? difference : 0;
}

/* What a socket's datagrams take on average. */
static ALWAYS_INLINE __u64 average(const struct way *way)
{
	__u64 packets = way->packets;

	return packets ? way->bytes / packets : 0;
}

/* What a datagram has taken of which a process has just read so much payload. */
static ALWAYS_INLINE __u64 datagram(struct sock *sk, const struct record *record, __u32 payload)
{
	int is_v4 = sk->__sk_common.skc_family == AF_INET ||
		    (record->tuple.local[10] == 0xff && record->tuple.local[11] == 0xff);

	if (sk->sk_protocol != IPPROTO_UDP && sk->sk_protocol != IPPROTO_UDPLITE)
		return average(&record->received);
	return record->link.header + (is_v4 ? 20 : 40) + UDP_HEADER + payload;
}

/* What has been received of a connection and not been read: what is in the socket's queue, and `payload`, which has just
 * been read. */
static ALWAYS_INLINE struct way unread_of_stream(struct tcp_sock *tcp, const struct record *record, __u64 payload)
{
	return on_wire(since(tcp->rcv_nxt, tcp->copied_seq) + payload, tcp->advmss, &record->received,
		       tcp->bytes_received);
}

/* What has been received and not been read, estimated: the wire's share of what is in the socket's queue, and of `payload`,
 * which has just been read. */
static ALWAYS_INLINE struct way unread(struct sock *sk, const struct record *record, __u64 payload)
{
	struct way wire = {.bytes = payload, .packets = !!payload};
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
	wire.bytes = queued * average(&record->received);
	wire.packets = queued;
	return wire;
}

/* What has been sent since the call under way began, which hands over `payload`. What leaves during the call is counted as it
 * leaves (DATAGRAM). */
static ALWAYS_INLINE struct way sent_since(struct sock *sk, const struct record *record, __u64 payload)
{
	struct way wire = {};
	struct tcp_sock *tcp;

	if (record->flags & DATAGRAM)
		return wire;
	tcp = sk->sk_protocol == IPPROTO_TCP ? bpf_skc_to_tcp_sock(sk) : 0;
	if (tcp)
		return on_wire(since(tcp->snd_nxt, tcp->write_seq - (__u32)payload), tcp->mss_cache, &record->sent,
			       tcp->bytes_sent);
	wire.bytes = payload;
	wire.packets = !!payload;
	return wire;
}

#endif
