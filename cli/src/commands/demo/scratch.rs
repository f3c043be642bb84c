//! A scratch pair: two nodes on loopback with files as disks, and a witness where one is wanted.
//!
//! It is made with the commands that a person would type, told through [`Scratch::on_command`]; it is
//! taken down, and its files are removed, when it is dropped.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use super::fault::DemoError;
use super::node::{Node, wait_until};
use crate::config::Config;
use crate::control::report::{Disk, MirrorReport, Replication};

/// The mirror's name.
pub const MIRROR: &str = "demo";
/// Whatever two daemons on one machine agree on, they have agreed on by then.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What pair is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its folder; made where it is not there.
    pub folder: PathBuf,
    /// As `--size` takes it.
    pub size: String,
    /// `A`, `B` or `C`.
    pub protocol: String,
    /// `never`, `arbiter` or `always`.
    pub solo: String,
}

/// The pair.
#[derive(Debug)]
pub struct Scratch {
    /// The node that begins as Primary.
    pub alpha: Node,
    /// The other.
    pub beta: Node,
    /// The arbiter.
    pub witness: Option<Node>,
    folder: PathBuf,
    made: bool,
}

/// Both copies are good, and every write goes to both.
pub fn in_sync(state: &MirrorReport) -> bool {
    state.disk == Disk::UpToDate
        && state
            .peer
            .as_ref()
            .is_some_and(|peer| peer.disk == Disk::UpToDate)
        && state.replication == Replication::Established
}

/// A port of 127.0.0.1 that nobody has now, for UDP and TCP, that this process has not given out before, and that no
/// socket without a port of its own gets: what ends and begins again there finds it free.
///
/// # Errors
/// All are taken.
pub fn free_port() -> Result<u16, DemoError> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Below `net.ipv4.ip_local_port_range`.
    const PORTS: std::ops::Range<u16> = 10_000..30_000;
    let own = std::process::id().wrapping_mul(64) as u16;
    let free = PORTS.map(|_| {
        let nth = own.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        SocketAddr::from((
            Ipv4Addr::LOCALHOST,
            PORTS.start + nth % (PORTS.end - PORTS.start),
        ))
    });
    let mut last = Ok(0);
    for address in free {
        match UdpSocket::bind(address).and_then(|_| TcpListener::bind(address)) {
            Ok(_) => return Ok(address.port()),
            Err(error) => last = Err(error),
        }
    }
    last.map_err(DemoError::system("looking for a free port on 127.0.0.1"))
}

impl Scratch {
    /// Makes the pair and starts both daemons. `tell` hears each command before it is run: where, and what.
    ///
    /// # Errors
    /// A command fails, or an agreement does not come.
    pub fn make(wanted: &Wanted, tell: &mut dyn FnMut(&str, &str)) -> Result<Self, DemoError> {
        let program = std::env::current_exe()
            .map_err(DemoError::system("finding this program's own file"))?;
        let mut pair = Self::lay_out(&program, wanted, tell)?;
        for node in [&mut pair.alpha, &mut pair.beta] {
            tell(node.name(), "kagami up");
            node.start(&["up"])?;
        }
        Ok(pair)
    }

    /// The same with any `program`, and with no daemon started yet but the witness.
    ///
    /// # Errors
    /// As [`Scratch::make`].
    pub fn lay_out(
        program: &Path,
        wanted: &Wanted,
        tell: &mut dyn FnMut(&str, &str),
    ) -> Result<Self, DemoError> {
        let folder = &wanted.folder;
        let made = !folder.exists();
        for name in ["alpha", "beta", "witness"] {
            let path = folder.join(name);
            if path.exists() {
                return Err(DemoError::Store {
                    path,
                    what: "is there already; name another --dir, or remove it".to_owned(),
                });
            }
        }
        let node = |name: &str, more: &str| -> Result<Node, DemoError> {
            let listen = format!("127.0.0.1:{}", free_port()?);
            Node::new(program, folder.join(name), name, &listen, more)
        };
        let mut pair = Self {
            alpha: node("alpha", "")?,
            beta: node("beta", "")?,
            witness: None,
            folder: folder.clone(),
            made,
        };
        pair.set_up(program, wanted, tell)?;
        Ok(pair)
    }

    fn set_up(
        &mut self,
        program: &Path,
        wanted: &Wanted,
        tell: &mut dyn FnMut(&str, &str),
    ) -> Result<(), DemoError> {
        self.add_mirror(MIRROR, &wanted.size, tell)?;
        if wanted.solo == "arbiter" {
            self.add_witness(program, tell)?;
        } else if wanted.solo != "never" {
            self.set("solo", &wanted.solo, tell)?;
        }
        if wanted.protocol != "C" {
            self.set("protocol", &wanted.protocol, tell)?;
        }
        Ok(())
    }

    /// Makes one more mirror of the pair; its daemons must not run.
    ///
    /// # Errors
    /// A command fails.
    pub fn add_mirror(
        &mut self,
        name: &str,
        size: &str,
        tell: &mut dyn FnMut(&str, &str),
    ) -> Result<(), DemoError> {
        run(&self.alpha, &["init", name, "--size", size], tell)?;
        let offer = ["pair", name, "--address", "127.0.0.1"];
        join(
            &mut self.alpha,
            &offer,
            "kgm1-",
            &self.beta,
            &["pair", "--join"],
            &[],
            tell,
        )
    }

    fn add_witness(
        &mut self,
        program: &Path,
        tell: &mut dyn FnMut(&str, &str),
    ) -> Result<(), DemoError> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let more = format!("[witness]\nlisten = [\"{listen}\"]\n");
        let folder = self.folder.join("witness");
        let mut witness = Node::new(program, folder, "witness", "127.0.0.1:0", &more)?;
        for node in [&self.alpha, &self.beta] {
            let offer = ["witness", "enrol", "--address", "127.0.0.1"];
            let (join_args, mirror) = (["arbiter", "join"], ["--mirror", MIRROR]);
            join(
                &mut witness,
                &offer,
                "kgw1-",
                node,
                &join_args,
                &mirror,
                tell,
            )?;
        }
        tell("witness", "kagami witness");
        witness.start(&["witness"])?;
        self.witness = Some(witness);
        Ok(())
    }

    /// Writes a key of the mirror into both nodes' files, as a person with an editor would.
    ///
    /// # Errors
    /// A file can't be read or written.
    pub fn set(
        &self,
        key: &str,
        value: &str,
        tell: &mut dyn FnMut(&str, &str),
    ) -> Result<(), DemoError> {
        for node in [&self.alpha, &self.beta] {
            tell(
                node.name(),
                &format!("editor {}   # {key} = \"{value}\"", node.config().display()),
            );
            edit(node, key, value)?;
        }
        Ok(())
    }

    /// The socket on which a node serves the mirror.
    ///
    /// # Errors
    /// The node's configuration is wrong.
    pub fn socket(node: &Node) -> Result<PathBuf, DemoError> {
        Self::mirror_config(node).map(|mirror| mirror.nbd_socket)
    }

    /// The file that holds a node's copy of the data.
    ///
    /// # Errors
    /// The node's configuration is wrong.
    pub fn backing(node: &Node) -> Result<PathBuf, DemoError> {
        Self::mirror_config(node).map(|mirror| mirror.backing)
    }

    /// Where both nodes' copies differ first, compared byte for byte; their daemons must not run.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn first_difference(&self) -> Result<Option<u64>, DemoError> {
        let (one, other) = (Self::backing(&self.alpha)?, Self::backing(&self.beta)?);
        compare(&one, &other).map_err(DemoError::system("comparing the backing files"))
    }

    /// Both nodes, until they are in sync.
    ///
    /// # Errors
    /// They don't get there.
    pub fn wait_in_sync(&mut self, patience: Duration) -> Result<(), DemoError> {
        for node in [&mut self.alpha, &mut self.beta] {
            node.wait(MIRROR, "both copies to be in sync", patience, in_sync)?;
        }
        Ok(())
    }

    fn mirror_config(node: &Node) -> Result<crate::config::Mirror, DemoError> {
        let file = node.config();
        let store = |what: String| DemoError::Store {
            path: file.clone(),
            what,
        };
        let config = Config::load(&file).map_err(|error| store(error.to_string()))?;
        config
            .mirror(MIRROR)
            .cloned()
            .ok_or_else(|| store(format!("has no [mirror.{MIRROR}]")))
    }
}

/// Where two files differ first; of different lengths, at the end of the shorter.
///
/// # Errors
/// One can't be read.
pub fn compare(one: &Path, other: &Path) -> io::Result<Option<u64>> {
    const STEP: u64 = 1 << 20;
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (ours, theirs) = (one.metadata()?.len(), other.metadata()?.len());
    let (mut left, mut right) = (vec![0; STEP as usize], vec![0; STEP as usize]);
    let mut at = 0;
    while at < ours.min(theirs) {
        let len = (ours.min(theirs) - at).min(STEP) as usize;
        one.read_exact(&mut left[..len])?;
        other.read_exact(&mut right[..len])?;
        if left[..len] != right[..len] {
            let place = left.iter().zip(&right).position(|(l, r)| l != r);
            return Ok(Some(at + place.unwrap_or(0) as u64));
        }
        at += len as u64;
    }
    Ok((ours != theirs).then_some(at))
}

/// Runs a command that must succeed, told first.
fn run(node: &Node, args: &[&str], tell: &mut dyn FnMut(&str, &str)) -> Result<String, DemoError> {
    tell(node.name(), &format!("kagami {}", args.join(" ")));
    node.run(args)
}

/// Sets a key of the mirror in one node's file.
fn edit(node: &Node, key: &str, value: &str) -> Result<(), DemoError> {
    let file = node.config();
    let system = || DemoError::system(format!("editing {}", file.display()));
    let text = fs::read_to_string(&file).map_err(system())?;
    let mut document: toml_edit::DocumentMut = text.parse().map_err(|error| DemoError::Store {
        path: file.clone(),
        what: format!("{error}"),
    })?;
    document["mirror"][MIRROR][key] = toml_edit::value(value);
    fs::write(&file, document.to_string()).map_err(system())
}

/// Runs a command that prints a line to paste and waits, and pastes the line at the other node.
///
/// # Errors
/// One of both fails.
pub fn join(
    offer: &mut Node,
    offer_args: &[&str],
    prefix: &str,
    joiner: &Node,
    joiner_args: &[&str],
    after: &[&str],
    tell: &mut dyn FnMut(&str, &str),
) -> Result<(), DemoError> {
    tell(
        offer.name(),
        &format!("kagami {}", offer_args[..2].join(" ")),
    );
    let (mut waiting, printed) = offer.begin(offer_args)?;
    let text = || fs::read_to_string(&printed).unwrap_or_default();
    let token = wait_until(offer.name(), "the line to paste", PATIENCE, || {
        let text = text();
        let ended = waiting.ended();
        let token = text
            .split(|c: char| c.is_whitespace() || matches!(c, '`' | '\'' | '"'))
            .find(|word| word.starts_with(prefix));
        match (token, ended) {
            (Some(token), _) if text.ends_with('\n') => Some(Ok(token.to_owned())),
            (_, Some(end)) => Some(Err(DemoError::Command {
                who: offer.name().to_owned(),
                command: offer_args.join(" "),
                end: end.to_string(),
                words: text.clone(),
            })),
            _ => None,
        }
    })??;
    let mut args = joiner_args.to_vec();
    args.push(&token);
    args.extend(after);
    let short: String = token.chars().take(16).collect();
    let told = format!(
        "kagami {} {short}… {}",
        joiner_args.join(" "),
        after.join(" ")
    );
    tell(joiner.name(), told.trim_end());
    joiner.run(&args)?;
    let end = wait_until(offer.name(), "the end of the pairing", PATIENCE, || {
        waiting.ended()
    })?;
    if end.success() {
        return Ok(());
    }
    Err(DemoError::Command {
        who: offer.name().to_owned(),
        command: offer_args.join(" "),
        end: end.to_string(),
        words: text(),
    })
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The processes end with their nodes; a clean end leaves nothing that the kernel still writes.
        let patience = Duration::from_secs(5);
        let _ = self.alpha.stop(patience);
        let _ = self.beta.stop(patience);
        if let Some(witness) = &mut self.witness {
            let _ = witness.stop(patience);
        }
        for name in ["alpha", "beta", "witness"] {
            let _ = fs::remove_dir_all(self.folder.join(name));
        }
        if self.made {
            let _ = fs::remove_dir(&self.folder);
        }
    }
}
