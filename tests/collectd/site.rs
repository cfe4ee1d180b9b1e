//! A hub and hosts around it, each a network namespace, and a directory. All of it is removed however the
//! test ends.

use capture_test_support::counters::{count, count_passing};
use capture_test_support::lab::{Maker, Offloads, Wire, die_with_this, enter, path_of, run};
use capture_test_support::namespaces::join;
use capture_test_support::programs::traffic_maker;
use nix::sched::{CloneFlags, setns};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace of the site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The namespace of Prometheus and of the other ends of the traffic.
    Hub,
    /// A watched host, numbered from 1.
    Host(usize),
    /// The namespace between that host and the hub.
    Wire(usize),
}

/// The namespaces and the directory.
pub struct Site {
    directory: PathBuf,
    prefix: String,
    keeper: Child,
}

impl Site {
    /// Creates a hub, with 10.78.N.1 towards host N, and hosts, each with 10.78.N.2. Moves the calling thread
    /// to the hub.
    pub fn new(hosts: usize) -> Site {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("capture-{}-{number}-", std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap().keep();
        let site = Site { keeper: keeper(&directory, &prefix), directory, prefix };
        let hub = site.name(Place::Hub);
        run(&format!("ip netns add {hub}"));
        run(&format!("ip -n {hub} link set lo up"));
        for number in 1..=hosts {
            let host = site.name(Place::Host(number));
            let link = format!("host{number}");
            run(&format!("ip netns add {host}"));
            run(&format!("ip -n {host} link set lo up"));
            let wire = Wire::new(site.name(Place::Wire(number)));
            wire.plug(&host, "eth0", 0, Offloads::On);
            wire.plug(&hub, &link, 1, Offloads::On);
            for (name, device, own, other) in [(&hub, link.as_str(), 1, 2), (&host, "eth0", 2, 1)] {
                run(&format!("ip -n {name} link set {device} address 02:00:00:00:{number:02}:0{own}"));
                run(&format!("ip -n {name} addr add 10.78.{number}.{own}/24 dev {device}"));
                run(&format!("ip -n {name} link set {device} up"));
                // Neighbours are configured: while the kernel looks for one, the counters see packets that
                // never reach the link.
                run(&format!(
                    "ip -n {name} neigh add 10.78.{number}.{other} lladdr 02:00:00:00:{number:02}:0{other} \
                     dev {device} nud permanent"
                ));
            }
        }
        join(&path_of(&hub));
        site
    }

    /// Returns the name of a namespace, as `ip netns` knows it.
    pub fn name(&self, place: Place) -> String {
        match place {
            Place::Hub => format!("{}hub", self.prefix),
            Place::Host(number) => format!("{}{number}", self.prefix),
            Place::Wire(number) => format!("{}wire{number}", self.prefix),
        }
    }

    fn namespace(&self, place: Place) -> File {
        File::open(path_of(&self.name(place))).unwrap()
    }

    /// Returns the directory of the test's files.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Counts at a place a host's sent and received packets that match, under these names.
    pub fn count(&self, place: Place, matches: &[(&str, &str)]) {
        self.at(place, || match place {
            Place::Wire(_) => count_passing([&Wire::device(1), &Wire::device(0)], matches),
            Place::Host(_) | Place::Hub => count(matches),
        });
    }

    /// Returns a command that runs at a place and dies with the calling thread. Unlike `ip netns exec`, it
    /// leaves `/sys` and the cgroups below it unchanged.
    pub fn command(&self, place: Place, program: impl AsRef<OsStr>) -> Command {
        let namespace = self.namespace(place);
        let mut command = Command::new(program);
        // SAFETY: between fork and exec, only a system call is made.
        unsafe { command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?)) };
        die_with_this(command)
    }

    /// Runs a closure at a place, on another thread.
    pub fn at<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> T {
        enter(&self.name(place), work)
    }

    /// Starts a traffic maker at a place, under a name, and waits until it is ready.
    pub fn maker(
        &self,
        place: Place,
        name: &str,
        mode: &str,
        address: &str,
        numbers: &[(&str, u64)],
    ) -> Maker {
        let program = self.directory.join(name);
        if !program.exists() {
            // The kernel names a process after its file.
            let linked = std::fs::hard_link(traffic_maker(), &program);
            linked.or_else(|_| std::fs::copy(traffic_maker(), &program).map(drop)).unwrap();
        }
        let mut command = self.command(place, program);
        command.args([mode, address]).args(numbers.iter().map(|(name, number)| format!("{name}={number}")));
        let mut maker = Maker::start_of(&mut command);
        assert_eq!(maker.line(), "ready", "{mode}");
        maker
    }
}

/// Starts the keeper, which removes the site once this process closes the keeper's input or ends in any way.
/// The keeper kills the daemons whose process ids are in the directory's `.pid` files, and removes the
/// namespaces and the directory.
fn keeper(directory: &Path, prefix: &str) -> Child {
    let script = r#"
        trap '' HUP INT TERM
        read -r _
        for file in "$1"/*/*.pid; do
            [ ! -e "$file" ] || kill -KILL "$(cat "$file")"
        done
        for namespace in /run/netns/"$2"*; do
            [ ! -e "$namespace" ] || ip netns del "${namespace##*/}"
        done
        rm -rf "$1""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(directory).arg(prefix).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // The keeper's exit status carries no information.
        let _ = self.keeper.wait();
    }
}
