//! Parts of the plugin without collectd: C programs, compiled here with the address and undefined behaviour
//! sanitizers.

use crate::snippets::examples;
use std::fs::{create_dir, write};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Compiles `tests/collectd/c/<name>.c` with these sources of the plugin.
fn compiled(folder: &TempDir, name: &str, sources: &[&str]) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plugin = examples();
    let program = folder.path().join(name);
    let mut compile = Command::new("cc");
    compile.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1"]);
    compile.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I"]).arg(&plugin);
    compile.arg("-I").arg(package.join("include")).arg("-o").arg(&program);
    compile.arg(package.join("tests/collectd/c").join(name).with_extension("c"));
    compile.args(sources.iter().map(|source| plugin.join(source)));
    assert!(compile.status().unwrap().success(), "{compile:?}");
    program
}

fn runs(name: &str, sources: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let ended = Command::new(compiled(&folder, name, sources)).output().unwrap();
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

const MAIN: &str = r#"# A comment with "half a quote
<Plugin capture>
  Top 1
</Plugin>
Types "a" \
      "b \"quoted\" # no comment" # comment
LoadPlugin csv
<LoadPlugin "Capture">
  Interval 5
</LoadPlugin>
<plugin "capture">
</plugin>
<Plugin csv>
  <Inner capture>
    Top 2
  </Inner>
  Text "over
two lines"
</Plugin>
<Include "DIRECTORY/d">
  Filter "*.conf"
</Include>
Include "DIRECTORY/one*"
<Plugin capture>
  Top 5 Top
  <Top 6>
    Top 7
  </Top>

  TOP 8
</Plugin>
"#;

#[test]
fn options_are_found_in_their_files_and_lines() {
    let folder = tempfile::tempdir().unwrap();
    let places = compiled(&folder, "places", &["place.c"]);
    let file = |name: &str| folder.path().join(name).display().to_string();
    write(file("main"), MAIN.replace("DIRECTORY", &folder.path().display().to_string())).unwrap();
    create_dir(file("d")).unwrap();
    write(file("d/2.conf"), "\n<Plugin capture>\n  Top 9\n</Plugin>\n").unwrap();
    write(file("d/10.conf"), "<Plugin capture>\nName \"x\"\nTop 10\n</Plugin>\n").unwrap();
    write(file("d/other"), "<Plugin capture>\n  Top 11\n</Plugin>\n").unwrap();
    write(file("one.conf"), "<Plugin capture>\r\n  Name \"y\" \\\r\n\r\n  Name \"z\"\r\n</Plugin>").unwrap();
    let found = |block: u32, key: &str, occurrence: u32| {
        let arguments = [file("main"), block.to_string(), key.to_owned(), occurrence.to_string()];
        let ended = Command::new(&places).args(arguments).output().unwrap();
        assert!(ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap().trim_end().to_owned()
    };
    // The first block is empty. A block before the plugin is loaded does not count.
    assert_eq!(found(0, "Top", 0), "");
    assert_eq!(found(1, "Top", 0), file("d/10.conf") + ":3");
    assert_eq!(found(2, "Top", 0), file("d/2.conf") + ":3");
    assert_eq!(found(3, "Name", 0), file("one.conf") + ":2");
    assert_eq!(found(3, "name", 1), file("one.conf") + ":4");
    assert_eq!(found(4, "Top", 0), file("main") + ":25");
    assert_eq!(found(4, "Top", 1), file("main") + ":26");
    assert_eq!(found(4, "Top", 2), file("main") + ":30");
    assert_eq!(found(4, "Top", 3), "");
    assert_eq!(found(5, "Top", 0), "");
}
