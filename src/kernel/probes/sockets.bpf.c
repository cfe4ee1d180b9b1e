/* Who uses each socket, and what goes through it.
 *
 * A socket is known by its cookie, a number that the kernel never gives twice. Its record is made when the socket is
 * created, accepted or found open at the start, and names the process that used it last; bytes are added to it where
 * the IP layer hands packets on (cgroup_skb). Nothing here ever changes or drops a packet.
 *
 * Only the reader removes records: one of a socket that is gone stays, marked ENDED, until it has been read. */

#include "core.h"
#include "sockets.h"

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_UDPLITE 136
#define IPPROTO_MPTCP 262
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD

/* Sends without an answer after which a datagram socket's sends are no longer timed, so that a flood pays no clock. */
#define UNANSWERED 16

/* Whether the peers of unconnected sockets are entered in `tuples` too: only who captures packets asks for them. */
const volatile __u8 want_peers = 1;

/* Whether somebody reads the records: those of sockets that have ended then stay until they have been read. */
const volatile __u8 keep_records = 0;

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 262144);
	MAP_TYPE(key, __u64);
	MAP_TYPE(value, struct record);
} sockets SEC(".maps");

/* What earlier users of a shared socket have to their account, and the senders on packet sockets. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 65536);
	MAP_TYPE(key, struct share_key);
	MAP_TYPE(value, struct share);
} shares SEC(".maps");

/* The socket of each pair of endpoints, also for a while after its end. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 131072);
	MAP_TYPE(key, struct tuple);
	MAP_TYPE(value, struct owned);
} tuples SEC(".maps");

/* Packets of connections that have no socket of their own yet: they pass through the listener's. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 16384);
	MAP_TYPE(key, struct tuple);
	MAP_TYPE(value, struct traffic);
} embryos SEC(".maps");

/* The sockets that listen at each local end, for connections that did not inherit their listener's cookie: it listened
 * before the probes were loaded, and out of their reach (MPTCP). */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 8192);
	MAP_TYPE(key, struct tuple);
	MAP_TYPE(value, __u64);
} listeners SEC(".maps");

/* The listener's cookie, which the kernel copies to every socket that the listener makes. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_SK_STORAGE);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	MAP_TYPE(key, int);
	MAP_TYPE(value, __u64);
} parents SEC(".maps");

/* Times from request to answer, of each process. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 16384);
	MAP_TYPE(key, struct process);
	MAP_TYPE(value, struct histogram);
} latencies SEC(".maps");

/* Length of the link header of each device, plus one; 0 stands for Ethernet's. Filled by the reader. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, DEVICES);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u8);
} link_headers SEC(".maps");

/* What could not be put to any socket's account. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, LOSSES);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct traffic);
} losses SEC(".maps");

static ALWAYS_INLINE void add(__u64 *sum, __u64 value)
{
	__sync_fetch_and_add(sum, value);
}

static ALWAYS_INLINE void lose(__u32 why, int direction, __u64 bytes)
{
	struct traffic *loss = bpf_map_lookup_elem(&losses, &why);

	if (!loss)
		return;
	add(&loss->bytes[direction & 1], bytes);
	add(&loss->packets[direction & 1], 1);
}

static ALWAYS_INLINE void current_process(struct process *process)
{
	struct task_struct *task = bpf_get_current_task_btf();

	process->start_ns = task->group_leader->start_boottime;
	process->tgid = task->tgid;
	process->padding = 0;
}

static ALWAYS_INLINE void current_user(struct record *record)
{
	current_process(&record->owner);
	bpf_probe_read_kernel(record->name, NAME, &bpf_get_current_task_btf()->group_leader->comm);
	__u64 ids = bpf_get_current_uid_gid();

	record->uid = (__u32)ids;
	record->gid = ids >> 32;
	record->cgroup = bpf_get_current_cgroup_id();
}

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

/* Lets the endpoints lead to the socket and its user. */
static ALWAYS_INLINE void enter_tuple(const struct tuple *tuple, __u64 cookie, const struct record *record)
{
	struct owned owned = {.owner = record->owner, .cookie = cookie, .flags = record->flags};

	owned.uid = record->uid;
	owned.gid = record->gid;
	owned.ended_ns = record->ended_ns;
	__builtin_memcpy(owned.name, record->name, NAME);
	bpf_map_update_elem(&tuples, tuple, &owned, BPF_ANY);
}

/* The record of a socket that the current process uses, made if there is none. */
static ALWAYS_INLINE struct record *used_record(struct sock *sk, __u64 cookie)
{
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);

	if (record)
		return record;

	struct record new = {};

	current_user(&new);
	new.opened_ns = bpf_ktime_get_boot_ns();
	tuple_of_sock(sk, &new.tuple);
	new.family = (__u8)sk->__sk_common.skc_family;
	if (bpf_map_update_elem(&sockets, &cookie, &new, BPF_NOEXIST))
		lose(LOSS_TABLE_FULL, 0, 0);
	return bpf_map_lookup_elem(&sockets, &cookie);
}

/* Moves what belongs to the user so far out of the record: what was counted up to its last call on the socket. */
static __attribute__((noinline)) int set_apart(struct record *record, __u64 cookie)
{
	struct share_key key = {.owner = record->owner, .cookie = cookie};
	struct share fresh = {};
	struct share *share;
	struct traffic moved;

	moved = record->claimed;
	record->claimed = (struct traffic){};
	for (int direction = 0; direction < 2; direction++) {
		add(&record->traffic.bytes[direction], -moved.bytes[direction]);
		add(&record->traffic.packets[direction], -moved.packets[direction]);
	}
	fresh.uid = record->uid;
	fresh.gid = record->gid;
	fresh.netns = record->tuple.netns;
	fresh.cgroup = record->cgroup;
	__builtin_memcpy(fresh.name, record->name, NAME);
	bpf_map_update_elem(&shares, &key, &fresh, BPF_NOEXIST);
	share = bpf_map_lookup_elem(&shares, &key);
	if (!share) {
		for (int direction = 0; direction < 2; direction++)
			lose(LOSS_TABLE_FULL, direction, moved.bytes[direction]);
		return 0;
	}
	for (int direction = 0; direction < 2; direction++) {
		add(&share->traffic.bytes[direction], moved.bytes[direction]);
		add(&share->traffic.packets[direction], moved.packets[direction]);
	}
	return 0;
}

/* Notes that the current process uses the socket: it is the owner from now on, and of what passed since the owner before
 * it made its last call. Of a connection that a listener made all is the first user's: nobody else counts it before. */
static ALWAYS_INLINE void take_over(struct record *record, __u64 cookie)
{
	struct process process;

	current_process(&process);
	if (UNLIKELY(process.tgid != record->owner.tgid || process.start_ns != record->owner.start_ns)) {
		if (keep_records && !(record->flags & INHERITED)) {
			if (!(record->sends + record->receives))
				record->claimed = record->traffic;
			set_apart(record, cookie);
			record->flags |= SWITCHED;
		}
		current_user(record);
		record->flags &= ~(INHERITED | HELD | SEVERAL);
		if (record->flags & NAMED)
			enter_tuple(&record->tuple, cookie, record);
	} else if (UNLIKELY(record->flags & (INHERITED | HELD | SEVERAL))) {
		record->flags &= ~(INHERITED | HELD | SEVERAL);
		if (record->flags & NAMED)
			enter_tuple(&record->tuple, cookie, record);
	}
}

static ALWAYS_INLINE struct record *use_socket(struct sock *sk, __u64 cookie)
{
	struct record *record = used_record(sk, cookie);

	if (record)
		take_over(record, cookie);
	return record;
}

/* A program may create a socket, and another one may use it: the first user counts as the owner only until then. */
SEC("cgroup/sock_create")
int capture_create(struct bpf_sock *context)
{
	__u64 cookie = bpf_get_socket_cookie(context);
	struct record new = {};

	current_user(&new);
	new.opened_ns = bpf_ktime_get_boot_ns();
	new.tuple.netns = bpf_get_current_task_btf()->nsproxy->net_ns->ns.inum;
	new.tuple.protocol = (__u8)context->protocol;
	new.family = (__u8)context->family;
	if (bpf_map_update_elem(&sockets, &cookie, &new, BPF_NOEXIST))
		lose(LOSS_TABLE_FULL, 0, 0);
	return 1;
}

/* Marks a record as that of a socket that is gone. */
static ALWAYS_INLINE void end_record(struct record *record, __u64 cookie)
{
	if (record->flags & ENDED)
		return;
	/* A connection may have ended before its socket did. */
	if (!record->ended_ns)
		record->ended_ns = bpf_ktime_get_boot_ns();
	record->flags |= ENDED;
	if (record->flags & NAMED)
		enter_tuple(&record->tuple, cookie, record);
	if (!keep_records)
		bpf_map_delete_elem(&sockets, &cookie);
}

/* The last descriptor of a socket is closed. A TCP connection goes on for a while; see capture_destroy. */
SEC("cgroup/sock_release")
int capture_release(struct bpf_sock *context)
{
	__u64 cookie = bpf_get_socket_cookie(context);
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);

	if (record && !(context->protocol == IPPROTO_TCP && context->type == 1))
		end_record(record, cookie);
	return 1;
}

/* A connection that a listener has made: its user is the listener's until somebody uses it. */
static __attribute__((noinline)) int adopt(__u64 parent, __u64 cookie, struct tuple *tuple, int family)
{
	struct record new = {};
	struct record *listener;
	struct traffic *embryo;

	if (!tuple || !parent || parent == cookie)
		return 0;
	listener = bpf_map_lookup_elem(&sockets, &parent);
	if (listener) {
		new.owner = listener->owner;
		new.uid = listener->uid;
		new.gid = listener->gid;
		new.cgroup = listener->cgroup;
		__builtin_memcpy(new.name, listener->name, NAME);
		tuple->netns = listener->tuple.netns;
	}
	new.opened_ns = bpf_ktime_get_boot_ns();
	new.established_ns = new.opened_ns;
	new.flags = ACCEPTED | INHERITED | NAMED;
	new.family = (__u8)family;
	new.tuple = *tuple;
	embryo = bpf_map_lookup_elem(&embryos, &new.tuple);
	if (embryo) {
		new.traffic = *embryo;
		bpf_map_delete_elem(&embryos, &new.tuple);
	}
	if (bpf_map_update_elem(&sockets, &cookie, &new, BPF_NOEXIST))
		lose(LOSS_TABLE_FULL, 0, 0);
	enter_tuple(&new.tuple, cookie, &new);
	return 0;
}

/* The cookie of the socket that listens where a connection came in, or 0. */
static __attribute__((noinline)) __u64 listener_of(const struct tuple *tuple)
{
	struct tuple key = {};
	__u64 *cookie;

	if (!tuple)
		return 0;
	key.netns = tuple->netns;
	key.protocol = tuple->protocol;
	key.local_port = tuple->local_port;
	__builtin_memcpy(key.local, tuple->local, 16);
	if (tuple->local[10] == 0xff && tuple->local[11] == 0xff) {
		map_v4(key.remote, 0);
		cookie = bpf_map_lookup_elem(&listeners, &key);
		if (cookie)
			return *cookie;
		map_v4(key.local, 0);
	}
	cookie = bpf_map_lookup_elem(&listeners, &key);
	if (!cookie) {
		/* Bound to any address, of both families. */
		__builtin_memset(key.local, 0, 32);
		cookie = bpf_map_lookup_elem(&listeners, &key);
	}
	return cookie ? *cookie : 0;
}

static ALWAYS_INLINE void note_tcp(struct record *record, struct sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	if (!tcp)
		return;
	/* Both are set back when a connection is taken apart. */
	if (tcp->srtt_us)
		/* The kernel keeps eight times the smoothed time. */
		record->smoothed_rtt_us = tcp->srtt_us >> 3;
	if (tcp->total_retrans > record->retransmits)
		record->retransmits = tcp->total_retrans;
}

SEC("tp_btf/inet_sock_set_state")
int capture_state(__u64 *context)
{
	struct sock *sk = (struct sock *)context[0];
	int before = (int)context[1], now = (int)context[2];
	struct record *record;
	__u64 cookie;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	cookie = bpf_get_socket_cookie(sk);
	switch (now) {
	case BPF_TCP_SYN_SENT:
		record = use_socket(sk, cookie);
		if (!record)
			return 0;
		record->connecting_ns = bpf_ktime_get_boot_ns();
		record->ended_ns = 0;
		record->flags |= CONNECTED;
		break;
	case BPF_TCP_LISTEN:
		record = use_socket(sk, cookie);
		if (!record)
			return 0;
		record->flags |= LISTENER;
		tuple_of_sock(sk, &record->tuple);
		bpf_map_update_elem(&listeners, &record->tuple, &cookie, BPF_ANY);
		bpf_sk_storage_get(&parents, sk, &cookie, BPF_SK_STORAGE_GET_F_CREATE);
		break;
	case BPF_TCP_ESTABLISHED:
		record = bpf_map_lookup_elem(&sockets, &cookie);
		if (!record) {
			__u64 *parent = bpf_sk_storage_get(&parents, sk, 0, 0);
			struct tuple tuple;

			tuple_of_sock(sk, &tuple);
			adopt(parent ? *parent : listener_of(&tuple), cookie, &tuple, sk->__sk_common.skc_family);
			record = bpf_map_lookup_elem(&sockets, &cookie);
		}
		if (!record)
			return 0;
		if (!record->established_ns)
			record->established_ns = bpf_ktime_get_boot_ns();
		if (!(record->flags & NAMED)) {
			tuple_of_sock(sk, &record->tuple);
			record->flags |= NAMED;
			enter_tuple(&record->tuple, cookie, record);
		}
		note_tcp(record, sk);
		break;
	default:
		record = bpf_map_lookup_elem(&sockets, &cookie);
		if (!record)
			return 0;
		if (now == BPF_TCP_CLOSE) {
			record->error = sk->sk_err;
			record->ended_ns = bpf_ktime_get_boot_ns();
			note_tcp(record, sk);
		}
	}
	record->last_state = (__u8)before;
	record->state = (__u8)now;
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int capture_destroy(__u64 *context)
{
	struct sock *sk = (struct sock *)context[0];
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);

	if (!record)
		return 0;
	note_tcp(record, sk);
	end_record(record, cookie);
	return 0;
}

/* Packet sockets send below the IP layer, so what they say they sent is what counts. */
static __attribute__((noinline)) int count_packet_socket(__u64 cookie, __u32 netns, __u64 bytes)
{
	struct share_key key = {.cookie = cookie};
	struct record user = {};
	struct share fresh = {};
	struct share *share;

	current_user(&user);
	key.owner = user.owner;
	share = bpf_map_lookup_elem(&shares, &key);
	if (!share) {
		fresh.uid = user.uid;
		fresh.gid = user.gid;
		fresh.netns = netns;
		fresh.is_packet_socket = 1;
		fresh.cgroup = user.cgroup;
		__builtin_memcpy(fresh.name, user.name, NAME);
		bpf_map_update_elem(&shares, &key, &fresh, BPF_NOEXIST);
		share = bpf_map_lookup_elem(&shares, &key);
		if (!share) {
			lose(LOSS_TABLE_FULL, SENT, bytes);
			return 0;
		}
	}
	add(&share->traffic.bytes[SENT], bytes);
	add(&share->traffic.packets[SENT], 1);
	return 0;
}

static ALWAYS_INLINE void claim(struct record *record, int direction)
{
	record->claimed.bytes[direction] = record->traffic.bytes[direction];
	record->claimed.packets[direction] = record->traffic.packets[direction];
}

/* What a program sends through an MPTCP socket goes through TCP sockets of the kernel's: the first stands for all. */
static ALWAYS_INLINE struct record *use_subflow(struct sock *sk)
{
	struct sock *first = 0;
	struct record *record;
	__u64 cookie = 0;

	bpf_probe_read_kernel(&first, sizeof(first), &((struct mptcp_sock *)sk)->first);
	if (!first)
		return 0;
	bpf_probe_read_kernel(&cookie, sizeof(cookie), &first->__sk_common.skc_cookie.counter);
	if (!cookie)
		return 0;
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (!record) {
		struct record new = {};

		current_user(&new);
		new.tuple.netns = sk->__sk_common.skc_net.net->ns.inum;
		new.tuple.protocol = IPPROTO_TCP;
		bpf_map_update_elem(&sockets, &cookie, &new, BPF_NOEXIST);
		record = bpf_map_lookup_elem(&sockets, &cookie);
	}
	if (record)
		take_over(record, cookie);
	return record;
}

SEC("tp_btf/sock_send_length")
int capture_send(__u64 *context)
{
	struct sock *sk = (struct sock *)context[0];
	int length = (int)context[1];
	unsigned short family = sk->__sk_common.skc_family;
	struct record *record;

	if (family == AF_PACKET && length > 0) {
		count_packet_socket(bpf_get_socket_cookie(sk), sk->__sk_common.skc_net.net->ns.inum, length);
		return 0;
	}
	if (!is_internet(family) || length < 0)
		return 0;
	record = sk->sk_protocol == IPPROTO_MPTCP ? use_subflow(sk) : use_socket(sk, bpf_get_socket_cookie(sk));
	if (!record)
		return 0;
	add(&record->sends, 1);
	claim(record, SENT);
	if (record->tuple.protocol == IPPROTO_TCP) {
		record->sent_ns = bpf_ktime_get_boot_ns();
		if (sk->sk_protocol == IPPROTO_TCP)
			note_tcp(record, sk);
	} else if (record->unanswered < UNANSWERED) {
		record->unanswered++;
		record->sent_ns = bpf_ktime_get_boot_ns();
	} else if (record->sent_ns) {
		record->sent_ns = 0;
	}
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

static __attribute__((noinline)) int note_answer(struct record *record, __u64 time_ns)
{
	struct histogram *histogram;
	struct latency *latency = &record->latency;

	if (!latency->count || time_ns < latency->least_ns)
		latency->least_ns = time_ns;
	if (time_ns > latency->most_ns)
		latency->most_ns = time_ns;
	latency->sum_ns += time_ns;
	latency->count++;
	histogram = bpf_map_lookup_elem(&latencies, &record->owner);
	if (!histogram) {
		static const struct histogram empty = {};

		bpf_map_update_elem(&latencies, &record->owner, &empty, BPF_NOEXIST);
		histogram = bpf_map_lookup_elem(&latencies, &record->owner);
		if (!histogram)
			return 0;
	}
	add(&histogram->buckets[bucket_of(time_ns)], 1);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int capture_receive(__u64 *context)
{
	struct sock *sk = (struct sock *)context[0];
	int length = (int)context[1], flags = (int)context[2];
	struct record *record;

	if (!is_internet(sk->__sk_common.skc_family))
		return 0;
	if (UNLIKELY(length < 0)) {
		/* Who waits for a connection's data in vain has it; of others several may be trying. */
		__u64 cookie = bpf_get_socket_cookie(sk);

		record = bpf_map_lookup_elem(&sockets, &cookie);
		if (record && record->flags & INHERITED)
			take_over(record, cookie);
		return 0;
	}
	record = sk->sk_protocol == IPPROTO_MPTCP ? use_subflow(sk) : use_socket(sk, bpf_get_socket_cookie(sk));
	if (!record)
		return 0;
	/* What is only looked at is received when it is taken. */
	if (flags & 2)
		return 0;
	/* Of a stream, nothing is its end. */
	if (length || record->tuple.protocol != IPPROTO_TCP)
		add(&record->receives, 1);
	claim(record, RECEIVED);
	if (record->unanswered)
		record->unanswered = 0;
	if (sk->sk_protocol == IPPROTO_TCP)
		note_tcp(record, sk);
	if (record->sent_ns && length > 0) {
		note_answer(record, bpf_ktime_get_boot_ns() - record->sent_ns);
		record->sent_ns = 0;
	}
	return 0;
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
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE || protocol == 132 ||
	    protocol == 33) {
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

static ALWAYS_INLINE int same_tuple(const struct tuple *one, const struct tuple *other)
{
	const __u64 *left = (const __u64 *)one, *right = (const __u64 *)other;

	for (unsigned int word = 0; word < sizeof(*one) / 8; word++)
		if (left[word] != right[word])
			return 0;
	return 1;
}

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
		add(&embryo->bytes[direction & 1], bytes);
		add(&embryo->packets[direction & 1], 1);
		return 0;
	}
	fresh.bytes[direction & 1] = bytes;
	fresh.packets[direction & 1] = 1;
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
		adopt(*parent, cookie, &tuple, sk->family);
		record = bpf_map_lookup_elem(&sockets, &cookie);
	}
	if (!record) {
		lose(LOSS_UNKNOWN, direction, bytes);
		return 0;
	}
	add(&record->traffic.bytes[direction & 1], bytes);
	add(&record->traffic.packets[direction & 1], 1);
	return 0;
}

static ALWAYS_INLINE int count_packet(struct __sk_buff *skb, int direction)
{
	struct bpf_sock *sk = skb->sk;
	__u64 cookie, bytes = skb->len;
	__u32 state, device = skb->ifindex & (DEVICES - 1);
	struct record *record;
	__u8 *link_header;

	if (!sk)
		return 1;
	state = sk->state;
	link_header = bpf_map_lookup_elem(&link_headers, &device);
	bytes += link_header && *link_header ? *link_header - 1 : 14;
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
	add(&record->traffic.bytes[direction], bytes);
	add(&record->traffic.packets[direction], 1);
	/* A connected socket's endpoints do not change. */
	if (!(record->flags & NAMED) || (want_peers && state == BPF_TCP_CLOSE))
		name_peer(skb, cookie, record, direction, state != BPF_TCP_CLOSE);
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

/* Adds a packet of a connection that has no socket any more to the record of the one it had. */
static ALWAYS_INLINE void count_late(__u64 cookie, int direction, __u64 bytes)
{
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);

	if (!record || !(record->flags & ENDED))
		return;
	add(&record->traffic.bytes[direction], bytes);
	add(&record->traffic.packets[direction], 1);
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
		count_late(owned->cookie, RECEIVED, skb->len + (skb->transport_header - skb->network_header) + 14);
	return 0;
}

/* Every socket that a process holds at the start. */
SEC("iter/task_file")
int capture_seed(struct bpf_iter__task_file *context)
{
	struct task_struct *task = context->task;
	struct file *file = context->file;
	struct record new = {};
	struct record *record;
	struct socket *socket;
	struct sock *sk;
	__u64 cookie;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_internet(sk->__sk_common.skc_family))
		return 0;
	cookie = bpf_get_socket_cookie(sk);
	if (sk->sk_protocol == IPPROTO_MPTCP && sk->__sk_common.skc_state != BPF_TCP_LISTEN) {
		/* The TCP socket that it works by is what has packets. */
		struct sock *first = 0;

		bpf_probe_read_kernel(&first, sizeof(first), &((struct mptcp_sock *)sk)->first);
		if (first)
			bpf_probe_read_kernel(&cookie, sizeof(cookie), &first->__sk_common.skc_cookie.counter);
		if (!first || !cookie)
			return 0;
	}
	new.owner.start_ns = task->group_leader->start_boottime;
	new.owner.tgid = task->tgid;
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (record) {
		if (!(record->flags & HELD) || record->owner.tgid == new.owner.tgid)
			return 0;
		record->flags |= SEVERAL;
		/* The youngest that is not process 1, which keeps what it passes on; of equally old ones the last. */
		if (new.owner.tgid == 1 ||
		    (record->owner.tgid != 1 && new.owner.start_ns < record->owner.start_ns))
			return 0;
		record->owner = new.owner;
		return 0;
	}
	new.uid = sk->sk_uid.val;
	new.family = (__u8)sk->__sk_common.skc_family;
	new.state = sk->__sk_common.skc_state;
	new.flags = HELD;
	bpf_probe_read_kernel(new.name, NAME, &task->group_leader->comm);
	tuple_of_sock(sk, &new.tuple);
	if (new.tuple.remote_port) {
		new.flags |= NAMED;
		enter_tuple(&new.tuple, cookie, &new);
	} else if (new.state == BPF_TCP_LISTEN && new.tuple.protocol == IPPROTO_TCP) {
		new.flags |= LISTENER;
		bpf_sk_storage_get(&parents, sk, &cookie, BPF_SK_STORAGE_GET_F_CREATE);
		bpf_map_update_elem(&listeners, &new.tuple, &cookie, BPF_ANY);
	}
	bpf_map_update_elem(&sockets, &cookie, &new, BPF_NOEXIST);
	return 0;
}

/* Several of the helpers are only for programs that are offered under the GPL too. */
char licence[] SEC("license") = "Dual MIT/GPL";
