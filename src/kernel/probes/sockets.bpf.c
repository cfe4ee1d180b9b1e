/* Who uses each socket, and what goes through it.
 *
 * A socket is known by its cookie, a number that the kernel never gives twice. Its record is made when the socket is
 * created, accepted or found open at the start, and names the process that used it last; bytes are added to it where
 * the IP layer hands packets on (cgroup_skb). Nothing here ever changes or drops a packet.
 *
 * Only the reader removes records: one of a socket that is gone stays, marked ENDED, until it has been read. */

#include "calls.h"
#include "packets.h"

#define SOCK_STREAM 1

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
	new.flags = UNUSED;
	if (bpf_map_update_elem(&sockets, &cookie, &new, BPF_NOEXIST))
		lose(LOSS_TABLE_FULL, 0, 0);
	return 1;
}

/* Marks a record as that of a socket that is gone. */
static ALWAYS_INLINE void end_record(struct record *record, __u64 cookie, struct tally *tally)
{
	if (record->flags & ENDED)
		return;
	if (tally)
		bring_up_to_date(record, tally);
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

	if (record && !(context->protocol == IPPROTO_TCP && context->type == SOCK_STREAM))
		end_record(record, cookie, bpf_sk_storage_get(&tallies, context, 0, 0));
	return 1;
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
		record = use_socket(sk, tally_of(sk));
		if (!record)
			return 0;
		record->connecting_ns = bpf_ktime_get_boot_ns();
		record->ended_ns = 0;
		record->flags |= CONNECTED;
		break;
	case BPF_TCP_LISTEN:
		record = use_socket(sk, tally_of(sk));
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
			adopt(parent ? *parent : listener_of(&tuple), cookie, &tuple);
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
	end_record(record, cookie, tally_of(sk));
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
	if (want_cgroups)
		note_namespace();
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
	if (want_cgroups)
		new.cgroup = note_cgroup(task->group_leader->cgroups);
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
		record->cgroup = new.cgroup;
		return 0;
	}
	new.uid = sk->sk_uid.val;
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
