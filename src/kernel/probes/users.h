/* Who uses a socket. */

#ifndef CAPTURE_USERS_H
#define CAPTURE_USERS_H

#include "endpoints.h"
#include "maps.h"
#include "paths.h"
#include "tallies.h"

static ALWAYS_INLINE void current_process(struct process *process)
{
	struct task_struct *task = bpf_get_current_task_btf();

	process->start_ns = task->group_leader->start_boottime;
	process->tgid = task->tgid;
	process->padding = 0;
}

static ALWAYS_INLINE void current_user(struct record *record)
{
	struct task_struct *leader = bpf_get_current_task_btf()->group_leader;

	current_process(&record->owner);
	bpf_probe_read_kernel(record->name, NAME, &leader->comm);
	__u64 ids = bpf_get_current_uid_gid();

	record->uid = (__u32)ids;
	record->gid = ids >> 32;
	if (want_cgroups)
		record->cgroup = note_cgroup(leader->cgroups);
}

/* Lets the endpoints lead to the socket and its user. */
static ALWAYS_INLINE void enter_tuple(const struct tuple *tuple, __u64 cookie, const struct record *record)
{
	struct owned owned = {.cookie = cookie, .flags = record->flags, .cgroup = record->cgroup};

	owned.start_ns = record->owner.start_ns;
	owned.tgid = record->owner.tgid;
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
	struct way sent = record->calls.claimed_sent, received = record->calls.claimed_received;

	record->calls.claimed_sent = record->calls.claimed_received = (struct way){};
	move(&record->sent, &sent, -1);
	move(&record->received, &received, -1);
	fresh.uid = record->uid;
	fresh.gid = record->gid;
	fresh.netns = record->tuple.netns;
	fresh.cgroup = record->cgroup;
	__builtin_memcpy(fresh.name, record->name, NAME);
	bpf_map_update_elem(&shares, &key, &fresh, BPF_NOEXIST);
	share = bpf_map_lookup_elem(&shares, &key);
	if (!share) {
		lose(LOSS_TABLE_FULL, SENT, sent.bytes);
		lose(LOSS_TABLE_FULL, RECEIVED, received.bytes);
		return 0;
	}
	move(&share->traffic.way[SENT], &sent, 1);
	move(&share->traffic.way[RECEIVED], &received, 1);
	return 0;
}

/* Whether the current process is this one. */
static ALWAYS_INLINE int is_current(const struct process *process)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return process->tgid == (__u32)task->tgid && process->start_ns == task->group_leader->start_boottime;
}

/* Notes that the current process uses the socket: it is the owner from now on, and of what passed since the owner before
 * it made its last call. Of a connection that a listener made all is the first user's: nobody else counts it before. */
static ALWAYS_INLINE void take_over(struct record *record, __u64 cookie, struct tally *tally)
{
	if (UNLIKELY(!is_current(&record->owner))) {
		if (tally)
			bring_up_to_date(record, tally);
		if (keep_records && !(record->flags & INHERITED)) {
			if (!(record->calls.sends + record->calls.receives)) {
				record->calls.claimed_sent = record->sent;
				record->calls.claimed_received = record->received;
			}
			set_apart(record, cookie);
			record->flags |= SWITCHED;
		}
		current_user(record);
		record->flags &= ~(INHERITED | HELD | SEVERAL | UNUSED);
		if (record->flags & NAMED)
			enter_tuple(&record->tuple, cookie, record);
	} else if (UNLIKELY(record->flags & (INHERITED | HELD | SEVERAL | UNUSED))) {
		record->flags &= ~(INHERITED | HELD | SEVERAL | UNUSED);
		if (record->flags & NAMED)
			enter_tuple(&record->tuple, cookie, record);
	}
}

/* What a program sends through an MPTCP socket goes through TCP sockets of the kernel's: the first stands for all. What is
 * in its tally is out of reach here, so that it becomes the next user's. */
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
		take_over(record, cookie, 0);
	return record;
}

static ALWAYS_INLINE struct tally *tally_of(struct sock *sk)
{
	return bpf_sk_storage_get(&tallies, sk, 0, 0);
}

/* The record of a socket that the current process uses, and that is its own from now on, as is the tally if there is one. */
static ALWAYS_INLINE struct record *use_socket(struct sock *sk, struct tally *tally)
{
	struct record *record;
	__u64 cookie;

	if (UNLIKELY(sk->sk_protocol == IPPROTO_MPTCP))
		return use_subflow(sk);
	cookie = bpf_get_socket_cookie(sk);
	record = used_record(sk, cookie);
	if (!record)
		return 0;
	take_over(record, cookie, tally);
	if (tally)
		name_user(tally, record);
	return record;
}

/* Where a call of the current process on a socket is noted: at the tally, or at the record if there is none. */
struct noted {
	struct tally *tally;
	struct record *record;
};

static ALWAYS_INLINE struct noted use_in_call(struct sock *sk)
{
	struct noted noted = {.tally = tally_of(sk)};

	if (noted.tally && is_current(&noted.tally->owner))
		return noted;
	noted.record = use_socket(sk, noted.tally);
	if (!noted.record)
		noted.tally = 0;
	return noted;
}

/* A connection that a listener has made: its user is the listener's until somebody uses it. */
static __attribute__((noinline)) int adopt(__u64 parent, __u64 cookie, struct tuple *tuple)
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
	new.tuple = *tuple;
	embryo = bpf_map_lookup_elem(&embryos, &new.tuple);
	if (embryo) {
		new.sent = embryo->way[SENT];
		new.received = embryo->way[RECEIVED];
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

#endif
