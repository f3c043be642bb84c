//! An address that moves with its group: nobody may answer for it, then it is added and announced;
//! in the end it is removed. Whoever takes it meanwhile is found when it is looked at.

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::Subject;
use super::neighbour::{self, Interface, Mac, Wire};
use crate::config::Network;
use crate::config::resource::FloatingIp;
use crate::place::Place;
use crate::process::{Deadline, Failure, Step, tool};

/// Between two announcements; the first goes out at once.
const AGAIN: Duration = Duration::from_millis(200);

/// An interface, as `ip -j address` tells of it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Link {
    ifindex: i32,
    pub(crate) ifname: String,
    #[serde(default)]
    pub(crate) flags: Vec<String>,
    #[serde(default)]
    pub(crate) operstate: String,
    #[serde(default)]
    link_type: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    addr_info: Vec<Has>,
}

#[derive(Clone, Debug, Deserialize)]
struct Has {
    local: Option<IpAddr>,
    #[serde(default)]
    prefixlen: u8,
    #[serde(default)]
    dadfailed: bool,
}

/// All interfaces of this node.
pub(crate) async fn links(place: &Place, deadline: Deadline) -> Step<Vec<Link>> {
    let said = tool::run(place, "ip", &["-j", "address", "show"], deadline).await?;
    let mut links: Vec<serde_json::Value> =
        serde_json::from_str(&said).map_err(|error| format!("ip -j address: {error}"))?;
    // Some versions of `ip` leave empty objects for what they filter out.
    links.retain(|link| link.as_object().is_some_and(|link| !link.is_empty()));
    let links = links.into_iter().map(serde_json::from_value).collect();
    Ok(Result::map_err(links, |error| {
        format!("ip -j address: {error}")
    })?)
}

impl Link {
    fn has(&self, address: IpAddr) -> Option<&Has> {
        self.addr_info.iter().find(|has| has.local == Some(address))
    }

    fn flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    /// What is needed to ask its neighbours; `None`: it has none.
    fn with_neighbours(&self) -> Option<Interface> {
        if self.link_type != "ether" || self.flag("NOARP") || self.flag("LOOPBACK") {
            return None;
        }
        Some(Interface {
            name: self.ifname.clone(),
            index: self.ifindex,
            mac: neighbour::mac(&self.address)?,
        })
    }
}

/// The interface that is named, or the one in whose network the address is.
fn choose<'l>(links: &'l [Link], own: &FloatingIp) -> Result<&'l Link, String> {
    let address = own.address.address;
    if let Some(name) = &own.interface {
        let named = links.iter().find(|link| link.ifname == *name);
        return named.ok_or_else(|| {
            let names: Vec<&str> = links.iter().map(|link| link.ifname.as_str()).collect();
            format!(
                "there is no interface {name} here, but {}",
                names.join(", ")
            )
        });
    }
    let within = |has: &Has| {
        has.local.is_some_and(|local| {
            let network = Network {
                address: local,
                prefix: has.prefixlen,
            };
            // An address alone is no network.
            let whole = if local.is_ipv4() { 32 } else { 128 };
            has.prefixlen < whole && network.contains(address)
        })
    };
    let found = links.iter().find(|link| link.addr_info.iter().any(within));
    found.ok_or_else(|| {
        format!("{address} is in no network of this node\n  next: name the `interface`, or see `ip address`")
    })
}

pub(super) async fn start(subject: Subject<'_>, own: &FloatingIp, deadline: Deadline) -> Step {
    let address = own.address.address;
    let links = links(subject.place, deadline).await?;
    let link = choose(&links, own)?;
    if let Some(there) = links.iter().find(|l| l.has(address).is_some()) {
        if there.ifname != link.ifname {
            return Err(Failure::Failed(format!(
                "{address} is on {} of this node already, and belongs on {}\n  next: `ip address del {} dev {}`",
                there.ifname, link.ifname, own.address, there.ifname
            )));
        }
        announce(subject, own, link.with_neighbours());
        return Ok(());
    }
    if !link.flag("UP") {
        return Err(Failure::Failed(format!(
            "interface {} is down\n  next: `ip link set {} up`",
            link.ifname, link.ifname
        )));
    }
    let interface = link.with_neighbours();
    if let Some(interface) = &interface {
        ask(interface, own, deadline).await?;
    }
    let network = own.address.to_string();
    let mut words = vec!["address", "add", &network, "dev", &link.ifname];
    if address.is_ipv6() {
        // It was asked for above, and the kernel would hold it back for a second.
        words.push("nodad");
    }
    let added = tool::run(subject.place, "ip", &words, deadline).await;
    if let Err(failure) = added {
        // Given up half way it may be there.
        drop(remove(subject.place, own, Deadline::after(own.timeout)).await);
        return Err(failure);
    }
    announce(subject, own, interface);
    Ok(())
}

/// Nobody else answers for it.
async fn ask(interface: &Interface, own: &FloatingIp, deadline: Deadline) -> Step {
    let address = own.address.address;
    let time = Duration::from_millis(own.probe_time.0);
    if time.is_zero() {
        return Ok(());
    }
    let on = &interface.name;
    let wire = Wire::open(interface.clone(), address)
        .map_err(|error| format!("{address} can't be asked for on {on}: {error}"))?;
    let answer = deadline
        .wait(wire.ask(address, time, |frame| {
            neighbour::claimant(frame, interface.mac, address)
        }))
        .await?
        .map_err(|error| format!("{address} can't be asked for on {on}: {error}"))?;
    match answer {
        None => Ok(()),
        Some(mac) => Err(Failure::Failed(format!(
            "{address} is in use on {on} by {}: it is not added\n  next: find that machine and take the address from it",
            neighbour::shown(mac)
        ))),
    }
}

/// Announces it now and, beside what follows, some times more.
fn announce(subject: Subject<'_>, own: &FloatingIp, interface: Option<Interface>) {
    let (address, times) = (own.address.address, own.announcements);
    let Some(interface) = interface.filter(|_| times > 0) else {
        return;
    };
    subject.place.tasks.begin(subject.key(), async move {
        let on = interface.name.clone();
        let wire = match Wire::open(interface, address) {
            Ok(wire) => wire,
            Err(error) => {
                tracing::warn!(%address, on, %error, "it is not announced");
                return;
            }
        };
        for time in 0..times {
            if time > 0 {
                sleep(AGAIN).await;
            }
            if let Err(error) = wire.announce(address).await {
                tracing::warn!(%address, on, %error, "it is not announced");
                return;
            }
        }
    });
}

pub(super) async fn stop(subject: Subject<'_>, own: &FloatingIp, deadline: Deadline) -> Step {
    // An announcement after its end would draw the neighbours back here.
    subject.place.tasks.end(&subject.key()).await;
    remove(subject.place, own, deadline).await
}

/// Removes the address from wherever it is.
async fn remove(place: &Place, own: &FloatingIp, deadline: Deadline) -> Step {
    let address = own.address.address;
    for link in links(place, deadline).await? {
        let Some(has) = link.has(address) else {
            continue;
        };
        let network = Network {
            address,
            prefix: has.prefixlen,
        };
        let words = ["address", "del", &network.to_string(), "dev", &link.ifname];
        tool::run(place, "ip", &words, deadline).await?;
    }
    Ok(())
}

/// It is there, on an interface that is up, and nobody else has it, too.
pub(super) async fn probe(subject: Subject<'_>, own: &FloatingIp, deadline: Deadline) -> Step {
    let address = own.address.address;
    let links = links(subject.place, deadline).await?;
    let link = is_on(&links, address)?;
    if !link.flag("UP") {
        let name = &link.ifname;
        return Err(Failure::Failed(format!(
            "{address}: its interface {name} is down"
        )));
    }
    if link.has(address).is_some_and(|has| has.dadfailed) {
        return Err(Failure::Failed(format!(
            "{address}: another machine has it, too"
        )));
    }
    match link.with_neighbours() {
        Some(interface) => look_for_others(subject.place, &links, &interface, own, deadline).await,
        None => Ok(()),
    }
}

fn is_on(links: &[Link], address: IpAddr) -> Step<&Link> {
    let on = links.iter().find(|link| link.has(address).is_some());
    on.ok_or_else(|| Failure::Failed(format!("{address} is on no interface")))
}

/// Nobody else has it. Who does is told to people, and that it is here to everybody: the group would not get
/// rid of him by going elsewhere.
async fn look_for_others(
    place: &Place,
    all: &[Link],
    interface: &Interface,
    own: &FloatingIp,
    deadline: Deadline,
) -> Step {
    let (address, on) = (own.address.address, &interface.name);
    // A look ends before it is given up, however long a probe may take.
    let time = Duration::from_millis(own.probe_time.0).min(deadline.left() / 2);
    if time.is_zero() {
        return Ok(());
    }
    let ours: Vec<Mac> = (all.iter())
        .filter_map(|link| neighbour::mac(&link.address))
        .collect();
    let find = |frame: &[u8]| neighbour::holder(frame, &ours, address);
    let cant = |error: std::io::Error| {
        Failure::Warned(format!(
            "whether another machine has {address}, too, can't be asked on {on}: {error}"
        ))
    };
    let wire = Wire::open(interface.clone(), address).map_err(cant)?;
    let begin = Instant::now();
    let mut found = None;
    for third in 1..=3 {
        let until = begin + time * third / 3;
        found = wire.ask_once(address, until, find).await.map_err(cant)?;
        // Removed meanwhile, by its stop or by the guard: the other node, which asks for it before it takes it, may
        // hear no more of this one.
        is_on(&links(place, deadline).await?, address)?;
        if found.is_some() {
            break;
        }
    }
    let Some(mac) = found else {
        return Ok(());
    };
    // Once for each look: two that defend it without end would fill the network.
    if own.announcements > 0 {
        wire.announce(address).await.map_err(cant)?;
    }
    Err(Failure::Warned(format!(
        "{address} is on {on} here, and in use by {}, too\n  next: find that machine and take the address from it",
        neighbour::shown(mac)
    )))
}
