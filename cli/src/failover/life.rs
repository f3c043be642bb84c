//! A manager's life, and the next one's: from the configuration to its end.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use kagami_failover::channel::{self, Channel, PeerAnswer, PeerAsk};
use kagami_failover::clock;
use kagami_failover::config::{ArbiterKind, Cluster, Ms, Severity};
use kagami_failover::control::server::{Socket, serve};
use kagami_failover::core::durable::EndKind;
use kagami_failover::core::environment::Host;
use kagami_failover::core::{Alert, Command, GroupStatus, Node, Object};
use kagami_failover::guard_process::client::{Guards, Starter};
use kagami_failover::heartbeat::Heartbeats;
use kagami_failover::heartbeat::key::Key;
use kagami_failover::manager::alerts::Alerts;
use kagami_failover::manager::hands::LocalHands;
use kagami_failover::manager::records::Records;
use kagami_failover::manager::{self, ALERTS, Ended, Handle, Parts};
use kagami_failover::notify::{self, Trust};
use kagami_failover::place::{FileChannel, NotSent, Pending, Place, Watchdog};
use kagami_failover::resource::files::Image;
use kagami_failover::right::keeper::{ControlGroupOf, Keeper};
use kagami_failover::right::tenancy::{Outside, Tenancy};
use kagami_failover::watch_list::{Seen, WatchList};
use kagami_replicator::shell::identity::NodeKeys;
use kagami_replicator::shell::tls::{Admit, Pins, client_config, server_config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::desk::Office;
use super::mirrors::Daemon;
use super::registers::{self, AtArbiter};
use super::{key_file, make_folder, run_folder, state};
use crate::args::FailoverArgs;
use crate::commands::{Context, cluster, key_folder};
use crate::config::Config;
use crate::daemon::mirrors::fingerprints;
use crate::daemon::service::Service;
use crate::exit::{DONE, Failure, Outcome};

/// The channel's protocol, as TLS names it.
const PROTOCOL: &[u8] = b"kagami-failover/1";
/// How often programs that scripts have started to be watched are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A guard that runs has heard a word within.
const GUARD_WITHIN: Duration = Duration::from_secs(2);

/// Runs managers until one ends for good.
///
/// # Errors
/// One can't begin.
pub async fn run(context: &Context, config: &Config, args: &FailoverArgs) -> Outcome {
    let service = Service::of_this_process();
    make_folder(&state(config), 0o700)?;
    make_folder(&run_folder(config), 0o755)?;
    let socket = cluster::socket(config);
    let mut signals = Signals::new()?;
    let alive = tokio::spawn({
        let service = service.clone();
        async move { service.live_alone().await }
    });
    let ended = loop {
        let control = Socket::bind(&socket).map_err(|e| Failure::refused(e.to_string()))?;
        match live(context, config, args, control, &service, &mut signals).await? {
            Ended::Again => info!("another failover manager begins, with the groups as they are"),
            Ended::For(kind) => break kind,
        }
    };
    service.stopping().await;
    alive.abort();
    match ended {
        EndKind::Manager => {}
        EndKind::Shutdown => end_machine("poweroff", args.no_reset),
        EndKind::Reboot => end_machine("reboot", args.no_reset),
    }
    DONE
}

fn end_machine(verb: &str, only_say: bool) {
    if only_say {
        return warn!("this node would {verb} now");
    }
    info!("this node is to {verb}");
    for program in ["systemctl", verb] {
        let mut command = std::process::Command::new(program);
        if program == "systemctl" {
            command.arg(verb);
        }
        match command.stdin(Stdio::null()).status() {
            Ok(status) if status.success() => return,
            Ok(status) => error!("{program}: {status}"),
            Err(why) => error!("{program}: {why}"),
        }
    }
}

/// The signals that a manager hears.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let on = |kind| {
            signal(kind).map_err(|error| {
                Failure::system(format!("not started: signals can't be heard: {error}"))
            })
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    /// Does to the manager what signals say, for as long as it is polled.
    async fn obey(&mut self, handle: &Handle) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hang_up.recv() => {
                    info!("a signal says: begin anew, with the groups as they are");
                    handle.again();
                    continue;
                }
            }
            info!("a signal says: end, with this node's groups");
            if let Err(why) = handle.command(Command::EndNode(EndKind::Manager)).await {
                warn!("{why}");
            }
        }
    }
}

struct Configured {
    text: String,
    cluster: Arc<Cluster>,
    me: Node,
}

fn configured(file: &Path, config: &Config) -> Result<Configured, Failure> {
    let text = cluster::check::read(file)?;
    let cluster = Cluster::parse(file, &text).map_err(|e| Failure::usage(e.to_string()))?;
    let name = &config.node.name;
    let Some(me) = cluster.nodes.iter().position(|node| node == name) else {
        return Err(Failure::usage(format!(
            "not started: node {name} is not in cluster {}, whose nodes are {}\n  next: name it in `nodes` of {}, or put `name` right in [node] of {}",
            cluster.name,
            cluster.nodes.join(" and "),
            file.display(),
            config.file.display()
        )));
    };
    Ok(Configured {
        text,
        cluster: Arc::new(cluster),
        me,
    })
}

/// The settings of the channel: this node's key, and the other one's, pinned.
type Tls = (rustls::ClientConfig, rustls::ServerConfig);

fn tls(config: &Config, other: &str) -> Option<Tls> {
    let Some(peer) = config.peer(other) else {
        warn!(
            "node {other} is not paired with this one: its manager can't be asked (`kagami pair`)"
        );
        return None;
    };
    let keys = match NodeKeys::load(&key_folder(config)) {
        Ok(keys) => keys,
        Err(why) => {
            warn!("the manager of node {other} can't be asked: {why}");
            return None;
        }
    };
    let pins = Pins::new(fingerprints(&peer.fingerprints));
    let protocols = || vec![PROTOCOL.to_vec()];
    let client = client_config(&keys.current, Admit::Pinned(pins.clone()), protocols());
    let server = server_config(&keys.current, Admit::Pinned(pins), protocols());
    match (client, server) {
        (Ok(client), Ok(server)) => Some((client, server)),
        (Err(why), _) | (_, Err(why)) => {
            warn!("the manager of node {other} can't be asked: {why}");
            None
        }
    }
}

/// The guard holds the watchdog: it has one holder.
struct GuardsWatchdog(Guards);

impl Watchdog for GuardsWatchdog {
    fn alive(&self, _device: &Path, timeout: Ms) -> Pending<'static, Result<(), String>> {
        let told = self.0.alive(timeout.0);
        Box::pin(async move {
            told.await;
            Ok(())
        })
    }

    fn rest(&self) {
        // In the order of calls; nobody waits for the answer.
        drop(self.0.alive(0));
    }
}

impl FileChannel for Way {
    fn send<'a>(
        &'a self,
        group: &'a str,
        resource: &'a str,
        image: Image,
    ) -> Pending<'a, Result<(), NotSent>> {
        let ask = PeerAsk::File {
            group: group.to_owned(),
            resource: resource.to_owned(),
            image,
        };
        Box::pin(async move {
            match self.0.ask(&ask).await.map_err(NotSent::Away)? {
                PeerAnswer::File(installed) => installed.map_err(NotSent::Refused),
                other => Err(NotSent::Refused(format!(
                    "the other node answered something else: {other:?}"
                ))),
            }
        })
    }
}

/// The way of files to the other node.
struct Way(Channel);

async fn live(
    context: &Context,
    config: &Config,
    args: &FailoverArgs,
    control: Socket,
    service: &Service,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    let refused = |error: &dyn std::fmt::Display| Failure::refused(error.to_string());
    let system = |what: &str, error: &dyn std::fmt::Display| {
        Failure::system(format!(
            "not started: {what}: {error}\n  next: put it right and start the failover manager again"
        ))
    };
    let file = cluster::file(&context.file);
    let Configured { text, cluster, me } = configured(&file, config)?;
    let (state, run) = (state(config), run_folder(config));
    let key = Key::load(&key_file(config)).map_err(|e| refused(&e))?;
    let boot = clock::boot().map_err(|e| system("this boot", &e))?;
    let program = std::env::current_exe().map_err(|e| system("this program", &e))?;
    let records = run.join("operations");
    let records = Records::open(&records, boot).map_err(|e| system("records", &e))?;
    let node = cluster.nodes[me].clone();
    let alerts = Alerts::start(&node, state.join(ALERTS)).map_err(|e| system("alerts", &e))?;

    let (client, server) = tls(config, &cluster.nodes[1 - me]).unzip();
    let channel = Channel::new(&cluster, me, client);
    let (guards, lost) = Guards::start(starter(context, args, &run, &state, &program));
    let daemon = Arc::new(Daemon::new(config.node.control.clone()));
    let place = Place::new(
        Arc::clone(&cluster),
        me,
        state.clone(),
        run.clone(),
        program.clone(),
        Arc::clone(&daemon) as Arc<dyn kagami_failover::place::MirrorDevice>,
        Arc::new(GuardsWatchdog(guards.clone())),
        Arc::new(Way(channel.clone())),
    );
    let place = Arc::new(place.map_err(|e| system("its folders", &e))?);
    crate::clp::make_links(&place.links, &program)
        .map_err(|e| system("the links of the compatible commands", &e))?;

    let (handle, inputs) = manager::channel();
    let heartbeats = Heartbeats::start(&cluster, me, &key, &handle.listener());
    let heartbeats = heartbeats.map_err(|e| system("heartbeats", &e))?;
    let control_group: ControlGroupOf = {
        let place = Arc::clone(&place);
        Arc::new(move |group: &str| place.group_control_group(group))
    };
    if cluster.arbiter.kind != ArbiterKind::None
        && let Some(name) = &cluster.arbiter.name
        && config.arbiter(name).is_none()
    {
        handle.alert(Alert {
            severity: Severity::Error,
            object: Object::Cluster,
            what: format!("arbiter {name} is not asked by this node's manager"),
            cause: registers::missing(config, name),
        });
    }
    let registers = AtArbiter::start(config, &cluster, &cluster.nodes[1 - me]);
    let outside = Outside {
        registers: Arc::new(registers.map_err(|e| system("a thread for the arbiter", &e))?),
        channel: channel.clone(),
        state: state.clone(),
        boot,
    };
    let tenancy = Tenancy::start(
        &cluster,
        me,
        outside,
        guards.clone(),
        Arc::clone(&control_group),
        handle.clone(),
    );
    let promises = tenancy.as_ref().map(Tenancy::promises);
    let arbiter = tenancy.as_ref().map(Tenancy::answers).unwrap_or_default();
    let rights = Keeper::start(
        Arc::clone(&cluster),
        daemon,
        tenancy,
        guards.clone(),
        lost,
        control_group,
        handle.clone(),
    );
    let office = Arc::new(Office {
        cluster: Arc::clone(&cluster),
        text,
        file,
        node_file: config.file.clone(),
        me,
        handle: handle.clone(),
        alerts: alerts.clone(),
        channel,
        place: Arc::clone(&place),
        promises,
        arbiter,
    });
    let mut tasks = JoinSet::new();
    if let Some(server) = server {
        let own = channel::addresses(&cluster, me);
        let own = own.into_iter().map(|(own, _)| own).collect();
        let office = Arc::clone(&office);
        let answer = move |ask| {
            let office = Arc::clone(&office);
            async move { office.answer(ask).await }
        };
        tasks.spawn(channel::serve(own, server, answer));
    }
    tasks.spawn(notify::run(
        Arc::clone(&cluster),
        alerts.listen(),
        Trust::default(),
    ));
    tasks.spawn(watch_programs(Arc::clone(&place), handle.clone()));
    let (stop, stopped) = watch::channel(false);
    let desk = tokio::spawn(serve(office, control, stopped));
    let parts = Parts {
        cluster: Arc::clone(&cluster),
        me,
        state,
        records: records.clone(),
        boot,
        host: host(&program),
        hands: Arc::new(LocalHands::new(place, records)),
        rights,
        heartbeats,
        alerts,
    };
    info!(
        node,
        "the failover manager of cluster {} begins, revision {}", cluster.name, cluster.revision
    );
    service.ready().await;
    let ended = tokio::select! {
        ended = manager::run(parts, &handle, inputs) => ended,
        () = signals.obey(&handle) => unreachable!("it obeys for ever"),
    };
    // The guard outlives this manager, and nobody may come to tell it that user space runs.
    let _ = tokio::time::timeout(GUARD_WITHIN, guards.alive(0)).await;
    stop.send_replace(true);
    // Who asked is told; who watches is cut off.
    let _ = tokio::time::timeout(Duration::from_secs(5), desk).await;
    ended.map_err(|e| Failure::system(e.to_string()))
}

fn starter(
    context: &Context,
    args: &FailoverArgs,
    run: &Path,
    state: &Path,
    program: &Path,
) -> Starter {
    let socket = run.join("guard.sock");
    let mut arguments: Vec<std::ffi::OsString> = vec![
        "--config".into(),
        context.file.clone().into(),
        "guard".into(),
        "--socket".into(),
        socket.clone().into(),
    ];
    if !args.no_reset {
        arguments.extend(["--watchdog".into(), args.watchdog.clone().into()]);
    }
    Starter {
        socket,
        command: Some((program.to_owned(), arguments)),
        log: Some(state.join("guard.log")),
    }
}

/// What scripts are told of the machine.
fn host(program: &Path) -> Host {
    let name = rustix::system::uname();
    let words = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let path = program.parent().unwrap_or(Path::new("/"));
    Host {
        path: path.display().to_string(),
        scripts: "/etc/kagami/scripts".to_owned(),
        os: words(name.sysname()),
        os_version: words(name.release()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Looks after the programs that scripts have started to be watched. One whose end counts, and that
/// has ended, takes this node's groups to the other node.
async fn watch_programs(place: Arc<Place>, handle: Handle) {
    let list = WatchList::new(&place.run);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = clock::wall_ms() / 1000;
        let (list, place_of) = (list.clone(), Arc::clone(&place));
        let looked = tokio::task::spawn_blocking(move || {
            list.poll(now, |entry| {
                let log = place_of.log(&format!("{}@{}", entry.group, entry.resource));
                let log = std::fs::File::options().append(true).create(true).open(log);
                log.ok()
            })
        });
        let seen = match looked.await {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => {
                warn!("{error}");
                continue;
            }
            Err(error) => {
                warn!("the watch list: {error}");
                continue;
            }
        };
        for seen in seen {
            let (entry, what) = match &seen {
                Seen::Restarted(entry) => (entry, "ended unexpectedly, and was started again"),
                Seen::Ended(entry) => (entry, "ended unexpectedly"),
            };
            let fails = matches!(&seen, Seen::Ended(entry) if entry.monitored);
            handle.alert(Alert {
                severity: if fails {
                    Severity::Error
                } else {
                    Severity::Warning
                },
                object: if entry.group.is_empty() {
                    Object::Node(place.cluster.nodes[place.me].clone())
                } else {
                    Object::Group(entry.group.clone())
                },
                what: format!("watched program {} {what}", entry.id),
                cause: entry.program.join(" "),
            });
            if fails {
                leave(&place, &handle).await;
            }
        }
    }
}

/// Moves all groups that are active here to the other node.
async fn leave(place: &Place, handle: &Handle) {
    let groups = 0..place.cluster.groups.len();
    for group in groups {
        let status = handle.look(move |core| core.group_status(group)).await;
        if !matches!(
            status,
            Some(GroupStatus::Online | GroupStatus::OnlineFailure)
        ) {
            continue;
        }
        let to = 1 - place.me;
        if let Err(why) = handle.command(Command::Move { group, to }).await {
            handle.alert(Alert {
                severity: Severity::Error,
                object: Object::Group(place.cluster.groups[group].name.clone()),
                what: "stays here".to_owned(),
                cause: why
                    .to_string()
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            });
        }
    }
}
