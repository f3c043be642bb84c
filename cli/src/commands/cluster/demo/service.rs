//! The service that is kept up: PostgreSQL where Debian's is installed, else the demonstration's own. Its
//! scripts are what a user would write.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::network::{self, FLOATING, Resident};
use super::wire::Protocol;
use crate::args::DemoService;
use crate::commands::demo::fault::DemoError;

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// Debian's, with its programs in this folder.
    Postgres(PathBuf),
    /// [`super::records`]
    Records,
}

/// The version of the PostgreSQL whose programs are in this folder.
fn version(programs: &Path) -> Option<u32> {
    programs.parent()?.file_name()?.to_str()?.parse().ok()
}

/// The newest PostgreSQL below `folder`, which has one for each version.
fn newest(folder: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(folder).ok()?.filter_map(|entry| {
        let version = entry.ok()?.file_name().to_str()?.parse::<u32>().ok()?;
        let programs = folder.join(version.to_string()).join("bin");
        let is_whole = ["postgres", "initdb"]
            .iter()
            .all(|name| programs.join(name).is_file());
        is_whole.then_some((version, programs))
    });
    versions.max().map(|(_, programs)| programs)
}

impl Service {
    /// What this machine has of what is wanted.
    ///
    /// # Errors
    /// PostgreSQL is wanted and not there.
    pub fn choose(wanted: DemoService) -> Result<Self, DemoError> {
        let folder = Path::new("/usr/lib/postgresql");
        let found = newest(folder);
        match (wanted, found) {
            (DemoService::Records, _) | (DemoService::Auto, None) => Ok(Self::Records),
            (_, Some(programs)) => Ok(Self::Postgres(programs)),
            (DemoService::Postgresql, None) => Err(DemoError::Store {
                path: folder.to_owned(),
                what:
                    "no PostgreSQL here\n  next: apt-get install postgresql, or leave --service out"
                        .to_owned(),
            }),
        }
    }

    /// For people.
    pub fn words(&self) -> String {
        match self {
            Self::Postgres(programs) => {
                let version = programs.parent().and_then(Path::file_name);
                format!("PostgreSQL {}", version.unwrap_or_default().to_string_lossy())
            }
            Self::Records => {
                "a small service of the demonstration's own, which appends numbered records to a file and \
                 answers when they are on the disk (PostgreSQL is used where Debian's is installed)"
                    .to_owned()
            }
        }
    }

    /// For programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgresql",
            Self::Records => "records",
        }
    }

    /// How clients talk to it.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Postgres(_) => Protocol::Postgres,
            Self::Records => Protocol::Records,
        }
    }

    /// Whether a process is the service's.
    pub fn has(&self, process: &Resident) -> bool {
        match self {
            // Its processes name themselves `postgres: walwriter` and so on.
            Self::Postgres(programs) => process.words.first().is_some_and(|first| {
                first.starts_with("postgres:") || Path::new(first) == programs.join("postgres")
            }),
            Self::Records => process.words.iter().any(|word| word == "demo-service"),
        }
    }

    /// The start script: it becomes the service.
    fn start(&self, program: &Path, folder: &Path) -> String {
        let (mount, lan) = (mount(folder), network::LAN);
        let mut text = format!(
            "#!/bin/sh\nset -e\necho $$ >'{}'/service-\"$KAGAMI_NODE\".pid\n",
            folder.display()
        );
        // What can't be written to a String is nothing.
        let _ = match self {
            Self::Postgres(programs) => write!(
                text,
                "as='setpriv --reuid postgres --regid postgres --init-groups'\n\
                 data='{mount}'/pg\n\
                 if [ ! -e '{mount}'/made ]; then\n    \
                     rm -rf \"$data\"\n    \
                     install -d -m 700 -o postgres -g postgres \"$data\"\n    \
                     $as '{bin}'/initdb -D \"$data\" --auth=trust --no-locale --no-sync --wal-segsize=4\n    \
                     echo 'host all all {lan} trust' >>\"$data/pg_hba.conf\"\n    \
                     sync -f \"$data\"\n    \
                     touch '{mount}'/made\n    \
                     sync -f \"$data\"\n\
                 fi\n\
                 exec $as '{bin}'/postgres -D \"$data\" -c listen_addresses={FLOATING} -c unix_socket_directories= \\\n    \
                     -c shared_buffers=16MB -c max_wal_size=32MB -c min_wal_size=8MB{recovery}\n",
                mount = mount.display(),
                bin = programs.display(),
                // One call instead of one for each file, after each crash.
                recovery = if version(programs) >= Some(14) {
                    " -c recovery_init_sync_method=syncfs"
                } else {
                    ""
                },
            ),
            Self::Records => writeln!(
                text,
                "exec '{}' cluster demo-service --file '{}'/records --listen {}",
                program.display(),
                mount.display(),
                address()
            ),
        };
        text
    }

    /// The stop script: it returns when the service has ended.
    fn stop(&self, folder: &Path) -> String {
        let signal = match self {
            // Fast shutdown: sessions are ended, everything is written.
            Self::Postgres(_) => "INT",
            Self::Records => "TERM",
        };
        format!(
            "#!/bin/sh\n\
             read -r pid <'{}'/service-\"$KAGAMI_NODE\".pid || exit 0\n\
             kill -{signal} \"$pid\" 2>/dev/null || exit 0\n\
             while readlink \"/proc/$pid/exe\" >/dev/null 2>&1; do sleep 0.02; done\n",
            folder.display()
        )
    }

    /// Writes `start` and `stop` into the folder.
    ///
    /// # Errors
    /// They can't be written.
    pub fn write_scripts(&self, program: &Path, folder: &Path) -> Result<(), DemoError> {
        let scripts = [
            ("start", self.start(program, folder)),
            ("stop", self.stop(folder)),
        ];
        for (name, text) in scripts {
            let path = folder.join(name);
            let system = || DemoError::system(format!("writing {}", path.display()));
            fs::write(&path, text).map_err(system())?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(system())?;
        }
        Ok(())
    }
}

/// Where clients reach it.
pub fn address() -> SocketAddr {
    let ip = FLOATING.parse().expect("an address");
    SocketAddr::new(ip, 5432)
}

/// Where the mirror's file system is, on the node that has the group.
pub fn mount(folder: &Path) -> PathBuf {
    folder.join("srv")
}

/// `cluster.toml`: the group, its address, its mirror, its service, and what watches it.
pub fn configuration(mirror: &str, folder: &Path) -> String {
    let (alpha, beta) = (network::cable("alpha"), network::cable("beta"));
    let (mount, folder) = (mount(folder), folder.display());
    format!(
        "[cluster]\nname = \"demo\"\nrevision = 1\nnodes = [\"alpha\", \"beta\"]\n\n\
         [arbiter]\nkind = \"witness\"\nname = \"witness\"\n\n\
         [heartbeat.cable]\ntype = \"lan\"\npriority = 1\n\
         addresses = {{ alpha = \"{alpha}:7791\", beta = \"{beta}:7791\" }}\n\n\
         [group.shop]\nnodes = [\"alpha\", \"beta\"]\n\n\
         [group.shop.resource.data]\ntype = \"mirror\"\nmirror = \"{mirror}\"\nmount = \"{}\"\n\
         filesystem = \"ext4\"\ninitial-mkfs = true\n\n\
         [group.shop.resource.address]\ntype = \"floating-ip\"\naddress = \"{FLOATING}/24\"\n\n\
         [group.shop.resource.server]\ntype = \"exec\"\nmode = \"async\"\n\
         start = \"{folder}/start\"\nstop = \"{folder}/stop\"\nstop-timeout = \"30s\"\n\
         depends = [\"data\", \"address\"]\n\n\
         [monitor.server]\ntype = \"pid\"\nresource = \"shop/server\"\ninterval = \"500ms\"\n",
        mount.display()
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use kagami_failover::config::Cluster;

    use super::*;

    #[test]
    fn the_configuration_is_one_that_the_manager_takes() {
        let text = configuration("demo", Path::new("/var/tmp/kagami-cluster-1"));
        let cluster = Cluster::parse(Path::new("cluster.toml"), &text).expect("no faults");
        assert_eq!(cluster.groups.len(), 1);
        assert_eq!(cluster.groups[0].resources.len(), 3);
    }

    #[test]
    fn the_scripts_are_ones_that_a_shell_takes() {
        let folder = tempfile::tempdir().expect("a folder");
        for service in [
            Service::Records,
            Service::Postgres("/usr/lib/postgresql/15/bin".into()),
        ] {
            service
                .write_scripts(Path::new("/usr/bin/kagami"), folder.path())
                .expect("written");
            for name in ["start", "stop"] {
                let mut shell = Command::new("sh");
                let checked = shell.arg("-n").arg(folder.path().join(name)).output();
                let checked = checked.expect("a shell");
                assert!(checked.status.success(), "{service:?} {name}: {checked:?}");
            }
        }
    }

    #[test]
    fn the_newest_whole_database_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(newest(folder.path()), None);
        for version in ["9", "15", "17", "common"] {
            let programs = folder.path().join(version).join("bin");
            fs::create_dir_all(&programs).expect("made");
            fs::write(programs.join("postgres"), "").expect("written");
            if version != "17" {
                fs::write(programs.join("initdb"), "").expect("written");
            }
        }
        assert_eq!(newest(folder.path()), Some(folder.path().join("15/bin")));
    }

    #[test]
    fn its_processes_are_known_and_no_others() {
        let process = |words: &[&str]| Resident {
            id: 1,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
        };
        let database = Service::Postgres("/pg/bin".into());
        assert!(database.has(&process(&["/pg/bin/postgres", "-D", "/srv"])));
        assert!(database.has(&process(&["postgres: walwriter "])));
        assert!(!database.has(&process(&["sh", "/start"])));
        assert!(!database.has(&process(&[])));
        assert!(Service::Records.has(&process(&["kagami", "cluster", "demo-service"])));
        assert!(!Service::Records.has(&process(&["kagami", "failover"])));
    }
}
