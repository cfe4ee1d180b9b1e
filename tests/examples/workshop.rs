//! The environment of the tests: a directory of their own, the library that cargo has built, and the tools.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// Lets one test run at a time: a new process holds this process's sockets between fork and exec, and would
/// be one of their owners.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reports that a test is left out and why; fails if all tests are required.
pub fn left_out(reason: &str) {
    assert!(
        std::env::var_os("CAPTURE_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "required, but {reason}"
    );
    eprintln!("left out: {reason}");
}

/// Returns true if packets may be captured, and reports it if not.
pub fn may_capture() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        left_out("capturing packets needs root");
    }
    root
}

/// Returns true if all tools are installed, and reports the first one that is not.
pub fn has_tools(tools: &[&str]) -> bool {
    // Some tools do not support --version, but every tool can be started.
    let missing = tools.iter().find(|tool| Command::new(tool).arg("--version").output().is_err());
    if let Some(tool) = missing {
        left_out(&format!("{tool} is not installed"));
    }
    missing.is_none()
}

/// Returns the path of a file of the source tree.
pub fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Returns the directory with the libraries that cargo built for this test: that of the test itself.
pub fn artifacts() -> PathBuf {
    let directory = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(directory.join("libcapture.so").exists(), "no libcapture.so in {}", directory.display());
    directory
}

/// Runs a command to its end, asserts that it succeeded, and returns its output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text_of(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns all output of a command.
pub fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns a compiler command that treats every warning as an error.
pub fn compiler(name: &str, standard: &str) -> Command {
    let mut command = Command::new(name);
    command.arg(format!("-std={standard}")).args(["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]);
    command
}

/// A directory in which examples are built with the header and the library of this tree.
pub struct Workshop {
    directory: TempDir,
}

impl Workshop {
    pub fn new() -> Workshop {
        let workshop = Workshop { directory: TempDir::new().unwrap() };
        symlink(artifacts().join("libcapture.so"), workshop.library()).unwrap();
        workshop
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the path of the library under its soname.
    pub fn library(&self) -> PathBuf {
        self.path().join("libcapture.so.1")
    }

    /// Returns a command that runs in this directory, where the example may write its log.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(self.path());
        command
    }

    /// Compiles an example and links it with the library; returns the program.
    pub fn compile(&self, compiler_name: &str, standard: &str, example: &str) -> PathBuf {
        let program = self.path().join("program");
        let mut command = compiler(compiler_name, standard);
        command.arg("-I").arg(source("include")).arg(source(example)).arg("-o").arg(&program);
        run(command.arg(self.library()).arg(format!("-Wl,-rpath,{}", self.path().display())));
        program
    }

    /// Compiles the example that loads the library at run time.
    pub fn compile_loader(&self) -> PathBuf {
        let program = self.path().join("program");
        run(compiler("cc", "c11").arg(source("examples/exa_dlopen.c")).arg("-o").arg(&program).arg("-ldl"));
        program
    }
}
