/* The paths of the cgroups of processes.
 *
 * A path is recorded when the first process in its group is, because the group may be removed before the reader looks
 * the path up. A group of the unified hierarchy can be neither renamed nor moved, and its number is never reused. */

#ifndef CAPTURE_CGROUP_PATHS_H
#define CAPTURE_CGROUP_PATHS_H

#include "core.h"

#define MAX_PATH_SIZE 1024
/* No hierarchy in use is as deep. */
#define MAX_LEVELS 32
/* The maximum length of a directory's name, including NUL. */
#define MAX_NAME_SIZE 256

/* The names of a group's directories from the last to the first, each ended by NUL. */
struct cgroup_path {
	__u32 length;
	char names[MAX_PATH_SIZE];
};

/* Key 0 is the root of the reader's cgroup namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct cgroup_path);
} cgroup_paths SEC(".maps");

/* Buffers for paths in progress, by thread id. A processor is not enough as the key, because another thread may
 * interrupt on it. An entry of `cgroup_paths` cannot be the buffer, because it may be evicted and reused at any
 * time. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct cgroup_path);
} path_buffers SEC(".maps");

static const struct cgroup_path blank_path;

static ALWAYS_INLINE struct kernfs_node *parent_of(struct kernfs_node *node)
{
	struct kernfs_node *parent = 0;

	if (HAS_MEMBER(node->__parent))
		bpf_probe_read_kernel(&parent, sizeof(parent), &node->__parent);
	else
		bpf_probe_read_kernel(&parent, sizeof(parent), &((struct kernfs_node___older *)node)->parent);
	return parent;
}

/* Writes the names from the group up to the root, which has none. */
static ALWAYS_INLINE int write_path(struct cgroup_path *path, struct kernfs_node *node)
{
	__u32 length = 0;

	for (int level = 0; level < MAX_LEVELS; level++) {
		struct kernfs_node *parent = parent_of(node);
		const char *name = 0;
		long written;

		if (!parent) {
			path->length = length;
			return 1;
		}
		if (length > sizeof(path->names) - MAX_NAME_SIZE)
			return 0;
		bpf_probe_read_kernel(&name, sizeof(name), &node->name);
		written = bpf_probe_read_kernel_str(path->names + length, MAX_NAME_SIZE, name);
		if (written <= 0 || written > MAX_NAME_SIZE)
			return 0;
		length += written;
		node = parent;
	}
	return 0;
}

/* This helper also exists in Linux 5.10. Its pointer cannot be dereferenced directly. */
static __u64 (*const bpf_get_current_task)(void) = (void *)BPF_FUNC_get_current_task;

static SUBPROGRAM int record_path(__u64 number, struct kernfs_node *node)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u32 thread = 0;
	struct cgroup_path *draft;

	if (!node || bpf_map_lookup_elem(&cgroup_paths, &number))
		return 0;
	bpf_probe_read_kernel(&thread, sizeof(thread), &task->pid);
	bpf_map_update_elem(&path_buffers, &thread, &blank_path, BPF_ANY);
	draft = bpf_map_lookup_elem(&path_buffers, &thread);
	if (draft && write_path(draft, node))
		bpf_map_update_elem(&cgroup_paths, &number, draft, BPF_ANY);
	bpf_map_delete_elem(&path_buffers, &thread);
	return 0;
}

/* Returns the number of a process's cgroup, and records its path. */
static ALWAYS_INLINE __u64 record_cgroup(struct css_set *groups)
{
	struct kernfs_node *node = cgroup_node(groups);
	__u64 number = node ? node->id : 0;

	record_path(number, node);
	return number;
}

/* Records the root of the current process's cgroup namespace. The current process must be the reader's. */
static ALWAYS_INLINE void record_namespace_root(void)
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
	record_path(0, node);
}

#endif
