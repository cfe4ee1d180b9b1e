/* The process that uses a socket. */

#ifndef CAPTURE_USERS_H
#define CAPTURE_USERS_H

#include "records.h"
#include "shares.h"
#include "wire.h"

/* Payload that the call under way has handed over or got. */
struct payload {
	__u32 sent;
	__u32 received;
};

/* Fills in the current process as the user of a socket. */
SUBPROGRAM int current_user(struct record *record)
{
	struct task_struct *leader = current_leader();

	if (!record)
		return 0;
	current_process(&record->owner);
	bpf_probe_read_kernel(record->name, NAME, &leader->comm);
	read_ids(leader, &record->uid, &record->gid);
	record->cgroup = current_cgroup();
	return 0;
}

/* Whether the kernel itself has made a socket, for NFS, say. Whatever process happens to run as it sends does not use it.
 * The TCP sockets of an MPTCP socket are made by the kernel, too, and used by the process that has the latter. */
static ALWAYS_INLINE int is_the_kernels(struct sock *sk)
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

/* Makes the current process the owner: of what passes from the call under way on, and of what its owner before had not
 * used. What a listener or the creator of a socket has is all the first user's: nobody else counts it before. */
SUBPROGRAM int change_owner(__u64 cookie, struct record *record, const struct way *later_sent,
			    const struct way *later_received)
{
	if (!record || !later_sent || !later_received || !begin_change(record))
		return 0;
	if (!is_current(&record->owner)) {
		if (keep_records && record->owner.tgid && !(record->flags & (INHERITED | UNUSED))) {
			set_apart(cookie, record, later_sent, later_received);
			set_flags(record, SWITCHED);
		}
		current_user(record);
	}
	clear_flags(record, UNPROVEN);
	end_change(record);
	if (record->flags & NAMED)
		enter_tuple(cookie, record);
	return 0;
}

/* Notes that the current process uses the socket. */
static ALWAYS_INLINE void take_over(__u64 cookie, struct record *record, struct sock *sk, struct tally *tally,
				    const struct payload *call)
{
	struct way later_sent = {}, later_received = {};

	if (is_current(&record->owner)) {
		if (UNLIKELY(record->flags & UNPROVEN)) {
			clear_flags(record, UNPROVEN);
			if (record->flags & NAMED)
				prove_tuple(cookie, record);
		}
		return;
	}
	if (is_kernel_thread())
		return;
	if (tally)
		bring_up_to_date(record, tally);
	if (keep_records && record->flags & DATAGRAM && !(record->flags & UNPROVEN)) {
		/* Its owner stays: each datagram is counted at the process that sends or reads it. */
		if (call->received)
			count_at_reader(cookie, record, datagram(sk, record, call->received));
		return;
	}
	if (keep_records) {
		later_sent = sent_since(sk, record, call->sent);
		later_received = unread(sk, record, call->received);
	}
	change_owner(cookie, record, &later_sent, &later_received);
}

/* The same, and the socket's tally says so too. */
static ALWAYS_INLINE void use_record(__u64 cookie, struct record *record, struct sock *sk, struct tally *tally,
				     const struct payload *call)
{
	take_over(cookie, record, sk, tally, call);
	if (tally)
		name_user(tally, record);
}

/* Makes the record of a socket that the current process uses. */
static ALWAYS_INLINE struct record *new_record(struct sock *sk, __u64 cookie)
{
	struct record *record = open_record(cookie);

	if (!record)
		return bpf_map_lookup_elem(&sockets, &cookie);
	if (!is_kernel_thread())
		current_user(record);
	record->opened_ns = bpf_ktime_get_boot_ns();
	tuple_of_sock(sk, &record->tuple);
	set_flags(record, kind_of(sk->sk_type));
	end_change(record);
	return record;
}

/* The number of a socket, for which it need not be called for most often. */
static ALWAYS_INLINE __u64 cookie_of(struct sock *sk)
{
	return sk->__sk_common.skc_cookie.counter ?: bpf_get_socket_cookie(sk);
}

/* What a program sends through an MPTCP socket goes through TCP sockets of the kernel's: the first stands for all. */
static ALWAYS_INLINE struct record *use_subflow(struct sock *sk, const struct payload *call)
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
		record = open_record(cookie);
		if (record) {
			current_user(record);
			record->tuple.netns = netns_of(sk);
			record->tuple.protocol = IPPROTO_TCP;
			end_change(record);
		}
	}
	if (record)
		use_record(cookie, record, sk, tally_of(cookie), call);
	return record;
}

/* The record of a socket that the current process uses, and that is its own from now on, as is the tally if there is
 * one. */
static ALWAYS_INLINE struct record *use_socket(struct sock *sk, __u64 cookie, struct tally *tally,
					       const struct payload *call)
{
	struct record *record;

	if (UNLIKELY(sk->sk_protocol == IPPROTO_MPTCP))
		return use_subflow(sk, call);
	record = bpf_map_lookup_elem(&sockets, &cookie);
	/* Of a socket of the kernel's own no process becomes the owner. */
	if (!record || !is_current(&record->owner)) {
		if (UNLIKELY(is_the_kernels(sk)))
			return record;
		if (!record)
			record = new_record(sk, cookie);
		if (!record)
			return 0;
	}
	use_record(cookie, record, sk, tally, call);
	return record;
}

/* Where a call of the current process on a socket is noted: at the tally, or at the record if there is none. */
struct noted {
	struct tally *tally;
	struct record *record;
};

static ALWAYS_INLINE struct noted use_in_call(struct sock *sk, const struct payload *call)
{
	__u64 cookie = cookie_of(sk);
	struct noted noted = {.tally = tally_of(cookie)};

	if (noted.tally && is_current_inline(&noted.tally->owner))
		return noted;
	noted.record = use_socket(sk, cookie, noted.tally, call);
	if (!noted.record)
		noted.tally = 0;
	return noted;
}

/* Makes the record of a connection that a listener has made: its user is the listener's until a process uses it. */
SUBPROGRAM int adopt(__u64 parent, __u64 cookie, const struct tuple *tuple)
{
	struct record *record, *listener;
	struct traffic *embryo;
	struct tuple key;

	if (!tuple || !parent || parent == cookie)
		return 0;
	key = *tuple;
	listener = bpf_map_lookup_elem(&sockets, &parent);
	if (listener)
		key.netns = listener->tuple.netns;
	record = open_record(cookie);
	if (!record)
		return 0;
	if (listener) {
		record->owner = listener->owner;
		record->uid = listener->uid;
		record->gid = listener->gid;
		record->cgroup = listener->cgroup;
		__builtin_memcpy(record->name, listener->name, NAME);
	}
	record->opened_ns = bpf_ktime_get_boot_ns();
	record->established_ns = record->opened_ns;
	record->tuple = key;
	set_flags(record, ACCEPTED | INHERITED | NAMED);
	key_embryo(&key, parent);
	embryo = bpf_map_lookup_elem(&embryos, &key);
	if (embryo) {
		take_way(&record->sent, &embryo->way[SENT]);
		take_way(&record->received, &embryo->way[RECEIVED]);
		bpf_map_delete_elem(&embryos, &key);
	}
	end_change(record);
	enter_tuple(cookie, record);
	return 0;
}

/* The cookie of the socket that listens where a connection came in, or 0. */
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
		/* Bound to any address, of both families. */
		__builtin_memset(key.local, 0, 32);
		cookie = bpf_map_lookup_elem(&listeners, &key);
	}
	return cookie ? *cookie : 0;
}

#endif
