//! The ways in which the library can count, which the table compares.

use capture::config::{Engine as Counting, Options};
use capture::log::LogOptions;
use capture::model::ProbeState;
use capture::namespace::NamespaceChoice;
use capture::session::{Session, Stats};
use capture::tap::TapOptions;
use std::process::{Command, Stdio};
use std::str::FromStr;

/// How the library counts and whence it knows the owners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// Packets are captured by libpcap, and nothing is loaded into the kernel.
    Portable,
    /// Packets are captured by libpcap, and probes in the kernel tell whose they are.
    Owners,
    /// Probes in the kernel count, and no packet is captured.
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

    /// The options of a session that counts so in its own namespace, otherwise the usual ones.
    pub fn options(self) -> Options {
        let engine = if self == Engine::Kernel { Counting::Kernel } else { Counting::Pcap };
        let capture = TapOptions { namespaces: NamespaceChoice::Own, ..TapOptions::default() };
        Options { engine, capture, probes: self != Engine::Portable, ..Options::default() }
    }

    /// Whether packets are captured: only then can there be a filter, and are there devices to wait for.
    pub fn captures(self) -> bool {
        self != Engine::Kernel
    }

    /// Why a session with these statistics does not count so, though its options ask for it.
    pub fn fault(self, stats: &Stats) -> Option<String> {
        if (stats.engine == Counting::Kernel) == self.captures() {
            return Some(format!("a session counts by {:?}: {}", stats.engine, reason(stats.socket_probes)));
        }
        let wanted = if self == Engine::Portable { ProbeState::Off } else { ProbeState::Active };
        (stats.socket_probes != wanted).then(|| reason(stats.socket_probes).to_owned())
    }

    /// Why this machine and this library cannot count so. Asked is a session in a process of its own: what opens one
    /// has threads from then on.
    pub fn unavailable(self) -> Option<String> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--fault", self.name()]).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        let ended = format!("a session ended with {}", output.status);
        if output.status.success() { (!text.is_empty()).then_some(text) } else { Some(ended) }
    }

    /// The program's role for [`Engine::unavailable`]: prints the reason, or nothing.
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

/// Prints which programs in the kernel are at work for a session, and on the other output the session's log, which tells
/// why others are not.
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

/// What a state of the probes says.
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
