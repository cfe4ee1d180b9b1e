//! The library files: exported symbols, names, dependencies, and linking of both kinds.

use crate::tools::{Link, Program, built, package, printed};
use std::collections::BTreeSet;
use std::fs::read_to_string;

/// Returns the functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = read_to_string(package().join("include/libcapture.h")).unwrap();
    let code = header.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.filter(|line| !line.starts_with("typedef") && !line.starts_with(char::is_whitespace))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("Capture"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn exports_the_functions_of_the_header_and_nothing_else() {
    let library = built("libcapture.so");
    let listed = printed("nm", &["-D".as_ref(), "--defined-only".as_ref(), library.as_os_str()]);
    let mut exported = BTreeSet::new();
    for line in listed.lines() {
        let [_, kind, name] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!(kind, "T", "{name} is not a function");
        exported.insert(name.split('@').next().unwrap().to_owned());
    }
    assert_eq!(exported, declared());
    assert!(exported.iter().all(|name| name.starts_with("Capture")));
    assert!(exported.contains("CaptureInit") && exported.len() >= 11, "{exported:?}");
}

#[test]
fn is_named_stays_loaded_and_needs_little() {
    let library = built("libcapture.so");
    let dynamic = printed("readelf", &["-d".as_ref(), "-W".as_ref(), library.as_os_str()]);
    let values = |tag: &str| -> Vec<&str> {
        let of_tag = dynamic.lines().filter(|line| line.contains(tag));
        of_tag.filter_map(|line| line.split_once('[')?.1.strip_suffix(']')).collect()
    };
    assert_eq!(values("(SONAME)"), ["libcapture.so.1"]);
    let flags = dynamic.lines().find(|line| line.contains("(FLAGS_1)"));
    assert!(flags.is_some_and(|line| line.contains("NODELETE")), "{dynamic}");
    assert!(!dynamic.contains("(TEXTREL)") && !dynamic.contains("(RPATH)") && !dynamic.contains("(RUNPATH)"));
    let needed = values("(NEEDED)");
    assert!(needed.iter().any(|name| name.starts_with("libpcap.so")), "{needed:?}");
    for name in needed {
        let known = ["libpcap.so.", "libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux"];
        assert!(known.iter().any(|known| name.starts_with(known)), "{name} is needed");
    }
    let headers = printed("readelf", &["-lW".as_ref(), library.as_os_str()]);
    let stack = headers.lines().find(|line| line.contains("GNU_STACK"));
    assert!(stack.is_some_and(|line| line.contains(" RW ") && !line.contains("RWE")), "{headers}");
}

#[test]
fn the_static_library_links() {
    let program = Program::linked("inputs.c", Link::Static);
    let file = program.folder().join("program");
    let dynamic = printed("readelf", &["-d".as_ref(), file.as_os_str()]);
    assert!(!dynamic.contains("libcapture"), "{dynamic}");
    program.run(&["words"]);
    program.run(&["session_sizes"]);
}
