//! Compares the picked types with those that aya finds among all types.

use super::*;
use aya::include_bytes_aligned;
use aya_obj::btf::BtfKind;
use aya_obj::generated::bpf_insn;
use proptest::prelude::*;

static OBJECTS: [&[u8]; 2] =
    [include_bytes_aligned!("probes/sockets.bpf.o"), include_bytes_aligned!("probes/tasks.bpf.o")];

/// Attach points of each kind, and one that no kernel has.
const POINTS: [&str; 8] = [
    "inet_sock_set_state",
    "kfree_skb",
    "sched_process_exit",
    "tcp_sendmsg",
    "socket_post_create",
    "task",
    "bpf_sk_storage_map",
    "no_such_point",
];

fn kernel() -> PageBuffer {
    PageBuffer::read(VMLINUX).unwrap()
}

/// Returns the instructions of an object's functions, relocated for a kernel with these types.
fn relocated(object: &[u8], types: &TargetTypes) -> Vec<(String, Vec<bpf_insn>)> {
    let mut object = Object::parse(object).unwrap();
    object.relocate_btf(types).unwrap();
    object.functions.into_values().map(|function| (function.name, function.instructions)).collect()
}

fn bytes(instruction: &bpf_insn) -> (u8, u8, u8, i16, i32) {
    let bpf_insn { code, off, imm, .. } = *instruction;
    (code, instruction.dst_reg(), instruction.src_reg(), off, imm)
}

#[test]
fn objects_are_relocated_as_by_all_types() {
    let kernel = kernel();
    let all = TargetTypes::parse(&kernel, Endianness::default()).unwrap();
    for object in OBJECTS {
        let types = KernelTypes::pick(&kernel, object, []).unwrap();
        let (expected, found) = (relocated(object, &all), relocated(object, &types.types));
        assert_eq!(found.len(), expected.len());
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            let [found, expected] = [found, expected].map(|code| code.iter().map(bytes).collect::<Vec<_>>());
            assert_eq!(found, expected, "{name}");
        }
        let unrelocated = Object::parse(object).unwrap();
        let changed =
            unrelocated.functions.values().zip(&expected).filter(|(before, (_, after))| {
                before.instructions.iter().map(bytes).ne(after.iter().map(bytes))
            });
        assert!(changed.count() > 0, "relocation changes nothing: the comparison shows nothing");
    }
}

#[test]
fn objects_name_no_types_by_number() {
    for object in OBJECTS {
        let relocations = format!("{:?}", Object::parse(object).unwrap().btf_ext.unwrap());
        assert!(relocations.contains("FieldByteOffset"), "relocations are shown by name");
        assert!(!relocations.contains("TypeIdTarget"), "the kernel's numbers are not in the types picked");
    }
}

#[test]
fn attach_points_have_the_kernels_numbers() {
    let kernel = kernel();
    let all = TargetTypes::parse(&kernel, Endianness::default()).unwrap();
    let types = KernelTypes::pick(&kernel, OBJECTS[0], POINTS).unwrap();
    let mut found = 0;
    for point in POINTS {
        for (kind, name) in forms_of(point) {
            let name = String::from_utf8(name).unwrap();
            let aya_kind = if kind == TypeKind::Func { BtfKind::Func } else { BtfKind::Typedef };
            let expected = all.id_by_type_name_kind(&name, aya_kind).ok();
            assert_eq!(types.point(kind, &name), expected, "{name}");
            found += usize::from(expected.is_some());
        }
    }
    assert!(found >= 5, "{found}");
}

#[test]
fn what_is_picked_is_small() {
    let kernel = kernel();
    for object in OBJECTS {
        let own = Object::parse(object).unwrap().btf.unwrap().to_bytes();
        let names = Btf::parse(&own).unwrap().named_types().unwrap();
        let (roots, _) = find(&Btf::parse(&kernel).unwrap(), &names, &[]).unwrap();
        let picked = Btf::parse(&kernel).unwrap().subset(roots).unwrap();
        assert!(picked.len() < 1 << 20, "{} of {} bytes", picked.len(), kernel.len());
    }
}

#[test]
fn a_type_that_a_kernel_has_not_is_not_picked() {
    // An object's own types serve as a kernel's.
    let kernel = Object::parse(OBJECTS[1]).unwrap().btf.unwrap().to_bytes();
    let complete = Btf::parse(&kernel).unwrap();
    let names: Set<Vec<u8>> = [b"task_struct".to_vec(), b"no_such_type".to_vec()].into_iter().collect();
    let (roots, _) = find(&complete, &names, &[]).unwrap();
    let picked = complete.subset(roots).unwrap();
    let picked = Btf::parse(&picked).unwrap();
    let names = picked.named_types().unwrap();
    assert!(names.contains(&b"task_struct"[..]) && !names.contains(&b"no_such_type"[..]));
}

#[test]
fn what_is_no_type_information_is_refused() {
    for bytes in [&[][..], &[0; 23], &[0x9f, 0xeb, 1, 0], &[0xff; 64]] {
        assert!(KernelTypes::pick(bytes, OBJECTS[0], POINTS).is_err());
    }
    assert!(KernelTypes::pick(&kernel(), b"not an object", POINTS).is_err());
}

proptest! {
    /// Damaged type information is rejected or parsed, without a panic.
    #[test]
    fn damaged_types_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        length in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut kernel = Object::parse(OBJECTS[1]).unwrap().btf.unwrap().to_bytes();
        for (at, byte) in changes {
            let at = at.index(kernel.len());
            kernel[at] = byte;
        }
        if is_cut {
            kernel.truncate(length.index(kernel.len()));
        }
        let _ = KernelTypes::pick(&kernel, OBJECTS[1], POINTS);
    }
}
