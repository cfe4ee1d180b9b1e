//! Parts of the plugin without collectd: C programs, compiled here with the address and undefined behaviour
//! sanitizers.

use crate::snippets::examples;
use std::path::Path;
use std::process::Command;

/// Compiles `tests/collectd/c/<name>.c` with these sources of the plugin, and runs it.
fn runs(name: &str, sources: &[&str]) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plugin = examples();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join(name);
    let mut compile = Command::new("cc");
    compile.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1"]);
    compile.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I"]).arg(&plugin);
    compile.arg("-I").arg(package.join("include")).arg("-o").arg(&program);
    compile.arg(package.join("tests/collectd/c").join(name).with_extension("c"));
    compile.args(sources.iter().map(|source| plugin.join(source)));
    assert!(compile.status().unwrap().success(), "{compile:?}");
    let ended = Command::new(&program).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn labels_are_text_and_differ() {
    runs("labels", &["labels.c", "table.c"]);
}

#[test]
fn sums_are_exact_and_never_fall() {
    runs("groups", &["groups.c", "labels.c", "selection.c", "table.c"]);
}
