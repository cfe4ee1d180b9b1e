/* The paths of the cgroups that processes are in.
 *
 * A path is noted when the first process in the group is, since the group may be gone when somebody asks. A group of the
 * unified hierarchy can neither be renamed nor moved, and no other ever has its number. */

#ifndef CAPTURE_PATHS_H
#define CAPTURE_PATHS_H

#include "core.h"

#define PATH 1024
/* No hierarchy in use is as deep. */
#define MOST_LEVELS 32
/* The longest name of a directory, NUL included. */
#define LONGEST_NAME 256

/* The names of a group's directories from the last to the first, each ended by NUL. */
struct path {
	__u32 length;
	char names[PATH];
};

/* Under 0 stands where the reader's own cgroup namespace begins. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 4096);
	MAP_TYPE(key, __u64);
	MAP_TYPE(value, struct path);
} paths SEC(".maps");

/* A path being put together, by the number of the thread that does: another one may come in between on the same
 * processor, and what is in `paths` may be given to another group at any time. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(max_entries, 1024);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct path);
} drafts SEC(".maps");

static const struct path blank;

static ALWAYS_INLINE struct kernfs_node *parent_of(struct kernfs_node *node)
{
	struct kernfs_node *parent = 0;

	if (__builtin_preserve_field_info(node->__parent, BPF_CORE_FIELD_EXISTS))
		bpf_probe_read_kernel(&parent, sizeof(parent), &node->__parent);
	else
		bpf_probe_read_kernel(&parent, sizeof(parent), &((struct kernfs_node___older *)node)->parent);
	return parent;
}

/* Writes the names from the group up to the topmost, which has none. */
static ALWAYS_INLINE int write_path(struct path *path, struct kernfs_node *node)
{
	__u32 length = 0;

	for (int level = 0; level < MOST_LEVELS; level++) {
		struct kernfs_node *parent = parent_of(node);
		const char *name = 0;
		long written;

		if (!parent) {
			path->length = length;
			return 1;
		}
		if (length > sizeof(path->names) - LONGEST_NAME)
			return 0;
		bpf_probe_read_kernel(&name, sizeof(name), &node->name);
		written = bpf_probe_read_kernel_str(path->names + length, LONGEST_NAME, name);
		if (written <= 0 || written > LONGEST_NAME)
			return 0;
		length += written;
		node = parent;
	}
	return 0;
}

/* A helper that Linux 5.10 has, too, but whose pointer must be read through. */
static __u64 (*const bpf_get_current_task)(void) = (void *)BPF_FUNC_get_current_task;

static SUBPROGRAM int note_path(__u64 number, struct kernfs_node *node)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 thread = 0;
	struct path *draft;

	if (!node || bpf_map_lookup_elem(&paths, &number))
		return 0;
	bpf_probe_read_kernel(&thread, sizeof(thread), &task->pid);
	bpf_map_update_elem(&drafts, &thread, &blank, BPF_ANY);
	draft = bpf_map_lookup_elem(&drafts, &thread);
	if (draft && write_path(draft, node))
		bpf_map_update_elem(&paths, &number, draft, BPF_ANY);
	bpf_map_delete_elem(&drafts, &thread);
	return 0;
}

/* The number of a process's cgroup, whose path is noted with it. */
static ALWAYS_INLINE __u64 note_cgroup(struct css_set *groups)
{
	struct kernfs_node *node = cgroup_node(groups);
	__u64 number = node ? node->id : 0;

	note_path(number, node);
	return number;
}

/* To be called in the reader's own process. */
static ALWAYS_INLINE void note_namespace(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct nsproxy *namespaces = 0;
	struct cgroup_namespace *namespace = 0;
	struct css_set *groups = 0;
	struct cgroup *group = 0;
	struct kernfs_node *node = 0;

	bpf_probe_read_kernel(&namespaces, sizeof(namespaces), &task->nsproxy);
	bpf_probe_read_kernel(&namespace, sizeof(namespace), &namespaces->cgroup_ns);
	bpf_probe_read_kernel(&groups, sizeof(groups), &namespace->root_cset);
	bpf_probe_read_kernel(&group, sizeof(group), &groups->dfl_cgrp);
	bpf_probe_read_kernel(&node, sizeof(node), &group->kn);
	note_path(0, node);
}

#endif
