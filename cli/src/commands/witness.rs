//! `kagami witness`: this machine as the arbiter of other nodes' mirrors.

use std::net::IpAddr;
use std::time::Duration;

use kagami_replicator::shell::identity::Fingerprint;
use kagami_replicator::shell::witness::enrol::{EnrolError, EnrolOffer};
use kagami_replicator::shell::witness::{Server, ServerConfig, store};
use serde_json::json;
use tracing::info;

use super::pair::pair_failure;
use super::{Context, node, print_json, print_out, within};
use crate::args::{WitnessArgs, WitnessVerb};
use crate::config::Config;
use crate::config::edit::Editor;
use crate::config::keys::{self, Fallback, Section};
use crate::daemon::log;
use crate::daemon::service::Service;
use crate::exit::{DONE, Failure, Outcome, Status};

/// Runs the witness, or enrols a node at it.
///
/// # Errors
/// The configuration is wrong, or the system refuses.
pub async fn run(context: &Context, args: WitnessArgs) -> Outcome {
    match &args.verb {
        None => serve(context, &args).await,
        Some(WitnessVerb::Enrol { address, valid }) => enrol(context, &args, address, *valid).await,
        Some(WitnessVerb::Forget { node }) => forget(context, node),
        Some(WitnessVerb::List { json }) => list(context, *json),
    }
}

/// The configuration with a [witness] section, made where there is none.
fn config(context: &Context, args: &WitnessArgs) -> Result<Config, Failure> {
    let mut editor = Editor::open(&context.file)?;
    let config = node::ensure(&mut editor, &args.node, &context.places)?;
    if config.witness.is_some() {
        return Ok(config);
    }
    let listen = match keys::find(Section::Witness, "listen").map(|key| key.fallback) {
        Some(Fallback::Value(text)) => text,
        other => unreachable!("[witness] listen has {other:?}"),
    };
    let list: toml_edit::Array = [listen].into_iter().collect();
    editor.set(Section::Witness, "", "listen", list);
    Ok(editor.save(&context.places)?)
}

fn state(config: &Config) -> std::path::PathBuf {
    config.node.state_dir.join("witness")
}

fn listen(config: &Config) -> Vec<std::net::SocketAddr> {
    config
        .witness
        .as_ref()
        .map(|witness| witness.listen.clone())
        .unwrap_or_default()
}

/// The keys of this machine's own peers, which may use the witness without being enrolled.
fn configured(config: &Config) -> Vec<(Fingerprint, String)> {
    let peers = config.peers.iter();
    let keys = peers.flat_map(|peer| peer.fingerprints.iter().map(move |key| (key, &peer.name)));
    keys.filter_map(|(key, name)| Some((key.parse().ok()?, name.clone())))
        .collect()
}

/// Answers questions until a signal ends it.
async fn serve(context: &Context, args: &WitnessArgs) -> Outcome {
    let config = config(context, args)?;
    log::begin(&config.node.log_level, config.node.log_json);
    let keys = config.keys()?;
    let clients = configured(&config).into_iter().map(|(key, _)| key);
    let server = Server::start(
        &keys.current,
        ServerConfig {
            listen: listen(&config),
            state: state(&config),
            clients: clients.collect(),
        },
    )
    .map_err(|error| {
        Failure::system(format!(
            "the witness was not started: {error}\n  next: put that right: `listen` of [witness] is in {}, its folder is {}",
            config.file.display(),
            state(&config).display()
        ))
    })?;
    let addresses: Vec<String> = server.addresses().iter().map(ToString::to_string).collect();
    info!(
        listen = addresses.join(", "),
        fingerprint = %keys.current.fingerprint(),
        "witness {} answers",
        config.node.name
    );
    let service = Service::of_this_process();
    service.ready().await;
    service.status(&format!("answers on {}", addresses.join(", ")));
    tokio::select! {
        () = server.serve(crate::up::signal()) => {}
        () = service.live_alone() => {}
    }
    info!("witness stopped");
    log::write_repeats();
    DONE
}

/// Lets one node in.
async fn enrol(
    context: &Context,
    args: &WitnessArgs,
    given: &[IpAddr],
    valid: Duration,
) -> Outcome {
    let config = config(context, args)?;
    let keys = config.keys()?;
    let listen = listen(&config);
    let addresses = node::reachable(&listen, given);
    if addresses.is_empty() {
        return Err(Failure::usage(
            "no address is known under which nodes reach this machine\n  next: add --address, or listen on one in [witness]",
        ));
    }
    // The witness may run and hold its port: the meeting takes ports of its own.
    let (meeting, advertise) = super::offer::meeting_place(&addresses);
    let offer = EnrolOffer::open(
        &keys.current,
        &state(&config),
        &config.node.name,
        &addresses,
        meeting,
        advertise,
        valid,
    )
    .map_err(failure)?;
    print_out(&format!(
        "on the node that may ask (valid {}):\n\n  kagami arbiter join {}\n\n",
        humantime::format_duration(valid),
        offer.token()
    ))?;
    let (key, name) = within(
        None,
        String::new,
        || "interrupted; the token is worth nothing any more".to_owned(),
        async { offer.wait().await.map_err(failure) },
    )
    .await?;
    print_out(&format!(
        "node {name} may use this witness (key {key})\nnext: `kagami witness` must run here, if it does not yet\n"
    ))?;
    DONE
}

/// An enrolment's end, with its exit status.
pub fn failure(error: EnrolError) -> Failure {
    match error {
        EnrolError::Pair(error) => pair_failure(&error, "not enrolled"),
        EnrolError::Store(error) => Failure::system(format!(
            "not enrolled: {error}\n  next: run the command as the user whose witness it is, with room on its disk"
        )),
        EnrolError::Unheard { ref name, .. } => Failure::new(
            Status::Refused,
            format!(
                "{error}\n  next: where `kagami arbiter join` on {name} did not say that it knows this witness: `kagami witness enrol` here again, and join with the new line; or `kagami witness forget {name}`"
            ),
        ),
        EnrolError::Fields(error) => Failure::new(
            Status::Refused,
            format!("not enrolled: {error}\n  next: use the same build of kagami on both machines"),
        ),
    }
}

fn list(context: &Context, as_json: bool) -> Outcome {
    let config = context.config()?;
    let state = state(&config);
    let found = if state.exists() {
        store::enrolled(&state, &configured(&config)).map_err(|error| {
            Failure::system(format!(
                "the enrolled nodes can't be read: {error}\n  next: run the command as the user whose witness it is"
            ))
        })?
    } else {
        Vec::new()
    };
    if as_json {
        let nodes: Vec<_> = found
            .iter()
            .map(|(key, name)| json!({"name": name, "fingerprint": key.to_string()}))
            .collect();
        print_json(&nodes)?;
        return DONE;
    }
    if found.is_empty() {
        print_out("no node may use this witness yet\nnext: `kagami witness enrol` lets one in\n")?;
        return DONE;
    }
    let text: String = found
        .iter()
        .map(|(key, name)| format!("{name}  {key}\n"))
        .collect();
    print_out(&text)?;
    DONE
}

/// Takes a node out.
fn forget(context: &Context, node: &str) -> Outcome {
    let config = context.config()?;
    let state = state(&config);
    let forgotten = if state.exists() {
        store::forget(&state, node, &configured(&config)).map_err(|error| {
            Failure::system(format!(
                "{node} was not forgotten: {error}\n  next: run the command as the user whose witness it is, with room on its disk"
            ))
        })?
    } else {
        Vec::new()
    };
    if forgotten.is_empty() {
        return Err(Failure::refused(format!(
            "no node {node} is enrolled here\n  next: `kagami witness list` shows those that are"
        )));
    }
    let mut text = String::new();
    for (key, name) in &forgotten {
        text.push_str(&format!(
            "node {name} may not use this witness any more (key {key})\n"
        ));
    }
    text.push_str(
        "a running witness knows at once; `kagami witness enrol` lets the node in again\n",
    );
    print_out(&text)?;
    DONE
}
