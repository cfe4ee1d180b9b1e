//! Loads an object into the kernel: its maps at once, each program on request.
//!
//! `aya-obj` parses and relocates the object. The loader of `aya` is not used: creating one parses all of the kernel's
//! type information, which takes longer than all other steps together and 33 MB of memory.

use super::btf::Kind;
use super::syscall::{MAP_FREEZE, MAP_UPDATE, PROGRAM_LOAD, TYPES_LOAD, bpf, make};
use super::types::KernelTypes;
use crate::sync::Mutex;
use crate::thread::both;
use aya::Pod;
use aya::maps::{Map, MapData};
use aya_obj::generated::{
    BPF_ALU64, BPF_CALL, BPF_JMP, BPF_MOV, BPF_PSEUDO_KFUNC_CALL, bpf_attach_type, bpf_insn, bpf_map_type,
    bpf_prog_type,
};
use aya_obj::{EbpfSectionKind, Function, Object, ProgramSection};
use nix::errno::Errno;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// `BPF_F_SLEEPABLE`, include/uapi/linux/bpf.h.
const SLEEPABLE: u32 = 1 << 4;
/// Bytes of the verifier's log, tried in turn until it fits.
const LOG_BYTES: [usize; 3] = [1 << 16, 1 << 20, 1 << 24];
/// Bytes of a program's name in the kernel, NUL included.
const NAME: usize = 16;
/// The function of the kernel that [`STAND_IN`] stands for. It makes no call: the verifier puts what it does in its place.
pub(super) const KERNEL_PACKET: &str = "bpf_cast_to_kern_ctx";
/// The number of the helper that `kernel_packet` in `probes/core.h` calls.
const STAND_IN: i32 = 0x7000_0000;
/// The instruction that calls a function, include/uapi/linux/bpf.h.
const CALL: u8 = (BPF_JMP | BPF_CALL) as u8;
/// The instruction that sets a register to a number.
const SET: u8 = (BPF_ALU64 | BPF_MOV) as u8;

/// Loads an object with changed constants and map sizes.
pub(super) struct Loader<'a> {
    object: &'a [u8],
    globals: HashMap<&'a str, (&'a [u8], bool)>,
    capacities: HashMap<&'a str, u32>,
}

impl<'a> Loader<'a> {
    /// Loads the object unchanged.
    pub(super) fn new(object: &'a [u8]) -> Loader<'a> {
        Loader { object, globals: HashMap::new(), capacities: HashMap::new() }
    }

    /// Sets a global constant of the programs.
    pub(super) fn set_global<T: Pod>(&mut self, name: &'a str, value: &'a T) -> &mut Self {
        // SAFETY: a value of such a type consists of initialized bytes.
        let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) };
        self.globals.insert(name, (bytes, true));
        self
    }

    /// Sets the number of entries that a map holds at most.
    pub(super) fn set_capacity(&mut self, map: &'a str, entries: u32) -> &mut Self {
        self.capacities.insert(map, entries);
        self
    }

    /// Creates the maps and relocates the programs.
    ///
    /// # Errors
    /// The object is malformed, or the kernel refuses a map.
    pub(super) fn load(self, types: &KernelTypes) -> Outcome<LoadedObject> {
        let mut object = Object::parse(self.object)?;
        object.patch_map_data(self.globals)?;
        let features = aya::features();
        let own_types = match features.btf() {
            Some(features) => object.fixup_and_sanitize_btf(features)?.map(|types| types.to_bytes()),
            None => None,
        };
        let own_types = own_types.map(|types| load_types(&types)).transpose()?;
        object.relocate_btf(&types.types)?;

        let mut made = Vec::new();
        for (name, mut definition) in object.maps.drain() {
            if let Some(&entries) = self.capacities.get(name.as_str()) {
                definition.set_max_entries(entries);
            }
            let map = make_map(&name, &definition, own_types.as_ref().map(AsFd::as_fd))?;
            made.push((name, definition, map));
        }
        let sections: HashSet<usize> = object.functions.keys().map(|&(section, _)| section).collect();
        let maps = made
            .iter()
            .map(|(name, definition, map)| (name.as_str(), map.fd().as_fd().as_raw_fd(), definition));
        object.relocate_maps(maps, &sections)?;
        object.relocate_calls(&sections)?;
        object.sanitize_functions(features);

        let mut programs = HashMap::new();
        for (name, program) in object.programs.drain() {
            // No two programs have the same function: they differ in section or address.
            let function = object.functions.remove(&(program.section_index, program.address));
            let function = function.ok_or_else(|| format!("program {name} has no code"))?;
            programs.insert(name, Program { section: program.section, code: Code::Ready(function) });
        }
        Ok(LoadedObject {
            license: object.license.to_bytes_with_nul().to_vec(),
            own_types,
            maps: made.into_iter().map(|(name, definition, map)| (name, typed(&definition, map))).collect(),
            programs,
            links: Vec::new(),
        })
    }
}

/// An object in the kernel. Dropping it closes its programs, their links and the maps that were not taken from it.
pub(super) struct LoadedObject {
    license: Vec<u8>,
    own_types: Option<OwnedFd>,
    maps: HashMap<String, Map>,
    programs: HashMap<String, Program>,
    links: Vec<OwnedFd>,
}

struct Program {
    section: ProgramSection,
    code: Code,
}

enum Code {
    Ready(Function),
    Loaded(OwnedFd),
    /// A link keeps it.
    Linked,
}

impl LoadedObject {
    /// Hands over a map; `None` if there is none of this name or it was taken before.
    pub(super) fn take_map(&mut self, name: &str) -> Option<Map> {
        self.maps.remove(name)
    }

    /// Keeps the link of a program open as long as the object, which is all that the program needs.
    pub(super) fn keep(&mut self, name: &str, link: OwnedFd) {
        self.links.push(link);
        if let Some(program) = self.programs.get_mut(name) {
            program.code = Code::Linked;
        }
    }

    /// A loaded program.
    pub(super) fn program(&self, name: &str) -> Option<BorrowedFd<'_>> {
        match &self.programs.get(name)?.code {
            Code::Ready(_) | Code::Linked => None,
            Code::Loaded(descriptor) => Some(descriptor.as_fd()),
        }
    }

    /// Loads a program for the attach point of this name, if its kind has one, and if it is not loaded yet.
    ///
    /// # Errors
    /// The kernel has no such attach point, or refuses the program.
    pub(super) fn load_program(
        &mut self,
        name: &str,
        point: Option<&str>,
        types: &KernelTypes,
    ) -> Outcome<()> {
        let program = self.programs.get(name).ok_or("there is no such program")?;
        if let Code::Ready(function) = &program.code {
            let loaded = self.verify(name, &program.section, function, point, types)?;
            if let Some(program) = self.programs.get_mut(name) {
                program.code = Code::Loaded(loaded);
            }
        }
        Ok(())
    }

    /// Loads programs, two at a time: the kernel verifies each on the processor that hands it in, for milliseconds. Those
    /// that it refuses are left to [`load_program`](LoadedObject::load_program), which says why.
    pub(super) fn load_ahead<'n>(
        &mut self,
        wanted: impl Iterator<Item = (&'n str, Option<&'n str>)> + Send,
        types: &KernelTypes,
    ) {
        let wanted = Mutex::new(wanted);
        let load = || {
            let mut loaded = Vec::new();
            loop {
                let next = wanted.lock().next();
                let Some((name, point)) = next else { return loaded };
                let Some(Program { section, code: Code::Ready(function) }) = self.programs.get(name) else {
                    continue;
                };
                if let Ok(descriptor) = self.verify(name, section, function, point, types) {
                    loaded.push((name, descriptor));
                }
            }
        };
        let (some, others) = both("capture-load", load, load);
        for (name, descriptor) in some.into_iter().chain(others) {
            if let Some(program) = self.programs.get_mut(name) {
                program.code = Code::Loaded(descriptor);
            }
        }
    }

    fn verify(
        &self,
        name: &str,
        section: &ProgramSection,
        function: &Function,
        point: Option<&str>,
        types: &KernelTypes,
    ) -> Outcome<OwnedFd> {
        let shape = Shape::of(section).ok_or("programs of this kind are unsupported")?;
        let point = match (shape.point, point) {
            (Some((kind, prefix)), Some(point)) => {
                let found = types.point(kind, &format!("{prefix}{point}"));
                found.ok_or_else(|| format!("the kernel has no attach point {point}"))?
            }
            (None, _) => 0,
            (Some(_), None) => return Err("it needs an attach point".into()),
        };
        let mut attributes = Attributes {
            kind: shape.kind as u32,
            license: self.license.as_ptr().addr() as u64,
            flags: if shape.is_sleepable { SLEEPABLE } else { 0 },
            attach_kind: shape.attach_kind as u32,
            point,
            ..Attributes::default()
        };
        for (to, from) in attributes.name.iter_mut().take(NAME - 1).zip(name.bytes()) {
            *to = from;
        }
        let own_types = self.own_types.as_ref();
        let number = types.point(Kind::Func, KERNEL_PACKET);
        let full = number.and_then(|number| fill_in(function, Some(number)));
        // Where the kernel has the function, it may be for programs of other kinds only.
        if let Some(loaded) = full.and_then(|function| attributes.load(&function, own_types).ok()) {
            return Ok(loaded);
        }
        Ok(attributes.load(fill_in(function, None).as_ref().unwrap_or(function), own_types)?)
    }
}

/// Puts the kernel's function of this number in where [`STAND_IN`] is called, or 0 for what it returns. `None` if it is
/// called nowhere.
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

/// Properties of a program that follow from its section.
struct Shape {
    kind: bpf_prog_type,
    attach_kind: bpf_attach_type,
    /// The kind of type that stands for its attach point, and the prefix of that type's name.
    point: Option<(Kind, &'static str)>,
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
            ProgramSection::BtfTracePoint => traced(BPF_TRACE_RAW_TP, Kind::Typedef, "btf_trace_", false),
            ProgramSection::FEntry { sleepable } => traced(BPF_TRACE_FENTRY, Kind::Func, "", sleepable),
            ProgramSection::FExit { sleepable } => traced(BPF_TRACE_FEXIT, Kind::Func, "", sleepable),
            ProgramSection::Iter { sleepable } => traced(BPF_TRACE_ITER, Kind::Func, "bpf_iter_", sleepable),
            ProgramSection::Lsm { sleepable } => {
                Shape { kind: BPF_PROG_TYPE_LSM, ..traced(BPF_LSM_MAC, Kind::Func, "bpf_lsm_", sleepable) }
            }
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

/// The part of `union bpf_attr` that loading a program takes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
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

impl Attributes {
    /// Loads a function. Only a refusal is repeated with the verifier's log.
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
        // SAFETY: instructions, license and descriptions are as long as is said and outlive the call.
        let mut result = unsafe { make(PROGRAM_LOAD, &self) };
        let mut log = Vec::new();
        for size in LOG_BYTES {
            if result.is_ok() || (!log.is_empty() && !matches!(result, Err(Errno::ENOSPC))) {
                break;
            }
            log = vec![0u8; size];
            (self.log_level, self.log_size, self.log) = (1, size as u32, log.as_mut_ptr().addr() as u64);
            // SAFETY: as above, and the log has so much room.
            result = unsafe { make(PROGRAM_LOAD, &self) };
        }
        result.map_err(|errno| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            log.truncate(end);
            Refused { source: errno.into(), log: String::from_utf8_lossy(&log).into_owned() }
        })
    }
}

/// The kernel refuses a program.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) source: io::Error,
    /// The verifier's log.
    pub(super) log: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kernel refuses it")
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Loads the object's own type information.
fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        types: u64,
        log: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        padding: u32,
    }
    let attributes = Attributes {
        types: types.as_ptr().addr() as u64,
        log: 0,
        size: types.len() as u32,
        log_size: 0,
        log_level: 0,
        padding: 0,
    };
    // SAFETY: the types are as long as is said and outlive the call.
    Ok(unsafe { make(TYPES_LOAD, &attributes) }?)
}

/// Creates a map, and fills it if it is a data section.
fn make_map(name: &str, definition: &aya_obj::Map, own_types: Option<BorrowedFd<'_>>) -> Outcome<MapData> {
    #[repr(C)]
    struct Attributes {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let map = MapData::create(definition.clone(), name, own_types)?;
    let key = 0u32;
    let attributes = Attributes {
        map: map.fd().as_fd().as_raw_fd().unsigned_abs(),
        padding: 0,
        key: std::ptr::from_ref(&key).addr() as u64,
        value: definition.data().as_ptr().addr() as u64,
        flags: 0,
    };
    if !definition.data().is_empty() {
        // SAFETY: the map has this one value, which is as long as the section.
        unsafe { bpf(MAP_UPDATE, &attributes) }.map_err(io::Error::from)?;
    }
    if definition.section_kind() == EbpfSectionKind::Rodata {
        // SAFETY: the command takes the map alone.
        unsafe { bpf(MAP_FREEZE, &attributes.map) }.map_err(io::Error::from)?;
    }
    Ok(map)
}

/// The map by its type.
fn typed(definition: &aya_obj::Map, map: MapData) -> Map {
    match bpf_map_type::try_from(definition.map_type()) {
        Ok(bpf_map_type::BPF_MAP_TYPE_ARRAY) => Map::Array(map),
        Ok(bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY) => Map::PerCpuArray(map),
        Ok(bpf_map_type::BPF_MAP_TYPE_HASH) => Map::HashMap(map),
        Ok(bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH) => Map::PerCpuHashMap(map),
        Ok(bpf_map_type::BPF_MAP_TYPE_LRU_HASH) => Map::LruHashMap(map),
        Ok(bpf_map_type::BPF_MAP_TYPE_LRU_PERCPU_HASH) => Map::PerCpuLruHashMap(map),
        Ok(bpf_map_type::BPF_MAP_TYPE_RINGBUF) => Map::RingBuf(map),
        Ok(bpf_map_type::BPF_MAP_TYPE_SK_STORAGE) => Map::SkStorage(map),
        _ => Map::Unsupported(map),
    }
}

const _: () = assert!(size_of::<bpf_insn>() == 8 && size_of::<Attributes>() == 120);
