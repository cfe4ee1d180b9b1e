//! The header compiles by itself wherever users may include it, and it matches the sources.

use crate::tools::{compiler, finished, package};
use std::fs::read_to_string;
use std::path::Path;
use std::time::Duration;

/// Compiles two files that contain only the header, included twice, and links them into a program.
fn compiles(extension: &str, flags: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let [main, other] = ["main", "other"].map(|name| folder.path().join(format!("{name}.{extension}")));
    let include = "#include <libcapture.h>\n#include <libcapture.h>\n";
    std::fs::write(&main, format!("{include}int main(void) {{ return CAPTURE_OK; }}\n")).unwrap();
    std::fs::write(&other, format!("{include}int other(void);\nint other(void) {{ return 1; }}\n")).unwrap();
    let mut compile = compiler(main.to_str().unwrap());
    compile.args(flags).arg("-o").arg(folder.path().join("program")).arg(&main).arg(&other);
    let compiled = finished(&mut compile, Duration::from_secs(60));
    assert_eq!((compiled.code, compiled.stderr.as_str()), (0, ""), "{compile:?}");
}

#[test]
fn compiles_as_c() {
    for standard in ["-std=c99", "-std=c11", "-std=c17", "-std=gnu99"] {
        compiles("c", &[standard, "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wshadow"]);
    }
}

#[test]
fn compiles_as_cpp() {
    for standard in ["-std=c++11", "-std=c++17", "-std=c++20"] {
        compiles("cc", &[standard, "-Wshadow", "-Wold-style-cast", "-Wzero-as-null-pointer-constant"]);
    }
}

#[test]
fn is_what_the_sources_say() {
    let fresh = read_to_string(Path::new(env!("OUT_DIR")).join("libcapture.h")).unwrap();
    let committed = read_to_string(package().join("include/libcapture.h")).unwrap();
    let difference = fresh.lines().zip(committed.lines()).enumerate().find(|(_, (new, old))| new != old);
    assert!(
        fresh == committed,
        "include/libcapture.h is not what the sources say, first at {difference:?}; \
         make it anew with: CAPTURE_UPDATE_HEADER=1 cargo build"
    );
}
