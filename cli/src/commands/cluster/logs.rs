//! `kagami logs collect`: what is needed to look for a cause, of both nodes, in one archive. It works
//! without any daemon, too: then it holds what this node's files say.

use std::path::{Path, PathBuf};
use std::process::Command;

use kagami_failover::control::logs::{self, LogFile};
use kagami_failover::control::message::Reach;
use kagami_failover::control::{AlertFilter, Answer, Ask, Client};
use serde_json::json;

use super::{Context, archive, file, print_json, print_out, unexpected};
use crate::args::LogsVerb;
use crate::config::Config;
use crate::control::message::{Answer as DaemonAnswer, Ask as DaemonAsk};
use crate::exit::{DONE, Failure, Outcome};

/// The systemd units whose journal is taken.
const UNITS: [&str; 3] = ["kagami", "kagami-failover", "kagami-witness"];

/// Gathers, and writes the archive.
///
/// # Errors
/// It can't be written; the configuration is wrong.
pub async fn run(context: &Context, verb: LogsVerb) -> Outcome {
    let LogsVerb::Collect {
        archive: target,
        this_node,
        json,
    } = verb;
    let config = context.config()?;
    let mut found = Found {
        files: Vec::new(),
        lacks: Vec::new(),
    };
    let mut name = "kagami".to_owned();
    found.this_node(context, &config).await;
    match Client::connect(&super::socket(&config)).await {
        Ok(client) => name = found.cluster(&config, client, this_node).await,
        Err(error) => found.lack(&format!(
            "the cluster's state, alerts, and the other node's logs: {error}"
        )),
    }
    let now = jiff::Timestamp::now();
    let target = target.unwrap_or_else(|| {
        PathBuf::from(format!(
            "kagami-logs-{name}-{}.tar",
            now.strftime("%Y%m%dT%H%M%SZ")
        ))
    });
    found.keep(
        "lacks.txt",
        found.lacks.iter().map(|lack| format!("{lack}\n")).collect(),
    );
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    archive::write(&target, &found.files, seconds).map_err(|error| {
        Failure::system(format!(
            "{}: not written: {error}\n  next: name a file that is not there, in a folder that this user may write",
            target.display()
        ))
    })?;
    let names: Vec<&str> = found.files.iter().map(|(name, _)| name.as_str()).collect();
    if json {
        print_json(&json!({"archive": target, "files": names, "lacks": found.lacks}))?;
    } else {
        let mut text = format!("{}: {} files\n", target.display(), names.len());
        for lack in &found.lacks {
            text.push_str(&format!("  without {}\n", lack.replace('\n', "\n  ")));
        }
        text.push_str("  look through it before it leaves the house: names and addresses are in it, keys and passwords are not\n");
        print_out(&text)?;
    }
    DONE
}

struct Found {
    /// Name in the archive, text without secrets.
    files: Vec<(String, String)>,
    /// What could not be had, and why.
    lacks: Vec<String>,
}

impl Found {
    fn keep(&mut self, name: &str, text: String) {
        self.files.push((name.to_owned(), text));
    }

    fn lack(&mut self, what: &str) {
        self.lacks.push(what.to_owned());
    }

    fn keep_all(&mut self, node: &str, files: Vec<LogFile>) {
        for one in files {
            let name = format!("{node}/{}", one.name);
            if one.cut {
                self.lack(&format!("the beginning of {name}: it is long"));
            }
            // It comes over the network: nothing of it may leave its folder.
            let safe: PathBuf = Path::new(&name)
                .components()
                .filter(|part| matches!(part, std::path::Component::Normal(_)))
                .collect();
            let safe = safe.display().to_string();
            match self.files.iter_mut().find(|(there, _)| *there == safe) {
                Some(there) => there.1 = logs::redact(&one.text),
                None => self.files.push((safe, logs::redact(&one.text))),
            }
        }
    }

    /// What needs no failover manager.
    async fn this_node(&mut self, context: &Context, config: &Config) {
        let node = &config.node.name;
        self.keep_all(node, logs::collect(&sources(&context.file, config)));
        self.keep(
            &format!("{node}/machine.txt"),
            format!("kagami {}\n{}\n", env!("CARGO_PKG_VERSION"), machine()),
        );
        let state = async {
            let mut client = crate::control::client::Client::connect(&config.node.control).await?;
            client.ask(DaemonAsk::Status).await
        };
        match state.await {
            Ok(DaemonAnswer::Status(report)) => match serde_json::to_string_pretty(&report) {
                Ok(text) => self.keep(&format!("{node}/mirrors.json"), text + "\n"),
                Err(error) => self.lack(&format!("the mirrors' state: {error}")),
            },
            Ok(other) => self.lack(&format!("the mirrors' state: {other:?}")),
            Err(error) => self.lack(&format!("the mirrors' state: {error}")),
        }
        for unit in UNITS {
            if let Some(text) = journal(unit) {
                self.keep(&format!("{node}/journal-{unit}.log"), logs::redact(&text));
            }
        }
    }

    /// What the failover managers know; the cluster's name.
    async fn cluster(&mut self, config: &Config, mut client: Client, this_node: bool) -> String {
        let report = match client.ask(Ask::Status).await {
            Ok(Answer::Cluster(report)) => report,
            Ok(other) => {
                self.lack(&format!(
                    "the cluster's state: {}",
                    unexpected(&other).words
                ));
                return "kagami".to_owned();
            }
            Err(error) => {
                self.lack(&format!("the cluster's state: {error}"));
                return "kagami".to_owned();
            }
        };
        match serde_json::to_string_pretty(&report) {
            Ok(text) => self.keep("cluster.json", text + "\n"),
            Err(error) => self.lack(&format!("the cluster's state: {error}")),
        }
        let alerts = Ask::Alerts {
            filter: AlertFilter::default(),
            reach: if this_node {
                Reach::Node
            } else {
                Reach::Cluster
            },
        };
        match self.ask(config, alerts).await {
            Ok(Answer::Alerts { alerts, missing }) => {
                let lines = alerts
                    .iter()
                    .filter_map(|alert| serde_json::to_string(alert).ok());
                let text: String = lines.map(|line| line + "\n").collect();
                self.keep("alerts.jsonl", logs::redact(&text));
                if let Some(missing) = missing {
                    self.lack(&format!("the other node's alerts: {missing}"));
                }
            }
            Ok(other) => self.lack(&format!("the alerts: {}", unexpected(&other).words)),
            Err(why) => self.lack(&format!("the alerts: {why}")),
        }
        for node in &report.nodes {
            if this_node && node.name != report.local {
                continue;
            }
            let ask = Ask::Logs {
                node: Some(node.name.clone()),
            };
            match self.ask(config, ask).await {
                Ok(Answer::Logs { files }) => self.keep_all(&node.name, files),
                Ok(other) => {
                    self.lack(&format!(
                        "the logs of {}: {}",
                        node.name,
                        unexpected(&other).words
                    ));
                }
                Err(why) => self.lack(&format!("the logs of {}: {why}", node.name)),
            }
        }
        report.cluster
    }

    /// A question of its own connection.
    async fn ask(&self, config: &Config, ask: Ask) -> Result<Answer, String> {
        let client = Client::connect(&super::socket(config)).await;
        let mut client = client.map_err(|error| error.to_string())?;
        client.ask(ask).await.map_err(|error| error.to_string())
    }
}

/// The files of a node that a person would ask for: what a failover manager hands out as its logs.
pub fn sources(configuration: &Path, config: &Config) -> Vec<(String, PathBuf)> {
    let mut all = vec![
        ("kagami.toml".to_owned(), configuration.to_owned()),
        ("cluster.toml".to_owned(), file(configuration)),
    ];
    all.extend(logs::below("state", &config.node.state_dir));
    all
}

fn machine() -> String {
    let uname = rustix::system::uname();
    let parts = [
        uname.sysname(),
        uname.nodename(),
        uname.release(),
        uname.version(),
        uname.machine(),
    ];
    let parts: Vec<_> = parts.iter().map(|part| part.to_string_lossy()).collect();
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    format!(
        "{}\nup {} s",
        parts.join(" "),
        uptime.split('.').next().unwrap_or_default()
    )
}

/// The last week of a unit; `None` where there is no journal, or nothing in it.
fn journal(unit: &str) -> Option<String> {
    let output = Command::new("journalctl")
        .args([
            "--no-pager",
            "--quiet",
            "--output=short-iso-precise",
            "--since=-7d",
            "--lines=20000",
        ])
        .arg(format!("--unit={unit}"))
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
