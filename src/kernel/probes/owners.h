/* The process that uses a socket, which is the owner in the socket's record. */

#ifndef CAPTURE_OWNERS_H
#define CAPTURE_OWNERS_H

#include "records.h"
#include "shares.h"
#include "wire.h"

/* Payload bytes of the call in progress. */
struct payload {
	__u32 sent;
	__u32 received;
};

/* Sets the current process as the owner in a record. */
SUBPROGRAM int set_current_owner(struct record *record)
{
	struct task_struct *leader = current_leader();

	if (!record)
		return 0;
	read_current_process(&record->owner);
	bpf_probe_read_kernel(record->name, TASK_COMM_LEN, &leader->comm);
	read_ids(leader, &record->uid, &record->gid);
	record->cgroup = current_cgroup();
	return 0;
}

/* Returns true if the kernel itself uses a socket, for NFS, for example. The process that happens to run during a send
 * is not its user. The TCP sockets of an MPTCP socket are also created by the kernel, but used by the process that has
 * the MPTCP socket. */
static ALWAYS_INLINE int is_kernel_socket(struct sock *sk)
{
	__u64 is_made_by_kernel;

	READ_BITS(is_made_by_kernel, sk, sk_kern_sock);
	if (!is_made_by_kernel)
		return 0;
	if (sk->sk_protocol == IPPROTO_TCP && HAS_MEMBER(((struct tcp_sock *)0)->is_mptcp)) {
		struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

		return !tcp || !tcp->is_mptcp;
	}
	return 1;
}

static ALWAYS_INLINE int is_kernel_thread(void)
{
	return !!(bpf_get_current_task_btf()->flags & PF_KTHREAD);
}

/* Makes the current process the owner of all traffic from the call in progress on, and of received bytes that the
 * previous owner has not read. The traffic so far of a listener's or a creator's socket belongs to the first user,
 * because no other process is credited with it. */
SUBPROGRAM int change_owner(__u64 cookie, struct record *record, const struct direction_counters *later_sent,
			    const struct direction_counters *later_received)
{
	if (!record || !later_sent || !later_received || !begin_change(record))
		return 0;
	if (!is_current(&record->owner)) {
		if (keep_records && record->owner.tgid && !(record->flags & (INHERITED | UNUSED))) {
			move_to_share(cookie, record, later_sent, later_received);
			set_flags(record, SHARED);
		}
		set_current_owner(record);
	}
	clear_flags(record, UNCONFIRMED);
	end_change(record);
	if (record->flags & HAS_ENDPOINTS)
		insert_endpoint_owner(cookie, record);
	return 0;
}

/* Updates the owner of a socket that the current process uses. */
static ALWAYS_INLINE void update_owner(__u64 cookie, struct record *record, struct sock *sk,
				       struct sk_counters *counters, const struct payload *call)
{
	struct direction_counters later_sent = {}, later_received = {};

	if (is_current(&record->owner)) {
		if (UNLIKELY(record->flags & UNCONFIRMED)) {
			clear_flags(record, UNCONFIRMED);
			if (record->flags & HAS_ENDPOINTS)
				confirm_endpoint_owner(cookie, record);
		}
		return;
	}
	if (is_kernel_thread())
		return;
	if (counters)
		flush_sk_counters(record, counters);
	if (keep_records && record->flags & DATAGRAM && !(record->flags & UNCONFIRMED)) {
		/* The owner stays. Each datagram is credited to the process that sends or reads it. */
		if (call->received)
			count_for_reader(cookie, record, datagram_wire_size(sk, record, call->received));
		return;
	}
	if (keep_records) {
		later_sent = sent_since_call(sk, record, call->sent);
		later_received = unread_wire(sk, record, call->received);
	}
	change_owner(cookie, record, &later_sent, &later_received);
}

/* Updates the owner of a socket that the current process uses, in its record and its socket counters. */
static ALWAYS_INLINE void update_owner_and_counters(__u64 cookie, struct record *record, struct sock *sk,
						    struct sk_counters *counters, const struct payload *call)
{
	update_owner(cookie, record, sk, counters, call);
	if (counters)
		copy_owner(counters, record);
}

/* Creates the record of a socket that the current process uses. */
static ALWAYS_INLINE struct record *create_used_record(struct sock *sk, __u64 cookie)
{
	struct record *record = create_record(cookie);

	if (!record)
		return bpf_map_lookup_elem(&sockets, &cookie);
	if (!is_kernel_thread())
		set_current_owner(record);
	record->opened_ns = bpf_ktime_get_boot_ns();
	tuple_of_sock(sk, &record->tuple);
	set_flags(record, datagram_flag(sk->sk_type));
	end_change(record);
	return record;
}

/* Returns the cookie of a socket. Most sockets have one already, so that no helper is called. */
static ALWAYS_INLINE __u64 cookie_of(struct sock *sk)
{
	return sk->__sk_common.skc_cookie.counter ?: bpf_get_socket_cookie(sk);
}

/* Records the use of an MPTCP socket at its first subflow. The kernel sends through several TCP sockets, and the first
 * stands for all. */
static ALWAYS_INLINE struct record *use_mptcp_subflow(struct sock *sk, const struct payload *call)
{
	struct sock *first = 0;
	struct record *record;
	__u64 cookie = 0;

	if (!HAS_MEMBER(((struct mptcp_sock *)0)->first))
		return 0;
	bpf_probe_read_kernel(&first, sizeof(first), &((struct mptcp_sock *)sk)->first);
	if (!first)
		return 0;
	bpf_probe_read_kernel(&cookie, sizeof(cookie), &first->__sk_common.skc_cookie.counter);
	if (!cookie)
		return 0;
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (!record) {
		record = create_record(cookie);
		if (record) {
			set_current_owner(record);
			record->tuple.netns = netns_of(sk);
			record->tuple.protocol = IPPROTO_TCP;
			end_change(record);
		}
	}
	if (record)
		update_owner_and_counters(cookie, record, sk, sk_counters_of(cookie), call);
	return record;
}

/* Records that the current process uses a socket, in its record and its socket counters if there are any. Returns the
 * record. */
static ALWAYS_INLINE struct record *use_socket(struct sock *sk, __u64 cookie, struct sk_counters *counters,
					       const struct payload *call)
{
	struct record *record;

	if (UNLIKELY(sk->sk_protocol == IPPROTO_MPTCP))
		return use_mptcp_subflow(sk, call);
	record = bpf_map_lookup_elem(&sockets, &cookie);
	/* No process becomes the owner of the kernel's own sockets. */
	if (!record || !is_current(&record->owner)) {
		if (UNLIKELY(is_kernel_socket(sk)))
			return record;
		if (!record)
			record = create_used_record(sk, cookie);
		if (!record)
			return 0;
	}
	update_owner_and_counters(cookie, record, sk, counters, call);
	return record;
}

/* The place where a call of the current process is counted: the socket counters or, without them, the record. */
struct call_target {
	struct sk_counters *counters;
	struct record *record;
};

/* Finds that place, and records that the current process uses the socket. */
static ALWAYS_INLINE struct call_target find_call_target(struct sock *sk, const struct payload *call)
{
	__u64 cookie = cookie_of(sk);
	struct call_target target = {.counters = sk_counters_of(cookie)};

	if (target.counters && is_current_inline(&target.counters->owner))
		return target;
	target.record = use_socket(sk, cookie, target.counters, call);
	if (!target.record)
		target.counters = 0;
	return target;
}

/* Creates the record of a connection that a listener has created. The owner is the listener's until a process uses the
 * connection. */
SUBPROGRAM int inherit_from_listener(__u64 parent, __u64 cookie, const struct tuple *tuple)
{
	struct record *record, *listener;
	struct traffic *pending;
	struct tuple key;

	if (!tuple || !parent || parent == cookie)
		return 0;
	key = *tuple;
	listener = bpf_map_lookup_elem(&sockets, &parent);
	if (listener)
		key.netns = listener->tuple.netns;
	record = create_record(cookie);
	if (!record)
		return 0;
	if (listener) {
		record->owner = listener->owner;
		record->uid = listener->uid;
		record->gid = listener->gid;
		record->cgroup = listener->cgroup;
		__builtin_memcpy(record->name, listener->name, TASK_COMM_LEN);
	}
	record->opened_ns = bpf_ktime_get_boot_ns();
	record->established_ns = record->opened_ns;
	record->tuple = key;
	set_flags(record, ACCEPTED | INHERITED | HAS_ENDPOINTS);
	set_request_sock_key(&key, parent);
	pending = bpf_map_lookup_elem(&request_socks, &key);
	if (pending) {
		move_counters(&record->sent, &pending->by_direction[SENT]);
		move_counters(&record->received, &pending->by_direction[RECEIVED]);
		bpf_map_delete_elem(&request_socks, &key);
	}
	end_change(record);
	insert_endpoint_owner(cookie, record);
	return 0;
}

/* Returns the cookie of the listener at the local endpoint of a connection, or 0. */
SUBPROGRAM __u64 listener_of(const struct tuple *tuple)
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
		/* The listener is bound to any address of both families. */
		__builtin_memset(key.local, 0, 32);
		cookie = bpf_map_lookup_elem(&listeners, &key);
	}
	return cookie ? *cookie : 0;
}

#endif
