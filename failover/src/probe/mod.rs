//! Looking: every kind of monitor, once. When, how often and what follows is the core's business.

pub mod database;
pub mod disk;
pub mod http;
pub mod ping;
pub mod user_space;

use std::sync::Arc;

use tokio::net::TcpStream;

use crate::config::monitor::{Kind, Of};
use crate::config::{Monitor, Ms};
use crate::core::OpResult;
use crate::place::{MirrorStatus, Place};
use crate::process::script::Script;
use crate::process::{Deadline, Failure, Step, ended};
use crate::resource::{floating_ip, ocf};

/// Lets a monitor look. `timeout`: how long it may take; 0: as long as it likes.
///
/// `environment`: what a script sees beside PATH.
pub async fn probe(
    place: &Arc<Place>,
    monitor: &Monitor,
    environment: &[(String, String)],
    timeout: Ms,
) -> OpResult {
    let deadline = Deadline::after(timeout);
    let looked = look(place, monitor, environment, deadline);
    // Whatever a kind does, the time-out holds.
    ended(deadline.wait(looked).await.unwrap_or_else(Err))
}

/// The look of a `user-space` monitor, which tells the watchdog before this returns; `None`: it is of
/// another kind.
pub fn alive(
    place: &Place,
    monitor: &Monitor,
    timeout: Ms,
) -> Option<impl Future<Output = OpResult> + Send + use<>> {
    let Kind::UserSpace(own) = &monitor.kind else {
        return None;
    };
    let told = place.watchdog.alive(&own.device, monitor.timeout());
    let deadline = Deadline::after(timeout);
    Some(async move {
        let told = deadline.wait(told).await;
        ended(told.and_then(|told| Ok(told?)))
    })
}

async fn look(
    place: &Arc<Place>,
    monitor: &Monitor,
    environment: &[(String, String)],
    deadline: Deadline,
) -> Step {
    match &monitor.kind {
        Kind::Ip(ip) => ping::any(&ip.targets, deadline).await,
        Kind::Nic(nic) => carrier(place, &nic.interface, deadline).await,
        Kind::Disk(own) => disk::look(&own.path, own.write).await,
        Kind::Mirror(own) => {
            let status = place.mirrors.status(&own.mirror).await?;
            copies(&status).step(&own.mirror, &status.words)
        }
        Kind::MirrorLink(own) => {
            let status = place.mirrors.status(&own.mirror).await?;
            link(&own.mirror, &status)
        }
        Kind::Pid(of) | Kind::FloatingIp(of) | Kind::Resource(of) => {
            resource(place, of, environment, earlier(deadline)).await
        }
        Kind::UserSpace(own) => Ok(place.watchdog.alive(&own.device, monitor.timeout()).await?),
        Kind::Tcp(tcp) => {
            let stream = TcpStream::connect(&tcp.address).await;
            stream.map_err(|error| format!("{}: {error}", tcp.address))?;
            Ok(())
        }
        Kind::Http(own) => http::look(&own.url, own.status).await,
        Kind::Database(own) => database::look(place, own, deadline).await,
        Kind::Agent(own) => {
            let times = (monitor.timeout(), monitor.interval());
            let name = &monitor.name;
            let within = Deadline::after(earlier(deadline));
            ocf::look(place, name, &own.agent, &own.parameters, times, within).await
        }
        Kind::Script(own) => {
            let script = Script {
                program: vec![(&own.probe).into()],
                ..of_monitor(
                    &monitor.name,
                    "probe",
                    &seen_by(place, monitor, environment),
                )
            };
            script.must(place, Deadline::after(earlier(deadline))).await
        }
    }
}

/// How long a script may take: it is ended by its own time-out before everything else is dropped.
fn earlier(deadline: Deadline) -> Ms {
    let left = deadline.left().as_millis() as u64;
    // Time for TERM and KILL, where there is some.
    let margin = (left / 5).min(6000);
    Ms((left - margin).max(1))
}

/// What a monitor's script sees: whose it is, where it is, and what else it is told.
fn seen_by(
    place: &Place,
    monitor: &Monitor,
    environment: &[(String, String)],
) -> Vec<(String, String)> {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut seen = vec![
        set("CLP_MONITORNAME", &monitor.name),
        set("KAGAMI_CLUSTER", &place.cluster.name),
        set("KAGAMI_NODE", &place.cluster.nodes[place.me]),
    ];
    seen.extend_from_slice(environment);
    seen
}

fn of_monitor(monitor: &str, part: &str, environment: &[(String, String)]) -> Script {
    Script {
        key: format!("monitor@{monitor}@{part}"),
        log: format!("monitor@{monitor}"),
        environment: environment.to_vec(),
        ..Script::default()
    }
}

async fn resource(
    place: &Arc<Place>,
    of: &Of,
    environment: &[(String, String)],
    timeout: Ms,
) -> Step {
    let found = of.resource.split_once('/').and_then(|(group, resource)| {
        let group = place.cluster.group(group)?;
        Some((group, &group.resources[group.position(resource)?]))
    });
    // The configuration was checked.
    let Some((group, resource)) = found else {
        return Err(Failure::Failed(format!("there is no {}", of.resource)));
    };
    match crate::resource::probe(place, group, resource, environment, timeout).await {
        OpResult::Done => Ok(()),
        OpResult::Failed(why) => Err(Failure::Failed(why)),
        OpResult::TimedOut => Err(Failure::TimedOut),
        OpResult::Warned(why) => Err(Failure::Warned(why)),
    }
}

/// The interface has a link.
async fn carrier(place: &Place, interface: &str, deadline: Deadline) -> Step {
    let links = floating_ip::links(place, deadline).await?;
    let Some(link) = links.iter().find(|link| link.ifname == interface) else {
        return Err(Failure::Failed(format!(
            "there is no interface {interface}"
        )));
    };
    let has = |flag: &str| link.flags.iter().any(|f| f == flag);
    if has("LOWER_UP") && has("UP") {
        return Ok(());
    }
    let why = if has("UP") { "has no link" } else { "is down" };
    Err(Failure::Failed(format!(
        "interface {interface} {why} (state {})",
        link.operstate
    )))
}

/// What a look at the copies of a mirror comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    Good,
    /// A failover mends it, or a person has to choose at once.
    Failed(&'static str),
    /// What the service rests on is the same wherever it runs: nothing that is done to the group mends it.
    Reduced(&'static str),
}

fn copies(status: &MirrorStatus) -> Copies {
    if status.split_brain {
        Copies::Failed("two copies have gone on alone")
    } else if status.resynchronising || status.here_good && status.there_good {
        Copies::Good
    } else if status.here_good {
        Copies::Reduced("the other node's copy is not good")
    } else if status.connected && status.there_good {
        Copies::Failed("this node's copy is not good, and the other node's is")
    } else {
        Copies::Reduced("no copy is known to be good")
    }
}

impl Copies {
    fn step(self, mirror: &str, words: &str) -> Step {
        let told = |bad| format!("mirror {mirror}: {bad}: {words}");
        Err(match self {
            Self::Good => return Ok(()),
            Self::Failed(bad) => Failure::Failed(told(bad)),
            Self::Reduced(bad) => Failure::Warned(told(bad)),
        })
    }
}

fn link(mirror: &str, status: &MirrorStatus) -> Step {
    if status.connected || status.paused {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "mirror {mirror}: no session with the other node: {}",
        status.words
    )))
}

/// Runs a recovery's script: a monitor's own, or the one before each action.
pub async fn recovery_script(
    place: &Place,
    monitor: &str,
    script: &std::path::Path,
    environment: &[(String, String)],
    timeout: Ms,
) -> OpResult {
    let script = Script {
        program: vec![script.into()],
        ..of_monitor(monitor, "recovery", environment)
    };
    ended(script.must(place, Deadline::after(timeout)).await)
}

/// Runs the fence script. Only `Done` says that the other node is down, or, in a check
/// (`CLP_FORCESTOP_MODE` 0), that it could be made so.
pub async fn fence(
    place: &Place,
    script: &std::path::Path,
    environment: &[(String, String)],
    timeout: Ms,
) -> OpResult {
    // A check must not get in the way of the real thing.
    let mode = environment
        .iter()
        .find(|(name, _)| name == "CLP_FORCESTOP_MODE")
        .map_or("1", |(_, value)| value.as_str());
    let script = Script {
        key: format!("fence@{mode}"),
        log: "fence".to_owned(),
        program: vec![script.into()],
        environment: environment.to_vec(),
        ..Script::default()
    };
    ended(script.must(place, Deadline::after(timeout)).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_watched_by_its_copies_and_its_link_by_its_session() {
        let good = MirrorStatus {
            here_good: true,
            there_good: true,
            connected: true,
            ..MirrorStatus::default()
        };
        assert_eq!(copies(&good), Copies::Good);
        assert_eq!(copies(&good).step("pg", "CONNECTED"), Ok(()));
        assert_eq!(link("pg", &good), Ok(()));
        let alone = MirrorStatus {
            there_good: false,
            connected: false,
            words: "ALONE".to_owned(),
            ..good.clone()
        };
        assert!(matches!(copies(&alone), Copies::Reduced(_)));
        assert!(copies(&alone).step("pg", "ALONE").is_err());
        assert!(link("pg", &alone).is_err());
        let copying = MirrorStatus {
            there_good: false,
            resynchronising: true,
            ..good.clone()
        };
        assert_eq!(copies(&copying), Copies::Good);
        let split = MirrorStatus {
            split_brain: true,
            ..good.clone()
        };
        assert!(matches!(copies(&split), Copies::Failed(_)));
        // This node's disk has failed: the other one carries it, or nobody does.
        let carried = MirrorStatus {
            here_good: false,
            ..good.clone()
        };
        assert!(matches!(copies(&carried), Copies::Failed(_)));
        let failed = copies(&carried).step("pg", "ONE COPY");
        let Err(Failure::Failed(why)) = failed else {
            panic!("{failed:?}")
        };
        assert!(why.contains("this node's copy is not good"), "{why}");
        for (there_good, connected) in [(false, true), (true, false), (false, false)] {
            let lost = MirrorStatus {
                there_good,
                connected,
                ..carried.clone()
            };
            assert!(matches!(copies(&lost), Copies::Reduced(_)), "{lost:?}");
        }
        // The other one's disk has failed: it could not run there.
        let other = MirrorStatus {
            there_good: false,
            ..good.clone()
        };
        assert!(matches!(copies(&other), Copies::Reduced(_)));
        let paused = MirrorStatus {
            connected: false,
            paused: true,
            ..good
        };
        assert_eq!(link("pg", &paused), Ok(()));
    }
}
