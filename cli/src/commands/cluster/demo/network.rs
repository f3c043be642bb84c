//! Networks of the demonstration's own, in namespaces: nodes and a client at a switch, and a cable from node
//! to node that can be cut.
//!
//! Every namespace's name has this process's number in it. They are removed when [`Network`] is dropped,
//! with every process in them; [`sweep`] removes those of a demonstration that was killed. The machine's
//! own network is neither used nor changed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::commands::demo::fault::DemoError;

/// What all names begin with.
const TAG: &str = "kagami-demo-";
/// Where `ip` keeps named namespaces.
const NAMED: &str = "/run/netns";
/// The place that all cables lead to.
const SWITCH: &str = "switch";
/// Every place.
const PLACES: [&str; 5] = [SWITCH, "alpha", "beta", "witness", "client"];
/// Where clients and the witness are reached, and the cable between the nodes: a bridge each.
const NETS: [&str; 2] = ["lan", "cable"];
/// A killed process is gone within; one that waits for a device, when that is taken away.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// What all clients use.
pub const FLOATING: &str = "10.77.0.100";
/// The network of clients, nodes and witness.
pub const LAN: &str = "10.77.0.0/24";

/// The last number of a place's addresses.
fn host(place: &str) -> u8 {
    match place {
        "alpha" => 1,
        "beta" => 2,
        "witness" => 3,
        _ => 200,
    }
}

/// A place's address on the network of all.
pub fn lan(place: &str) -> String {
    format!("10.77.0.{}", host(place))
}

/// A node's address on the cable between the nodes.
pub fn cable(place: &str) -> String {
    format!("10.77.1.{}", host(place))
}

/// A namespace's name.
fn name(owner: u32, place: &str) -> String {
    format!("{TAG}{owner}-{place}")
}

/// The process whose namespace has this name; none: it is not a demonstration's.
fn owner(name: &str) -> Option<u32> {
    let (owner, place) = name.strip_prefix(TAG)?.split_once('-')?;
    let is_number = !owner.is_empty() && owner.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number || !PLACES.contains(&place) {
        return None;
    }
    owner.parse().ok()
}

/// Runs a program of the system that must succeed; its standard output.
///
/// # Errors
/// It is not there, or fails.
pub fn tool(program: &str, args: &[&str]) -> Result<String, DemoError> {
    let path = std::env::var("PATH").unwrap_or_default();
    let ended = Command::new(program)
        .args(args)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .output()
        .map_err(DemoError::system(format!("running `{program}`")))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    Err(DemoError::Tool {
        command: format!("{program} {}", args.join(" ")),
        end: ended.status.to_string(),
        words: String::from_utf8_lossy(&ended.stderr).trim_end().to_owned(),
    })
}

/// A process in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its number.
    pub id: i32,
    /// Its arguments, and its program as the first.
    pub words: Vec<String>,
}

/// Who is in a namespace of that name.
fn residents(name: &str) -> Vec<Resident> {
    let Ok(ours) = fs::metadata(Path::new(NAMED).join(name)) else {
        return Vec::new();
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = processes
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter_map(|id| {
            // One that has ended, and is only not waited for yet, has no namespaces.
            let theirs = fs::metadata(format!("/proc/{id}/ns/net")).ok()?;
            if (theirs.ino(), theirs.dev()) != (ours.ino(), ours.dev()) {
                return None;
            }
            let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let words = words
                .split(|byte| *byte == 0)
                .filter(|word| !word.is_empty());
            Some(Resident {
                id,
                words: words
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .collect(),
            })
        })
        .collect()
}

/// SIGKILL to all of them; one that is gone already does not matter.
pub fn kill(processes: &[Resident]) {
    for process in processes {
        if let Some(id) = Pid::from_raw(process.id) {
            let _ = kill_process(id, Signal::KILL);
        }
    }
}

/// Kills whoever is in a namespace, until nobody is. `between` is called after each round of signals: a
/// process that waits for a device dies when the device does.
fn empty(name: &str, mut between: impl FnMut()) -> Result<(), DemoError> {
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        let left = residents(name);
        if left.is_empty() {
            between();
            return Ok(());
        }
        kill(&left);
        between();
        if Instant::now() > deadline {
            return Err(DemoError::TooLong {
                who: name.to_owned(),
                what: "the end of its killed processes".to_owned(),
                after: KILL_PATIENCE,
                last: left
                    .iter()
                    .map(|one| format!("{} {}", one.id, one.words.join(" ")))
                    .collect::<Vec<_>>()
                    .join("\n"),
            });
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Names of namespaces of demonstrations whose process is gone.
fn left_behind(names: &[String], is_alive: impl Fn(u32) -> bool) -> Vec<String> {
    let gone = |name: &&String| owner(name).is_some_and(|owner| !is_alive(owner));
    names.iter().filter(gone).cloned().collect()
}

/// Names of all namespaces of this machine that have one.
fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NAMED) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.collect()
}

/// Removes what a demonstration that was killed left: its processes and namespaces.
///
/// # Errors
/// One of them can't be removed.
pub fn sweep() -> Result<(), DemoError> {
    let is_alive = |id: u32| Path::new("/proc").join(id.to_string()).exists();
    for name in left_behind(&names(), is_alive) {
        empty(&name, || {})?;
        tool("ip", &["netns", "delete", &name])?;
    }
    Ok(())
}

/// The namespaces of this process.
#[derive(Debug)]
pub struct Network {
    owner: u32,
}

impl Network {
    /// Makes the switch with both networks.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn new() -> Result<Self, DemoError> {
        let network = Self {
            owner: std::process::id(),
        };
        network.add(SWITCH)?;
        let switch = network.name(SWITCH);
        for net in NETS {
            tool("ip", &["-n", &switch, "link", "add", net, "type", "bridge"])?;
            tool("ip", &["-n", &switch, "link", "set", net, "up"])?;
        }
        Ok(network)
    }

    /// A place's name on this machine.
    pub fn name(&self, place: &str) -> String {
        name(self.owner, place)
    }

    /// The file that stands for a place's network.
    pub fn file(&self, place: &str) -> PathBuf {
        Path::new(NAMED).join(self.name(place))
    }

    fn add(&self, place: &str) -> Result<(), DemoError> {
        let name = self.name(place);
        tool("ip", &["netns", "add", &name])?;
        tool("ip", &["-n", &name, "link", "set", "lo", "up"]).map(drop)
    }

    /// Makes a place and plugs it in: at the network of all, and with `nodes` at the cable between them.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn plug(&self, place: &str, is_node: bool) -> Result<(), DemoError> {
        self.add(place)?;
        let (switch, name) = (self.name(SWITCH), self.name(place));
        for net in NETS {
            let address = match net {
                "lan" => lan(place),
                _ if is_node => cable(place),
                _ => continue,
            };
            let port = format!("{place}-{net}");
            let pair = ["type", "veth", "peer", "name", net, "netns", &name];
            tool(
                "ip",
                &[&["-n", &switch, "link", "add", &port][..], &pair].concat(),
            )?;
            let up = ["link", "set", &port, "master", net, "up"];
            tool("ip", &[&["-n", &switch][..], &up].concat())?;
            let address = format!("{address}/24");
            tool("ip", &["-n", &name, "address", "add", &address, "dev", net])?;
            tool("ip", &["-n", &name, "link", "set", net, "up"])?;
        }
        Ok(())
    }

    /// Cuts or mends the cable between the nodes, at this one's end.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn set_cable(&self, place: &str, whole: bool) -> Result<(), DemoError> {
        let (switch, port) = (self.name(SWITCH), format!("{place}-cable"));
        let state = if whole { "up" } else { "down" };
        tool("ip", &["-n", &switch, "link", "set", &port, state]).map(drop)
    }

    /// A machine dies: nothing that it sends arrives any more, and all its processes are killed. `between`:
    /// see [`empty`].
    ///
    /// # Errors
    /// `ip` fails, or a process does not die.
    pub fn kill(&self, place: &str, between: impl FnMut()) -> Result<(), DemoError> {
        let switch = self.name(SWITCH);
        for net in NETS {
            let port = format!("{place}-{net}");
            tool("ip", &["-n", &switch, "link", "set", &port, "down"])?;
        }
        empty(&self.name(place), between)
    }

    /// Takes a place away that nobody is in any more.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn unplug(&self, place: &str) -> Result<(), DemoError> {
        let switch = self.name(SWITCH);
        for net in NETS {
            let port = format!("{place}-{net}");
            // The other end, and its addresses, go with it.
            tool("ip", &["-n", &switch, "link", "delete", &port])?;
        }
        tool("ip", &["netns", "delete", &self.name(place)]).map(drop)
    }

    /// Who is in a place.
    pub fn residents(&self, place: &str) -> Vec<Resident> {
        residents(&self.name(place))
    }

    /// Removes every place of this process; the names of those that are left.
    pub fn remove(&self) -> Vec<String> {
        let ours = |name: &String| owner(name) == Some(self.owner);
        for name in names().into_iter().filter(ours) {
            // What can't be removed is told by the answer.
            let _ = empty(&name, || {});
            let _ = tool("ip", &["netns", "delete", &name]);
        }
        names().into_iter().filter(ours).collect()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_whose_it_is_and_no_other_name_is_ours() {
        for place in PLACES {
            assert_eq!(owner(&name(4711, place)), Some(4711));
        }
        for other in [
            "alpha",
            "kagami-demo-alpha",
            "kagami-demo--alpha",
            "kagami-demo-4711",
            "kagami-demo-4711-gamma",
            "kagami-demo-+47-alpha",
            "kagami-demo-99999999999-alpha",
            "my-kagami-demo-4711-alpha",
        ] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_killed_demonstration_left_is_swept_and_nothing_else() {
        let names = [
            name(10, "alpha"),
            name(10, "switch"),
            name(11, "alpha"),
            "blue".to_owned(),
        ];
        assert_eq!(left_behind(&names, |id| id == 11), names[..2]);
        assert!(left_behind(&names, |_| true).is_empty());
    }

    #[test]
    fn a_tool_that_fails_is_told_with_its_words() {
        let error = tool("sh", &["-c", "echo no >&2; exit 3"]).expect_err("status 3");
        let words = error.to_string();
        assert!(
            words.contains("exit status: 3") && words.ends_with("no"),
            "{words}"
        );
    }
}
