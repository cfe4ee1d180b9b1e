//! collectd with the plugin, in its own directory and with its own configuration.

use crate::build::Built;
use crate::site::{Place, Site};
use crate::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running collectd. Dropping this ends it.
pub struct Collectd {
    directory: PathBuf,
    pid: Pid,
    /// `None` if collectd runs in the background, where it is not a child of this process.
    child: Option<Child>,
}

/// Writes the configuration of a collectd with this host name. `parts` are files of its `conf.d`. Returns its
/// directory.
pub fn configure(site: &Site, host: &str, interval_s: u64, parts: &[(&str, String)]) -> PathBuf {
    let directory = site.path().join(host);
    let parts_directory = directory.join("conf.d");
    std::fs::create_dir_all(&parts_directory).unwrap();
    for (name, text) in parts {
        std::fs::write(parts_directory.join(name), text).unwrap();
    }
    let (path, plugins) = (directory.display(), Built::get().plugins());
    let text = format!(
        "Hostname \"{host}\"\n\
         FQDNLookup false\n\
         Interval {interval_s}\n\
         BaseDir \"{path}\"\n\
         PIDFile \"{path}/collectd.pid\"\n\
         PluginDir \"{}\"\n\
         LoadPlugin logfile\n\
         <Plugin logfile>\n  LogLevel info\n  File \"{path}/log\"\n</Plugin>\n\
         Include \"{path}/conf.d/*.conf\"\n",
        plugins.display()
    );
    std::fs::write(directory.join("collectd.conf"), text).unwrap();
    directory
}

/// Returns a command that runs collectd under `wrapper` with the configuration in a directory.
pub fn command(site: &Site, place: Place, directory: &Path, wrapper: &[&str]) -> Command {
    let words: Vec<&str> = wrapper.iter().copied().chain(["collectd", "-C"]).collect();
    let mut command = site.command(place, words[0]);
    command.args(&words[1..]).arg(directory.join("collectd.conf")).stdin(Stdio::null());
    command.env("LD_LIBRARY_PATH", Built::get().libraries());
    command
}

impl Collectd {
    /// Starts a collectd in the foreground; see [`configure`].
    pub fn start(
        site: &Site,
        place: Place,
        host: &str,
        interval_s: u64,
        parts: &[(&str, String)],
    ) -> Collectd {
        let directory = configure(site, host, interval_s, parts);
        Collectd::run(&mut command(site, place, &directory, &[]), directory)
    }

    /// Runs the command in the foreground.
    pub fn run(command: &mut Command, directory: PathBuf) -> Collectd {
        let output = std::fs::File::create(directory.join("output")).unwrap();
        command.arg("-f").stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().unwrap();
        Collectd { directory, pid: Pid::from_raw(child.id() as i32), child: Some(child) }
    }

    /// Runs the command in the background, as services do.
    pub fn run_in_background(command: &mut Command, directory: PathBuf) -> Collectd {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pid_file = directory.join("collectd.pid");
        let pid = || std::fs::read_to_string(&pid_file).ok()?.trim().parse().ok();
        wait_for("a process id in the file", || pid().is_some(), String::new);
        Collectd { pid: Pid::from_raw(pid().unwrap()), directory, child: None }
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Returns everything that collectd has logged and printed.
    pub fn log(&self) -> String {
        let text = |name: &str| std::fs::read(self.directory.join(name)).unwrap_or_default();
        [text("log"), text("output")].iter().map(|text| String::from_utf8_lossy(text)).collect()
    }

    /// Waits until collectd has logged the text.
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait_for(text, || self.log().contains(text), || self.log());
    }

    /// Ends collectd in order with SIGTERM. Returns the time that this took.
    pub fn stop(mut self) -> Duration {
        let began = Instant::now();
        kill(self.pid, Signal::SIGTERM).unwrap();
        wait_for("collectd ends", || !self.is_running(), || self.log());
        let took = began.elapsed();
        if let Some(mut child) = self.child.take() {
            let status = child.wait().unwrap();
            assert!(status.success(), "{status}: {}", self.log());
        }
        took
    }

    /// Returns true if the process has not ended. A zombie, which no parent has waited for, counts as ended.
    fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }
}

impl Drop for Collectd {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
