/* What processes have to their account at sockets that others use too. */

#ifndef CAPTURE_SHARES_H
#define CAPTURE_SHARES_H

#include "maps.h"
#include "paths.h"

#define PF_KTHREAD 0x00200000

/* The main thread of the current process. */
static ALWAYS_INLINE struct task_struct *current_leader(void)
{
	struct task_struct *leader = 0;

	READ(leader, bpf_get_current_task_btf()->group_leader);
	return leader;
}

static ALWAYS_INLINE void current_process(struct process *process)
{
	READ(process->start_ns, current_leader()->start_boottime);
	process->tgid = bpf_get_current_task_btf()->tgid;
	process->padding = 0;
}

/* The effective ids of a process. */
static ALWAYS_INLINE void read_ids(struct task_struct *leader, __u32 *uid, __u32 *gid)
{
	const struct cred *cred = 0;

	READ(cred, leader->real_cred);
	READ(*uid, cred->euid.val);
	READ(*gid, cred->egid.val);
}

/* The number of the current process's cgroup. */
static ALWAYS_INLINE __u64 current_cgroup(void)
{
	return want_cgroups ? note_cgroup(bpf_get_current_task_btf()->group_leader->cgroups) : 0;
}

/* Whether the current process is this one: for where it is asked with each packet or call. For each path that comes by here
 * the verifier looks through all types of the kernel, which takes a millisecond. */
static ALWAYS_INLINE int is_current_inline(const struct process *process)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return process->tgid == (__u32)task->tgid && process->start_ns == task->group_leader->start_boottime;
}

/* The same for everywhere else. */
SUBPROGRAM int is_current(const struct process *process)
{
	return process && is_current_inline(process);
}

/* The account of a process at a socket, opened if there is none. The caller names the process in it. */
static ALWAYS_INLINE struct share *open_share(const struct share_key *key, int *is_new)
{
	static const struct share blank_share = {};
	struct share *share = bpf_map_lookup_elem(&shares, key);

	if (share)
		return share;
	*is_new = 1;
	bpf_map_update_elem(&shares, key, &blank_share, BPF_NOEXIST);
	return bpf_map_lookup_elem(&shares, key);
}

/* The account of the current process at a socket. */
static ALWAYS_INLINE struct share *share_of_current(__u64 cookie, __u32 netns)
{
	struct task_struct *leader = current_leader();
	struct share_key key = {.cookie = cookie, .period = control.period};
	struct share *share;
	int is_new = 0;

	current_process(&key.owner);
	share = open_share(&key, &is_new);
	if (!share || !is_new)
		return share;
	read_ids(leader, &share->uid, &share->gid);
	share->netns = netns;
	share->cgroup = current_cgroup();
	bpf_probe_read_kernel(share->name, NAME, &leader->comm);
	return share;
}

/* What an owner has of a total, of which `others` is other accounts' and `later` came after its last call. */
static ALWAYS_INLINE struct way part_of_owner(const struct way *total, const struct way *others,
					      const struct way *later)
{
	struct way part = {.bytes = total->bytes - others->bytes - later->bytes,
			   .packets = total->packets - others->packets - later->packets};

	/* There is no packet without bytes, nor the other way round. */
	if ((__s64)part.bytes <= 0)
		part.bytes = part.packets = 0;
	else if ((__s64)part.packets <= 0)
		part.packets = 1;
	return part;
}

/* Moves to the owner's account what is its own of what was counted so far. The record is the caller's to change. */
SUBPROGRAM int set_apart(__u64 cookie, struct record *record, const struct way *later_sent,
			 const struct way *later_received)
{
	struct share_key key = {.cookie = cookie, .period = control.period};
	struct way sent, received;
	struct share *share;
	int is_new = 0;

	if (!record || !later_sent || !later_received)
		return 0;
	key.owner = record->owner;
	share = open_share(&key, &is_new);
	/* Without room all stays in the record: the reader credits the next owner with what it has not credited to this one. */
	if (!share)
		return 0;
	sent = part_of_owner(&record->sent, &record->sent_apart, later_sent);
	received = part_of_owner(&record->received, &record->received_apart, later_received);
	add_way(&record->sent_apart, &sent);
	add_way(&record->received_apart, &received);
	if (is_new) {
		share->uid = record->uid;
		share->gid = record->gid;
		share->netns = record->tuple.netns;
		share->cgroup = record->cgroup;
		__builtin_memcpy(share->name, record->name, NAME);
	}
	add_way(&share->traffic.way[SENT], &sent);
	add_way(&share->traffic.way[RECEIVED], &received);
	return 0;
}

/* Counts a datagram that a process sends through a socket of which another process is the owner. */
SUBPROGRAM int count_at_sender(__u64 cookie, struct record *record, const struct way *wire)
{
	struct share *share;

	if (!record || !wire)
		return 0;
	share = share_of_current(cookie, record->tuple.netns);
	if (share)
		add_way(&share->traffic.way[SENT], wire);
	else
		count_lost(LOSS_TABLE_FULL, record->tuple.netns, SENT, wire);
	if (!(record->flags & SWITCHED))
		__sync_fetch_and_or(&record->flags, SWITCHED);
	return 0;
}

/* Moves what a process has read from a socket, of which another process is the owner, from the owner's part to the
 * account of the reader. */
SUBPROGRAM int count_at_reader(__u64 cookie, struct record *record, __u64 bytes)
{
	struct way part = {.bytes = bytes, .packets = 1};
	struct share *share;
	__u64 left;

	if (!record)
		return 0;
	left = record->received.bytes - record->received_apart.bytes;
	if ((__s64)left <= 0)
		return 0;
	if (part.bytes > left)
		part.bytes = left;
	share = share_of_current(cookie, record->tuple.netns);
	if (!share)
		return 0;
	add_way(&record->received_apart, &part);
	add_way(&share->traffic.way[RECEIVED], &part);
	if (!(record->flags & SWITCHED))
		__sync_fetch_and_or(&record->flags, SWITCHED);
	return 0;
}

#endif
