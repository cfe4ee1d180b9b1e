/* Definitions that all eBPF programs use: helpers, sections, map declarations, and the few fields of kernel structures
 * that are read.
 *
 * The structures name only the members in use. The loader finds their offsets in the running kernel from the kernel's
 * own type information (BTF), so that one object serves all kernels. */

#ifndef CAPTURE_CORE_H
#define CAPTURE_CORE_H

#include <linux/bpf.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define ALWAYS_INLINE inline __attribute__((always_inline))
/* A function with a stack of its own. `used` keeps its result although no caller uses it: otherwise the compiler would
 * leave an address in that register, which the verifier rejects.
 *
 * The verifier checks a static function with every call on every path. It checks a global function once for the object,
 * and then knows only the types of the arguments: these may be numbers, the context and our own structures, and the
 * result is a number. Keys and values of maps may not lie in such structures (before Linux 6.2), so they are copied. */
#define SUBPROGRAM __attribute__((noinline, used))
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* True if the running kernel's structure has the member, and its type exists at all. Otherwise the code behind the
 * condition is never verified. */
#define HAS_MEMBER(member) __builtin_preserve_field_info(member, BPF_CORE_FIELD_EXISTS)

/* Kinds of information about a member: enum bpf_core_relo_kind. */
#define FIELD_BYTE_OFFSET 0
#define FIELD_BYTE_SIZE 1
#define FIELD_LSHIFT_U64 4
#define FIELD_RSHIFT_U64 5

/* Reads a bit-field of a kernel structure into an unsigned 64-bit integer (little-endian machines). */
#define READ_BITS(to, structure, member)                                                                          \
	do {                                                                                                       \
		(to) = 0;                                                                                          \
		bpf_probe_read_kernel(&(to),                                                                       \
				      __builtin_preserve_field_info((structure)->member, FIELD_BYTE_SIZE),         \
				      (const char *)(structure) +                                                  \
					      __builtin_preserve_field_info((structure)->member, FIELD_BYTE_OFFSET)); \
		(to) <<= __builtin_preserve_field_info((structure)->member, FIELD_LSHIFT_U64);                    \
		(to) >>= __builtin_preserve_field_info((structure)->member, FIELD_RSHIFT_U64);                    \
	} while (0)

/* Reads a member of a kernel structure. With a plain load of a pointer, the verifier searches all types of the kernel
 * by name, about a millisecond for each path. This macro avoids that where the load is rare. */
#define READ(to, from) bpf_probe_read_kernel(&(to), sizeof(to), &(from))

/* The number that an enumerator has in the running kernel. */
#define ENUM_VALUE(type, value) __builtin_preserve_enum_value(*(type *)value, BPF_ENUM_VALUE)
#define BPF_ENUM_VALUE 1

/* True if the running kernel has the enumerator. */
#define HAS_ENUM_VALUE(type, value) __builtin_preserve_enum_value(*(type *)value, BPF_ENUM_VALUE_EXISTS)
#define BPF_ENUM_VALUE_EXISTS 0

/* Members of a map declaration in the section `.maps`. The names and the encoding in BTF are those of libbpf. */
#define __uint(name, number) int(*name)[number]
#define __type(name, type) __typeof__(type) *name

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value,
					 __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)BPF_FUNC_ktime_get_boot_ns;
static __u64 (*const bpf_get_socket_cookie)(void *context) = (void *)BPF_FUNC_get_socket_cookie;
static struct bpf_sock *(*const bpf_sk_fullsock)(struct bpf_sock *sk) = (void *)BPF_FUNC_sk_fullsock;
static void *(*const bpf_sk_storage_get)(void *map, void *sk, void *value,
					 __u64 flags) = (void *)BPF_FUNC_sk_storage_get;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to,
					__u32 length) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const bpf_probe_read_kernel)(void *to, __u32 size,
					   const void *from) = (void *)BPF_FUNC_probe_read_kernel;
static long (*const bpf_probe_read_kernel_str)(void *to, __u32 size,
					       const void *from) = (void *)BPF_FUNC_probe_read_kernel_str;
static long (*const bpf_seq_write)(void *seq, const void *data, __u32 length) = (void *)BPF_FUNC_seq_write;

/* Stands for bpf_cast_to_kern_ctx(), which returns the kernel's own structure of a packet. The loader inserts the
 * number of that function or, if the kernel does not have it (before Linux 6.2), a result of 0. */
static struct sk_buff *(*const kernel_packet)(struct __sk_buff *skb) = (void *)0x70000000;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

struct cgroup_namespace {
	struct css_set *root_cset;
};

struct nsproxy {
	struct net *net_ns;
	struct cgroup_namespace *cgroup_ns;
};

struct kernfs_node {
	struct kernfs_node *__parent;
	const char *name;
	__u64 id;
};

/* Up to Linux 6.14. */
struct kernfs_node___older {
	struct kernfs_node *parent;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

typedef struct {
	__u32 val;
} kuid_t;

typedef struct {
	__u32 val;
} kgid_t;

struct cred {
	kuid_t euid;
	kgid_t egid;
};

struct task_struct {
	unsigned int flags;
	int pid;
	int tgid;
	const struct cred *real_cred;
	struct task_struct *group_leader;
	__u64 start_boottime;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
	char comm[16];
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	__u8 in6_u[16];
};

typedef struct {
	__s64 counter;
} atomic64_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

struct sk_buff_head {
	__u32 qlen;
};

struct socket;

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
	struct sk_buff_head sk_error_queue;
	struct socket *sk_socket;
	__u16 sk_type;
	__u16 sk_protocol;
	int sk_err;
	int sk_err_soft;
	__u8 sk_kern_sock : 1;
};

struct tcp_sock {
	__u32 srtt_us;
	__u32 total_retrans;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 mss_cache;
	__u16 advmss;
	__u64 bytes_received;
	__u64 bytes_sent;
	_Bool is_mptcp;
};

struct udp_sock {
	struct sk_buff_head reader_queue;
};

struct mptcp_sock {
	struct sock *first;
};

struct file;

struct socket {
	struct file *file;
	struct sock *sk;
};

struct header_ops {
	int (*create)(void);
};

struct net_device {
	const struct header_ops *header_ops;
	unsigned char addr_len;
	possible_net_t nd_net;
};

struct sock_extended_err {
	__u32 ee_errno;
	__u8 ee_origin;
};

struct sock_exterr_skb {
	struct sock_extended_err ee;
};

struct sk_buff {
	char cb[48];
	struct sock *sk;
	struct net_device *dev;
	unsigned int len;
	unsigned char *head;
	unsigned char *data;
	__u16 network_header;
	__u16 transport_header;
	__be16 protocol;
	int skb_iif;
};

enum skb_drop_reason {
	SKB_DROP_REASON_SOCKET_RCVBUFF = 6,
	SKB_DROP_REASON_QUEUE_PURGE = 83,
};

struct bpf_iter_meta {
	void *seq;
	__u64 session_id;
	__u64 seq_num;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
};

#pragma clang attribute pop

/* Flag of a kernel thread among the flags of a task: include/linux/sched.h. */
#define PF_KTHREAD 0x00200000

/* Returns the node of the unified hierarchy's group in this set. */
static ALWAYS_INLINE struct kernfs_node *cgroup_node(struct css_set *groups)
{
	struct cgroup *group = groups ? groups->dfl_cgrp : 0;

	return group ? group->kn : 0;
}

static struct task_struct *(*const bpf_get_current_task_btf)(void) = (void *)BPF_FUNC_get_current_task_btf;
/* Returns a pointer as a number. It goes through the stack, because the verifier forbids arithmetic with pointers. */
static ALWAYS_INLINE __u64 address_of(void *pointer)
{
	void *volatile kept = pointer;
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), (const void *)&kept);
	return address;
}

static struct socket *(*const bpf_sock_from_file)(struct file *file) = (void *)BPF_FUNC_sock_from_file;
static struct tcp_sock *(*const bpf_skc_to_tcp_sock)(void *sk) = (void *)BPF_FUNC_skc_to_tcp_sock;

#endif
