//! Commands to the failover manager of this node, which speaks for both.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kagami_failover::control::{Answer, Ask, Client, ClientError, ClusterReport, Order};

use super::{Context, block_on, confirm, print_dry_run, print_json, print_out, within};
use crate::args::ClusterVerb;
use crate::config::Config;
use crate::exit::{Failure, Outcome, Status};

pub mod alerts;
mod archive;
pub mod check;
pub mod demo;
pub mod end;
pub mod group;
pub mod logs;
pub mod monitor;
pub mod push;
pub mod status;
pub mod suspend;

/// `kagami cluster`
///
/// # Errors
/// What the command says when it did not do what was asked.
pub fn run(context: &Context, verb: ClusterVerb) -> Outcome {
    match verb {
        ClusterVerb::Status(args) => block_on(status::run(context, &args)),
        ClusterVerb::Check {
            file,
            file_only,
            json,
        } => check::run(context, file.as_deref(), file_only, json),
        ClusterVerb::Push {
            file,
            force,
            dry_run,
            json,
        } => block_on(push::run(context, &file, force, dry_run, json)),
        ClusterVerb::Suspend(args) => {
            block_on(suspend::run(context, true, args.json, args.timeout))
        }
        ClusterVerb::Resume(args) => {
            block_on(suspend::run(context, false, args.json, args.timeout))
        }
        ClusterVerb::Stop(args) => block_on(end::cluster(context, end::Kind::Stop, &args)),
        ClusterVerb::Shutdown(args) => block_on(end::cluster(context, end::Kind::Shutdown, &args)),
        ClusterVerb::Reboot(args) => block_on(end::cluster(context, end::Kind::Reboot, &args)),
        ClusterVerb::Demo(args) => demo::run(&args),
        ClusterVerb::DemoService(args) => demo::records::run(&args.file, args.listen),
    }
}

/// A failover manager answers within, where nobody has said how long it may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The control socket of the failover manager that runs by this configuration.
pub fn socket(config: &Config) -> PathBuf {
    config.node.run_dir.join("failover.sock")
}

/// Its configuration: beside the node's own.
pub fn file(configuration: &Path) -> PathBuf {
    configuration.with_file_name("cluster.toml")
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(Status::NoDaemon, error.to_string())
    }
}

impl Context {
    /// A connection to the failover manager.
    ///
    /// # Errors
    /// There is none.
    pub async fn manager(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&socket(&self.config()?)).await?)
    }

    /// The cluster's state, now.
    ///
    /// # Errors
    /// There is no failover manager, or it does not answer within [`PATIENCE`].
    pub async fn cluster(&self) -> Result<ClusterReport, Failure> {
        self.cluster_within(PATIENCE).await
    }

    /// The same within `limit`.
    ///
    /// # Errors
    /// There is no failover manager, or it does not answer in time.
    pub async fn cluster_within(&self, limit: Duration) -> Result<ClusterReport, Failure> {
        let next = "next: `systemctl status kagami-failover`, `journalctl -u kagami-failover`";
        let answer = within(
            Some(limit),
            || {
                let limit = humantime::format_duration(limit);
                format!("the failover manager has not answered within {limit}\n  {next}")
            },
            || format!("interrupted before the failover manager answered\n  {next}"),
            self.ask(Ask::Status),
        );
        match answer.await? {
            Answer::Cluster(report) => Ok(*report),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, Failure> {
        Ok(self.manager().await?.ask(ask).await?)
    }

    /// Gives an order to a node, this one where none is named; it is recorded when this returns. `object` is what
    /// messages begin with.
    ///
    /// # Errors
    /// Refused, or not taken within `limit`; there is no failover manager; the other node has not got it, and this one
    /// carries it out.
    pub async fn order(
        &self,
        object: &str,
        node: Option<String>,
        order: Order,
        limit: Duration,
    ) -> Result<(), Failure> {
        let lacking = self.order_here(object, node, order, limit).await?;
        lacking.map_or(Ok(()), Err)
    }

    /// The same, and what there is to say where only this node has got it.
    ///
    /// # Errors
    /// Refused, or not taken within `limit`; there is no failover manager.
    pub async fn order_here(
        &self,
        object: &str,
        node: Option<String>,
        order: Order,
        limit: Duration,
    ) -> Result<Option<Failure>, Failure> {
        match self.put(object, node, order, limit).await? {
            Answer::Done => Ok(None),
            Answer::DoneHere { without, why } => Ok(Some(Failure::system(format!(
                "{object}: ordered on this node; node {without} has not said that it knows of it: {why}\n  next: give the same order on node {without}, if it runs: until then it may take over what stops here"
            )))),
            other => Err(unexpected(&other)),
        }
    }

    /// The answer to an order, whatever it is.
    ///
    /// # Errors
    /// There is none within `limit`; there is no failover manager.
    async fn put(
        &self,
        object: &str,
        node: Option<String>,
        order: Order,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let look = "whether it is carried out is not known: it counts once the failover manager has written it to its disk\n  next: `kagami cluster status` shows what is under way; where the order was not taken, `kagami alerts` may tell what is wrong with the disk";
        within(
            Some(limit),
            || {
                format!(
                    "{object}: the order was not taken within {}; {look}",
                    humantime::format_duration(limit)
                )
            },
            || format!("{object}: interrupted before the order was taken; {look}"),
            self.ask(Ask::Order { node, order }),
        )
        .await
    }
}

/// A refusal, or an answer that this question can't have.
pub fn unexpected(answer: &Answer) -> Failure {
    match answer {
        Answer::Refused(refused) if refused.unknown => {
            Failure::new(Status::TimedOut, refused.words())
        }
        Answer::Refused(refused) => Failure::refused(refused.words()),
        other => {
            let error = ClientError::NotUnderstood {
                why: format!("its answer belongs to another question: {other:?}"),
            };
            error.into()
        }
    }
}

/// The node of that name.
///
/// # Errors
/// It is none of the cluster's.
pub fn known_node(report: &ClusterReport, name: &str) -> Result<(), Failure> {
    let names = report.nodes.iter().map(|node| node.name.as_str());
    known("node", name, names)
}

fn known<'a>(
    kind: &str,
    name: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), Failure> {
    if names.clone().any(|known| known == name) {
        return Ok(());
    }
    let next = kagami_failover::config::fault::choose(name, names);
    Err(Failure::refused(format!(
        "there is no {kind} {name}\n  next: {next}"
    )))
}
