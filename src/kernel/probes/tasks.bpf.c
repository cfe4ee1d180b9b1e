/* Reads the figures of all processes in one walk over all tasks.
 *
 * The iterator visits one task at a time, and the reader sums threads up to processes. No lock is taken: the sequence
 * number in a record shows whether its process changed meanwhile. */

#include "cgroup_paths.h"
#include "tasks.h"

/* Flag of a workqueue worker in `flags` of a task: include/linux/sched.h. */
#define PF_WQ_WORKER 0x20

/* Indexes of the counters of resident pages: include/linux/mm_types_task.h. */
#define FILE_PAGES 0
#define ANONYMOUS_PAGES 1
#define SHARED_PAGES 3

#define MAX_PROCESSORS 512

/* Constants that the loader sets: the requested groups, and the number of possible processors. */
const volatile __u32 groups;
const volatile __u32 processors = 1;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct task_io_accounting___tasks {
	__u64 rchar;
	__u64 wchar;
	__u64 read_bytes;
	__u64 write_bytes;
};

struct prev_cputime___tasks {
	__u64 utime;
	__u64 stime;
};

struct signal_struct___tasks {
	int nr_threads;
	struct {
		struct {
			struct {
				unsigned int sequence;
			} seqcount;
		} seqcount;
	} stats_lock;
	__u64 utime;
	__u64 stime;
	struct prev_cputime___tasks prev_cputime;
	__u64 cutime;
	__u64 cstime;
	unsigned long min_flt;
	unsigned long maj_flt;
	unsigned long cmin_flt;
	unsigned long cmaj_flt;
	unsigned long inblock;
	unsigned long oublock;
	struct task_io_accounting___tasks ioac;
	unsigned long long sum_sched_runtime;
};

struct percpu_counter___tasks {
	__s64 count;
	__s32 *counters;
};

struct mm_struct___tasks {
	unsigned long total_vm;
	struct percpu_counter___tasks rss_stat[4];
};

/* Up to Linux 6.1. */
struct mm_struct___shared {
	struct {
		atomic64_t count[4];
	} rss_stat;
};

struct fdtable___tasks {
	unsigned int max_fds;
	void **fd;
	unsigned long *open_fds;
};

struct files_struct___tasks {
	struct fdtable___tasks *fdt;
	unsigned long open_fds_init[1];
	void *fd_array[1];
};

struct cred___tasks {
	kuid_t euid;
	kgid_t egid;
};

struct sched_entity___tasks {
	__u64 sum_exec_runtime;
};

struct task_struct___tasks {
	unsigned int __state;
	unsigned int flags;
	struct sched_entity___tasks se;
	struct mm_struct___tasks *mm;
	int exit_state;
	int pid;
	int tgid;
	struct task_struct___tasks *real_parent;
	void *worker_private;
	__u64 utime;
	__u64 stime;
	unsigned long nvcsw;
	unsigned long nivcsw;
	__u64 start_boottime;
	unsigned long min_flt;
	unsigned long maj_flt;
	const struct cred___tasks *real_cred;
	char comm[16];
	struct css_set *cgroups;
	struct nsproxy *nsproxy;
	struct files_struct___tasks *files;
	struct signal_struct___tasks *signal;
	void *sighand;
	__u64 self_exec_id;
	struct task_io_accounting___tasks ioac;
};

/* Up to Linux 5.13. */
struct task_struct___state {
	long state;
};

/* Kernel threads, up to Linux 5.16. */
struct task_struct___kthread {
	void *set_child_tid;
};

struct kthread {
	void *data;
	char *full_name;
};

struct worker {
	void *current_work;
	void *pool;
	char desc[32];
};

struct bpf_array___tasks {
	void *pptrs[1];
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute pop

static void *(*const bpf_map_lookup_percpu_elem)(void *map, const void *key,
						 __u32 processor) = (void *)BPF_FUNC_map_lookup_percpu_elem;

/* An element in per-CPU memory, from which the offsets of the processors' memory are derived. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} percpu_anchor SEC(".maps");

/* The offset of each processor's memory from the common per-CPU addresses. */
__u64 percpu_offsets[MAX_PROCESSORS];

/* Derives the offsets from a per-CPU map: the kernel returns the address of each processor's element, and the map has
 * their common per-CPU address. */
static SUBPROGRAM int find_percpu_offsets(void)
{
	struct bpf_array___tasks *map = (struct bpf_array___tasks *)address_of(&percpu_anchor);
	__u64 common = 0;
	__u32 zero = 0;

	bpf_probe_read_kernel(&common, sizeof(common), &map->pptrs);
	for (__u32 processor = 0; processor < processors && processor < MAX_PROCESSORS; processor++) {
		void *element = bpf_map_lookup_percpu_elem(&percpu_anchor, &zero, processor);

		if (element)
			percpu_offsets[processor] = address_of(element) - common;
	}
	return 0;
}

static ALWAYS_INLINE __s64 or_zero(__s64 number)
{
	return number > 0 ? number : 0;
}

/* Returns true if the counters of resident pages are per-CPU counters. */
static ALWAYS_INLINE int has_percpu_rss(void)
{
	struct mm_struct___tasks *mm = 0;

	return HAS_MEMBER(mm->rss_stat[0].counters);
}

/* Reads the resident set if all processors share its counters, with the sums of /proc. A thread adds its own changes to
 * them every 64 page faults. */
static ALWAYS_INLINE void read_common_resident_pages(struct mm_struct___tasks *mm, struct process *process)
{
	__s64 counts[4] = {};

	/* The verifier of these kernels does not permit direct reads of the members. */
	bpf_probe_read_kernel(counts, sizeof(counts), &((struct mm_struct___shared *)mm)->rss_stat.count);
	process->shared_pages = or_zero(counts[FILE_PAGES]) + or_zero(counts[SHARED_PAGES]);
	process->resident_pages = process->shared_pages + or_zero(counts[ANONYMOUS_PAGES]);
}

/* Reads the resident set: the per-CPU counters of all processors and the sums that were folded before. The kernel
 * allocates the counters side by side, so that one read gets all of a processor's. */
static ALWAYS_INLINE void read_resident_pages(struct mm_struct___tasks *mm, struct process *process)
{
	__s64 file = mm->rss_stat[FILE_PAGES].count;
	__s64 anonymous = mm->rss_stat[ANONYMOUS_PAGES].count;
	__s64 shared = mm->rss_stat[SHARED_PAGES].count;
	__u64 at[4] = {
		(__u64)mm->rss_stat[0].counters,
		(__u64)mm->rss_stat[1].counters,
		(__u64)mm->rss_stat[2].counters,
		(__u64)mm->rss_stat[3].counters,
	};
	int together = at[1] == at[0] + 4 && at[3] == at[0] + 12;

	for (__u32 processor = 0; processor < processors && processor < MAX_PROCESSORS; processor++) {
		__u64 offset = percpu_offsets[processor];
		__s32 shares[4] = {};

		if (together) {
			bpf_probe_read_kernel(shares, sizeof(shares), (void *)(at[0] + offset));
		} else {
			bpf_probe_read_kernel(&shares[0], 4, (void *)(at[0] + offset));
			bpf_probe_read_kernel(&shares[1], 4, (void *)(at[1] + offset));
			bpf_probe_read_kernel(&shares[3], 4, (void *)(at[3] + offset));
		}
		file += shares[FILE_PAGES];
		anonymous += shares[ANONYMOUS_PAGES];
		shared += shares[SHARED_PAGES];
	}
	process->shared_pages = or_zero(file) + or_zero(shared);
	process->resident_pages = process->shared_pages + or_zero(anonymous);
}

/* Counting of descriptors. It uses functions, which the verifier checks once for all calls, in place of loops, which it
 * checks in each iteration. */

/* Returns 1 for a pointer other than 0. It has no branch, of which the verifier would follow both sides. */
static ALWAYS_INLINE __u32 is_set(__u64 pointer)
{
	asm volatile("" : "+r"(pointer));
	return (pointer | -pointer) >> 63;
}

/* Counts the entries among 8 in a table of files. */
SUBPROGRAM __u32 entries_of_8(__u64 from)
{
	__u64 entries[8] = {};
	__u32 count = 0;

	bpf_probe_read_kernel(entries, sizeof(entries), (const void *)from);
	for (int entry = 0; entry < 8; entry++)
		count += is_set(entries[entry]);
	return count;
}

/* Counts the entries for a word of the descriptor bitmap. A number that a call in progress has reserved has its bit
 * set, but no entry. */
SUBPROGRAM __u32 entries_of_word(__u64 word, __u64 from)
{
	__u64 bits = 0;
	__u32 count = 0;

	bpf_probe_read_kernel(&bits, sizeof(bits), (const void *)word);
	for (int turn = 0; turn < 8; turn++) {
		if (bits & 0xff)
			count += entries_of_8(from);
		bits >>= 8;
		from += 8 * sizeof(void *);
	}
	return count;
}

/* The sum of a function's counts over four times so many words. */
#define FOUR_TIMES(function, words, word, from)                                                                      \
	(function(word, from) + function((word) + (words) * 8, (from) + (words) * 512) +                              \
	 function((word) + (words) * 16, (from) + (words) * 1024) + function((word) + (words) * 24, (from) + (words) * 1536))

SUBPROGRAM __u32 entries_of_4_words(__u64 word, __u64 from)
{
	return FOUR_TIMES(entries_of_word, 1, word, from);
}

/* The sum of a function's counts over twice so many words. */
#define TWICE(function, words, word, from) (function(word, from) + function((word) + (words) * 8, (from) + (words) * 512))

static ALWAYS_INLINE __u32 descriptors(struct task_struct___tasks *task, struct files_struct___tasks *files)
{
	struct fdtable___tasks *table;
	__u64 word = 0, from = 0, now = 0;
	__u32 count;

	if (!files)
		return 0;
	table = files->fdt;
	READ(word, table->open_fds);
	READ(from, table->fd);
	/* The kernel creates tables of these sizes. Each process starts with the first, and most keep it. Other sizes
	 * exist if fs.nr_open is not a power of two. */
	switch (table->max_fds) {
	case 64:
		count = entries_of_word(word, from);
		break;
	case 128:
		count = TWICE(entries_of_word, 1, word, from);
		break;
	case 256:
		count = entries_of_4_words(word, from);
		break;
	case 512:
		count = TWICE(entries_of_4_words, 4, word, from);
		break;
	case 1024:
		count = FOUR_TIMES(entries_of_4_words, 4, word, from);
		break;
	default:
		return UNCOUNTED;
	}
	/* A table that was replaced meanwhile may belong to another process by now. */
	READ(now, task->files);
	return now == (__u64)files ? count : 0;
}

static ALWAYS_INLINE void read_figures(struct task_struct___tasks *task, struct figures *figures)
{
	figures->user_ns = task->utime;
	figures->system_ns = task->stime;
	figures->runtime_ns = task->se.sum_exec_runtime;
	figures->minor_faults = task->min_flt;
	figures->major_faults = task->maj_flt;
	if (groups & GROUP_IO) {
		figures->read_chars = task->ioac.rchar;
		figures->write_chars = task->ioac.wchar;
		figures->read_bytes = task->ioac.read_bytes;
		figures->write_bytes = task->ioac.write_bytes;
	}
}

static ALWAYS_INLINE void add_ended(struct signal_struct___tasks *signal, struct figures *figures)
{
	figures->user_ns += signal->utime;
	figures->system_ns += signal->stime;
	figures->runtime_ns += signal->sum_sched_runtime;
	figures->minor_faults += signal->min_flt;
	figures->major_faults += signal->maj_flt;
	if (groups & GROUP_IO) {
		figures->read_chars += signal->ioac.rchar;
		figures->write_chars += signal->ioac.wchar;
		figures->read_bytes += signal->ioac.read_bytes;
		figures->write_bytes += signal->ioac.write_bytes;
	}
}

/* Reads the I/O of children that were waited for, which the kernel adds to that of ended threads. The two are separate
 * only for storage blocks of 512 bytes: `inblock` and `oublock` have those of ended threads. */
static ALWAYS_INLINE void read_children(struct signal_struct___tasks *signal, struct process *process)
{
	/* No child was waited for. */
	if (!(signal->cmin_flt | signal->cmaj_flt | signal->cutime | signal->cstime))
		return;
	process->has_mixed_io = !!signal->sum_sched_runtime;
	process->children_read_chars = signal->ioac.rchar;
	process->children_write_chars = signal->ioac.wchar;
	process->children_read_bytes = signal->ioac.read_bytes - signal->inblock * 512;
	process->children_write_bytes = signal->ioac.write_bytes - signal->oublock * 512;
}

/* Keeps the compiler from moving reads across it. The processor does not either if it keeps loads in order (x86). On
 * others, a record may in rare cases be inconsistent without showing it. */
#define COMPILER_BARRIER() __asm__ volatile("" ::: "memory")

/* Returns the inode of a process's network namespace, or 0 once it has begun to exit. */
static ALWAYS_INLINE __u32 network_namespace(struct task_struct___tasks *task)
{
	struct nsproxy *namespaces = 0;
	struct net *network = 0;
	__u32 inode = 0;

	READ(namespaces, task->nsproxy);
	if (namespaces)
		READ(network, namespaces->net_ns);
	if (network)
		READ(inode, network->ns.inum);
	return inode;
}

/* Each function that writes a record has a stack of its own, because one stack has no room for all records. */

static ALWAYS_INLINE __u32 state_of(struct task_struct___tasks *task)
{
	return HAS_MEMBER(task->__state) ? task->__state : ((struct task_struct___state *)task)->state;
}

/* See to_kthread() in kernel/kthread.c. */
static ALWAYS_INLINE struct kthread *kthread_of(struct task_struct___tasks *task)
{
	return HAS_MEMBER(task->worker_private) ? task->worker_private
					     : ((struct task_struct___kthread *)task)->set_child_tid;
}

/* Writes the name in the form of proc_task_name() in fs/proc/array.c. */
static SUBPROGRAM int write_name(void *seq, struct task_struct___tasks *task)
{
	struct kthread *kthread = kthread_of(task);
	struct kthread_name name = { .kind = KTHREAD_NAME };
	void *from = 0;

	if (kthread && HAS_MEMBER(kthread->full_name))
		bpf_probe_read_kernel(&from, sizeof(from), &kthread->full_name);
	if (from)
		bpf_probe_read_kernel_str(name.name, sizeof(name.name), from);
	else
		bpf_probe_read_kernel_str(name.name, sizeof(task->comm), task->comm);
	if (kthread && task->flags & PF_WQ_WORKER) {
		struct worker *worker = 0;
		void *pool = 0, *work = 0;

		bpf_probe_read_kernel(&worker, sizeof(worker), &kthread->data);
		/* A rescuer that has left the pool that it helped keeps its description, which is not part of its name
		 * then. */
		if (worker)
			bpf_probe_read_kernel(&pool, sizeof(pool), &worker->pool);
		if (pool) {
			bpf_probe_read_kernel_str(name.work, sizeof(name.work), worker->desc);
			bpf_probe_read_kernel(&work, sizeof(work), &worker->current_work);
			name.busy = !!work;
		}
	}
	return bpf_seq_write(seq, &name, sizeof(name));
}

/* Makes the processor load a member without waiting for it. */
#define PREFETCH(member) asm volatile("" : : "r"(member))

/* Loads all memory that the record of a process needs before waiting for any of it, because most of the cost of a walk
 * is cache misses. */
static ALWAYS_INLINE void prefetch(struct task_struct___tasks *task, struct signal_struct___tasks *signal,
				   struct mm_struct___tasks *mm, struct files_struct___tasks *files)
{
	PREFETCH(task->se.sum_exec_runtime);
	PREFETCH(task->utime);
	PREFETCH(task->self_exec_id);
	PREFETCH(task->ioac.rchar);
	PREFETCH(signal->nr_threads);
	PREFETCH(signal->utime);
	PREFETCH(signal->sum_sched_runtime);
	if (mm) {
		PREFETCH(mm->total_vm);
		if (has_percpu_rss()) {
			PREFETCH(mm->rss_stat[FILE_PAGES].counters);
			PREFETCH(mm->rss_stat[SHARED_PAGES].counters);
		}
	}
	if (groups & GROUP_DESCRIPTORS && files) {
		PREFETCH(files->fdt);
		PREFETCH(files->open_fds_init[0]);
		PREFETCH(files->fd_array[0]);
	}
	PREFETCH(task->real_cred->euid.val);
}

/* Writes the record of a process. Returns true if a name is to follow. */
static SUBPROGRAM int write_process(void *seq, struct task_struct___tasks *task, struct signal_struct___tasks *signal,
				    __u64 cgroup, __u32 descriptors)
{
	struct mm_struct___tasks *mm = task->mm;
	const struct cred___tasks *cred = task->real_cred;
	struct task_struct___tasks *parent = 0;
	struct process process = {};
	__u64 now = 0;

	process.kind = PROCESS;
	process.pid = task->tgid;
	process.sequence = signal->stats_lock.seqcount.seqcount.sequence;
	COMPILER_BARRIER();
	process.threads = signal->nr_threads;
	read_figures(task, &process.figures);
	add_ended(signal, &process.figures);
	if (groups & GROUP_IO)
		read_children(signal, &process);
	process.reported_user_ns = signal->prev_cputime.utime;
	process.reported_system_ns = signal->prev_cputime.stime;
	process.flags = task->flags;
	process.state = state_of(task);
	process.exit_state = task->exit_state;
	READ(parent, task->real_parent);
	READ(process.parent, parent->tgid);
	process.start_ns = task->start_boottime;
	process.image = task->self_exec_id;
	process.voluntary_switches = task->nvcsw;
	process.involuntary_switches = task->nivcsw;
	if (!(process.flags & PF_KTHREAD)) {
		process.uid = cred->euid.val;
		process.gid = cred->egid.val;
		process.name[0] = *(const __u64 *)&task->comm[0];
		process.name[1] = *(const __u64 *)&task->comm[8];
		/* A kernel thread may use another process's memory for a while. */
		if (mm) {
			process.virtual_pages = mm->total_vm;
			if (groups & GROUP_MEMORY) {
				if (has_percpu_rss())
					read_resident_pages(mm, &process);
				else
					read_common_resident_pages(mm, &process);
			}
			READ(now, task->mm);
			if (now != (__u64)mm) {
				/* The memory was released meanwhile, and may belong to another process by now. */
				process.virtual_pages = 0;
				process.resident_pages = 0;
				process.shared_pages = 0;
			}
		}
	}
	process.descriptors = descriptors;
	process.cgroup = cgroup;
	process.network_namespace = network_namespace(task);
	COMPILER_BARRIER();
	/* The number is odd during a change. */
	process.torn = signal->stats_lock.seqcount.seqcount.sequence != process.sequence || process.sequence & 1;
	/* A task that was released meanwhile is not a process any more. */
	READ(now, task->sighand);
	if (!now)
		return 0;
	bpf_seq_write(seq, &process, sizeof(process));
	return !!(process.flags & PF_KTHREAD);
}

static SUBPROGRAM int write_thread(void *seq, struct task_struct___tasks *task, __u32 pid)
{
	struct thread thread = {};

	thread.kind = THREAD;
	thread.pid = pid;
	read_figures(task, &thread.figures);
	COMPILER_BARRIER();
	thread.sequence = task->signal->stats_lock.seqcount.seqcount.sequence;
	thread.ended = task->exit_state != 0;
	return bpf_seq_write(seq, &thread, sizeof(thread));
}

SEC("iter/task")
int capture_tasks(struct bpf_iter__task *context)
{
	struct task_struct___tasks *task = (struct task_struct___tasks *)context->task;
	struct bpf_iter_meta *meta = context->meta;
	struct signal_struct___tasks *signal;
	struct files_struct___tasks *files;
	__u64 cgroup = 0;
	__u32 pid, count = 0;

	if (!task)
		return 0;
	if (groups & GROUP_MEMORY && has_percpu_rss() && !percpu_offsets[0] && !meta->seq_num)
		find_percpu_offsets();
	if (groups & GROUP_CGROUP && !meta->seq_num)
		record_namespace_root();
	pid = task->tgid;
	if ((__u32)task->pid != pid) {
		write_thread(meta->seq, task, pid);
		return 0;
	}
	signal = task->signal;
	files = task->files;
	prefetch(task, signal, task->mm, files);
	if (groups & GROUP_CGROUP)
		cgroup = record_cgroup(task->cgroups);
	if (groups & GROUP_DESCRIPTORS)
		count = descriptors(task, files);
	if (write_process(meta->seq, task, signal, cgroup, count))
		write_name(meta->seq, task);
	return 0;
}

/* The last names that processes were given, by pid. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, struct given_name);
} given_names SEC(".maps");

/* Records the name of a process that executes a program or changes its name, because it may end before the next
 * walk. */
SEC("tp_btf/task_rename")
int capture_rename(__u64 *context)
{
	struct task_struct___tasks *task = (struct task_struct___tasks *)context[0];
	struct given_name given = {};
	__u32 pid = task->tgid;

	/* The name of another thread is not the process's, and the name of a kernel thread has more parts. */
	if ((__u32)task->pid != pid || task->flags & PF_KTHREAD)
		return 0;
	given.start_ns = task->start_boottime;
	bpf_probe_read_kernel_str(given.name, sizeof(given.name), (const void *)context[1]);
	bpf_map_update_elem(&given_names, &pid, &given, BPF_ANY);
	return 0;
}

/* Several helpers are only available to programs under a licence that is compatible with the GPL. */
char licence[] SEC("license") = "Dual MIT/GPL";
