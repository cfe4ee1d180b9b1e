//! Loads an object into the kernel: its maps at once, each eBPF program on request.
//!
//! `aya-obj` parses and relocates the object. The loader of `aya` is not used: it parses all of the kernel's
//! type information, which takes longer than all other steps together and 33 MB of memory.

use super::program::{self, LoadResult};
use super::syscall::{MAP_FREEZE, MAP_UPDATE, TYPES_LOAD, bpf, make};
use super::types::KernelTypes;
use crate::sync::Mutex;
use crate::thread::both;
use aya::Pod;
use aya::maps::{Map, MapData};
use aya_obj::generated::bpf_map_type;
use aya_obj::{EbpfSectionKind, Function, Object, ProgramSection};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Loads an object with changed constants and map sizes.
pub(super) struct Loader<'a> {
    object: &'a [u8],
    globals: HashMap<&'a str, (&'a [u8], bool)>,
    capacities: HashMap<&'a str, u32>,
}

impl<'a> Loader<'a> {
    /// Creates a loader that leaves the object unchanged.
    pub(super) fn new(object: &'a [u8]) -> Loader<'a> {
        Loader { object, globals: HashMap::new(), capacities: HashMap::new() }
    }

    /// Sets a global constant of the eBPF programs.
    pub(super) fn set_global<T: Pod>(&mut self, name: &'a str, value: &'a T) -> &mut Self {
        // SAFETY: a value of such a type consists of initialized bytes.
        let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) };
        self.globals.insert(name, (bytes, true));
        self
    }

    /// Sets the maximum number of entries of a map.
    pub(super) fn set_capacity(&mut self, map: &'a str, entries: u32) -> &mut Self {
        self.capacities.insert(map, entries);
        self
    }

    /// Creates the maps and relocates the eBPF programs.
    ///
    /// # Errors
    /// Fails if the object is malformed, or if the kernel rejects a map.
    pub(super) fn load(self, types: &KernelTypes) -> LoadResult<LoadedObject> {
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
            widen(&mut definition)?;
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
            // No two eBPF programs have the same function: they differ in section or address.
            let function = object.functions.remove(&(program.section_index, program.address));
            let function = function.ok_or_else(|| format!("eBPF program {name} has no code"))?;
            programs.insert(
                name,
                ObjectProgram { section: program.section, code: ProgramState::Ready(function) },
            );
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

/// An object in the kernel. Dropping it closes its eBPF programs, their links and the maps that were not
/// taken from it.
pub(super) struct LoadedObject {
    license: Vec<u8>,
    own_types: Option<OwnedFd>,
    maps: HashMap<String, Map>,
    programs: HashMap<String, ObjectProgram>,
    links: Vec<OwnedFd>,
}

struct ObjectProgram {
    section: ProgramSection,
    code: ProgramState,
}

enum ProgramState {
    Ready(Function),
    Loaded(OwnedFd),
    /// A link keeps the eBPF program loaded.
    Linked,
}

impl LoadedObject {
    /// Takes a map from the object. Returns `None` if no map has this name or it was taken before.
    pub(super) fn take_map(&mut self, name: &str) -> Option<Map> {
        self.maps.remove(name)
    }

    /// Keeps the link of an eBPF program open as long as the object. The link keeps the eBPF program loaded.
    pub(super) fn keep(&mut self, name: &str, link: OwnedFd) {
        self.links.push(link);
        if let Some(program) = self.programs.get_mut(name) {
            program.code = ProgramState::Linked;
        }
    }

    /// Returns an eBPF program that is loaded and not linked yet.
    pub(super) fn program(&self, name: &str) -> Option<BorrowedFd<'_>> {
        match &self.programs.get(name)?.code {
            ProgramState::Ready(_) | ProgramState::Linked => None,
            ProgramState::Loaded(descriptor) => Some(descriptor.as_fd()),
        }
    }

    /// Loads an eBPF program, unless it is loaded already, for the attach point with this name if its kind
    /// has one.
    ///
    /// # Errors
    /// Fails if the kernel has no such attach point or rejects the eBPF program.
    pub(super) fn load_program(
        &mut self,
        name: &str,
        point: Option<&str>,
        types: &KernelTypes,
    ) -> LoadResult<()> {
        let program = self.programs.get(name).ok_or("there is no such eBPF program")?;
        if let ProgramState::Ready(function) = &program.code {
            let (license, own_types) = (&self.license, self.own_types.as_ref());
            let loaded = program::load(name, &program.section, function, point, license, own_types, types)?;
            if let Some(program) = self.programs.get_mut(name) {
                program.code = ProgramState::Loaded(loaded);
            }
        }
        Ok(())
    }

    /// Loads eBPF programs, two at a time, because the kernel verifies each for milliseconds on the processor
    /// that passes it. Rejected ones are left to [`load_program`](LoadedObject::load_program), which reports
    /// the reason.
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
                let Some(ObjectProgram { section, code: ProgramState::Ready(function) }) =
                    self.programs.get(name)
                else {
                    continue;
                };
                let (license, own_types) = (&self.license, self.own_types.as_ref());
                let verified = program::load(name, section, function, point, license, own_types, types);
                loaded.extend(verified.ok().map(|descriptor| (name, descriptor)));
            }
        };
        let (some, others) = both("capture-load", load, load);
        for (name, descriptor) in some.into_iter().chain(others) {
            if let Some(program) = self.programs.get_mut(name) {
                program.code = ProgramState::Loaded(descriptor);
            }
        }
    }
}

/// Loads the object's own type information.
fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct TypesAttr {
        types: u64,
        log: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        padding: u32,
    }
    let attributes = TypesAttr {
        types: types.as_ptr().addr() as u64,
        log: 0,
        size: types.len() as u32,
        log_size: 0,
        log_level: 0,
        padding: 0,
    };
    // SAFETY: the types have the stated length and outlive the call.
    Ok(unsafe { make(TYPES_LOAD, &attributes) }?)
}

/// Creates a map, and fills it if it is a data section.
fn make_map(name: &str, definition: &aya_obj::Map, own_types: Option<BorrowedFd<'_>>) -> LoadResult<MapData> {
    #[repr(C)]
    struct ElementAttr {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let map = MapData::create(definition.clone(), name, own_types)?;
    let key = 0u32;
    let attributes = ElementAttr {
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
        // SAFETY: the command takes only the map.
        unsafe { bpf(MAP_FREEZE, &attributes.map) }.map_err(io::Error::from)?;
    }
    Ok(map)
}

/// Raises the capacity of an LRU map so that each processor has its share. A processor takes 128 free entries
/// at a time (up to Linux 6.16, for a map of any size). If there are fewer than all processors take, the late
/// ones have one entry each (kernel/bpf/bpf_lru_list.c).
fn widen(definition: &mut aya_obj::Map) -> LoadResult<()> {
    const EACH: usize = 256;
    let is_lru = definition.map_type() == bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32;
    if is_lru && definition.max_entries() > 1 {
        let count = aya::util::nr_cpus().map_err(|(file, error)| format!("{file}: {error}"))?;
        let least = u32::try_from(count.saturating_mul(EACH)).unwrap_or(u32::MAX);
        definition.set_max_entries(definition.max_entries().max(least));
    }
    Ok(())
}

/// Wraps a map by its type.
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
