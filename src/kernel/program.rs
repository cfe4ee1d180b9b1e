//! Loads one eBPF program of an object into the kernel, which verifies it.

use super::btf::TypeKind;
use super::syscall::{PROGRAM_LOAD, make};
use super::types::KernelTypes;
use aya_obj::generated::{
    BPF_ALU64, BPF_CALL, BPF_JMP, BPF_MOV, BPF_PSEUDO_KFUNC_CALL, bpf_attach_type, bpf_insn, bpf_prog_type,
};
use aya_obj::{Function, ProgramSection};
use nix::errno::Errno;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A result whose error is only displayed.
pub(super) type LoadResult<T> = Result<T, Box<dyn std::error::Error>>;

/// `BPF_F_SLEEPABLE`, include/uapi/linux/bpf.h.
const SLEEPABLE: u32 = 1 << 4;
/// The sizes of the verifier's log in bytes, tried in turn until the log fits.
const LOG_BYTES: [usize; 3] = [1 << 16, 1 << 20, 1 << 24];
/// The length in bytes of an eBPF program's name in the kernel, including NUL.
const NAME: usize = 16;
/// The kernel function that [`STAND_IN`] stands for. It costs no call: the verifier inlines it.
pub(super) const KERNEL_PACKET: &str = "bpf_cast_to_kern_ctx";
/// The number of the helper that `kernel_packet` in `probes/core.h` calls.
const STAND_IN: i32 = 0x7000_0000;
/// The instruction that calls a function, include/uapi/linux/bpf.h.
const CALL: u8 = (BPF_JMP | BPF_CALL) as u8;
/// The instruction that sets a register to a number.
const SET: u8 = (BPF_ALU64 | BPF_MOV) as u8;

/// Loads an eBPF program for the attach point with this name, if its kind has one.
///
/// # Errors
/// Fails if the kernel has no such attach point or rejects the eBPF program.
pub(super) fn load(
    name: &str,
    section: &ProgramSection,
    function: &Function,
    point: Option<&str>,
    license: &[u8],
    own_types: Option<&OwnedFd>,
    types: &KernelTypes,
) -> LoadResult<OwnedFd> {
    let shape = Shape::of(section).ok_or("eBPF programs of this type are unsupported")?;
    let point = match (shape.point, point) {
        (Some((kind, prefix)), Some(point)) => {
            let found = types.point(kind, &format!("{prefix}{point}"));
            found.ok_or_else(|| format!("the kernel has no attach point {point}"))?
        }
        (None, _) => 0,
        (Some(_), None) => return Err("the eBPF program requires an attach point".into()),
    };
    let mut attributes = ProgramAttr {
        kind: shape.kind as u32,
        license: license.as_ptr().addr() as u64,
        flags: if shape.is_sleepable { SLEEPABLE } else { 0 },
        attach_kind: shape.attach_kind as u32,
        point,
        ..ProgramAttr::default()
    };
    for (to, from) in attributes.name.iter_mut().take(NAME - 1).zip(name.bytes()) {
        *to = from;
    }
    let number = types.point(TypeKind::Func, KERNEL_PACKET);
    let full = number.and_then(|number| fill_in(function, Some(number)));
    // A kernel that has the function may restrict it to other kinds of eBPF programs.
    if let Some(loaded) = full.and_then(|function| attributes.load(&function, own_types).ok()) {
        return Ok(loaded);
    }
    Ok(attributes.load(fill_in(function, None).as_ref().unwrap_or(function), own_types)?)
}

/// Replaces calls of [`STAND_IN`] by calls of the kernel function with this number, or their result by 0
/// without a number. Returns `None` if there is no such call.
fn fill_in(function: &Function, number: Option<u32>) -> Option<Function> {
    let is_stand_in = |instruction: &bpf_insn| {
        instruction.code == CALL && instruction.src_reg() == 0 && instruction.imm == STAND_IN
    };
    if !function.instructions.iter().any(is_stand_in) {
        return None;
    }
    let mut function = function.clone();
    for instruction in function.instructions.iter_mut().filter(|instruction| is_stand_in(instruction)) {
        match number {
            Some(number) => {
                instruction.set_src_reg(BPF_PSEUDO_KFUNC_CALL as u8);
                instruction.imm = number as i32;
            }
            None => (instruction.code, instruction.imm) = (SET, 0),
        }
    }
    Some(function)
}

/// The properties of an eBPF program that follow from its section.
struct Shape {
    kind: bpf_prog_type,
    attach_kind: bpf_attach_type,
    /// The kind of type that stands for its attach point, and the prefix of that type's name.
    point: Option<(TypeKind, &'static str)>,
    is_sleepable: bool,
}

impl Shape {
    fn of(section: &ProgramSection) -> Option<Shape> {
        use bpf_attach_type::{
            BPF_LSM_MAC, BPF_TRACE_FENTRY, BPF_TRACE_FEXIT, BPF_TRACE_ITER, BPF_TRACE_RAW_TP,
        };
        use bpf_prog_type::{
            BPF_PROG_TYPE_CGROUP_SKB, BPF_PROG_TYPE_CGROUP_SOCK, BPF_PROG_TYPE_LSM, BPF_PROG_TYPE_TRACING,
        };
        let traced = |attach_kind, kind, prefix, is_sleepable| Shape {
            kind: BPF_PROG_TYPE_TRACING,
            attach_kind,
            point: Some((kind, prefix)),
            is_sleepable,
        };
        let grouped = |kind, attach_kind| Shape { kind, attach_kind, point: None, is_sleepable: false };
        Some(match *section {
            ProgramSection::BtfTracePoint => traced(BPF_TRACE_RAW_TP, TypeKind::Typedef, "btf_trace_", false),
            ProgramSection::FEntry { sleepable } => traced(BPF_TRACE_FENTRY, TypeKind::Func, "", sleepable),
            ProgramSection::FExit { sleepable } => traced(BPF_TRACE_FEXIT, TypeKind::Func, "", sleepable),
            ProgramSection::Iter { sleepable } => {
                traced(BPF_TRACE_ITER, TypeKind::Func, "bpf_iter_", sleepable)
            }
            ProgramSection::Lsm { sleepable } => Shape {
                kind: BPF_PROG_TYPE_LSM,
                ..traced(BPF_LSM_MAC, TypeKind::Func, "bpf_lsm_", sleepable)
            },
            ProgramSection::CgroupSkb { attach_type: Some(place) } => {
                grouped(BPF_PROG_TYPE_CGROUP_SKB, place.into())
            }
            ProgramSection::CgroupSock { attach_type } => {
                grouped(BPF_PROG_TYPE_CGROUP_SOCK, attach_type.into())
            }
            _ => return None,
        })
    }
}

/// The part of `union bpf_attr` that loading an eBPF program takes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProgramAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME],
    interface: u32,
    attach_kind: u32,
    own_types: u32,
    function_info_size: u32,
    function_info: u64,
    function_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    point: u32,
    attach_program: u32,
    padding: u32,
}

impl ProgramAttr {
    /// Loads a function. Only after a rejection, it repeats the load with the verifier's log.
    fn load(mut self, function: &Function, own_types: Option<&OwnedFd>) -> Result<OwnedFd, Refused> {
        self.instruction_count = function.instructions.len() as u32;
        self.instructions = function.instructions.as_ptr().addr() as u64;
        let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
        if let Some(types) = own_types {
            self.own_types = types.as_raw_fd().unsigned_abs();
            self.function_info_size = function.func_info_rec_size as u32;
            self.function_info = functions.as_ptr().addr() as u64;
            self.function_info_count = function.func_info.len() as u32;
            self.line_info_size = function.line_info_rec_size as u32;
            self.line_info = lines.as_ptr().addr() as u64;
            self.line_info_count = function.line_info.len() as u32;
        }
        // SAFETY: instructions, license and descriptions have the stated lengths and outlive the call.
        let mut result = unsafe { make(PROGRAM_LOAD, &self) };
        let mut log = Vec::new();
        for size in LOG_BYTES {
            if result.is_ok() || (!log.is_empty() && !matches!(result, Err(Errno::ENOSPC))) {
                break;
            }
            log = vec![0u8; size];
            (self.log_level, self.log_size, self.log) = (1, size as u32, log.as_mut_ptr().addr() as u64);
            // SAFETY: as above, and the log has the stated size.
            result = unsafe { make(PROGRAM_LOAD, &self) };
        }
        result.map_err(|errno| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            log.truncate(end);
            Refused { source: errno.into(), log: String::from_utf8_lossy(&log).into_owned() }
        })
    }
}

/// The error of an eBPF program that the kernel rejects.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) source: io::Error,
    /// The verifier's log.
    pub(super) log: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel rejects it")
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

const _: () = assert!(size_of::<bpf_insn>() == 8 && size_of::<ProgramAttr>() == 120);
