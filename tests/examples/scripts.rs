//! Tests of the scripts: installed and packaged files work where they are put, and the demonstration
//! works and cleans up.

use super::agent::Agent;
use super::workshop::{artifacts, compiler, turn};
use capture_test_support::commands::{finish, text_of};
use capture_test_support::programs::source;
use capture_test_support::requirements::{has_root_and, has_tools, is_root, left_out};
use nix::sys::signal::Signal;
use std::fs::{create_dir, read_link, read_to_string, write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const SCRIPTS: [&str; 10] = [
    "accuracy",
    "bpf",
    "collectd-e2e",
    "demo",
    "flood",
    "install",
    "package",
    "prerequisites",
    "soak",
    "test",
];

/// Returns a command that calls a script from a directory outside the source tree.
fn script(name: &str) -> Command {
    let mut command = Command::new(source("scripts").join(name));
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// Installs below `destination` with the given settings.
fn install(destination: &Path, settings: &[(&str, &str)]) {
    let mut command = script("install");
    command.arg("--artifacts").arg(artifacts()).env("DESTDIR", destination);
    finish(command.envs(settings.iter().copied()));
}

/// Returns the output of pkg-config for the capture.pc in a directory, split into words.
fn pkg_config(directory: &Path, sysroot: &Path, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_LIBDIR", directory).env("PKG_CONFIG_SYSROOT_DIR", sysroot);
    finish(command.args(arguments).arg("capture")).split_whitespace().map(str::to_owned).collect()
}

/// Returns the file from which a program loads the library, or `None` if the library is linked
/// into the program.
fn loaded_library(program: &Path, library_path: Option<&Path>) -> Option<PathBuf> {
    let mut command = Command::new("ldd");
    command.arg(program).env_remove("LD_LIBRARY_PATH");
    if let Some(path) = library_path {
        command.env("LD_LIBRARY_PATH", path);
    }
    let listing = finish(&mut command);
    let line = listing.lines().find(|line| line.contains("libcapture"))?.to_owned();
    Some(line.split_whitespace().nth(2).unwrap().into())
}

/// Runs a program for one round, in a directory that it may write to.
fn runs(program: &Path, library_path: Option<&Path>, directory: &Path) {
    let mut command = Command::new(program);
    command.arg("1").current_dir(directory).env_remove("LD_LIBRARY_PATH");
    if let Some(path) = library_path {
        command.env("LD_LIBRARY_PATH", path);
    }
    let printed = finish(&mut command);
    let own = std::process::id().to_string();
    assert!(printed.lines().any(|line| line.split_whitespace().nth(1) == Some(&own)), "{printed}");
}

#[test]
fn every_script_tells_its_options_and_refuses_others() {
    for name in SCRIPTS {
        let help = finish(script(name).arg("--help"));
        assert!(help.contains(&format!("scripts/{name}")) && help.contains("--help"), "{help}");
        let output = script(name).arg("--no-such-option").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(text_of(&output).contains("--no-such-option"), "{}", text_of(&output));
    }
    for name in ["demo", "install", "package"] {
        let output = script(name).arg("--artifacts").output().unwrap();
        assert!(!output.status.success() && text_of(&output).contains("needs a value"), "{name}");
    }
}

#[test]
fn prerequisites_calls_the_package_manager_for_what_is_missing_only() {
    let _turn = turn();
    if !has_tools(&["cc", "c++", "pkg-config"]) {
        return;
    }
    // Without root it would call sudo.
    if !is_root() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let fake = directory.path().join("apt-get");
    let calls = directory.path().join("calls");
    write(&fake, format!("#!/bin/sh\necho \"$@\" >>{}\n", calls.display())).unwrap();
    std::fs::set_permissions(&fake, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());

    let output = script("prerequisites").arg("--no-rust").env("PATH", &path).output().unwrap();
    assert!(output.status.success() && text_of(&output).is_empty(), "{}", text_of(&output));
    assert!(!calls.exists());

    // With a compiler that finds no header, libpcap's headers seem to be missing, even after
    // the installation.
    let compiler = directory.path().join("cc");
    write(&compiler, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&compiler, PermissionsExt::from_mode(0o755)).unwrap();
    let output = script("prerequisites").arg("--no-rust").env("PATH", &path).output().unwrap();
    assert!(!output.status.success() && text_of(&output).contains("still missing: libpcap"));
    let calls = read_to_string(&calls).unwrap();
    assert!(calls.lines().any(|call| call.ends_with("install libpcap-dev")), "{calls}");
}

#[test]
fn a_compiled_probe_that_is_not_its_source_is_found() {
    let _turn = turn();
    let directory = TempDir::new().unwrap();
    let at = |path: &str| directory.path().join(path);
    finish(Command::new("mkdir").arg("-p").arg(at("src/kernel")));
    finish(Command::new("cp").arg("-r").arg(source("scripts")).arg(directory.path()));
    finish(Command::new("cp").arg("-r").arg(source("src/kernel/probes")).arg(at("src/kernel")));
    let check = || Command::new(at("scripts/bpf")).arg("--check").output().unwrap();
    let output = check();
    if output.status.code() == Some(3) {
        return left_out("clang and LLVM 19 are not installed");
    }
    // The directory is not the one in which the objects were compiled.
    assert!(output.status.success(), "{}", text_of(&output));

    let header = at("src/kernel/probes/sockets.h");
    let text = read_to_string(&header).unwrap();
    write(&header, format!("/* A line more, and nothing else. */\n{text}")).unwrap();
    assert!(check().status.success(), "no instruction has changed");
    assert!(text.contains("#define BUCKETS 32\n"));
    write(&header, text.replace("#define BUCKETS 32\n", "#define BUCKETS 16\n")).unwrap();
    let output = check();
    assert_eq!(output.status.code(), Some(1));
    assert!(text_of(&output).contains("src/kernel/probes/sockets.bpf.o"), "{}", text_of(&output));
    // The check has changed nothing.
    let object = |path: &Path| std::fs::read(path.join("src/kernel/probes/sockets.bpf.o")).unwrap();
    assert_eq!(object(directory.path()), object(&source("")));
}

#[test]
fn what_is_installed_is_found_by_pkg_config_and_linked_dynamically_and_statically() {
    let _turn = turn();
    if !has_tools(&["cc", "pkg-config", "ldd", "python3"]) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let root = directory.path();
    install(root, &[("PREFIX", "/opt/it")]);
    let library = root.join("opt/it/lib");
    let pc = library.join("pkgconfig");

    let version = pkg_config(&pc, root, &["--modversion"]).concat();
    let number = "import ctypes, sys; v = ctypes.CDLL(sys.argv[1]).CaptureVersion(); \
                  print(f'{v >> 16}.{v >> 8 & 255}.{v & 255}')";
    let shared = library.join(format!("libcapture.so.{version}"));
    assert_eq!(finish(Command::new("python3").args(["-c", number]).arg(&shared)).trim(), version);
    assert_eq!(read_link(library.join("libcapture.so.1")).unwrap(), shared.file_name().unwrap());
    assert_eq!(read_link(library.join("libcapture.so")).unwrap(), Path::new("libcapture.so.1"));
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        let installed = read_to_string(root.join("opt/it/share/doc/libcapture").join(licence)).unwrap();
        assert_eq!(installed, read_to_string(source(licence)).unwrap());
    }

    let example = source("examples/exa_capture.c");
    let program = root.join("dynamic");
    let flags = pkg_config(&pc, root, &["--cflags", "--libs"]);
    finish(compiler("cc", "c99").arg(&example).arg("-o").arg(&program).args(flags));
    let loaded = loaded_library(&program, Some(&library)).unwrap();
    assert_eq!(loaded, library.join("libcapture.so.1"));
    runs(&program, Some(&library), root);

    let program = root.join("static");
    let flags = pkg_config(&pc, root, &["--static", "--cflags", "--libs"]);
    let flags = flags.iter().map(|flag| if flag == "-lcapture" { "-l:libcapture.a" } else { flag });
    finish(compiler("cc", "c99").arg(&example).arg("-o").arg(&program).args(flags));
    assert_eq!(loaded_library(&program, None), None);
    runs(&program, None, root);
}

#[test]
fn another_library_directory_is_obeyed() {
    let _turn = turn();
    if !has_tools(&["pkg-config"]) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let root = directory.path();
    install(root, &[("PREFIX", "/usr"), ("LIBDIR", "/usr/lib/some where")]);
    let library = root.join("usr/lib/some where");
    assert!(library.join("libcapture.so.1").exists() && library.join("libcapture.a").exists());
    let pc = library.join("pkgconfig");
    let words = pkg_config(&pc, Path::new(""), &["--variable=libdir"]).join(" ");
    assert_eq!(words.replace('\\', ""), "/usr/lib/some where");
    install(root, &[("LIBDIR", "/elsewhere/lib")]);
    let pc = root.join("elsewhere/lib/pkgconfig");
    assert_eq!(pkg_config(&pc, Path::new(""), &["--variable=libdir"]), ["/elsewhere/lib"]);
    assert_eq!(pkg_config(&pc, Path::new(""), &["--variable=includedir"]), ["/usr/local/include"]);

    let mut relative = script("install");
    relative.arg("--artifacts").arg(artifacts()).env("DESTDIR", root).env("PREFIX", "usr");
    assert!(!relative.output().unwrap().status.success());
}

#[test]
fn the_package_works_where_it_is_unpacked() {
    let _turn = turn();
    if !has_tools(&["cc", "c++", "pkg-config", "ldd", "readelf", "tar"]) {
        return;
    }
    let directory = TempDir::new().unwrap();
    let output = directory.path().join("made here");
    let mut command = script("package");
    let printed = finish(command.arg("--artifacts").arg(artifacts()).arg("--output").arg(&output));
    let archive = PathBuf::from(printed.trim_end());
    assert_eq!(archive.parent(), Some(output.as_path()));
    let name = archive.file_name().unwrap().to_str().unwrap().strip_suffix(".tar.gz").unwrap().to_owned();
    assert_eq!(name, format!("libcapture-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH));

    let elsewhere = directory.path().join("unpacked");
    create_dir(&elsewhere).unwrap();
    finish(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&elsewhere));
    std::fs::remove_dir_all(&output).unwrap();
    let package = elsewhere.join(name);

    let built = package.join("examples/exa_capture");
    let loaded = loaded_library(&built, None).unwrap().canonicalize().unwrap();
    assert_eq!(loaded.parent(), Some(package.join("lib").as_path()));
    runs(&built, None, &elsewhere);

    let listing = finish(Command::new("readelf").arg("-d").arg(&loaded).env("LC_ALL", "C"));
    let needed = listing.lines().filter(|line| line.contains("(NEEDED)"));
    let sonames: Vec<&str> = needed.map(|line| line.split(['[', ']']).nth(1).unwrap()).collect();
    let glibc_and_gcc = ["libc.so.", "libm.so.", "libgcc_s.so.", "ld-linux"];
    let is_other = |soname: &&&str| !glibc_and_gcc.iter().any(|known| soname.starts_with(known));
    let others: Vec<&str> = sonames.iter().filter(is_other).copied().collect();
    assert!(others.len() == 1 && others[0].starts_with("libpcap.so."), "{others:?}");
    assert!(read_to_string(package.join("README")).unwrap().contains(others[0]));

    let program = elsewhere.join("own");
    let flags = pkg_config(&package.join("lib/pkgconfig"), Path::new(""), &["--cflags", "--libs"]);
    let example = package.join("examples/exa_capture.c");
    finish(compiler("cc", "c99").arg(example).arg("-o").arg(&program).args(flags));
    runs(&program, Some(&package.join("lib")), &elsewhere);
}

/// Returns a command for the demonstration, with a directory for its temporary files.
fn demo(temporary: &Path) -> Command {
    let mut command = script("demo");
    command.arg("--artifacts").arg(artifacts()).env("TMPDIR", temporary);
    command
}

/// Checks that a demonstration leaves no file and no namespace behind.
fn is_tidy(pid: u32, temporary: &Path) {
    assert_eq!(temporary.read_dir().unwrap().count(), 0);
    let namespaces = finish(Command::new("ip").args(["netns", "list"]));
    assert!(!namespaces.contains(&format!("libcapture-{pid}-")), "{namespaces}");
}

fn may_run_demo() -> bool {
    has_root_and(&["c++", "python3", "ip"])
}

#[test]
fn the_demonstration_counts_what_the_traffic_maker_counts() {
    let _turn = turn();
    if !may_run_demo() {
        return;
    }
    let temporary = TempDir::new().unwrap();
    let mut agent = Agent::start(&mut demo(temporary.path()));
    let numbers =
        |line: &str| -> Vec<u64> { line.split_whitespace().filter_map(|word| word.parse().ok()).collect() };
    let counted = agent.wait_for("what the library counted", |line| line.starts_with("python3 (pid "));
    let payload = agent.wait_for("what the traffic maker counted", |line| line.contains(" of payload"));
    let (status, complaint) = agent.end(None);
    assert!(status.success(), "{complaint}");
    for (wire, payload) in numbers(&counted).into_iter().zip(numbers(&payload)) {
        // Headers and acknowledgements are small compared with the 16 kB and 4 kB that each call sends.
        assert!(
            payload > 100_000 && (payload..payload + payload / 10).contains(&wire),
            "{wire} for {payload}"
        );
    }
    assert_eq!((numbers(&counted).len(), numbers(&payload).len()), (2, 2), "{counted}\n{payload}");
    is_tidy(agent.pid(), temporary.path());
}

#[test]
fn the_interrupted_demonstration_tidies_up() {
    let _turn = turn();
    if !may_run_demo() {
        return;
    }
    let temporary = TempDir::new().unwrap();
    let mut agent = Agent::start(&mut demo(temporary.path()));
    agent.wait_for("the first round", |line| line == "round 1");
    assert!(temporary.path().read_dir().unwrap().count() > 0);
    let (status, complaint) = agent.end(Some(Signal::SIGTERM));
    assert_eq!(status.code(), Some(143), "{complaint}");
    is_tidy(agent.pid(), temporary.path());
}
