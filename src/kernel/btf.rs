//! A parser of the kernel's type information (BTF), to the extent that picking types requires
//! (Documentation/bpf/btf.rst of Linux).

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use std::fmt;

const MAGIC: u16 = 0xeb9f;
/// The length in bytes of the part that all headers have.
const HEADER: usize = 24;
/// The length in bytes of the part that all types have.
const COMMON: usize = 12;

/// The kinds of types, by their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum TypeKind {
    Int = 1,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    DataSec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl TypeKind {
    const ALL: [TypeKind; 19] = [
        TypeKind::Int,
        TypeKind::Ptr,
        TypeKind::Array,
        TypeKind::Struct,
        TypeKind::Union,
        TypeKind::Enum,
        TypeKind::Fwd,
        TypeKind::Typedef,
        TypeKind::Volatile,
        TypeKind::Const,
        TypeKind::Restrict,
        TypeKind::Func,
        TypeKind::FuncProto,
        TypeKind::Var,
        TypeKind::DataSec,
        TypeKind::Float,
        TypeKind::DeclTag,
        TypeKind::TypeTag,
        TypeKind::Enum64,
    ];

    fn of(info: u32) -> Option<TypeKind> {
        let number = (info >> 24 & 0x1f) as usize;
        TypeKind::ALL.get(number.checked_sub(1)?).copied()
    }

    /// Returns true for the kinds that an object finds in the kernel by name.
    pub(super) fn is_named_type(self) -> bool {
        matches!(
            self,
            TypeKind::Int
                | TypeKind::Struct
                | TypeKind::Union
                | TypeKind::Enum
                | TypeKind::Enum64
                | TypeKind::Fwd
                | TypeKind::Typedef
                | TypeKind::Float
        )
    }

    /// Returns the number and the length of the parts that follow the common part of a type.
    fn parts(self, count: usize) -> (usize, usize) {
        match self {
            TypeKind::Int | TypeKind::Var | TypeKind::DeclTag => (1, 4),
            TypeKind::Array => (1, 12),
            TypeKind::Struct | TypeKind::Union | TypeKind::DataSec | TypeKind::Enum64 => (count, 12),
            TypeKind::Enum | TypeKind::FuncProto => (count, 8),
            _ => (0, 0),
        }
    }

    /// Returns true if the third word of the common part is another type rather than a size.
    fn refers(self) -> bool {
        matches!(
            self,
            TypeKind::Ptr
                | TypeKind::Typedef
                | TypeKind::Volatile
                | TypeKind::Const
                | TypeKind::Restrict
                | TypeKind::Func
                | TypeKind::FuncProto
                | TypeKind::Var
                | TypeKind::DeclTag
                | TypeKind::TypeTag
        )
    }

    /// Returns the indexes of the words of a part that are names, and of those that are types.
    fn words(self) -> (&'static [usize], &'static [usize]) {
        match self {
            TypeKind::Struct | TypeKind::Union => (&[0], &[1]),
            TypeKind::FuncProto => (&[0], &[1]),
            TypeKind::Enum | TypeKind::Enum64 => (&[0], &[]),
            TypeKind::Array => (&[], &[0, 1]),
            TypeKind::DataSec => (&[], &[0]),
            _ => (&[], &[]),
        }
    }
}

/// A defect of type information.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Malformed {
    Header,
    /// The type with this number is malformed.
    Type(u32),
    /// There is no name at this offset.
    Name(u32),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Header => f.write_str("the header is malformed"),
            Malformed::Type(id) => write!(f, "type {id} is malformed"),
            Malformed::Name(offset) => write!(f, "there is no name at {offset}"),
        }
    }
}

impl std::error::Error for Malformed {}

/// An entry of the type information: one type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'b> {
    /// The offset of its name.
    pub(super) name: u32,
    pub(super) kind: TypeKind,
    /// The common part and the parts that follow it.
    bytes: &'b [u8],
}

impl<'b> Entry<'b> {
    /// Reads the type at the beginning of `bytes`.
    fn read(bytes: &'b [u8]) -> Option<Entry<'b>> {
        let (name, info) = (word(bytes, 0)?, word(bytes, 1)?);
        let kind = TypeKind::of(info)?;
        let (count, length) = kind.parts((info & 0xffff) as usize);
        Some(Entry { name, kind, bytes: bytes.get(..COMMON + count * length)? })
    }

    fn parts(&self) -> impl Iterator<Item = &'b [u8]> {
        let (_, length) = self.kind.parts(1);
        self.bytes.get(COMMON..).unwrap_or_default().chunks_exact(length.max(1))
    }

    /// Returns the type that it is derived from: a pointer's target, a function's return type.
    fn target(&self) -> Option<u32> {
        self.kind.refers().then(|| word(self.bytes, 2)).flatten()
    }

    /// Returns the types of its members, elements or parameters.
    fn members(&self) -> impl Iterator<Item = u32> {
        let (_, types) = self.kind.words();
        self.parts().flat_map(|part| types.iter().filter_map(|&at| word(part, at)))
    }
}

/// The type information of a kernel or an object.
pub(super) struct Btf<'b> {
    types: &'b [u8],
    strings: &'b [u8],
    /// The offset of each type, from number 1 on.
    starts: Vec<u32>,
}

impl<'b> Btf<'b> {
    /// Finds all types.
    ///
    /// # Errors
    /// Fails if the bytes are not type information in this machine's byte order.
    pub(super) fn parse(bytes: &'b [u8]) -> Result<Btf<'b>, Malformed> {
        let section = |at: usize| {
            let (header, offset, length) = (word(bytes, 1)?, word(bytes, at)?, word(bytes, at + 1)?);
            let start = (header as usize).checked_add(offset as usize)?;
            bytes.get(start..start.checked_add(length as usize)?)
        };
        let magic = bytes.first_chunk().map(|&bytes| u16::from_ne_bytes(bytes));
        if magic != Some(MAGIC) || bytes.len() < HEADER {
            return Err(Malformed::Header);
        }
        let (types, strings) = (section(2).ok_or(Malformed::Header)?, section(4).ok_or(Malformed::Header)?);
        let (mut starts, mut rest) = (Vec::new(), types);
        while !rest.is_empty() {
            let entry = Entry::read(rest).ok_or(Malformed::Type(starts.len() as u32 + 1))?;
            starts.push((types.len() - rest.len()) as u32);
            rest = rest.get(entry.bytes.len()..).unwrap_or_default();
        }
        Ok(Btf { types, strings, starts })
    }

    /// Returns a type by its number. Number 0 is `void`, which has no entry.
    ///
    /// # Errors
    /// Fails if there is no type with this number.
    fn entry(&self, id: u32) -> Result<Entry<'b>, Malformed> {
        let start = id.checked_sub(1).and_then(|index| self.starts.get(index as usize));
        start
            .and_then(|&start| self.types.get(start as usize..))
            .and_then(Entry::read)
            .ok_or(Malformed::Type(id))
    }

    /// Returns all types with their numbers.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, Entry<'b>)> {
        (1..)
            .zip(&self.starts)
            .filter_map(|(id, &start)| Some((id, Entry::read(self.types.get(start as usize..)?)?)))
    }

    /// Returns all strings with their offsets.
    pub(super) fn strings(&self) -> impl Iterator<Item = (u32, &'b [u8])> {
        let mut offset = 0;
        self.strings.split(|&byte| byte == 0).map(move |text| {
            let start = offset;
            offset += text.len() as u32 + 1;
            (start, text)
        })
    }

    /// Returns the name at an offset.
    ///
    /// # Errors
    /// Fails if there is no string at the offset.
    pub(super) fn name(&self, offset: u32) -> Result<&'b [u8], Malformed> {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        let end = rest.iter().position(|&byte| byte == 0).ok_or(Malformed::Name(offset))?;
        Ok(rest.get(..end).unwrap_or_default())
    }

    /// Returns the names by which an object finds types in the kernel, without their flavors.
    ///
    /// # Errors
    /// Fails if the name of a type is missing.
    pub(super) fn named_types(&self) -> Result<HashSet<Vec<u8>, RandomState>, Malformed> {
        let mut names = HashSet::default();
        for (_, entry) in self.entries().filter(|(_, entry)| entry.kind.is_named_type()) {
            let name = essential(self.name(entry.name)?);
            if !name.is_empty() {
                names.insert(name.to_vec());
            }
        }
        Ok(names)
    }

    /// Returns new type information with only these types and those that they consist of, renumbered. A
    /// pointer member keeps its target only if the target is included for another reason.
    ///
    /// # Errors
    /// Fails if a type refers to a missing type, or if a name is missing.
    pub(super) fn subset(&self, roots: Vec<u32>) -> Result<Vec<u8>, Malformed> {
        let ids = self.closure(roots)?;
        let number = |id: u32| ids.binary_search(&id).map_or(0, |index| index as u32 + 1);
        let mut names = Names::new();
        let mut types = Vec::new();
        for &id in &ids {
            let entry = self.entry(id)?;
            let start = types.len();
            types.extend_from_slice(entry.bytes);
            let copy = types.get_mut(start..).unwrap_or_default();
            let (name_words, type_words) = entry.kind.words();
            change(copy, 0, |name| names.number(self, name))?;
            if entry.kind.refers() {
                change(copy, 2, |id| Ok(number(id)))?;
            }
            let (_, length) = entry.kind.parts(1);
            for part in copy.get_mut(COMMON..).unwrap_or_default().chunks_exact_mut(length.max(1)) {
                name_words.iter().try_for_each(|&at| change(part, at, |name| names.number(self, name)))?;
                type_words.iter().try_for_each(|&at| change(part, at, |id| Ok(number(id))))?;
            }
        }
        let sections = [0, types.len(), types.len(), names.bytes.len()].map(|number| number as u32);
        let mut bytes = Vec::with_capacity(HEADER + types.len() + names.bytes.len());
        bytes.extend_from_slice(&MAGIC.to_ne_bytes());
        // Version 1, without flags.
        bytes.extend_from_slice(&[1, 0]);
        bytes.extend_from_slice(&(HEADER as u32).to_ne_bytes());
        sections.iter().for_each(|number| bytes.extend_from_slice(&number.to_ne_bytes()));
        bytes.extend_from_slice(&types);
        bytes.extend_from_slice(&names.bytes);
        Ok(bytes)
    }

    /// Returns the numbers of these types and of those that they consist of, in order.
    fn closure(&self, roots: Vec<u32>) -> Result<Vec<u32>, Malformed> {
        // A comparison of two types follows pointers; access to members does not.
        let mut work: Vec<(u32, bool)> = Vec::new();
        for id in roots {
            work.push((id, self.entry(id)?.kind == TypeKind::Typedef));
        }
        let mut seen: HashSet<(u32, bool), RandomState> = work.iter().copied().collect();
        while let Some((id, by_pointer)) = work.pop() {
            let entry = self.entry(id)?;
            let is_composite = matches!(entry.kind, TypeKind::Struct | TypeKind::Union);
            let target = entry.target().filter(|_| entry.kind != TypeKind::Ptr || by_pointer);
            for next in target.into_iter().chain(entry.members()) {
                let step = (next, by_pointer && !is_composite);
                if next != 0 && seen.insert(step) {
                    work.push(step);
                }
            }
        }
        let mut ids: Vec<u32> = seen.into_iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

/// The names of a subset, each stored once.
struct Names {
    bytes: Vec<u8>,
    numbers: HashMap<u32, u32, RandomState>,
}

impl Names {
    /// Returns a table with only the empty name, which anonymous types and members bear.
    fn new() -> Names {
        Names { bytes: vec![0], numbers: HashMap::from_iter([(0, 0)]) }
    }

    /// Returns the new offset of a name.
    fn number(&mut self, from: &Btf<'_>, name: u32) -> Result<u32, Malformed> {
        if let Some(&number) = self.numbers.get(&name) {
            return Ok(number);
        }
        let number = self.bytes.len() as u32;
        self.bytes.extend_from_slice(from.name(name)?);
        self.bytes.push(0);
        self.numbers.insert(name, number);
        Ok(number)
    }
}

/// Returns the name without its flavor, which distinguishes versions of a type in an object: `sock` for
/// `sock___old`.
pub(super) fn essential(name: &[u8]) -> &[u8] {
    let end = name.windows(3).position(|part| part == b"___");
    end.and_then(|end| name.get(..end)).unwrap_or(name)
}

/// Returns a word of four bytes by its index.
fn word(bytes: &[u8], index: usize) -> Option<u32> {
    bytes.get(index * 4..)?.first_chunk().map(|&bytes| u32::from_ne_bytes(bytes))
}

/// Replaces the word at an index.
fn change(
    bytes: &mut [u8],
    index: usize,
    new: impl FnOnce(u32) -> Result<u32, Malformed>,
) -> Result<(), Malformed> {
    match bytes.get_mut(index * 4..).and_then(<[u8]>::first_chunk_mut) {
        Some(word) => {
            *word = new(u32::from_ne_bytes(*word))?.to_ne_bytes();
            Ok(())
        }
        None => Ok(()),
    }
}
