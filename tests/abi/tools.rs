//! Finds the built library, compiles programs against it, and runs them for a bounded time.

pub use capture_test_support::requirements::{has_tools, is_root, left_out};
use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The time that a program may run unless its test sets another limit. It is far longer than any program
/// needs on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The exit code of a program that cannot run its test on this machine or as this user.
const LEFT_OUT: i32 = 77;

/// Returns the root of the package.
pub fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the path of a test program's source.
pub fn source(name: &str) -> PathBuf {
    package().join("tests/abi/c").join(name)
}

/// Returns the path of a library that was built together with this test. cargo leaves it beside the test's
/// executable.
pub fn built(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let beside = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        if beside.join("libcapture.so").exists() && beside.join("libcapture.a").exists() {
            return beside;
        }
        let mut build = Command::new(env!("CARGO"));
        build.current_dir(package()).args(["build", "--lib"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "cargo build failed");
        beside.parent().unwrap().to_owned()
    });
    folder.join(name)
}

/// A compiled program in its own folder, with the library beside it under the name that programs look for.
pub struct Program {
    folder: TempDir,
    name: String,
    limit: Duration,
}

/// Way in which a program is linked.
#[derive(Clone, Copy, PartialEq)]
pub enum Link {
    /// Against the shared library.
    Shared,
    /// Against the static library.
    Static,
    /// Not linked: the program opens the library itself.
    Itself,
}

/// Result of a program that has ended.
pub struct Ended {
    /// The exit code, or minus the number of the signal that ended the program.
    pub code: i32,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
}

impl Program {
    /// Compiles `tests/abi/c/<name>` as strictly as a host might.
    pub fn new(name: &str) -> Program {
        Program::linked(name, Link::Shared)
    }

    /// As [`Program::new`], but linked in the given way.
    pub fn linked(name: &str, link: Link) -> Program {
        let folder = tempfile::tempdir().unwrap();
        // Programs that run as another user must be able to enter the folder.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let shared = folder.path().join("libcapture.so.1");
        symlink(built("libcapture.so"), &shared).unwrap();
        let mut compile = compiler(name);
        compile.args(["-g", "-pthread", "-o"]).arg(folder.path().join("program")).arg(source(name));
        match link {
            Link::Shared => compile.arg(&shared).arg(format!("-Wl,-rpath,{}", folder.path().display())),
            Link::Static => compile.arg(built("libcapture.a")).args(["-lpcap", "-lm"]),
            Link::Itself => &mut compile,
        };
        compile.arg("-ldl");
        let compiled = finished(&mut compile, TIMEOUT);
        assert_eq!(compiled.code, 0, "{compile:?}\n{}{}", compiled.stdout, compiled.stderr);
        Program { folder, name: name.to_owned(), limit: TIMEOUT }
    }

    /// Sets another time limit for the program.
    pub fn limit(mut self, limit: Duration) -> Program {
        self.limit = limit;
        self
    }

    /// Runs the program as user nobody without any capability, which only root can do. Passes it the name of
    /// a file that it may write. The program gets a copy of the library because it might not reach the
    /// original.
    pub fn run_as_nobody(&self, scenario: &str) {
        let shared = self.library();
        std::fs::remove_file(&shared).unwrap();
        std::fs::copy(built("libcapture.so"), &shared).unwrap();
        let room = self.folder().join("room");
        std::fs::create_dir(&room).unwrap();
        std::fs::set_permissions(&room, PermissionsExt::from_mode(0o777)).unwrap();
        let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
        self.run_under(&nobody, &[scenario.as_ref(), room.join("log").as_os_str()]);
    }

    /// Returns the program's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the path of the library beside the program.
    pub fn library(&self) -> PathBuf {
        self.folder.path().join("libcapture.so.1")
    }

    /// Runs the program; see [`Program::run_under`].
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) {
        self.run_under(&[], arguments);
    }

    /// Runs the program under a wrapper. All its checks must hold. Neither the program nor the library may
    /// write anything: a program writes only about a failed check.
    pub fn run_under<A: AsRef<OsStr>>(&self, wrapper: &[&str], arguments: &[A]) {
        let mut command = match wrapper {
            [] => Command::new(self.folder().join("program")),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(self.folder().join("program"));
                command
            }
        };
        command.args(arguments).current_dir(self.folder()).env("CAPTURE_LIBRARY", self.library());
        let ended = finished(&mut command, self.limit);
        let shown = || format!("{} {:?}", self.name, command.get_args().collect::<Vec<_>>());
        if ended.code == LEFT_OUT {
            left_out(&format!("{}: {}", shown(), ended.stderr));
            return;
        }
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "", ""), "{}", shown());
    }
}

/// Returns the compiler command for a source file, with the flags of users' strictest builds.
pub fn compiler(name: &str) -> Command {
    let is_cpp = name.ends_with(".cc");
    let mut compile = Command::new(if is_cpp { "c++" } else { "cc" });
    compile.arg(if is_cpp { "-std=c++17" } else { "-std=c99" });
    compile.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]).arg(package().join("include"));
    compile
}

/// Runs a command to its end. Kills it and fails the test if it does not end within the limit.
pub fn finished(command: &mut Command, limit: Duration) -> Ended {
    let output = tempfile::tempfile().unwrap();
    let errors = tempfile::tempfile().unwrap();
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(errors.try_clone().unwrap());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        sleep(Duration::from_millis(5));
    };
    let ended = Ended {
        code: status.map_or(0, |status| status.code().unwrap_or(-status.signal().unwrap_or(i32::MAX))),
        stdout: text_of(output),
        stderr: text_of(errors),
    };
    assert!(status.is_some(), "{command:?} did not end in time\n{}{}", ended.stdout, ended.stderr);
    ended
}

fn text_of(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the standard output of a tool, which must succeed.
pub fn printed(tool: &str, arguments: &[&OsStr]) -> String {
    let ended = finished(Command::new(tool).args(arguments), TIMEOUT);
    assert_eq!(ended.code, 0, "{tool} {arguments:?}: {}", ended.stderr);
    ended.stdout
}
