//! The type information of the running kernel (BTF), reduced to the types that an object refers to.
//!
//! The kernel describes more than a hundred thousand types in several megabytes. The eBPF programs need a few
//! hundred of them. One pass picks these by the names that occur in the object, so that a new eBPF program
//! needs no list here. The result takes some kilobytes and is kept for the life of the process.

use super::Fault;
use super::btf::{Btf, Malformed, TypeKind, essential};
use super::page_buffer::PageBuffer;
use crate::model::ProbeState;
use crate::sync::Mutex;
use aya::Endianness;
use aya_obj::Object;
use aya_obj::btf::Btf as TargetTypes;
use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use std::sync::Arc;

/// The kernel's description of its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

type TypeMap<K, V> = HashMap<K, V, RandomState>;
type Set<K> = HashSet<K, RandomState>;
/// The type that stands for an attach point.
type Point = (TypeKind, Vec<u8>);
/// The kernel's numbers of attach points.
type Points = TypeMap<Point, u32>;

/// The types and attach points of the kernel that one object needs.
pub(super) struct KernelTypes {
    /// The types that the object is relocated with. Their numbers differ from the kernel's.
    pub(super) types: TargetTypes,
    /// The kernel's numbers of its attach points.
    points: Points,
}

/// The type information for one object, read at the first load and shared by all sessions of the process.
#[derive(Default)]
pub(super) struct TypeCache(Mutex<Option<Arc<KernelTypes>>>);

impl TypeCache {
    /// Returns the types that `object` refers to, and the attach points with these names.
    ///
    /// # Errors
    /// Fails if the kernel's type information is unavailable or malformed. The next call retries.
    pub(super) fn get<'p>(
        &self,
        object: &[u8],
        points: impl IntoIterator<Item = &'p str>,
    ) -> Result<Arc<KernelTypes>, Fault> {
        let mut kept = self.0.lock();
        if let Some(types) = &*kept {
            return Ok(Arc::clone(types));
        }
        let fault = |text: String| Fault {
            state: ProbeState::NoTypes,
            text: format!("{VMLINUX}, the kernel's type information: {text}"),
        };
        let file = PageBuffer::read(VMLINUX).map_err(|error| fault(error.to_string()))?;
        let types = KernelTypes::pick(&file, object, points).map_err(|error| fault(error.to_string()))?;
        Ok(Arc::clone(kept.insert(Arc::new(types))))
    }
}

impl KernelTypes {
    /// Picks the types that `object` and these attach points need from all types of a kernel.
    ///
    /// # Errors
    /// Fails if the kernel's type information or the object is malformed.
    pub(super) fn pick<'p>(
        kernel: &[u8],
        object: &[u8],
        points: impl IntoIterator<Item = &'p str>,
    ) -> Result<KernelTypes, Box<dyn std::error::Error>> {
        let object = Object::parse(object)?;
        let own = object.btf.map(|types| types.to_bytes()).unwrap_or_default();
        let own = Btf::parse(&own)?;
        let names = own.named_types()?;
        let points: Vec<Point> = points.into_iter().flat_map(forms_of).collect();
        let kernel = Btf::parse(kernel)?;
        let (roots, points) = find(&kernel, &names, &points)?;
        let types = TargetTypes::parse(&kernel.subset(roots)?, Endianness::default())?;
        Ok(KernelTypes { types, points })
    }

    /// Returns the kernel's number of an attach point.
    pub(super) fn point(&self, kind: TypeKind, name: &str) -> Option<u32> {
        self.points.get(&(kind, name.as_bytes().to_vec())).copied()
    }
}

/// Returns the types that stand for an attach point with this name, one for each kind: tracepoint, function,
/// hook of security modules, BPF iterator.
fn forms_of(name: &str) -> [Point; 4] {
    [
        (TypeKind::Typedef, format!("btf_trace_{name}").into_bytes()),
        (TypeKind::Func, name.into()),
        (TypeKind::Func, format!("bpf_lsm_{name}").into_bytes()),
        (TypeKind::Func, format!("bpf_iter_{name}").into_bytes()),
    ]
}

/// Finds the types that bear one of the names, with or without a flavor, and the attach points.
fn find(kernel: &Btf<'_>, names: &Set<Vec<u8>>, points: &[Point]) -> Result<(Vec<u32>, Points), Malformed> {
    // The first two bytes rule out most of more than a hundred thousand names.
    let start = |name: &[u8]| name.iter().take(2).fold(0usize, |start, &byte| start << 8 | usize::from(byte));
    let mut starts = vec![false; 1 << 16];
    let wanted = names.iter().map(Vec::as_slice).chain(points.iter().map(|(_, name)| name.as_slice()));
    for name in wanted {
        if let Some(start) = starts.get_mut(start(essential(name))) {
            *start = true;
        }
    }
    let points: Set<&Point> = points.iter().collect();
    let point_names: Set<&[u8]> = points.iter().map(|(_, name)| name.as_slice()).collect();
    let mut offsets: TypeMap<u32, bool> = TypeMap::default();
    for (offset, name) in kernel.strings() {
        if starts.get(start(name)).is_some_and(|&start| start) {
            let is_type = names.contains(essential(name));
            if is_type || point_names.contains(name) {
                offsets.insert(offset, is_type);
            }
        }
    }
    let (mut roots, mut found) = (Vec::new(), TypeMap::default());
    for (id, entry) in kernel.entries() {
        let Some(&is_type) = offsets.get(&entry.name) else { continue };
        if is_type && entry.kind.is_named_type() {
            roots.push(id);
        }
        let point = (entry.kind, kernel.name(entry.name)?.to_vec());
        if points.contains(&point) {
            // The first of several counts, as in libbpf and aya.
            found.entry(point).or_insert(id);
        }
    }
    Ok((roots, found))
}

#[cfg(test)]
#[path = "types_tests.rs"]
mod tests;
