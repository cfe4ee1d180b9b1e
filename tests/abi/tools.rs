//! Finding the built library, compiling programs against it, and running them for a bounded time.

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long any program may run, unless its test says otherwise: far longer than one does on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What a program exits with when the machine or the user does not allow what it wants to test.
const LEFT_OUT: i32 = 77;

/// The root of the package.
pub fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the sources of the test programs are.
pub fn source(name: &str) -> PathBuf {
    package().join("tests/abi/c").join(name)
}

/// A library that was built together with this test: cargo leaves it beside the test's executable.
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

/// A compiled program in a folder of its own, with the library beside it under the name that programs look for.
pub struct Program {
    folder: TempDir,
    name: String,
    limit: Duration,
}

/// How a program is linked.
#[derive(Clone, Copy, PartialEq)]
pub enum Link {
    /// Against the shared library.
    Shared,
    /// Against the static library.
    Static,
    /// Not at all: it opens the library itself.
    Itself,
}

/// What a program left behind.
pub struct Ended {
    /// Its exit code, or minus the signal that ended it.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it wrote as errors.
    pub stderr: String,
}

impl Program {
    /// Compiles `tests/abi/c/<name>` as strictly as a host might.
    pub fn new(name: &str) -> Program {
        Program::linked(name, Link::Shared)
    }

    /// As [`Program::new`], linked in another way.
    pub fn linked(name: &str, link: Link) -> Program {
        let folder = tempfile::tempdir().unwrap();
        // Programs that run as another user must get in.
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

    /// Gives the program another limit of time.
    pub fn limit(mut self, limit: Duration) -> Program {
        self.limit = limit;
        self
    }

    /// Runs the program as nobody, without any capability, which only root can; gives it the name of a file that it may
    /// write. It gets a copy of the library, because it might not reach the original.
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

    /// The folder it lives in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The library beside it.
    pub fn library(&self) -> PathBuf {
        self.folder.path().join("libcapture.so.1")
    }

    /// Runs the program; see [`Program::run_under`].
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) {
        self.run_under(&[], arguments);
    }

    /// Runs the program with another one in front of it. Its checks must all hold, and neither it nor the library
    /// may write anything: a program says something only about a check that failed.
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

/// The compiler for a source file with the flags that users' strictest builds have.
pub fn compiler(name: &str) -> Command {
    let is_cpp = name.ends_with(".cc");
    let mut compile = Command::new(if is_cpp { "c++" } else { "cc" });
    compile.arg(if is_cpp { "-std=c++17" } else { "-std=c99" });
    compile.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]).arg(package().join("include"));
    compile
}

/// Runs a command to its end; one that has not ended in time is killed, and the test fails.
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

/// What a tool prints; the tool must succeed.
pub fn printed(tool: &str, arguments: &[&OsStr]) -> String {
    let ended = finished(Command::new(tool).args(arguments), TIMEOUT);
    assert_eq!(ended.code, 0, "{tool} {arguments:?}: {}", ended.stderr);
    ended.stdout
}

/// Whether a tool is installed; says so when it is not.
pub fn has_tool(tool: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).any(|folder| folder.join(tool).exists());
    if !found {
        left_out(&format!("{tool} is not installed"));
    }
    found
}

/// Whether this is root; says so when it is not.
pub fn is_root() -> bool {
    // SAFETY: the call has no conditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        left_out("this user is not root");
    }
    root
}

/// Notes that something was not tested; where everything is required that is a failure.
pub fn left_out(reason: &str) {
    assert!(std::env::var_os("CAPTURE_REQUIRE_ALL").is_none_or(|value| value != "1"), "left out: {reason}");
    println!("left out: {reason}");
}
