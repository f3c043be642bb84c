//! The mirrors' daemon, asked over its control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kagami_failover::config::resource::Driver;
use kagami_failover::core::Time;
use kagami_failover::place::{MirrorDevice, MirrorStatus, Pending};
use kagami_failover::right::basis::{Says, Standing};
use kagami_failover::right::{Mirrors, SAYS_EVERY, Word};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::sleep;

use crate::control::client::Client;
use crate::control::driver::{DeviceId, Driver as ByDriver};
use crate::control::message::{Answer, Ask, Order};
use crate::control::report::{Condition, Connection, Disk, RightReport, Standing as Told};

/// A daemon that is gone is looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The daemon that listens on this socket.
#[derive(Clone, Debug)]
pub struct Daemon {
    control: PathBuf,
}

impl Daemon {
    /// The one with this control socket.
    pub fn new(control: PathBuf) -> Self {
        Self { control }
    }

    async fn order(control: PathBuf, mirror: String, order: Order) -> Result<(), String> {
        let mut client = Client::connect(&control).await.map_err(words)?;
        let ask = Ask::Managed { mirror, order };
        match client.ask(ask).await.map_err(words)? {
            Answer::Done | Answer::Started | Answer::Nothing { .. } | Answer::Attached { .. } => {
                Ok(())
            }
            other => Err(refused(other)),
        }
    }
}

fn refused(answer: Answer) -> String {
    let Answer::Refused(refusal) = answer else {
        return format!("the daemon answered something else: {answer:?}");
    };
    let mut words = refusal.what;
    for fact in refusal.facts {
        words.push_str("; ");
        words.push_str(&fact);
    }
    words
}

/// The first line: what a person should do next is not the manager's affair.
fn words(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

impl Mirrors for Daemon {
    fn promote(
        &self,
        mirror: &str,
        fenced: bool,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let order = if fenced {
            Order::PromoteFenced
        } else {
            Order::Promote {
                force: false,
                while_resyncing: false,
            }
        };
        Self::order(self.control.clone(), mirror.to_owned(), order)
    }

    fn demote(
        &self,
        mirror: &str,
        force: bool,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let (control, mirror) = (self.control.clone(), mirror.to_owned());
        async move {
            let demote = || Self::order(control.clone(), mirror.clone(), Order::Demote { force });
            if demote().await.is_ok() {
                return Ok(());
            }
            // A daemon that was started again has taken its device back, and nothing of the group runs here. One that
            // somebody else uses is refused.
            let detach = Order::Detach { force: false };
            Self::order(control.clone(), mirror.clone(), detach).await?;
            demote().await
        }
    }

    fn watch(&self, mirrors: Vec<String>, take_in_hand: bool) -> UnboundedReceiver<Word> {
        let (told, words) = unbounded_channel();
        let control = self.control.clone();
        tokio::spawn(async move {
            while !told.is_closed() {
                listen(&control, &mirrors, take_in_hand, &told).await;
                let _ = told.send(Word::Gone);
                sleep(LOOK_EVERY).await;
            }
        });
        words
    }
}

/// Passes on what the daemon says until it is gone, or nobody listens.
async fn listen(
    control: &Path,
    mirrors: &[String],
    take_in_hand: bool,
    told: &UnboundedSender<Word>,
) {
    let Ok(mut client) = Client::connect(control).await else {
        return;
    };
    let ask = Ask::Rights {
        mirrors: mirrors.to_vec(),
        every_ms: u64::try_from(SAYS_EVERY.as_millis()).unwrap_or(u64::MAX),
        take_in_hand,
    };
    if client.send(ask).await.is_err() {
        return;
    }
    loop {
        let answer = tokio::select! {
            answer = client.next() => answer,
            () = told.closed() => return,
        };
        match answer {
            Ok(Some(Answer::Right(report))) => {
                let _ = told.send(Word::Says(says(report)));
            }
            Ok(Some(other)) => tracing::warn!("the daemon said something else: {other:?}"),
            Ok(None) => return,
            Err(error) => {
                tracing::debug!("the mirrors' daemon: {error}");
                return;
            }
        }
    }
}

fn says(report: RightReport) -> Says {
    let standing = match report.standing {
        Told::Secondary | Told::NotOpened => Standing::Secondary,
        Told::Session => Standing::Session(Time(report.lease_ends_ms.unwrap_or_default())),
        Told::Alone | Told::Free => Standing::Alone,
        Told::Sought => Standing::Sought,
        Told::Refused => Standing::Refused,
    };
    Says {
        mirror: report.mirror,
        standing,
        connected: report.connected,
        peer_is_primary: report.peer_is_primary,
        in_sync: report.in_sync,
        only_copy: report.only_copy,
        diskless: report.diskless,
        untrusted: report.untrusted,
        peer_lease_ends: Time(report.peer_lease_ends_ms),
    }
}

impl MirrorDevice for Daemon {
    fn attach<'a>(
        &'a self,
        mirror: &'a str,
        driver: Driver,
        device: Option<&'a Path>,
    ) -> Pending<'a, Result<PathBuf, String>> {
        Box::pin(async move {
            let by = match driver {
                Driver::Nbd => ByDriver::Nbd,
                Driver::Ublk => ByDriver::Ublk,
            };
            let device = match device {
                None => None,
                Some(path) => {
                    let text = path.display().to_string();
                    let id = DeviceId::parse(&text).filter(|id| id.driver == by);
                    let no_device = || format!("{text} is no device of {by}");
                    Some(id.ok_or_else(no_device)?.index)
                }
            };
            let mut client = Client::connect(&self.control).await.map_err(words)?;
            let ask = Ask::Managed {
                mirror: mirror.to_owned(),
                order: Order::Attach {
                    device,
                    // nbd is what every daemon takes where none is named.
                    driver: Some(by).filter(|by| !by.is_nbd()),
                },
            };
            match client.ask(ask).await.map_err(words)? {
                Answer::Attached { device, .. } => Ok(device.into()),
                other => Err(refused(other)),
            }
        })
    }

    fn detach<'a>(&'a self, mirror: &'a str) -> Pending<'a, Result<(), String>> {
        let order = Order::Detach { force: false };
        Box::pin(Self::order(self.control.clone(), mirror.to_owned(), order))
    }

    fn status<'a>(&'a self, mirror: &'a str) -> Pending<'a, Result<MirrorStatus, String>> {
        Box::pin(async move {
            let mut client = Client::connect(&self.control).await.map_err(words)?;
            let report = match client.ask(Ask::Status).await.map_err(words)? {
                Answer::Status(report) => report,
                other => return Err(refused(other)),
            };
            let found = report.mirrors.iter().find(|found| found.name == mirror);
            let found = found.ok_or_else(|| format!("the daemon has no mirror {mirror}"))?;
            let good = |disk: Disk| matches!(disk, Disk::UpToDate | Disk::Consistent);
            Ok(MirrorStatus {
                here_good: good(found.disk),
                there_good: found.peer.as_ref().is_some_and(|peer| good(peer.disk)),
                resynchronising: matches!(
                    found.condition,
                    Condition::Resynchronising | Condition::Paused | Condition::Meeting
                ),
                connected: found.connection == Connection::Connected,
                paused: found.condition == Condition::StandAlone,
                split_brain: found.condition == Condition::SplitBrain,
                device: found.device.as_ref().map(|device| (&device.path).into()),
                words: found.condition.to_string(),
            })
        })
    }
}
