//! A manager's life, and the next one's: from the configuration to its end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kagami_failover::channel::{self, Channel, PeerAnswer, PeerAsk};
use kagami_failover::clock;
use kagami_failover::config::{Cluster, Ms, Severity};
use kagami_failover::control::server::{Socket, serve};
use kagami_failover::core::durable::EndKind;
use kagami_failover::core::environment::Host;
use kagami_failover::core::{Alert, Command, Object};
use kagami_failover::guard_process::client::{Guards, Starter, Trouble};
use kagami_failover::heartbeat::Heartbeats;
use kagami_failover::manager::alerts::Alerts;
use kagami_failover::manager::hands::LocalHands;
use kagami_failover::manager::records::Records;
use kagami_failover::manager::{self, ALERTS, Ended, Handle, Inputs, Parts};
use kagami_failover::notify::{self, Trust};
use kagami_failover::place::{FileChannel, Lasting, NotSent, Pending, Place, Watchdog};
use kagami_failover::process::log;
use kagami_failover::resource::files::Image;
use kagami_failover::right::keeper::{ControlGroupOf, Keeper};
use kagami_failover::right::tenancy::{Outside, Tenancy};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tracing::{error, info, warn};

use super::attempts::Attempts;
use super::desk::Office;
use super::mirrors::Daemon;
use super::registers::{self, AtArbiter};
use super::settings::{Settings, first_line, stays};
use super::{make_folder, programs, run_folder, state};
use crate::args::FailoverArgs;
use crate::commands::{Context, cluster};
use crate::config::Config;
use crate::daemon::service::Service;
use crate::exit::{DONE, Failure, Outcome};

/// A guard that was started is there within: it only reads the node's configuration.
const GUARD_BEGINS_WITHIN: Duration = Duration::from_secs(10);
/// A guard that runs has heard a word within.
const GUARD_WITHIN: Duration = Duration::from_secs(2);
/// Where another manager is to begin, those who ask are answered for so long: without one nobody is heard, and no lease
/// is renewed.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Where none is, for so long.
const FAREWELL: Duration = Duration::from_secs(5);
/// A manager that could not begin after another one is tried again after this.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// What all managers of this process have.
struct Process<'p> {
    context: &'p Context,
    args: &'p FailoverArgs,
    /// This program, by the name that it was started by.
    program: PathBuf,
    control: Arc<Socket>,
    lasting: Lasting,
    service: Service,
}

/// Runs managers until one ends for good.
///
/// # Errors
/// One can't begin.
pub async fn run(context: &Context, config: &Config, args: &FailoverArgs) -> Outcome {
    let service = Service::of_this_process();
    make_folder(&state(config), 0o700)?;
    make_folder(&run_folder(config), 0o755)?;
    let socket = cluster::socket(config);
    let mut attempts = Attempts::new(Settings::with(config.clone(), context)?);
    let program = crate::program()?;
    let mut signals = Signals::new()?;
    let alive = tokio::spawn({
        let service = service.clone();
        async move { service.live_alone().await }
    });
    let control = Socket::bind(&socket).map_err(|e| Failure::refused(e.to_string()))?;
    let process = Process {
        context,
        args,
        program,
        control: Arc::new(control),
        lasting: Lasting::default(),
        service: service.clone(),
    };
    let mut told = Vec::new();
    let ended = loop {
        match live(&process, &attempts, told, &mut signals).await {
            Ok(Ended::For(kind)) => break kind,
            Ok(Ended::Again) => {
                info!("another failover manager begins, with the groups as they are");
                let (newest, wrong) = attempts.settings().as_far_as_right(context);
                attempts.has_ended_for(newest);
                told = wrong;
            }
            Err(failure) => {
                // What runs wants a manager: one that has not begun goes on by what another has begun with.
                if !attempts.has_not_begun(Instant::now()) {
                    return Err(end_of_all(failure, attempts.had_begun()));
                }
                told = vec![stays(&failure)];
                tokio::select! {
                    () = tokio::time::sleep(TRY_AGAIN) => {}
                    () = signals.end() => return Err(end_of_all(failure, true)),
                }
            }
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

/// No manager has begun. Where one had, its groups want another: the service manager starts the process again, but for a
/// status that says that nothing passes by itself.
fn end_of_all(failure: Failure, had_begun: bool) -> Failure {
    if had_begun {
        Failure::system(failure.words)
    } else {
        failure
    }
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
                Failure::system(format!(
                    "not started: signals can't be heard: {error}\n  next: raise the limit of open files, or end other programs"
                ))
            })
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    /// One says that the process is to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Does to the manager what signals say, for as long as it is polled.
    async fn obey(&mut self, handle: &Handle, attempts: &Attempts<Settings>, context: &Context) {
        let settings = attempts.settings();
        let wait = || async {
            match attempts.retry() {
                Some(retry) => tokio::time::sleep(retry).await,
                None => std::future::pending().await,
            }
        };
        let mut retry = std::pin::pin!(wait());
        loop {
            tokio::select! {
                () = &mut retry => {
                    match settings.may_begin_anew(context) {
                        Ok(()) => {
                            info!("what was not taken over is given another try");
                            handle.again();
                        }
                        // People know.
                        Err(failure) => warn!("{}", failure.words),
                    }
                    retry.set(wait());
                    continue;
                }
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hang_up.recv() => {
                    info!("a signal says: begin anew, with the groups as they are");
                    match settings.may_begin_anew(context) {
                        Ok(()) => handle.again(),
                        Err(failure) => handle.alert(stays(&failure)),
                    }
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

/// The guard holds the watchdog: it has one holder.
struct GuardsWatchdog(Guards);

impl Watchdog for GuardsWatchdog {
    fn alive(&self, _device: &Path, timeout: Ms) -> Pending<'static, Result<(), String>> {
        let told = self.0.alive(timeout.0);
        Box::pin(told)
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
            let answer = self.0.ask(&ask).await;
            match answer.map_err(|unreached| NotSent::Away(unreached.why))? {
                PeerAnswer::File(installed) => installed.map_err(NotSent::Refused),
                other => Err(NotSent::Refused(format!(
                    "the other node answered something else: {other:?}"
                ))),
            }
        })
    }

    fn not_read(&self, group: &str, resource: &str, why: &str) {
        self.1.alert(Alert {
            severity: Severity::Warning,
            object: Object::Resource(group.to_owned(), resource.to_owned()),
            what: "a file is not synchronised".to_owned(),
            cause: first_line(why),
        });
    }
}

/// The way of files to the other node, and to people.
struct Way(Channel, Handle);

/// One manager, from its beginning to its end.
async fn live(
    process: &Process<'_>,
    attempts: &Attempts<Settings>,
    told: Vec<Alert>,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    let settings = attempts.settings();
    let Wired {
        parts,
        handle,
        inputs,
        guards,
        desk,
        tasks: _tasks,
    } = wire_up(process, settings, told)?;
    info!(
        node = settings.cluster.nodes[settings.me],
        "the failover manager of cluster {} begins, revision {}",
        settings.cluster.name,
        settings.cluster.revision
    );
    process.service.ready().await;
    let ended = tokio::select! {
        ended = manager::run(parts, &handle, inputs) => ended,
        () = signals.obey(&handle, attempts, process.context) => unreachable!("it obeys for ever"),
    };
    process.lasting.pause();
    let is_followed = matches!(ended, Ok(Ended::Again));
    if !is_followed {
        // The guard outlives this manager, and nobody may come to tell it that user space runs.
        let _ = tokio::time::timeout(GUARD_WITHIN, guards.alive(0)).await;
    }
    desk.close(is_followed).await;
    ended.map_err(|e| Failure::system(e.to_string()))
}

/// A manager that is ready to run, and what runs beside it.
struct Wired {
    parts: Parts<LocalHands, Keeper>,
    handle: Handle,
    inputs: Inputs,
    guards: Guards,
    desk: OpenDesk,
    /// They end with it.
    tasks: JoinSet<()>,
}

fn not_started(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::system(format!(
        "not started: {what}: {error}\n  next: put it right and start the failover manager again"
    ))
}

/// Puts a manager together: what it needs is there, and the guard, heartbeats and people's commands reach it.
///
/// Errors: something can't be had.
fn wire_up(process: &Process<'_>, settings: &Settings, told: Vec<Alert>) -> Result<Wired, Failure> {
    let Settings {
        config,
        cluster,
        me,
        key,
        ..
    } = settings;
    let me = *me;
    let (state, run) = (state(config), run_folder(config));
    let boot = clock::boot().map_err(|e| not_started("this boot", e))?;
    let records =
        Records::open(&run.join("operations"), boot).map_err(|e| not_started("records", e))?;
    let alerts = Alerts::start(&cluster.nodes[me], state.join(ALERTS))
        .map_err(|e| not_started("alerts", e))?;

    let (handle, inputs) = manager::channel();
    let keys = settings.keys();
    let channel = Channel::new(cluster, me, keys.clone());
    let (guards, lost) = Guards::start(
        starter(process, &run, &state),
        trouble(&cluster.nodes[me], &handle),
    );
    let daemon = Arc::new(Daemon::new(config.node.control.clone()));
    let place = place(
        process,
        settings,
        &daemon,
        &guards,
        Way(channel.clone(), handle.clone()),
    )?;

    for alert in told {
        handle.alert(alert);
    }
    warn_of_configuration(config, cluster, &handle);
    let heartbeats = Heartbeats::start(cluster, me, key, &handle.listener())
        .map_err(|e| not_started("heartbeats", e))?;
    let control_group: ControlGroupOf = {
        let place = Arc::clone(&place);
        Arc::new(move |group: &str| place.group_control_group(group))
    };
    let registers = AtArbiter::start(config, cluster, settings.other())
        .map_err(|e| not_started("a thread for the arbiter", e))?;
    let outside = Outside {
        registers: Arc::new(registers),
        channel: channel.clone(),
        state: state.clone(),
        boot,
    };
    let tenancy = Tenancy::start(
        cluster,
        me,
        outside,
        guards.clone(),
        Arc::clone(&control_group),
        handle.clone(),
    );
    let office = Office {
        cluster: Arc::clone(cluster),
        text: settings.text.clone(),
        file: settings.file.clone(),
        node_file: config.file.clone(),
        me,
        handle: handle.clone(),
        alerts: alerts.clone(),
        channel,
        place: Arc::clone(&place),
        promises: tenancy.as_ref().map(Tenancy::promises),
        arbiter: tenancy.as_ref().map(Tenancy::answers).unwrap_or_default(),
    };
    let rights = Keeper::start(
        Arc::clone(cluster),
        daemon,
        tenancy,
        guards.clone(),
        lost,
        control_group,
        handle.clone(),
    );
    let mut tasks = beside(cluster, &alerts, &place, &handle);
    let desk = OpenDesk::open(office, keys, Arc::clone(&process.control), &mut tasks);
    let parts = Parts {
        cluster: Arc::clone(cluster),
        me,
        state,
        records: records.clone(),
        boot,
        host: host(&process.program),
        hands: Arc::new(LocalHands::new(place, records)),
        rights,
        heartbeats,
        alerts,
    };
    Ok(Wired {
        parts,
        handle,
        inputs,
        guards,
        desk,
        tasks,
    })
}

/// What runs beside the manager: people are told, watched programs are watched, logs are kept short.
fn beside(
    cluster: &Arc<Cluster>,
    alerts: &Alerts,
    place: &Arc<Place>,
    handle: &Handle,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(notify::run(
        Arc::clone(cluster),
        alerts.listen(),
        Trust::default(),
    ));
    tasks.spawn(programs::watch(Arc::clone(place), handle.clone()));
    tasks.spawn(log::keep_short(Arc::clone(place), || {
        tokio::time::sleep(log::LOOK_EVERY)
    }));
    tasks
}

/// What this node has for its resources, with the links that scripts call.
fn place(
    process: &Process<'_>,
    settings: &Settings,
    daemon: &Arc<Daemon>,
    guards: &Guards,
    way: Way,
) -> Result<Arc<Place>, Failure> {
    let place = Place::new(
        Arc::clone(&settings.cluster),
        settings.me,
        state(&settings.config),
        run_folder(&settings.config),
        process.program.clone(),
        Arc::clone(daemon) as Arc<dyn kagami_failover::place::MirrorDevice>,
        Arc::new(GuardsWatchdog(guards.clone())),
        Arc::new(way),
        &process.lasting,
    );
    let place = place.map_err(|e| not_started("its folders", e))?;
    crate::clp::make_links(&place.links, &process.program)
        .map_err(|e| not_started("the links of the compatible commands", e))?;
    Ok(Arc::new(place))
}

/// Tells of what can be run, and is not as it was meant.
fn warn_of_configuration(config: &Config, cluster: &Cluster, handle: &Handle) {
    if cluster.has_arbiter()
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
    for warning in cluster.warnings(&cluster::check::of_this_node(config)) {
        let group = warning.table.strip_prefix("group.").unwrap_or_default();
        handle.alert(Alert {
            severity: Severity::Warning,
            object: Object::Group(group.to_owned()),
            what: warning.what,
            cause: format!("to do: {}", warning.next),
        });
    }
}

/// Where people and the other manager are answered.
struct OpenDesk {
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl OpenDesk {
    fn open(
        office: Office,
        keys: channel::Keys,
        control: Arc<Socket>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let own = channel::addresses(&office.cluster, office.me);
        let own = own.into_iter().map(|(own, _)| own).collect();
        let office = Arc::new(office);
        let answer = {
            let office = Arc::clone(&office);
            move |ask| {
                let office = Arc::clone(&office);
                async move { office.answer(ask).await }
            }
        };
        tasks.spawn(channel::serve(own, keys, answer));
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve(office, control, stopped));
        Self { stop, serving }
    }

    /// Who asked is told; who watches is cut off, and so is who is slow.
    async fn close(mut self, is_followed: bool) {
        self.stop.send_replace(true);
        let patience = if is_followed { LAST_WORDS } else { FAREWELL };
        if tokio::time::timeout(patience, &mut self.serving)
            .await
            .is_err()
        {
            self.serving.abort();
            let _ = self.serving.await;
        }
    }
}

fn starter(process: &Process<'_>, run: &Path, state: &Path) -> Starter {
    let Process {
        context,
        args,
        program,
        ..
    } = process;
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
        log: Some(state.join(log::OF_GUARD)),
        within: GUARD_BEGINS_WITHIN,
    }
}

/// Tells people what is wrong with the guard.
fn trouble(node: &str, handle: &Handle) -> impl Fn(Trouble) + Send + Sync + use<> {
    let (node, handle) = (node.to_owned(), handle.clone());
    move |Trouble { what, why }| {
        handle.alert(Alert {
            severity: Severity::Error,
            object: Object::Node(node.clone()),
            what,
            cause: why,
        });
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
