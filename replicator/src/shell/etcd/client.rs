//! Asking an etcd: its endpoints, the one that answers, and a register's questions.
//!
//! The endpoints are members of one cluster, so whichever answers will do. They are tried side by side, each
//! a little after the one before, and the first that answers is used until it fails. A question that got no
//! answer from an endpoint of long standing is put again to all: that is safe, since the same swap twice is
//! one swap. After the time-out the outcome is unknown, and said to be.

use std::cell::RefCell;
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::EtcdConfig;
use super::question::{self, Fault, Question};
use crate::shell::arbiter::raw::{Answering, Content, NoAnswer, RawRegister, RegisterId, Swap};
use crate::shell::race;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// No endpoint is configured.
    #[error("it has no endpoint: give `endpoints` in its [arbiter] section")]
    NoEndpoint,
    /// Each endpoint failed; a change's outcome is unknown.
    #[error("{}", .0.iter().map(|(endpoint, why)| format!("{endpoint}: {why}")).collect::<Vec<_>>().join("; "))]
    NotReached(Vec<(String, String)>),
    /// etcd answered, and the register can't be used.
    #[error("{0}")]
    Unusable(String),
}

/// An etcd as one thread sees it; the mirrors of the thread share it.
pub struct Remote {
    config: Arc<EtcdConfig>,
    /// What answered last.
    standing: RefCell<Option<etcd_client::Client>>,
}

impl Remote {
    /// Says where an etcd is; nothing is dialled before the first question.
    pub fn new(config: EtcdConfig) -> Rc<Self> {
        Rc::new(Self {
            config: Arc::new(config),
            standing: RefCell::default(),
        })
    }

    /// Puts a question and waits for its answer, by any endpoint. Safe to drop at any await.
    async fn exchange(&self, question: Question) -> Result<Swap, EtcdError> {
        let whole = self.config.timeout;
        let start = Instant::now();
        let standing = self.standing.borrow().clone();
        if let Some(client) = standing {
            // Half of the time is left for the other endpoints, and for a new connection or login.
            let asked = question::put(&client, &self.config.prefix, &question);
            match timeout_at(start + whole / 2, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Fault::Register(why))) => return Err(EtcdError::Unusable(why)),
                Ok(Err(Fault::Endpoint(_))) | Err(_) => drop(self.standing.borrow_mut().take()),
            }
        }
        if self.config.endpoints.is_empty() {
            return Err(EtcdError::NoEndpoint);
        }
        let question = Arc::new(question);
        let ask = |endpoint: &String| {
            let (config, question) = (Arc::clone(&self.config), Arc::clone(&question));
            let endpoint = endpoint.clone();
            async move {
                let client = question::connect(&config, &endpoint)
                    .await
                    .map_err(|fault| fault.to_string())?;
                match question::put(&client, &config.prefix, &question).await {
                    Ok(answer) => Ok((client, Ok(answer))),
                    Err(Fault::Register(why)) => Ok((client, Err(EtcdError::Unusable(why)))),
                    Err(Fault::Endpoint(why)) => Err(why),
                }
            }
        };
        let (client, answer) = race::first(&self.config.endpoints, start + whole, ask)
            .await
            .map_err(EtcdError::NotReached)?;
        *self.standing.borrow_mut() = Some(client);
        answer
    }

    /// Proves that this node may write below the prefix, and that there is room: writes a key that is no
    /// register's, and takes it away.
    ///
    /// # Errors
    /// No endpoint lets it; each with why.
    pub async fn prove_writing(&self) -> Result<(), EtcdError> {
        if self.config.endpoints.is_empty() {
            return Err(EtcdError::NoEndpoint);
        }
        let prove = |endpoint: &String| {
            let (config, endpoint) = (Arc::clone(&self.config), endpoint.clone());
            async move {
                let client = question::connect(&config, &endpoint).await;
                let client = client.map_err(|fault| fault.to_string())?;
                let proved = question::prove_writing(&client, &config.prefix).await;
                proved.map_err(|fault| fault.to_string())
            }
        };
        race::first(
            &self.config.endpoints,
            Instant::now() + self.config.timeout,
            prove,
        )
        .await
        .map_err(EtcdError::NotReached)
    }

    /// Where it is, and by what it lets this node in.
    pub fn config(&self) -> &EtcdConfig {
        &self.config
    }
}

/// One register in etcd.
pub struct Client {
    remote: Rc<Remote>,
    register: RegisterId,
}

impl Client {
    /// The register of the mirror or group `register`.
    pub fn new(remote: Rc<Remote>, register: RegisterId) -> Rc<Self> {
        Rc::new(Self { remote, register })
    }

    async fn put(&self, change: Option<(Option<(u64, u64)>, Content)>) -> Result<Swap, NoAnswer> {
        let question = Question {
            register: self.register,
            change,
        };
        self.remote
            .exchange(question)
            .await
            .map_err(|error| self.nothing(error))
    }

    fn nothing(&self, why: impl Display) -> NoAnswer {
        NoAnswer::Unreachable(format!("etcd {}: {why}", self.remote.config.name))
    }
}

impl RawRegister for Client {
    fn read(&self) -> Answering<'_, Option<Content>> {
        Box::pin(async move {
            match self.put(None).await? {
                Swap::Other(content) => Ok(content),
                Swap::Done => Err(self.nothing("a read that changed something")),
            }
        })
    }

    fn swap(&self, expect: Option<(u64, u64)>, new: Content) -> Answering<'_, Swap> {
        Box::pin(self.put(Some((expect, new))))
    }

    fn describe(&self) -> String {
        let config = &self.remote.config;
        format!("etcd {} ({})", config.name, config.endpoints.join(", "))
    }
}
