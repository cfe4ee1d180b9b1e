//! The library and the plugin, built and installed as users do, in a directory that cargo provides for tests.

use crate::snippets::examples;
use capture_test_support::lab::run;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The installed library and plugin.
pub struct Built {
    root: PathBuf,
}

impl Built {
    /// Returns the built files. The first call builds them.
    pub fn get() -> &'static Built {
        static BUILT: OnceLock<Built> = OnceLock::new();
        BUILT.get_or_init(Built::new)
    }

    fn new() -> Built {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let root = temporary.join("collectd");
        if root.exists() {
            std::fs::remove_dir_all(&root).unwrap();
        }
        let built = Built { root };
        // Figures of CPU time are those of a release build.
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--release", "--locked", "--lib"]).current_dir(package);
        build.args((!cfg!(feature = "ebpf")).then_some("--no-default-features"));
        assert!(build.status().unwrap().success(), "cargo build");
        let mut install = Command::new(package.join("scripts/install"));
        install.env("PREFIX", built.path("usr")).arg("--artifacts").arg(temporary.join("../release"));
        assert!(install.output().unwrap().status.success(), "scripts/install");

        let sources = built.path("plugin");
        run(&format!("cp -r {} {}", examples().display(), sources.display()));
        let mut make = Command::new("make");
        make.args(["--silent", "clean", "install", "PREFIX=/usr"]).current_dir(&sources);
        make.arg(format!("DESTDIR={}", built.root.display()));
        make.env("PKG_CONFIG_PATH", built.path("usr/lib/pkgconfig"));
        assert!(make.status().unwrap().success(), "make install");
        // collectd looks for all plugins in one directory and follows no links.
        run(&format!("cp -r /usr/lib/collectd {}", built.path("usr/lib").display()));
        built
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Returns the directory in which collectd finds its plugins.
    pub fn plugins(&self) -> PathBuf {
        self.path("usr/lib/collectd")
    }

    /// Returns the directory in which the loader finds the library.
    pub fn libraries(&self) -> PathBuf {
        self.path("usr/lib")
    }

    /// Returns the file of the types of the plugin's values.
    pub fn types(&self) -> PathBuf {
        self.path("usr/share/collectd/capture-types.db")
    }
}
