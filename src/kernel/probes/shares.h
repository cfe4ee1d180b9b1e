/* Accounts of processes at sockets that several processes use. */

#ifndef CAPTURE_SHARES_H
#define CAPTURE_SHARES_H

#include "maps.h"
#include "cgroup_paths.h"

/* Returns the main thread of the current process. */
static ALWAYS_INLINE struct task_struct *current_leader(void)
{
	struct task_struct *leader = 0;

	READ(leader, bpf_get_current_task_btf()->group_leader);
	return leader;
}

static ALWAYS_INLINE void read_current_process(struct process *process)
{
	READ(process->start_ns, current_leader()->start_boottime);
	process->tgid = bpf_get_current_task_btf()->tgid;
	process->padding = 0;
}

/* Reads the effective user and group id of a process. */
static ALWAYS_INLINE void read_ids(struct task_struct *leader, __u32 *uid, __u32 *gid)
{
	const struct cred *cred = 0;

	READ(cred, leader->real_cred);
	READ(*uid, cred->euid.val);
	READ(*gid, cred->egid.val);
}

/* Returns the number of the current process's cgroup, and records its path. */
static ALWAYS_INLINE __u64 current_cgroup(void)
{
	return want_cgroups ? record_cgroup(bpf_get_current_task_btf()->group_leader->cgroups) : 0;
}

/* Returns true if this is the current process. This variant is for checks at each packet or call: for each path through
 * it, the verifier searches all types of the kernel, which takes a millisecond. */
static ALWAYS_INLINE int is_current_inline(const struct process *process)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return process->tgid == (__u32)task->tgid && process->start_ns == task->group_leader->start_boottime;
}

/* The same check for all other places. */
SUBPROGRAM int is_current(const struct process *process)
{
	return process && is_current_inline(process);
}

/* Returns the account of a process at a socket, and creates it if there is none. The caller fills in the identity of a
 * new one. */
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

/* Returns the account of the current process at a socket. */
static ALWAYS_INLINE struct share *current_share(__u64 cookie, __u32 netns)
{
	struct task_struct *leader = current_leader();
	struct share_key key = {.cookie = cookie, .period = control.period};
	struct share *share;
	int is_new = 0;

	read_current_process(&key.owner);
	share = open_share(&key, &is_new);
	if (!share || !is_new)
		return share;
	read_ids(leader, &share->uid, &share->gid);
	share->netns = netns;
	share->cgroup = current_cgroup();
	bpf_probe_read_kernel(share->name, TASK_COMM_LEN, &leader->comm);
	return share;
}

/* Returns an owner's part of a total, of which `others` belongs to other accounts and `later` came after the owner's
 * last call. */
static ALWAYS_INLINE struct direction_counters part_of_owner(const struct direction_counters *total,
							     const struct direction_counters *others,
							     const struct direction_counters *later)
{
	struct direction_counters part = {.bytes = total->bytes - others->bytes - later->bytes,
					  .packets = total->packets - others->packets - later->packets};

	/* Packets and bytes are zero together. */
	if ((__s64)part.bytes <= 0)
		part.bytes = part.packets = 0;
	else if ((__s64)part.packets <= 0)
		part.packets = 1;
	return part;
}

/* Moves the owner's part of the counts so far to its account. The caller has reserved the record. */
SUBPROGRAM int move_to_share(__u64 cookie, struct record *record, const struct direction_counters *later_sent,
			     const struct direction_counters *later_received)
{
	struct share_key key = {.cookie = cookie, .period = control.period};
	struct direction_counters sent, received;
	struct share *share;
	int is_new = 0;

	if (!record || !later_sent || !later_received)
		return 0;
	key.owner = record->owner;
	share = open_share(&key, &is_new);
	/* Without room for the account, everything stays in the record. The reader then credits the next owner with all
	 * bytes that it has not credited to this one. */
	if (!share)
		return 0;
	sent = part_of_owner(&record->sent, &record->sent_in_shares, later_sent);
	received = part_of_owner(&record->received, &record->received_in_shares, later_received);
	add_counters(&record->sent_in_shares, &sent);
	add_counters(&record->received_in_shares, &received);
	if (is_new) {
		share->uid = record->uid;
		share->gid = record->gid;
		share->netns = record->tuple.netns;
		share->cgroup = record->cgroup;
		__builtin_memcpy(share->name, record->name, TASK_COMM_LEN);
	}
	add_counters(&share->traffic.by_direction[SENT], &sent);
	add_counters(&share->traffic.by_direction[RECEIVED], &received);
	return 0;
}

/* Counts a datagram of a process that is not the owner of the socket. */
SUBPROGRAM int count_for_sender(__u64 cookie, struct record *record, const struct direction_counters *wire)
{
	struct share *share;

	if (!record || !wire)
		return 0;
	share = current_share(cookie, record->tuple.netns);
	if (share)
		add_counters(&share->traffic.by_direction[SENT], wire);
	else
		count_lost(LOSS_TABLE_FULL, record->tuple.netns, SENT, wire);
	if (!(record->flags & SHARED))
		__sync_fetch_and_or(&record->flags, SHARED);
	return 0;
}

/* Moves the bytes that a process has read from a socket of another owner from the owner's part to the account of the
 * reading process. */
SUBPROGRAM int count_for_reader(__u64 cookie, struct record *record, __u64 bytes)
{
	struct direction_counters part = {.bytes = bytes, .packets = 1};
	struct share *share;
	__u64 left;

	if (!record)
		return 0;
	left = record->received.bytes - record->received_in_shares.bytes;
	if ((__s64)left <= 0)
		return 0;
	if (part.bytes > left)
		part.bytes = left;
	share = current_share(cookie, record->tuple.netns);
	if (!share)
		return 0;
	add_counters(&record->received_in_shares, &part);
	add_counters(&share->traffic.by_direction[RECEIVED], &part);
	if (!(record->flags & SHARED))
		__sync_fetch_and_or(&record->flags, SHARED);
	return 0;
}

#endif
