//! Pure parsers of the text files of `/proc`, without I/O.
//!
//! All of them return `None` for bytes that the kernel would not have written, and none of them allocates.
//! The formats are those of proc_pid_stat(5), proc_pid_statm(5), proc_pid_io(5), cgroups(7), proc_stat(5) and
//! proc_meminfo(5).

/// The thread is a kernel thread (`PF_KTHREAD`, include/linux/sched.h).
const FLAG_KERNEL_THREAD: u64 = 0x0020_0000;
/// The thread is ending or has ended (`PF_EXITING`, include/linux/sched.h).
const FLAG_ENDING: u64 = 0x4;
/// The process has not called exec since it was forked (`PF_FORKNOEXEC`, include/linux/sched.h).
const FLAG_NO_EXEC_YET: u64 = 0x40;

/// The parsed fields of `/proc/<pid>/stat`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat<'a> {
    /// Process id (field 1).
    pub pid: i32,
    /// Name (field 2), without the parentheses around it.
    pub name: &'a [u8],
    /// The letter of the state (field 3).
    pub state: u8,
    /// The parent's pid (field 4).
    pub parent: i32,
    /// The kernel's flags of the process (field 9).
    pub flags: u64,
    /// Page faults of all threads that needed no storage (field 10).
    pub minor_faults: u64,
    /// Page faults of all threads that needed storage (field 12).
    pub major_faults: u64,
    /// Set if children have been waited for: their faults and CPU times are present (fields 11, 13, 16 and
    /// 17).
    pub has_waited: bool,
    /// CPU time in user mode of all threads, clock ticks (field 14).
    pub user_ticks: u64,
    /// CPU time in kernel mode of all threads, clock ticks (field 15).
    pub system_ticks: u64,
    /// Number of threads (field 20).
    pub threads: u32,
    /// Clock ticks from boot to the start (field 22).
    pub start_ticks: u64,
    /// Virtual memory, bytes; 0 without an address space (field 23).
    pub virtual_bytes: u64,
    /// Addresses of code and stack, which exec chooses; 0 or 1 if the reader may not see them (fields 26 and
    /// 28).
    pub layout: [u64; 2],
}

impl Stat<'_> {
    /// Returns true if this is a kernel thread, which has no memory and no arguments of its own.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & FLAG_KERNEL_THREAD != 0
    }

    /// Returns true if the main thread is ending or has ended.
    pub fn is_ending(&self) -> bool {
        self.flags & FLAG_ENDING != 0
    }

    /// Returns true if the main thread has ended, or is about to, while other threads go on.
    pub fn has_lost_main_thread(&self) -> bool {
        self.is_ending() && self.threads > 1
    }

    /// Takes the state that the main thread has lost from another thread of the process.
    pub fn stand_in(&mut self, thread: &Stat<'_>) {
        self.flags &= !FLAG_ENDING;
        (self.virtual_bytes, self.layout) = (thread.virtual_bytes, thread.layout);
    }

    /// Returns true if there is an address space: not for kernel threads, zombies and processes about to
    /// become one.
    pub fn has_memory(&self) -> bool {
        self.virtual_bytes != 0 && !self.is_kernel_thread()
    }

    /// Returns the traits that differ before and after an exec. The flag is visible to every process, the
    /// addresses are not.
    pub fn image(&self) -> Image {
        Image { layout: self.layout, no_exec_yet: self.flags & FLAG_NO_EXEC_YET != 0 }
    }
}

/// Traits of the program image of a process, compared to detect an exec.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Image {
    layout: [u64; 2],
    no_exec_yet: bool,
}

/// Parses `/proc/<pid>/stat`. The name may contain any byte but NUL, so it ends at the last `)`. Fields after
/// the virtual memory may be missing.
pub fn stat(text: &[u8]) -> Option<Stat<'_>> {
    let open = text.iter().position(|&byte| byte == b'(')?;
    let close = last_position(text, b')')?;
    let name = text.get(open + 1..close)?;
    let mut front = Fields(text.get(..open)?);
    let pid = front.integer()?;
    let mut fields = Fields(text.get(close + 1..)?.strip_prefix(b" ")?);
    let &[state] = fields.next()? else { return None };
    if !state.is_ascii_alphabetic() {
        return None;
    }
    let parent = fields.integer()?;
    fields.skip(4)?;
    let flags = fields.number()?;
    let minor_faults = fields.number()?;
    let mut of_children = fields.number()?;
    let major_faults = fields.number()?;
    of_children |= fields.number()?;
    let user_ticks = fields.number()?;
    let system_ticks = fields.number()?;
    // These can be negative because of bugs in old kernels.
    of_children |= u64::from(fields.next()? != b"0") | u64::from(fields.next()? != b"0");
    fields.skip(2)?;
    let threads = u32::try_from(fields.number()?).ok()?;
    fields.skip(1)?;
    let start_ticks = fields.number()?;
    let virtual_bytes = fields.number()?;
    let layout = layout(&mut fields).unwrap_or_default();
    Some(Stat {
        pid,
        name,
        state,
        parent,
        flags,
        minor_faults,
        major_faults,
        has_waited: of_children != 0,
        user_ticks,
        system_ticks,
        threads,
        start_ticks,
        virtual_bytes,
        layout,
    })
}

/// Parses the layout from the fields from `rss` on, of which older kernels write fewer.
fn layout(fields: &mut Fields<'_>) -> Option<[u64; 2]> {
    fields.skip(2)?;
    let start_code = fields.number()?;
    fields.skip(1)?;
    Some([start_code, fields.number()?])
}

/// Returns the position of the last `byte`. Whole blocks are scanned first, which the compiler turns into
/// vector instructions: the fields after a name are long.
fn last_position(text: &[u8], byte: u8) -> Option<usize> {
    let mut end = text.len();
    for block in text.rchunks(32) {
        if block.iter().fold(false, |found, &other| found | (other == byte)) {
            break;
        }
        end -= block.len();
    }
    text.get(..end)?.iter().rposition(|&other| other == byte)
}

/// The parsed fields of `/proc/<pid>/statm`, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statm {
    /// Virtual memory.
    pub virtual_pages: u64,
    /// Resident set.
    pub resident_pages: u64,
    /// The part of the resident set that belongs to files or shared memory.
    pub shared_pages: u64,
}

/// Parses `/proc/<pid>/statm`.
pub fn statm(text: &[u8]) -> Option<Statm> {
    let mut fields = Fields(text);
    let [virtual_pages, resident_pages, shared_pages] =
        [fields.number()?, fields.number()?, fields.number()?];
    Some(Statm { virtual_pages, resident_pages, shared_pages })
}

/// The parsed fields of `/proc/<pid>/io`, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Io {
    /// `rchar`.
    pub read_chars: u64,
    /// `wchar`.
    pub write_chars: u64,
    /// `read_bytes`.
    pub read_bytes: u64,
    /// `write_bytes`.
    pub write_bytes: u64,
}

/// Parses `/proc/<pid>/io`; lines other than the four may come in any order and number.
pub fn io(text: &[u8]) -> Option<Io> {
    let [mut read_chars, mut write_chars, mut read_bytes, mut write_bytes] = [None; 4];
    for line in text.split(|&byte| byte == b'\n') {
        let mut fields = Fields(line);
        let value = match fields.next() {
            Some(b"rchar:") => &mut read_chars,
            Some(b"wchar:") => &mut write_chars,
            Some(b"read_bytes:") => &mut read_bytes,
            Some(b"write_bytes:") => &mut write_bytes,
            _ => continue,
        };
        *value = Some(fields.number()?);
    }
    Some(Io {
        read_chars: read_chars?,
        write_chars: write_chars?,
        read_bytes: read_bytes?,
        write_bytes: write_bytes?,
    })
}

/// Parses the CPU time of all processors since boot from `/proc/stat`, clock ticks: user, nice, system, idle,
/// iowait, irq and softirq. Guest time is already part of user time, and stolen time was not available to
/// this machine. The fields after `idle` may be missing.
pub fn machine_ticks(text: &[u8]) -> Option<u64> {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"cpu "))?;
    cpu_total(line.trim_ascii())
}

fn cpu_total(text: &[u8]) -> Option<u64> {
    let mut fields = Fields(text);
    let mut total = 0u64;
    for index in 0..7 {
        match fields.next() {
            Some(ticks) => total = total.saturating_add(decimal(ticks)?),
            None if index >= 4 => break,
            None => return None,
        }
    }
    Some(total)
}

/// Parses the proportional set size from `/proc/<pid>/smaps_rollup`, in bytes.
pub fn proportional(text: &[u8]) -> Option<u64> {
    kibibytes(text, b"Pss:")
}

/// Parses the installed memory from `/proc/meminfo`, in bytes.
pub fn memory_total(text: &[u8]) -> Option<u64> {
    kibibytes(text, b"MemTotal:")
}

fn kibibytes(text: &[u8], name: &[u8]) -> Option<u64> {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(name))?;
    let kibibytes = Fields(line.trim_ascii().strip_suffix(b" kB")?.trim_ascii()).number()?;
    kibibytes.checked_mul(1024)
}

/// Parses the pid of the process that a thread belongs to from `/proc/<pid>/status`.
pub fn thread_group(text: &[u8]) -> Option<i32> {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Tgid:\t"))?;
    Fields(line).integer()
}

/// Parses the numbers of voluntary and involuntary context switches of the thread from `/proc/<pid>/status`.
pub fn switches(text: &[u8]) -> Option<[u64; 2]> {
    // They are the last of many lines.
    let mut lines = text.rsplit(|&byte| byte == b'\n');
    let mut last = |name: &[u8]| lines.find_map(|line| decimal(line.strip_prefix(name)?));
    let involuntary = last(b"nonvoluntary_ctxt_switches:\t")?;
    Some([last(b"voluntary_ctxt_switches:\t")?, involuntary])
}

/// Parses the path in one hierarchy from `/proc/<pid>/cgroup`. `listed` is the list of controllers or the
/// name in the hierarchy's line; it is empty for version 2.
pub fn cgroup<'t>(text: &'t [u8], listed: &[u8]) -> Option<&'t [u8]> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let number_end = line.iter().position(|&byte| byte == b':')?;
        let path = line.get(number_end + 1..)?.strip_prefix(listed)?.strip_prefix(b":")?;
        path.starts_with(b"/").then_some(path)
    })
}

/// Parses a decimal number that is all of `text`.
#[inline]
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// The maximum number of digits with which a number is certainly below 2^64.
const SAFE_DIGITS: usize = 19;

/// Fields separated by single spaces; a newline ends the last.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|&byte| byte == b' ' || byte == b'\n').unwrap_or(self.0.len());
        let field = self.0.get(..end)?;
        self.0 = self.0.get(end + 1..).unwrap_or_default();
        Some(field)
    }

    #[inline]
    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for (index, &byte) in self.0.iter().enumerate() {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                if index == 0 || index > SAFE_DIGITS || !matches!(byte, b' ' | b'\n') {
                    break;
                }
                self.0 = self.0.get(index + 1..)?;
                return Some(value);
            }
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        }
        // The last field of all, too many digits for the unchecked loop, or not a number.
        decimal(self.next()?)
    }

    /// Parses a pid, which is 0 for the parent of the first process and never negative.
    fn integer(&mut self) -> Option<i32> {
        i32::try_from(self.number()?).ok()
    }

    #[inline]
    fn skip(&mut self, count: usize) -> Option<()> {
        let mut left = count;
        let end = self.0.iter().position(|&byte| {
            left -= usize::from(byte == b' ');
            left == 0
        })?;
        self.0 = self.0.get(end + 1..)?;
        Some(())
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
