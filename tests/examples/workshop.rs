//! The environment of the tests: a directory of their own, the library that cargo has built, and the tools.

use capture_test_support::commands::finish;
use capture_test_support::programs::source;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// Lets one test run at a time: a new process holds this process's sockets between fork and exec, and would
/// be one of their owners.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the directory with the libraries that cargo built for this test: that of the test itself.
pub fn artifacts() -> PathBuf {
    let directory = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    assert!(directory.join("libcapture.so").exists(), "no libcapture.so in {}", directory.display());
    directory
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
        finish(command.arg(self.library()).arg(format!("-Wl,-rpath,{}", self.path().display())));
        program
    }

    /// Compiles the example that loads the library at run time.
    pub fn compile_loader(&self) -> PathBuf {
        let program = self.path().join("program");
        finish(
            compiler("cc", "c11").arg(source("examples/exa_dlopen.c")).arg("-o").arg(&program).arg("-ldl"),
        );
        program
    }
}
