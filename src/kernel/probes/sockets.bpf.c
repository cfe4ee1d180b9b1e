/* Who uses each socket, and what goes through it.
 *
 * A socket is known by its cookie, a number that the kernel never gives twice. Its record is made when the socket is
 * created, accepted or found open at the start, and names the process that used it last; bytes are added to it where
 * the IP layer hands packets on (cgroup_skb). Nothing here ever changes or drops a packet.
 *
 * Only the reader removes records: one of a socket that is gone stays, marked ENDED, until it has been read. */

#include "calls.h"
#include "late.h"
#include "packets.h"

/* Origins of a message in a queue of errors: linux/errqueue.h. */
#define ORIGIN_ICMP 2
#define ORIGIN_ICMP6 3

/* The network namespace of the current process. */
static ALWAYS_INLINE __u32 current_netns(void)
{
	struct nsproxy *namespaces = 0;
	struct net *net = 0;
	__u32 netns = 0;

	READ(namespaces, bpf_get_current_task_btf()->nsproxy);
	READ(net, namespaces->net_ns);
	READ(netns, net->ns.inum);
	return netns;
}

/* A program may create a socket, and another one may use it: the first user counts as the owner only until then. */
SEC("cgroup/sock_create")
int capture_create(struct bpf_sock *context)
{
	__u64 cookie = bpf_get_socket_cookie(context);
	struct record *record = open_record(cookie);

	if (!record)
		return 1;
	current_user(record);
	record->opened_ns = bpf_ktime_get_boot_ns();
	record->tuple.netns = current_netns();
	record->tuple.protocol = (__u8)context->protocol;
	set_flags(record, UNUSED | kind_of(context->type));
	end_change(record);
	return 1;
}

/* The last descriptor of a socket is closed. A TCP connection goes on for a while; see capture_destroy. */
SEC("cgroup/sock_release")
int capture_release(struct bpf_sock *context)
{
	__u64 cookie = bpf_get_socket_cookie(context);
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);

	/* What accept(2) makes of an MPTCP listener has the listener's cookie (mptcp_sk_clone_init() in net/mptcp). */
	if (context->protocol == IPPROTO_MPTCP && context->state != BPF_TCP_LISTEN)
		return 1;
	if (record && !(context->protocol == IPPROTO_TCP && context->type == SOCK_STREAM))
		end_record(cookie, record);
	return 1;
}

/* What an ICMP message says of a connection that is being opened: to a socket that is locked as it comes, the kernel gives
 * the error by the way, and it is no more where it was once the process has asked for it (SO_ERROR). The message stays in the
 * queue of errors, among packets that bear timestamps. */
static ALWAYS_INLINE __u32 opening_error(struct sock *sk)
{
	struct sk_buff *message = 0;
	__u8 origin = 0;
	__u32 error = 0;

	if (sk->sk_err_soft)
		return sk->sk_err_soft;
	if (!sk->sk_error_queue.qlen || !HAS_MEMBER(((struct sock_exterr_skb *)0)->ee))
		return 0;
	/* A queue begins with the pointer to its first packet. */
	bpf_probe_read_kernel(&message, sizeof(message), &sk->sk_error_queue);
	READ(origin, ((struct sock_exterr_skb *)&message->cb)->ee.ee_origin);
	if (origin == ORIGIN_ICMP || origin == ORIGIN_ICMP6)
		READ(error, ((struct sock_exterr_skb *)&message->cb)->ee.ee_errno);
	return error;
}

SEC("tp_btf/inet_sock_set_state")
int capture_state(__u64 *context)
{
	struct sock *sk = (struct sock *)context[0];
	int before = (int)context[1], now = (int)context[2];
	struct payload call = {};
	struct record *record;
	__u64 cookie;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	cookie = cookie_of(sk);
	switch (now) {
	case BPF_TCP_SYN_SENT:
	case BPF_TCP_LISTEN:
		record = use_socket(sk, cookie, tally_of(cookie), &call);
		if (!record)
			return 0;
		if (now == BPF_TCP_LISTEN) {
			set_flags(record, LISTENER);
			tuple_of_sock(sk, &record->tuple);
			bpf_map_update_elem(&listeners, &record->tuple, &cookie, BPF_ANY);
			bpf_sk_storage_get(&parents, sk, &cookie, BPF_SK_STORAGE_GET_F_CREATE);
			break;
		}
		record->connecting_ns = bpf_ktime_get_boot_ns();
		/* Endpoints that it has from an earlier attempt are not this one's. */
		if (record->flags & NAMED)
			leave_tuple(cookie, &record->tuple, record->connecting_ns);
		/* It may have listened before, until shutdown(2). */
		if (record->flags & LISTENER)
			stop_listening(cookie, record);
		record->established_ns = record->ended_ns = 0;
		clear_flags(record, NAMED | LISTENER);
		record->connects++;
		set_flags(record, CONNECTED);
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
			set_flags(record, NAMED);
			enter_tuple(cookie, record);
		}
		note_tcp(record, sk);
		break;
	default:
		record = bpf_map_lookup_elem(&sockets, &cookie);
		if (!record)
			return 0;
		if (now == BPF_TCP_CLOSE) {
			record->error = sk->sk_err;
			if (!record->error && before == BPF_TCP_SYN_SENT)
				record->error = opening_error(sk);
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
	__u64 cookie = cookie_of(sk);
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);

	if (!record)
		return 0;
	note_tcp(record, sk);
	end_record(cookie, record);
	return 0;
}

/* Every socket that has or had a tally, before the records are read. */
SEC("iter/bpf_sk_storage_map")
int capture_collect(struct bpf_iter__bpf_sk_storage_map *context)
{
	struct sock *sk = context->sk;
	struct tally *tally;
	struct record *record;
	__u64 cookie;

	if (!sk)
		return 0;
	cookie = sk->__sk_common.skc_cookie.counter;
	tally = place_of(cookie);
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (!tally || !record)
		return 0;
	if ((tally->cookie & ~CLOSED) == cookie && has_news(tally))
		bring_up_to_date(record, tally);
	else if (!record->unread)
		return 0;
	record->unread = unread(sk, record, 0).bytes;
	note_tcp(record, sk);
	return 0;
}

/* Fills in a process that holds a socket. */
static ALWAYS_INLINE void name_holder(struct record *record, struct task_struct *leader, const struct process *holder)
{
	record->owner = *holder;
	record->uid = leader->real_cred->euid.val;
	record->gid = leader->real_cred->egid.val;
	if (want_cgroups)
		record->cgroup = note_cgroup(leader->cgroups);
	bpf_probe_read_kernel(record->name, NAME, &leader->comm);
}

/* Makes a process that holds a socket its user in place of the listener's, since nobody has used it. */
static SUBPROGRAM int name_inheritor(__u64 cookie, struct record *record, struct task_struct *leader,
				     const struct process *holder)
{
	if (!record || !leader || !holder || !begin_change(record))
		return 0;
	if (record->flags & INHERITED) {
		name_holder(record, leader, holder);
		clear_flags(record, INHERITED);
		set_flags(record, HELD);
	}
	end_change(record);
	if (record->flags & NAMED)
		enter_tuple(cookie, record);
	return 0;
}

/* Notes that another process holds a socket as well. */
static SUBPROGRAM int add_holder(__u64 cookie, struct record *record, struct task_struct *leader,
						const struct process *holder)
{
	if (!record || !leader || !holder)
		return 0;
	if (!(record->flags & HELD) || record->owner.tgid == holder->tgid || !begin_change(record))
		return 0;
	/* The youngest that is not process 1, which keeps what it passes on; of equally old ones the last. */
	if (record->flags & HELD && holder->tgid != 1 &&
	    (record->owner.tgid == 1 || holder->start_ns >= record->owner.start_ns))
		name_holder(record, leader, holder);
	/* Not so of one that has been used meanwhile. */
	if (record->flags & HELD)
		set_flags(record, SEVERAL);
	end_change(record);
	if (record->flags & NAMED)
		enter_tuple(cookie, record);
	return 0;
}

static SUBPROGRAM int seed_record(__u64 cookie, struct sock *sk, struct task_struct *leader,
						 const struct process *holder)
{
	struct record *record;
	__u32 flags = HELD;

	if (!sk || !leader || !holder)
		return 0;
	record = open_record(cookie);
	if (!record)
		return 0;
	name_holder(record, leader, holder);
	record->state = sk->__sk_common.skc_state;
	tuple_of_sock(sk, &record->tuple);
	if (record->tuple.remote_port) {
		flags |= NAMED;
	} else if (record->state == BPF_TCP_LISTEN && record->tuple.protocol == IPPROTO_TCP) {
		flags |= LISTENER;
		bpf_sk_storage_get(&parents, sk, &cookie, BPF_SK_STORAGE_GET_F_CREATE);
		bpf_map_update_elem(&listeners, &record->tuple, &cookie, BPF_ANY);
	}
	set_flags(record, flags | kind_of(sk->sk_type));
	end_change(record);
	if (flags & NAMED)
		enter_tuple(cookie, record);
	return 0;
}

/* Every socket that a process holds: at the start, and when connections have waited for their first use for long. */
SEC("iter/task_file")
int capture_seed(struct bpf_iter__task_file *context)
{
	struct task_struct *task = context->task;
	struct file *file = context->file;
	struct process holder;
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
	cookie = cookie_of(sk);
	if (sk->sk_protocol == IPPROTO_MPTCP && sk->__sk_common.skc_state != BPF_TCP_LISTEN) {
		/* The TCP socket that it works by is what has packets. */
		struct sock *first = 0;

		if (!HAS_MEMBER(((struct mptcp_sock *)0)->first))
			return 0;
		bpf_probe_read_kernel(&first, sizeof(first), &((struct mptcp_sock *)sk)->first);
		if (first)
			bpf_probe_read_kernel(&cookie, sizeof(cookie), &first->__sk_common.skc_cookie.counter);
		if (!first || !cookie)
			return 0;
	}
	holder.start_ns = task->group_leader->start_boottime;
	holder.tgid = task->tgid;
	holder.padding = 0;
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (record && record->flags & INHERITED)
		name_inheritor(cookie, record, task->group_leader, &holder);
	else if (record)
		add_holder(cookie, record, task->group_leader, &holder);
	else
		seed_record(cookie, sk, task->group_leader, &holder);
	return 0;
}

/* Several of the helpers are only for programs that are offered under the GPL too. */
char licence[] SEC("license") = "Dual MIT/GPL";
