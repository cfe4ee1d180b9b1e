/* Figures of all processes in one walk over all tasks.
 *
 * The walk hands over one task at a time; threads are summed up to processes by the reader. Nothing is locked: a
 * record that was written while its process changed shows that by its sequence. */

#include "paths.h"
#include "tasks.h"

/* Of the flags of a task, include/linux/sched.h. */
#define PF_WQ_WORKER 0x20
#define PF_KTHREAD 0x00200000

/* Of the counters of resident pages, include/linux/mm_types_task.h. */
#define FILE_PAGES 0
#define ANONYMOUS_PAGES 1
#define SHARED_PAGES 3

#define MOST_PROCESSORS 512

/* Set by the loader: the groups asked for, and the number of processors that there may ever be. */
const volatile __u32 groups;
const volatile __u32 processors = 1;

/* Whether the running kernel has a member. Code for one that it has not is left out before it is verified. */
#define EXISTS(member) __builtin_preserve_field_info(member, BPF_CORE_FIELD_EXISTS)

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

/* Of threads of the kernel, up to Linux 5.16. */
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

/* Something that every processor has its own of, to learn how far these are apart. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} anchor SEC(".maps");

/* Where each processor's own memory is, relative to the addresses that are the same for all. */
__u64 places[MOST_PROCESSORS];

/* Learns where the processors' memory is from a map that the kernel keeps there: it tells each processor's element,
 * and in the map stands the address that they have in common. */
static SUBPROGRAM int find_places(void)
{
	struct bpf_array___tasks *map = (struct bpf_array___tasks *)address_of(&anchor);
	__u64 common = 0;
	__u32 zero = 0;

	bpf_probe_read_kernel(&common, sizeof(common), &map->pptrs);
	for (__u32 processor = 0; processor < processors && processor < MOST_PROCESSORS; processor++) {
		void *element = bpf_map_lookup_percpu_elem(&anchor, &zero, processor);

		if (element)
			places[processor] = address_of(element) - common;
	}
	return 0;
}

static ALWAYS_INLINE __s64 or_zero(__s64 number)
{
	return number > 0 ? number : 0;
}

/* Whether each processor has its own share of the counters of resident pages. */
static ALWAYS_INLINE int has_shares(void)
{
	struct mm_struct___tasks *mm = 0;

	return EXISTS(mm->rss_stat[0].counters);
}

/* The resident set where all processors share its counters, as /proc sums it up: threads add what they have gathered of
 * it every 64 page faults. */
static ALWAYS_INLINE void read_common_resident_pages(struct mm_struct___tasks *mm, struct process *process)
{
	__s64 counts[4] = {};

	/* The verifier of these kernels does not let the members be read as such. */
	bpf_probe_read_kernel(counts, sizeof(counts), &((struct mm_struct___shared *)mm)->rss_stat.count);
	process->shared_pages = or_zero(counts[FILE_PAGES]) + or_zero(counts[SHARED_PAGES]);
	process->resident_pages = process->shared_pages + or_zero(counts[ANONYMOUS_PAGES]);
}

/* The resident set: the counters' shares of all processors and what has been gathered of them. The kernel makes the
 * counters side by side, so that one read gets all of a processor's. */
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

	for (__u32 processor = 0; processor < processors && processor < MOST_PROCESSORS; processor++) {
		__u64 place = places[processor];
		__s32 shares[4] = {};

		if (together) {
			bpf_probe_read_kernel(shares, sizeof(shares), (void *)(at[0] + place));
		} else {
			bpf_probe_read_kernel(&shares[0], 4, (void *)(at[0] + place));
			bpf_probe_read_kernel(&shares[1], 4, (void *)(at[1] + place));
			bpf_probe_read_kernel(&shares[3], 4, (void *)(at[3] + place));
		}
		file += shares[FILE_PAGES];
		anonymous += shares[ANONYMOUS_PAGES];
		shared += shares[SHARED_PAGES];
	}
	process->shared_pages = or_zero(file) + or_zero(shared);
	process->resident_pages = process->shared_pages + or_zero(anonymous);
}

/* Descriptors: functions that the verifier follows once, however often they are called, take the place of loops, which it
 * follows turn by turn. */

/* Whether a pointer is one, without a branch, which the verifier would follow both ways. */
static ALWAYS_INLINE __u32 is_set(__u64 pointer)
{
	asm volatile("" : "+r"(pointer));
	return (pointer | -pointer) >> 63;
}

/* Entries of a table from an address on, of the first 8. */
SUBPROGRAM __u32 entries_of_8(__u64 from)
{
	__u64 entries[8] = {};
	__u32 count = 0;

	bpf_probe_read_kernel(entries, sizeof(entries), (const void *)from);
	for (int entry = 0; entry < 8; entry++)
		count += is_set(entries[entry]);
	return count;
}

/* Entries that a word of a table's bits stands for. A number that a call in progress has reserved has its bit, but no
 * entry. */
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

/* Four times what another function counts of so many words. */
#define FOUR_TIMES(function, words, word, from)                                                                      \
	(function(word, from) + function((word) + (words) * 8, (from) + (words) * 512) +                              \
	 function((word) + (words) * 16, (from) + (words) * 1024) + function((word) + (words) * 24, (from) + (words) * 1536))

SUBPROGRAM __u32 entries_of_4_words(__u64 word, __u64 from)
{
	return FOUR_TIMES(entries_of_word, 1, word, from);
}

/* Twice what another function counts of so many words. */
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
	/* The kernel makes tables of these sizes, of which the first is that which every process starts with, and most keep;
	 * and others where fs.nr_open is no power of two. */
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
	/* A table that has just been given up may belong to another process by now. */
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

/* The I/O of children that were waited for, which the kernel adds to that of threads that have ended. Blocks of storage, of
 * 512 bytes, it keeps apart: those of ended threads are in `inblock` and `oublock`. */
static ALWAYS_INLINE void read_children(struct signal_struct___tasks *signal, struct process *process)
{
	/* None has been waited for. */
	if (!(signal->cmin_flt | signal->cmaj_flt | signal->cutime | signal->cstime))
		return;
	process->has_mixed_io = !!signal->sum_sched_runtime;
	process->children_read_chars = signal->ioac.rchar;
	process->children_write_chars = signal->ioac.wchar;
	process->children_read_bytes = signal->ioac.read_bytes - signal->inblock * 512;
	process->children_write_bytes = signal->ioac.write_bytes - signal->oublock * 512;
}

/* What is read before it in the program is read before what follows: the compiler may not change that. The processor may
 * not either where it keeps loads in order (x86); elsewhere a record may rarely be torn and not show it. */
#define IN_ORDER() __asm__ volatile("" ::: "memory")

/* The inode of the network namespace that a process is in; 0 when it has begun to exit. */
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

/* Each of the functions that write has a stack of its own: one would not have room for all. */

static ALWAYS_INLINE __u32 state_of(struct task_struct___tasks *task)
{
	return EXISTS(task->__state) ? task->__state : ((struct task_struct___state *)task)->state;
}

/* As to_kthread() in kernel/kthread.c. */
static ALWAYS_INLINE struct kthread *kthread_of(struct task_struct___tasks *task)
{
	return EXISTS(task->worker_private) ? task->worker_private
					     : ((struct task_struct___kthread *)task)->set_child_tid;
}

/* As proc_task_name() in fs/proc/array.c puts it together. */
static SUBPROGRAM int write_name(void *seq, struct task_struct___tasks *task)
{
	struct kthread *kthread = kthread_of(task);
	struct name name = { .kind = NAME };
	void *from = 0;

	if (kthread && EXISTS(kthread->full_name))
		bpf_probe_read_kernel(&from, sizeof(from), &kthread->full_name);
	if (from)
		bpf_probe_read_kernel_str(name.name, sizeof(name.name), from);
	else
		bpf_probe_read_kernel_str(name.name, sizeof(task->comm), task->comm);
	if (kthread && task->flags & PF_WQ_WORKER) {
		struct worker *worker = 0;
		void *pool = 0, *work = 0;

		bpf_probe_read_kernel(&worker, sizeof(worker), &kthread->data);
		/* A rescuer that has left the pool it helped keeps the description, which is not told any more. */
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

/* Has the processor fetch a member without waiting for it. */
#define TOUCH(member) asm volatile("" : : "r"(member))

/* Asks for all memory that a process's record takes, before any of it is waited for: of each process everything comes
 * from far away, and that is most of what a walk costs. */
static ALWAYS_INLINE void touch(struct task_struct___tasks *task, struct signal_struct___tasks *signal,
				struct mm_struct___tasks *mm, struct files_struct___tasks *files)
{
	TOUCH(task->se.sum_exec_runtime);
	TOUCH(task->utime);
	TOUCH(task->self_exec_id);
	TOUCH(task->ioac.rchar);
	TOUCH(signal->nr_threads);
	TOUCH(signal->utime);
	TOUCH(signal->sum_sched_runtime);
	if (mm) {
		TOUCH(mm->total_vm);
		if (has_shares()) {
			TOUCH(mm->rss_stat[FILE_PAGES].counters);
			TOUCH(mm->rss_stat[SHARED_PAGES].counters);
		}
	}
	if (groups & GROUP_DESCRIPTORS && files) {
		TOUCH(files->fdt);
		TOUCH(files->open_fds_init[0]);
		TOUCH(files->fd_array[0]);
	}
	TOUCH(task->real_cred->euid.val);
}

/* Returns whether a name is to follow. */
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
	IN_ORDER();
	process.threads = signal->nr_threads;
	read_figures(task, &process.figures);
	add_ended(signal, &process.figures);
	if (groups & GROUP_IO)
		read_children(signal, &process);
	process.told_user_ns = signal->prev_cputime.utime;
	process.told_system_ns = signal->prev_cputime.stime;
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
		/* Threads of the kernel may use another's for a while, which is not theirs. */
		if (mm) {
			process.virtual_pages = mm->total_vm;
			if (groups & GROUP_MEMORY) {
				if (has_shares())
					read_resident_pages(mm, &process);
				else
					read_common_resident_pages(mm, &process);
			}
			READ(now, task->mm);
			if (now != (__u64)mm) {
				/* It has just been given up, and may belong to another by now. */
				process.virtual_pages = 0;
				process.resident_pages = 0;
				process.shared_pages = 0;
			}
		}
	}
	process.descriptors = descriptors;
	process.cgroup = cgroup;
	process.network_namespace = network_namespace(task);
	IN_ORDER();
	/* Odd while it is being written. */
	process.torn = signal->stats_lock.seqcount.seqcount.sequence != process.sequence || process.sequence & 1;
	/* One that was released meanwhile is no process any more. */
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
	IN_ORDER();
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
	if (groups & GROUP_MEMORY && has_shares() && !places[0] && !meta->seq_num)
		find_places();
	if (groups & GROUP_CGROUP && !meta->seq_num)
		note_namespace();
	pid = task->tgid;
	if ((__u32)task->pid != pid) {
		write_thread(meta->seq, task, pid);
		return 0;
	}
	signal = task->signal;
	files = task->files;
	touch(task, signal, task->mm, files);
	if (groups & GROUP_CGROUP)
		cgroup = note_cgroup(task->cgroups);
	if (groups & GROUP_DESCRIPTORS)
		count = descriptors(task, files);
	if (write_process(meta->seq, task, signal, cgroup, count))
		write_name(meta->seq, task);
	return 0;
}

/* The names that processes were given last, by their numbers. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, 2048);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct given_name);
} names SEC(".maps");

/* A process executes a program or changes its name: it may end before the next walk. */
SEC("tp_btf/task_rename")
int capture_rename(__u64 *context)
{
	struct task_struct___tasks *task = (struct task_struct___tasks *)context[0];
	struct given_name given = {};
	__u32 pid = task->tgid;

	/* The name of another thread is not the process's, and a thread of the kernel is told by more than this. */
	if ((__u32)task->pid != pid || task->flags & PF_KTHREAD)
		return 0;
	given.start_ns = task->start_boottime;
	bpf_probe_read_kernel_str(given.name, sizeof(given.name), (const void *)context[1]);
	bpf_map_update_elem(&names, &pid, &given, BPF_ANY);
	return 0;
}

/* Several of the helpers are only for programs that are offered under the GPL too. */
char licence[] SEC("license") = "Dual MIT/GPL";
