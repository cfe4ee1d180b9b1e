//! Checks that imports point down: a room of `src/` uses only rooms below it.

// Helpers of tests fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// The top-level modules of the crate, each above those that it may use.
const ORDER: [&str; 21] = [
    "abi",
    "session",
    "config",
    "tap",
    "owner",
    "namespace",
    "process",
    "kernel",
    "proc",
    "netlink",
    "flow",
    "decode",
    "model",
    "blocking",
    "thread",
    "shared",
    "bounded",
    "log",
    "capability",
    "sync",
    "error",
];

/// A source file and its module path from the root of the crate.
struct Module {
    file: PathBuf,
    path: Vec<String>,
}

/// A path in the code, from the root of the crate.
#[derive(PartialEq, Debug)]
struct Import {
    line: usize,
    path: Vec<String>,
}

#[test]
fn imports_point_down() {
    let mut upward = Vec::new();
    for module in modules() {
        let Some(room) = module.path.first() else { continue };
        let text = fs::read_to_string(&module.file).unwrap();
        for import in imports(&text, &module.path) {
            let Some(target) = import.path.first() else { continue };
            if rank(target) < rank(room) {
                let path = import.path.join("::");
                upward.push(format!("{}:{}: crate::{path}", module.file.display(), import.line));
            }
        }
    }
    assert!(upward.is_empty(), "imports of higher rooms:\n{}", upward.join("\n"));
}

#[test]
fn paths_are_read_from_every_form_of_import() {
    let text = "use crate::{a::{self, B}, c};\nuse super::d::E;\n// use crate::f;\nmod tests {\n    use super::g;\n    use super::super::super::h::*;\n}\nfn i() -> crate::j::K {\n    self::l()\n}\n";
    let found = imports(text, &["room".into(), "file".into()]);
    let found: Vec<_> = found.iter().map(|import| (import.line, import.path.join("::"))).collect();
    let expected =
        [(1, "a"), (1, "a::B"), (1, "c"), (2, "room::d::E"), (5, "room::file::g"), (6, "h"), (8, "j::K")];
    assert_eq!(found, expected.map(|(line, path)| (line, path.to_owned())));
}

fn rank(room: &str) -> usize {
    let rank = ORDER.iter().position(|other| *other == room);
    rank.unwrap_or_else(|| panic!("{room} has no place in the order of rooms"))
}

/// Returns all modules of the crate, followed from its root as the compiler does.
fn modules() -> Vec<Module> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let mut found = vec![Module { file: root, path: Vec::new() }];
    let mut next = 0;
    while let Some(Module { file, path }) = found.get(next) {
        let text = fs::read_to_string(file).unwrap();
        let children: Vec<_> = declarations(&text).map(|(name, at)| child(file, path, name, at)).collect();
        found.extend(children);
        next += 1;
    }
    assert!(found.len() > 100, "only {} modules were found", found.len());
    found
}

/// Returns the modules that a file declares without a body, each with the value of its `path` attribute.
fn declarations(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut at = None;
    text.lines().filter_map(move |line| {
        if let Some(value) = line.strip_prefix("#[path = \"") {
            at = value.strip_suffix("\"]");
            return None;
        }
        let name = line.strip_suffix(';')?.split_once("mod ").filter(|(before, _)| is_visibility(before))?.1;
        Some((name, at.take()))
    })
}

fn is_visibility(text: &str) -> bool {
    text.is_empty() || text == "pub " || (text.starts_with("pub(") && text.ends_with(") "))
}

fn child(file: &Path, path: &[String], name: &str, at: Option<&str>) -> Module {
    let beside = file.parent().unwrap();
    let stem = file.file_stem().unwrap();
    let within = if stem == "mod" || stem == "lib" { beside.to_owned() } else { beside.join(stem) };
    let flat = within.join(format!("{name}.rs"));
    let file = match at {
        Some(at) => beside.join(at),
        None if flat.exists() => flat,
        None => within.join(name).join("mod.rs"),
    };
    Module { file, path: path.iter().cloned().chain([name.to_owned()]).collect() }
}

/// Returns the paths in the code of a module that begin with `crate` or `super`. A nested import has several.
fn imports(text: &str, module: &[String]) -> Vec<Import> {
    let mut found = Vec::new();
    let mut nested: Vec<String> = Vec::new();
    let mut offset = 0;
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        // The code is formatted: a module with a body ends at a brace with the indentation of its first line.
        let body = code.trim_start().strip_suffix(" {").and_then(|head| head.split_once("mod "));
        if let Some((_, name)) = body.filter(|(before, _)| is_visibility(before)) {
            nested.push(name.to_owned());
        } else if code.trim_end() == format!("{}}}", "    ".repeat(nested.len().saturating_sub(1))) {
            nested.pop();
        }
        for start in ["crate::", "super::"].iter().flat_map(|word| code.match_indices(word)) {
            let (at, word) = start;
            let before = code[..at].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || "_:".contains(before)) {
                continue;
            }
            let mut here: Vec<String> = module.iter().chain(&nested).cloned().collect();
            let mut rest = &text[offset + at + word.len()..];
            if word == "crate::" {
                here.clear();
            } else {
                here.pop();
                while let Some(after) = rest.strip_prefix("super::") {
                    here.pop();
                    rest = after;
                }
            }
            expand(&mut rest, &here, &mut |path| found.push(Import { line: number + 1, path }));
        }
        offset += line.len() + 1;
    }
    found
}

/// Passes the paths of the nested import at the beginning of `text` to `each`, and advances `text` past it.
fn expand(text: &mut &str, before: &[String], each: &mut impl FnMut(Vec<String>)) {
    if let Some(mut inner) = text.strip_prefix('{') {
        loop {
            inner = inner.trim_start_matches(|character: char| character.is_whitespace() || character == ',');
            match inner.strip_prefix('}') {
                Some(after) => return *text = after,
                None if inner.is_empty() => panic!("a tree of imports does not end"),
                None => expand(&mut inner, before, each),
            }
        }
    }
    let end =
        text.find(|character: char| !character.is_alphanumeric() && character != '_').unwrap_or(text.len());
    let (name, after) = text.split_at(end);
    let mut path = before.to_vec();
    path.extend((!matches!(name, "" | "self")).then(|| name.to_owned()));
    *text = after;
    if let Some(after) = text.strip_prefix("::") {
        *text = after;
        return expand(text, &path, each);
    }
    *text = text.strip_prefix('*').unwrap_or(text);
    // An import under another name.
    if let Some(alias) = text.strip_prefix(" as ") {
        *text = alias.trim_start_matches(|character: char| character.is_alphanumeric() || character == '_');
    }
    each(path);
}
