//! Where things are when nobody says: the configuration file, state, sockets.

use std::env;
use std::path::{Path, PathBuf};

/// The system's configuration file: systemd's unit names none, so it starts the daemon with this one.
pub const SYSTEM: &str = "/etc/kagami/kagami.toml";

/// Folders that depend on who runs the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The folder of the configuration file.
    pub config: PathBuf,
    /// Keys and stores.
    pub state: PathBuf,
    /// Sockets.
    pub run: PathBuf,
}

impl Places {
    /// As this user and environment have them.
    pub fn of_this_process() -> Self {
        let variable = |name: &str| {
            env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let uid = rustix::process::geteuid();
        if uid.is_root() {
            return Self::of_root();
        }
        let home = variable("HOME").unwrap_or_else(|| PathBuf::from("/"));
        Self {
            config: variable("XDG_CONFIG_HOME")
                .unwrap_or_else(|| home.join(".config"))
                .join("kagami"),
            state: variable("XDG_STATE_HOME")
                .unwrap_or_else(|| home.join(".local/state"))
                .join("kagami"),
            run: variable("XDG_RUNTIME_DIR").map_or_else(
                || PathBuf::from(format!("/tmp/kagami-{}", uid.as_raw())),
                |folder| folder.join("kagami"),
            ),
        }
    }

    /// For root.
    pub fn of_root() -> Self {
        Self {
            config: PathBuf::from("/etc/kagami"),
            state: PathBuf::from("/var/lib/kagami"),
            run: PathBuf::from("/run/kagami"),
        }
    }

    /// The configuration file: what was named, else the system's where there is one, else the
    /// user's own.
    pub fn config_file(&self, named: Option<&Path>) -> PathBuf {
        if let Some(named) = named {
            // Commands write it through a temporary file beside it: that needs the folder's name.
            return std::path::absolute(named).unwrap_or_else(|_| named.to_owned());
        }
        if Path::new(SYSTEM).exists() {
            return PathBuf::from(SYSTEM);
        }
        self.config.join("kagami.toml")
    }
}
