//! The [node] section of a configuration that has none yet, and how other machines reach this one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::stores::random_id;
use crate::args::NodeArgs;
use crate::config::Config;
use crate::config::edit::Editor;
use crate::config::keys::Section;
use crate::config::places::Places;
use crate::config::value::check_name;
use crate::exit::Failure;

/// Port of the link, where nothing else is configured.
pub const LINK_PORT: u16 = 7789;

/// Writes [node] where there is none, and gives the configuration as it then is (not saved yet).
///
/// # Errors
/// The file is wrong, or says something else than the arguments.
pub fn ensure(editor: &mut Editor, args: &NodeArgs, places: &Places) -> Result<Config, Failure> {
    if let Some(config) = editor.config(places)? {
        let other = args
            .node_name
            .as_ref()
            .is_some_and(|name| *name != config.node.name);
        if other || (!args.listen.is_empty() && args.listen != config.node.listen) {
            return Err(Failure::usage(format!(
                "{}: [node] is there already (name \"{}\"), and says something else than the command line\n  next: leave --node-name and --listen away, or change the file",
                editor.file().display(),
                config.node.name
            )));
        }
        return Ok(config);
    }
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    editor.set(Section::Node, "", "name", name);
    let id = i64::try_from(random_id()?).unwrap_or(i64::MAX);
    editor.set(Section::Node, "", "id", id);
    if !args.listen.is_empty() {
        let list: toml_edit::Array = args.listen.iter().map(ToString::to_string).collect();
        editor.set(Section::Node, "", "listen", list);
    }
    Ok(Config::parse(editor.file(), &editor.text(), places)?)
}

/// The machine's name, as a node's name.
fn host_name() -> Result<String, Failure> {
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    let name: String = host
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .collect();
    check_name(&name).map(|()| name).map_err(|_| {
        Failure::usage(format!(
            "the host name `{host}` can't be a node's name\n  next: add --node-name"
        ))
    })
}

/// Addresses under which others reach this machine: `given`, else those it listens on, else those
/// with which it reaches others.
pub fn reachable(listen: &[SocketAddr], given: &[IpAddr]) -> Vec<SocketAddr> {
    let port = listen.first().map_or(LINK_PORT, SocketAddr::port);
    if !given.is_empty() {
        return given.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    }
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in listen {
        if !address.ip().is_unspecified() {
            found.push(*address);
            continue;
        }
        // Documentation's addresses: nothing is sent, the kernel only chooses a way.
        let targets: &[(&str, &str)] = if address.is_ipv4() {
            &[("0.0.0.0:0", "192.0.2.1:9")]
        } else {
            &[("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")]
        };
        for (from, to) in targets {
            let local = UdpSocket::bind(from)
                .and_then(|socket| socket.connect(to).and_then(|()| socket.local_addr()));
            if let Ok(local) = local
                && !local.ip().is_unspecified()
                && !local.ip().is_loopback()
            {
                found.push(SocketAddr::new(local.ip(), address.port()));
            }
        }
    }
    found.dedup();
    found
}

/// Where one that this machine has just reached at one of `others` reaches it: where it listens on every
/// address, the near ends of the ways to `others` come first. A network of two machines has no default
/// way by which `reachable` would find anything; and where there is one, it may be the wrong network.
pub fn reachable_from(listen: &[SocketAddr], others: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in listen
        .iter()
        .filter(|address| address.ip().is_unspecified())
    {
        for other in others {
            let any: SocketAddr = match (address.is_ipv4(), other.is_ipv4()) {
                (_, true) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                (false, false) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                (true, false) => continue,
            };
            // Nothing is sent, the kernel only chooses a way.
            let near = UdpSocket::bind(any)
                .and_then(|socket| socket.connect(other).and_then(|()| socket.local_addr()));
            if let Ok(near) = near {
                found.push(SocketAddr::new(near.ip(), address.port()));
            }
        }
    }
    for address in reachable(listen, &[]) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_reached_where_it_reached_the_other() {
        let other: SocketAddr = "127.0.0.9:4444".parse().expect("address");
        let everywhere: SocketAddr = "0.0.0.0:7002".parse().expect("address");
        let found = reachable_from(&[everywhere], &[other]);
        // With its own port, before any address of another network.
        assert_eq!(found[0], "127.0.0.1:7002".parse().expect("address"));
        let one: SocketAddr = "10.0.0.1:7002".parse().expect("address");
        assert_eq!(
            reachable_from(&[one], &[other]),
            [one],
            "it listens nowhere else"
        );
    }
}
