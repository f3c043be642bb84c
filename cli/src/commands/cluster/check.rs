//! `kagami cluster check`: cluster.toml as the failover manager would read it, against what this node
//! has. It needs no manager.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use kagami_failover::config::{
    ArbiterFacts, Cluster, ConfigError, Facts, Fault, MirrorFacts, Network, NodeFacts, Program,
};
use serde::Deserialize;
use serde_json::json;

use super::{Context, file, print_json, print_out};
use crate::config::{Arbiter, Config, Mirror, Solo};
use crate::exit::{DONE, Failure, Outcome, Status};

/// Checks the file.
///
/// # Errors
/// It is wrong, or can't be read.
pub fn run(context: &Context, named: Option<&Path>, file_only: bool, json: bool) -> Outcome {
    let path = named.map_or_else(|| file(&context.file), Path::to_owned);
    let text = read(&path)?;
    match faults((!file_only).then_some(context), &path, &text)? {
        Ok(cluster) => {
            let against = if file_only {
                "the file alone".to_owned()
            } else {
                format!(
                    "node {}; check it on the other node as well",
                    context.config()?.node.name
                )
            };
            let words = format!(
                "{}: cluster {}, revision {}: {}, {}, {}; no fault (checked against {against})",
                path.display(),
                cluster.name,
                cluster.revision,
                plural(cluster.groups.len(), "group"),
                plural(cluster.monitors.len(), "monitor"),
                plural(cluster.heartbeats.len(), "heartbeat"),
            );
            let warnings = if file_only {
                Vec::new()
            } else {
                cluster.warnings(&of_this_node(&context.config()?))
            };
            if json {
                print_json(
                    &json!({"file": path, "revision": cluster.revision, "faults": [], "warnings": told(&warnings)}),
                )?;
            } else {
                print_out(&format!("{words}\n"))?;
                for warning in warnings {
                    print_out(&format!(
                        "warning: [{}] {}\n  next: {}\n",
                        warning.table, warning.what, warning.next
                    ))?;
                }
            }
            DONE
        }
        Err(error) => {
            if json {
                print_json(&json!({"file": path, "faults": told(&error.faults)}))?;
                return Ok(Status::Usage as u8);
            }
            Err(Failure::usage(error.to_string()))
        }
    }
}

fn told(faults: &[Fault]) -> Vec<serde_json::Value> {
    let of = |fault: &Fault| json!({"line": fault.line, "table": fault.table, "what": fault.what, "next": fault.next});
    faults.iter().map(of).collect()
}

fn plural(number: usize, what: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {what}{ending}")
}

/// The file's text.
///
/// # Errors
/// It can't be read.
pub fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        let status = match error.kind() {
            std::io::ErrorKind::NotFound => Status::Usage,
            _ => Status::System,
        };
        Failure::new(
            status,
            format!(
                "{}: {error}\n  next: name the file, or write one (docs/cluster-configuration.md has an example)",
                path.display()
            ),
        )
    })
}

/// Reads a text, and checks it against this node where there is one.
///
/// # Errors
/// What this node has can't be found out; the inner error is the file's.
pub fn faults(
    context: Option<&Context>,
    path: &Path,
    text: &str,
) -> Result<Result<Cluster, ConfigError>, Failure> {
    // What must be looked at follows from the file: so it must be right in itself.
    let cluster = match Cluster::parse(path, text) {
        Ok(cluster) => cluster,
        Err(error) => return Ok(Err(error)),
    };
    let Some(context) = context else {
        return Ok(Ok(cluster));
    };
    let config = context.config()?;
    if !cluster.nodes.contains(&config.node.name) {
        return Err(Failure::usage(format!(
            "{}: this node is \"{}\" ([node] name in {}), and the cluster's nodes are \"{}\"\n  next: run it on one of them, give this node its name, or add --file-only",
            path.display(),
            config.node.name,
            context.file.display(),
            cluster.nodes.join("\" and \"")
        )));
    }
    Ok(Cluster::parse_with(path, text, &facts(&config, &cluster)?))
}

/// What this node's own configuration says, for [`Cluster::warnings`].
pub fn of_this_node(config: &Config) -> Facts {
    let here = NodeFacts {
        mirrors: Some(mirrors(config)),
        ..NodeFacts::default()
    };
    Facts {
        nodes: BTreeMap::from([(config.node.name.clone(), here)]),
    }
}

/// What this node has of all that the file names.
///
/// # Errors
/// The system does not tell its addresses.
pub fn facts(config: &Config, cluster: &Cluster) -> Result<Facts, Failure> {
    let here = NodeFacts {
        networks: networks()?,
        programs: (cluster.programs().into_iter())
            .map(|(_, _, path)| (path.clone(), program(path)))
            .collect(),
        mirrors: Some(mirrors(config)),
        arbiters: Some(
            (config.arbiters.iter())
                .map(|one| (one.name.clone(), arbiter(one)))
                .collect(),
        ),
    };
    Ok(Facts {
        nodes: BTreeMap::from([(config.node.name.clone(), here)]),
    })
}

/// How this node's mirrors decide whether their copies go on alone.
fn mirrors(config: &Config) -> BTreeMap<String, MirrorFacts> {
    let of = |mirror: &Mirror| MirrorFacts {
        arbiter: (mirror.arbiter.clone()).filter(|_| mirror.solo == Solo::Arbiter),
        follows: mirror.follows.clone(),
    };
    let all = config.mirrors.iter();
    all.map(|mirror| (mirror.name.clone(), of(mirror)))
        .collect()
}

fn arbiter(arbiter: &Arbiter) -> ArbiterFacts {
    ArbiterFacts {
        places: arbiter.places().to_vec(),
        prefix: arbiter.etcd.as_ref().map(|etcd| etcd.prefix.clone()),
    }
}

fn program(path: &Path) -> Program {
    match fs::metadata(path) {
        Err(_) => Program::Missing,
        Ok(meta) if !meta.is_file() => Program::NotAFile,
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            Program::NotExecutable(meta.permissions().mode() & 0o7777)
        }
        Ok(_) => Program::Executable,
    }
}

/// An interface, as `ip -json address` tells.
#[derive(Debug, Deserialize)]
struct Interface {
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    local: Option<std::net::IpAddr>,
    prefixlen: Option<u8>,
}

/// This node's addresses, from iproute2, which the floating addresses need as well.
fn networks() -> Result<Vec<(String, Network)>, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::system(format!(
            "this node's addresses are not known: `ip -json address` {why}\n  next: install iproute2, or look at the file alone (--file-only)"
        ))
    };
    // A service's PATH may lack the folders of administrators.
    let places = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"];
    let found = places.into_iter().find(|path| Path::new(path).exists());
    let output = Command::new(found.unwrap_or("ip"))
        .args(["-json", "address", "show"])
        .output()
        .map_err(|error| failed(&format!("can't be run: {error}")))?;
    if !output.status.success() {
        return Err(failed(&format!("ended with {}", output.status)));
    }
    parse_interfaces(&output.stdout)
        .map_err(|error| failed(&format!("says what is no list of interfaces: {error}")))
}

fn parse_interfaces(json: &[u8]) -> Result<Vec<(String, Network)>, serde_json::Error> {
    let interfaces: Vec<Interface> = serde_json::from_slice(json)?;
    let of = |interface: Interface| {
        let name = interface.ifname;
        interface.addr_info.into_iter().filter_map(move |one| {
            let network = Network {
                address: one.local?,
                prefix: one.prefixlen?,
            };
            Some((name.clone(), network))
        })
    };
    Ok(interfaces.into_iter().flat_map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_ip_says() {
        let json = br#"[{"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},
            {"ifname":"eth0","mtu":1500,"addr_info":[{"local":"10.0.0.1","prefixlen":24},{"local":"fd00::1","prefixlen":64}]},
            {"ifname":"tap0"},{},{"ifname":"x","addr_info":[{}]}]"#;
        let said = parse_interfaces(json);
        assert!(said.is_err(), "an interface without a name is not believed");
        let json = String::from_utf8_lossy(json).replace(",{},", ",");
        let said = parse_interfaces(json.as_bytes()).unwrap();
        let said: Vec<String> = said.iter().map(|(name, n)| format!("{name} {n}")).collect();
        assert_eq!(
            said,
            ["lo 127.0.0.1/8", "eth0 10.0.0.1/24", "eth0 fd00::1/64"]
        );
    }

    #[test]
    fn programs_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("start");
        assert_eq!(program(&script), Program::Missing);
        fs::write(&script, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(program(&script), Program::NotExecutable(0o640));
        fs::set_permissions(&script, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(program(&script), Program::Executable);
        assert_eq!(program(folder.path()), Program::NotAFile);
    }
}
