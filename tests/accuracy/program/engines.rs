//! The library's ways of counting, which the table compares.

use capture::internals::config::{Engine as Counting, Options};
use capture::internals::log::LogOptions;
use capture::internals::model::ProbeState;
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::{Session, Stats};
use capture::internals::tap::TapOptions;
use std::process::{Command, Stdio};
use std::str::FromStr;

/// A way of counting and a source of owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// libpcap captures packets. Nothing is loaded into the kernel.
    Portable,
    /// libpcap captures packets. eBPF programs provide the owners.
    Owners,
    /// eBPF programs count. No packet is captured.
    Kernel,
}

impl Engine {
    pub const ALL: [Engine; 3] = [Engine::Portable, Engine::Owners, Engine::Kernel];

    pub fn name(self) -> &'static str {
        match self {
            Engine::Portable => "portable",
            Engine::Owners => "owners",
            Engine::Kernel => "kernel",
        }
    }

    /// Returns the options of a session that counts this way in its own namespace. The other options are the
    /// defaults.
    pub fn options(self) -> Options {
        let engine = if self == Engine::Kernel { Counting::Kernel } else { Counting::Pcap };
        let capture = TapOptions { namespaces: NamespaceChoice::Own, ..TapOptions::default() };
        Options { engine, capture, probes: self != Engine::Portable, ..Options::default() }
    }

    /// Returns true if packets are captured. Only capturing sessions can have a filter and pending devices.
    pub fn captures(self) -> bool {
        self != Engine::Kernel
    }

    /// Returns the reason why a session with these statistics does not count as its options request.
    pub fn fault(self, stats: &Stats) -> Option<String> {
        if (stats.engine == Counting::Kernel) == self.captures() {
            return Some(format!("a session counts by {:?}: {}", stats.engine, reason(stats.socket_probes)));
        }
        let wanted = if self == Engine::Portable { ProbeState::Off } else { ProbeState::Active };
        (stats.socket_probes != wanted).then(|| reason(stats.socket_probes).to_owned())
    }

    /// Returns the reason why this machine and this library cannot count this way. The session that finds out
    /// runs in its own process, because a process has further threads once it has opened a session.
    pub fn unavailable(self) -> Option<String> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--fault", self.name()]).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        let ended = format!("a session ended with {}", output.status);
        if output.status.success() { (!text.is_empty()).then_some(text) } else { Some(ended) }
    }

    /// Runs the program's role for [`Engine::unavailable`]: prints the reason, or nothing.
    pub fn print_fault(self) {
        let fault = match Session::open(self.options()) {
            Ok(session) => self.fault(&session.stats_reader().read()),
            Err(error) => Some(error.to_string()),
        };
        fault.iter().for_each(|text| println!("{}", text.replace('\n', " ")));
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(name: &str) -> Result<Engine, String> {
        let found = Engine::ALL.into_iter().find(|engine| engine.name() == name);
        found.ok_or_else(|| {
            let names = Engine::ALL.map(Engine::name).join(", ");
            format!("{name} is no engine; there are {names}")
        })
    }
}

/// Prints which eBPF programs work for a session. Prints the session's log, which has the reasons of the
/// missing ones, to standard error.
pub fn print_programs() {
    let log = LogOptions { queue: true, ..LogOptions::default() };
    let session = Session::open(Options { log, ..Engine::Owners.options() }).unwrap();
    let stats = session.stats_reader().read();
    for (kind, state) in [("socket", stats.socket_probes), ("sample", stats.sample_probes)] {
        let text = match state {
            ProbeState::Active => "active",
            ProbeState::NotSupported => "not supported",
            state => reason(state),
        };
        println!("{kind}\t{text}");
    }
    session.take_log_lines().iter().for_each(|line| eprintln!("{}", line.text));
}

/// Returns a description of a state of the eBPF programs.
fn reason(state: ProbeState) -> &'static str {
    match state {
        ProbeState::Off => "sessions of this library load no probes",
        ProbeState::Active => "the probes are at work",
        ProbeState::NotBuilt => "the library was built without probes",
        ProbeState::NoTypes => "the kernel does not describe its types",
        ProbeState::NotPermitted => "a capability is missing, or the kernel is locked down",
        ProbeState::NotSupported => "the kernel does not know something that the probes need",
        ProbeState::NoMemory => "there is no room for the probes",
        ProbeState::NoCgroup => "there is no cgroup v2 hierarchy",
        ProbeState::PidNamespace => "this is not the first PID namespace",
        ProbeState::NoDescriptor => "no descriptor is left",
    }
}
