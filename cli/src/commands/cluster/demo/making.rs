//! The cluster of the demonstration: two machines, a witness, a client's place; made with the commands that
//! a person would type, and taken down, whatever happened, when it is dropped.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kagami_failover::control::ClusterReport;
use kagami_failover::control::status::{GroupReport, RunState};
use tokio::runtime::Runtime;

use super::machine::{LINKS, Machine, inside};
use super::network::{self, Network};
use super::service::{self, Service};
use crate::commands::demo::fault::DemoError;
use crate::commands::demo::node::{Node, wait_until};
use crate::commands::demo::process::Inside;
use crate::commands::demo::scratch::{MIRROR, join};

/// The group's name in the configuration.
pub const GROUP: &str = "shop";
/// Whatever the cluster does, it has done by then.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The mirror's size: a database of a few megabytes, and its log.
const SIZE: &str = "192M";
/// A node's own part of its configuration: little memory is needed.
const NODE: &str = "buffers = \"32MiB\"\n";
/// The daemons' port: each has a network of its own.
const PORT: u16 = 7001;

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Both machines: alpha, the group's home, and beta.
    pub machines: [Machine; 2],
    /// What is kept up.
    pub service: Service,
    /// All networks.
    pub network: Network,
    witness: Option<Node>,
    runtime: Runtime,
    folder: Folder,
}

/// The demonstration's files, and a folder for links that was not there.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    made: bool,
    made_links: bool,
}

impl Folder {
    fn new(path: &Path) -> Result<Self, DemoError> {
        let system = |path: &Path| DemoError::system(format!("making {}", path.display()));
        let made = !path.exists();
        if !made && path.read_dir().map_err(system(path))?.next().is_some() {
            return Err(DemoError::Store {
                path: path.to_owned(),
                what: "is not empty; name another --dir".to_owned(),
            });
        }
        let mount = service::mount(path);
        fs::create_dir_all(&mount).map_err(system(&mount))?;
        // The service's own user reaches what is mounted there.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(path, open).map_err(system(path))?;
        let made_links = match fs::create_dir(LINKS) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(system(Path::new(LINKS))(error)),
        };
        Ok(Self {
            path: path.to_owned(),
            made,
            made_links,
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let entries = fs::read_dir(&self.path).into_iter().flatten();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
        if self.made_links {
            let _ = fs::remove_dir(LINKS);
        }
    }
}

impl Cluster {
    /// Makes it, and starts nothing yet but the witness. `tell` hears each command before it is run.
    ///
    /// # Errors
    /// A command fails, or the system does not let this process.
    pub fn make(
        folder: &Path,
        service: Service,
        tell: &mut dyn FnMut(&str, &str),
    ) -> Result<Self, DemoError> {
        network::sweep()?;
        let program = std::env::current_exe()
            .map_err(DemoError::system("finding this program's own file"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DemoError::system("starting a runtime"))?;
        let folder = Folder::new(folder)?;
        service.write_scripts(&program, &folder.path)?;
        let network = Network::new()?;
        let machine = |name: &str| -> Result<Machine, DemoError> {
            let listen = format!("0.0.0.0:{PORT}");
            let node = Node::new(&program, folder.path.join(name), name, &listen, NODE)?;
            Machine::new(node, &network)
        };
        let machines = [machine("alpha")?, machine("beta")?];
        let mut cluster = Self {
            machines,
            service,
            network,
            witness: None,
            runtime,
            folder,
        };
        cluster.pair(tell)?;
        cluster.add_witness(&program, tell)?;
        cluster.configure(tell)?;
        cluster.network.plug("client", false)?;
        Ok(cluster)
    }

    fn pair(&mut self, tell: &mut dyn FnMut(&str, &str)) -> Result<(), DemoError> {
        let [alpha, beta] = &mut self.machines;
        tell("alpha", &format!("kagami init {MIRROR} --size {SIZE}"));
        alpha
            .node
            .run(&["init", MIRROR, "--size", SIZE, "--max-size", SIZE])?;
        let address = network::cable("alpha");
        let offer = ["pair", MIRROR, "--address", &address];
        let joining = ["pair", "--join"];
        let more = ["--max-size", SIZE];
        join(
            &mut alpha.node,
            &offer,
            "kgm1-",
            &beta.node,
            &joining,
            &more,
            tell,
        )
    }

    fn add_witness(
        &mut self,
        program: &Path,
        tell: &mut dyn FnMut(&str, &str),
    ) -> Result<(), DemoError> {
        self.network.plug("witness", false)?;
        let more = format!("[witness]\nlisten = [\"0.0.0.0:{}\"]\n", PORT + 1);
        let folder = self.folder.path.join("witness");
        let listen = format!("0.0.0.0:{PORT}");
        let mut witness = Node::new(program, folder, "witness", &listen, &more)?;
        witness.live_in(Some(inside(&self.network, "witness", None)?));
        let address = network::lan("witness");
        for machine in &self.machines {
            let offer = ["witness", "enrol", "--address", &address];
            let (joining, mirror) = (["arbiter", "join"], ["--mirror", MIRROR]);
            join(
                &mut witness,
                &offer,
                "kgw1-",
                &machine.node,
                &joining,
                &mirror,
                tell,
            )?;
        }
        tell("witness", "kagami witness");
        witness.start(&["witness"])?;
        self.witness = Some(witness);
        Ok(())
    }

    fn configure(&mut self, tell: &mut dyn FnMut(&str, &str)) -> Result<(), DemoError> {
        let text = service::configuration(MIRROR, &self.folder.path);
        for machine in &self.machines {
            let file = machine.folder().join("cluster.toml");
            tell(machine.name(), &format!("editor {}", file.display()));
            fs::write(&file, &text)
                .map_err(DemoError::system(format!("writing {}", file.display())))?;
        }
        let [alpha, beta] = &self.machines;
        tell("alpha", "kagami failover init-key");
        alpha.node.run(&["failover", "init-key"])?;
        let key = Path::new("failover").join("cluster.key");
        tell("alpha", &format!("scp {} beta:", key.display()));
        let copy = || -> io::Result<()> {
            fs::create_dir_all(beta.folder().join("failover"))?;
            // With its permissions.
            fs::copy(alpha.folder().join(&key), beta.folder().join(&key)).map(drop)
        };
        copy().map_err(DemoError::system("copying the cluster's key"))
    }

    /// The place that clients live in.
    ///
    /// # Errors
    /// It is gone.
    pub fn client_place(&self) -> Result<Inside, DemoError> {
        inside(&self.network, "client", None)
    }

    /// What the manager of a machine says.
    pub fn report(&self, machine: usize) -> Option<ClusterReport> {
        self.machines[machine].cluster(&self.runtime)
    }

    /// Waits until the group is online, and the manager there says so.
    ///
    /// # Errors
    /// It does not get there.
    pub fn wait_online(&self, machine: usize) -> Result<GroupReport, DemoError> {
        let name = self.machines[machine].name();
        let mut last = None;
        let found = wait_until(name, "the group to be online here", PATIENCE, || {
            last = self.report(machine)?.groups.into_iter().next();
            let is_here = |group: &&GroupReport| {
                group.state == RunState::Online && group.current.as_deref() == Some(name)
            };
            last.as_ref().filter(is_here).cloned()
        });
        found.map_err(|error| match error {
            DemoError::TooLong {
                who, what, after, ..
            } => DemoError::TooLong {
                who,
                what,
                after,
                last: format!("{last:?}\n{}", self.machines[machine].last_words(GROUP)),
            },
            other => other,
        })
    }

    /// How many processes of the service a machine has.
    pub fn service_processes(&self, machine: usize) -> Vec<network::Resident> {
        let mut all = self.network.residents(self.machines[machine].name());
        all.retain(|process| self.service.has(process));
        all
    }

    /// Kills a whole machine; when that began.
    ///
    /// # Errors
    /// It does not die.
    pub fn kill(&mut self, machine: usize) -> Result<Instant, DemoError> {
        let began = Instant::now();
        self.machines[machine].kill(&self.network)?;
        Ok(began)
    }

    /// Switches a machine on that was killed.
    ///
    /// # Errors
    /// The system does not let this process.
    pub fn boot(&mut self, machine: usize) -> Result<(), DemoError> {
        self.machines[machine].boot(&self.network)?;
        self.machines[machine].start()
    }

    /// Ends everything, files excepted; the names of networks that could not be removed.
    pub fn end(&mut self) -> Vec<String> {
        for machine in &mut self.machines {
            // What can't be killed is in a network that stays, and is told.
            let _ = machine.kill(&self.network);
        }
        if let Some(mut witness) = self.witness.take() {
            let _ = witness.stop(Duration::from_secs(5));
        }
        self.network.remove()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_files_is_refused_and_stays_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("mine"), "x").expect("written");
        let error = Folder::new(folder.path()).expect_err("not empty");
        assert!(error.to_string().contains("is not empty"), "{error}");
        assert!(folder.path().join("mine").exists());
        assert!(!folder.path().join("srv").exists());
    }
}
