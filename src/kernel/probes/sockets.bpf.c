/* Counts the traffic of each socket, and records the process that uses it.
 *
 * A socket is identified by its cookie, which the kernel never reuses. A record is created when the socket is created,
 * accepted, or found open at the start. It names the last process that used the socket. Traffic is counted at the IP
 * layer (cgroup_skb). No eBPF program changes or drops a packet.
 *
 * Only the reader deletes records. The record of an ended socket is marked as ENDED and stays until it has been
 * read. */

#include "calls.h"
#include "time_wait.h"
#include "packets.h"

/* Origins of a message in an error queue: linux/errqueue.h. */
#define ORIGIN_ICMP 2
#define ORIGIN_ICMP6 3

/* Returns the inode of the current process's network namespace. */
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

/* Creates the record of a new socket. Its creator is the owner until a process uses the socket. */
SEC("cgroup/sock_create")
int capture_create(struct bpf_sock *context)
{
	__u64 cookie = bpf_get_socket_cookie(context);
	struct record *record = create_record(cookie);

	if (!record)
		return 1;
	set_current_owner(record);
	record->opened_ns = bpf_ktime_get_boot_ns();
	record->tuple.netns = current_netns();
	record->tuple.protocol = (__u8)context->protocol;
	set_flags(record, UNUSED | datagram_flag(context->type));
	end_change(record);
	return 1;
}

/* Handles the close of a socket's last descriptor. A TCP connection continues for a while: capture_destroy(). */
SEC("cgroup/sock_release")
int capture_release(struct bpf_sock *context)
{
	__u64 cookie = bpf_get_socket_cookie(context);
	struct record *record = bpf_map_lookup_elem(&sockets, &cookie);

	/* A socket that accept(2) returns from an MPTCP listener has the listener's cookie (mptcp_sk_clone_init() in
	 * net/mptcp). */
	if (context->protocol == IPPROTO_MPTCP && context->state != BPF_TCP_LISTEN)
		return 1;
	if (record && !(context->protocol == IPPROTO_TCP && context->type == SOCK_STREAM))
		end_record(cookie, record);
	return 1;
}

/* Returns the error of a connection attempt that an ICMP message has reported. If the socket is locked when the message
 * arrives, the kernel stores the error as a soft error, which is cleared once the process has read it (SO_ERROR). The
 * message stays in the error queue, among packets with timestamps. */
static ALWAYS_INLINE __u32 connect_error(struct sock *sk)
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
		record = use_socket(sk, cookie, sk_counters_of(cookie), &call);
		if (!record)
			return 0;
		if (now == BPF_TCP_LISTEN) {
			set_flags(record, LISTENER);
			tuple_of_sock(sk, &record->tuple);
			bpf_map_update_elem(&listeners, &record->tuple, &cookie, BPF_ANY);
			bpf_sk_storage_get(&parent_cookie, sk, &cookie, BPF_SK_STORAGE_GET_F_CREATE);
			break;
		}
		record->connecting_ns = bpf_ktime_get_boot_ns();
		/* The endpoints of an earlier attempt do not belong to this one. */
		if (record->flags & HAS_ENDPOINTS)
			end_endpoint_owner(cookie, &record->tuple, record->connecting_ns);
		/* The socket may have listened before, until shutdown(2). */
		if (record->flags & LISTENER)
			remove_listener(cookie, record);
		record->established_ns = record->ended_ns = 0;
		clear_flags(record, HAS_ENDPOINTS | LISTENER);
		record->connects++;
		set_flags(record, CONNECTED);
		break;
	case BPF_TCP_ESTABLISHED:
		record = bpf_map_lookup_elem(&sockets, &cookie);
		if (!record) {
			__u64 *parent = bpf_sk_storage_get(&parent_cookie, sk, 0, 0);
			struct tuple tuple;

			tuple_of_sock(sk, &tuple);
			inherit_from_listener(parent ? *parent : listener_of(&tuple), cookie, &tuple);
			record = bpf_map_lookup_elem(&sockets, &cookie);
		}
		if (!record)
			return 0;
		if (!record->established_ns)
			record->established_ns = bpf_ktime_get_boot_ns();
		if (!(record->flags & HAS_ENDPOINTS)) {
			tuple_of_sock(sk, &record->tuple);
			set_flags(record, HAS_ENDPOINTS);
			insert_endpoint_owner(cookie, record);
		}
		record_tcp_info(record, sk);
		break;
	default:
		record = bpf_map_lookup_elem(&sockets, &cookie);
		if (!record)
			return 0;
		if (now == BPF_TCP_CLOSE) {
			record->error = sk->sk_err;
			if (!record->error && before == BPF_TCP_SYN_SENT)
				record->error = connect_error(sk);
			record->ended_ns = bpf_ktime_get_boot_ns();
			record_tcp_info(record, sk);
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
	record_tcp_info(record, sk);
	end_record(cookie, record);
	return 0;
}

/* Updates the record of each socket that has or had socket counters, before the reader reads the records. */
SEC("iter/bpf_sk_storage_map")
int capture_flush(struct bpf_iter__bpf_sk_storage_map *context)
{
	struct sock *sk = context->sk;
	struct sk_counters *counters;
	struct record *record;
	__u64 cookie;

	if (!sk)
		return 0;
	cookie = sk->__sk_common.skc_cookie.counter;
	counters = slot_of(cookie);
	record = bpf_map_lookup_elem(&sockets, &cookie);
	if (!counters || !record)
		return 0;
	if ((counters->cookie & ~SLOT_RELEASED) == cookie && has_counts(counters))
		flush_sk_counters(record, counters);
	else if (!record->unread)
		return 0;
	record->unread = unread_wire(sk, record, 0).bytes;
	record_tcp_info(record, sk);
	return 0;
}

/* Sets a process that holds a socket as the owner in its record. */
static ALWAYS_INLINE void set_holder(struct record *record, struct task_struct *leader, const struct process *holder)
{
	record->owner = *holder;
	record->uid = leader->real_cred->euid.val;
	record->gid = leader->real_cred->egid.val;
	if (want_cgroups)
		record->cgroup = record_cgroup(leader->cgroups);
	bpf_probe_read_kernel(record->name, TASK_COMM_LEN, &leader->comm);
}

/* Replaces the listener's owner by a process that holds the connection, because no process has used it. */
static SUBPROGRAM int replace_listener_owner(__u64 cookie, struct record *record, struct task_struct *leader,
					     const struct process *holder)
{
	if (!record || !leader || !holder || !begin_change(record))
		return 0;
	if (record->flags & INHERITED) {
		set_holder(record, leader, holder);
		clear_flags(record, INHERITED);
		set_flags(record, HELD);
	}
	end_change(record);
	if (record->flags & HAS_ENDPOINTS)
		insert_endpoint_owner(cookie, record);
	return 0;
}

/* Records a further process that holds a socket. */
static SUBPROGRAM int add_holder(__u64 cookie, struct record *record, struct task_struct *leader,
				 const struct process *holder)
{
	if (!record || !leader || !holder)
		return 0;
	if (!(record->flags & HELD) || record->owner.tgid == holder->tgid || !begin_change(record))
		return 0;
	/* The owner is the youngest holder other than process 1, which keeps sockets that it passes on. Of holders with
	 * the same start time, the last one is the owner. */
	if (record->flags & HELD && holder->tgid != 1 &&
	    (record->owner.tgid == 1 || holder->start_ns >= record->owner.start_ns))
		set_holder(record, leader, holder);
	/* Not set if a process has used the socket meanwhile. */
	if (record->flags & HELD)
		set_flags(record, SEVERAL_HOLDERS);
	end_change(record);
	if (record->flags & HAS_ENDPOINTS)
		insert_endpoint_owner(cookie, record);
	return 0;
}

static SUBPROGRAM int create_held_record(__u64 cookie, struct sock *sk, struct task_struct *leader,
					 const struct process *holder)
{
	struct record *record;
	__u32 flags = HELD;

	if (!sk || !leader || !holder)
		return 0;
	record = create_record(cookie);
	if (!record)
		return 0;
	set_holder(record, leader, holder);
	record->state = sk->__sk_common.skc_state;
	tuple_of_sock(sk, &record->tuple);
	if (record->tuple.remote_port) {
		flags |= HAS_ENDPOINTS;
	} else if (record->state == BPF_TCP_LISTEN && record->tuple.protocol == IPPROTO_TCP) {
		flags |= LISTENER;
		bpf_sk_storage_get(&parent_cookie, sk, &cookie, BPF_SK_STORAGE_GET_F_CREATE);
		bpf_map_update_elem(&listeners, &record->tuple, &cookie, BPF_ANY);
	}
	set_flags(record, flags | datagram_flag(sk->sk_type));
	end_change(record);
	if (flags & HAS_ENDPOINTS)
		insert_endpoint_owner(cookie, record);
	return 0;
}

/* Records each socket that a process holds: at the start, and when connections have waited long for their first use. */
SEC("iter/task_file")
int capture_holders(struct bpf_iter__task_file *context)
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
		record_namespace_root();
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_internet(sk->__sk_common.skc_family))
		return 0;
	cookie = cookie_of(sk);
	if (sk->sk_protocol == IPPROTO_MPTCP && sk->__sk_common.skc_state != BPF_TCP_LISTEN) {
		/* The packets are those of its first subflow, a TCP socket. */
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
		replace_listener_owner(cookie, record, task->group_leader, &holder);
	else if (record)
		add_holder(cookie, record, task->group_leader, &holder);
	else
		create_held_record(cookie, sk, task->group_leader, &holder);
	return 0;
}

/* Several helpers are only available to programs under a licence that is compatible with the GPL. */
char licence[] SEC("license") = "Dual MIT/GPL";
