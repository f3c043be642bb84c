//! The witness's registers on its disk: one file for each, replaced whole before any answer.
//!
//! ```text
//! STATE/lock                       held by the one witness that uses the folder
//! STATE/clients, STATE/forgotten   who may use it: clients.rs
//! STATE/registers/<32 hex>         a register, as `arbiter::kept` spells it
//! ```
//!
//! A change is written to a new file, synced, renamed
//! over the old one, and the folder is synced: a power cut leaves the old state or the new. A file
//! that can't be read whole is never taken for an empty register: that register is refused until a
//! person has looked (docs/arbiter.md), for a register that forgot whom it named would name both.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::RegisterId;
use super::clients::{self, Clients, make_folders, sync_folders, write_synced};
pub use super::clients::{enrol, enrolled, forget, is_forgotten};
use super::wire::{Content, MAX_MEMBERS, Op, Outcome, Reason, Request};
use crate::shell::arbiter::kept::{Kept, KeptFault, MAX_KEPT};
use crate::shell::arbiter::raw::{Judgement, judge};
use crate::shell::identity::Fingerprint;

/// Registers that a witness keeps at most: a bound on what enrolled nodes can make it store.
pub const MAX_REGISTERS: usize = 65_536;

/// Why a witness can't use its folder.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another witness runs on it.
    #[error(
        "{0} is in use by another witness: two would each grant what the other refuses; stop that one first"
    )]
    InUse(PathBuf),
    /// The system refused.
    #[error("{path}: {action}: {error}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
}

pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::Io {
        action,
        path,
        error,
    }
}

/// The registers and the enrolled keys of one witness; it blocks while the disk works.
#[derive(Debug)]
pub struct Store {
    state: PathBuf,
    clients: Clients,
    /// Registers whose file may not be what a reader sees: a sync failed after the rename.
    unsure: BTreeSet<RegisterId>,
    registers: usize,
    _lock: File,
}

impl Store {
    /// Opens the folder, and makes it where there is none. Keys that may use it are those in
    /// `configured` and those enrolled.
    ///
    /// # Errors
    ///
    /// Another witness has it, or the system refuses.
    pub fn open(
        state: &Path,
        configured: impl IntoIterator<Item = Fingerprint>,
    ) -> Result<Self, StoreError> {
        make_folders(state)?;
        let lock = state.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(at("open", &lock))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::InUse(state.to_owned())),
            other => other.map_err(|errno| at("lock", &lock)(errno.into()))?,
        }
        let folder = state.join("registers");
        let mut registers = 0;
        for entry in fs::read_dir(&folder).map_err(at("read the folder", &folder))? {
            let entry = entry.map_err(at("read the folder", &folder))?;
            if entry.file_name().to_string_lossy().ends_with(".new") {
                // Left by a crash before the rename: never answered for.
                fs::remove_file(entry.path()).map_err(at("remove", &entry.path()))?;
            } else {
                registers += 1;
            }
        }
        // The witness before may have died between a rename and the folder's sync: what is read from here on is
        // answered for, so it must not be what only memory has.
        sync_folders(state)?;
        Ok(Self {
            state: state.to_owned(),
            clients: Clients::of(state, configured),
            unsure: BTreeSet::new(),
            registers,
            _lock: file,
        })
    }

    /// Who may use it.
    pub(super) fn clients(&self) -> Clients {
        self.clients.clone()
    }

    /// Whether a key may use this witness at all.
    pub fn is_enrolled(&self, key: &Fingerprint) -> bool {
        self.clients.is_enrolled(key)
    }

    /// Whether a person took the key out: it is told so, and nothing else.
    pub fn is_forgotten(&self, key: &Fingerprint) -> bool {
        self.clients.is_forgotten(key)
    }

    /// Carries out one request of the holder of `asker`. A change is durable when this returns.
    pub fn answer(&mut self, asker: &Fingerprint, request: &Request) -> Outcome {
        if self.is_forgotten(asker) {
            return taken_out(asker);
        }
        if !self.is_enrolled(asker) {
            return refused(
                Reason::Stranger,
                format!("key {asker} is not enrolled at this witness"),
            );
        }
        // Also when it names its next key: the one before it could take it out with a next key of its own.
        if let Err(error) = clients::settle(&self.state, asker) {
            // Two keys of a node where one would do: nothing is wrong with the answer.
            tracing::error!(key = %asker, %error, "the key before this one could not be forgotten");
        }
        if let Op::Succeed { key } = &request.op {
            return self.succeed(asker, key);
        }
        let id = request.register;
        if self.unsure.contains(&id) {
            return refused(
                Reason::Storage,
                format!(
                    "a write of register {id} failed half-way; look at the witness's disk, then restart the witness"
                ),
            );
        }
        let stored = match self.read(id) {
            Ok(stored) => stored,
            Err(fault) => {
                let path = self.path(id);
                tracing::error!(register = %id, %fault, path = %path.display(), "register refused: its file is damaged");
                return refused(
                    Reason::Corrupt,
                    format!(
                        "register {id} can't be read on the witness ({}: {fault}): it is not used until somebody has looked; see docs/arbiter.md, \"a damaged register\"",
                        path.display()
                    ),
                );
            }
        };
        if let Some(stored) = &stored
            && !stored.members.contains(asker)
        {
            return refused(
                Reason::NotAMember,
                format!("register {id} belongs to other nodes"),
            );
        }
        match &request.op {
            Op::Read => Outcome::State(stored.map(|stored| stored.content)),
            Op::Swap {
                expect,
                instance,
                seq,
                bytes,
                members,
            } => {
                let new = Content {
                    instance: *instance,
                    seq: *seq,
                    nonce: request.nonce,
                    bytes: bytes.clone(),
                };
                self.swap(asker, id, stored, *expect, new, members)
            }
            Op::Bind { members } => self.bind(asker, id, stored, members),
            Op::Succeed { .. } => unreachable!("answered above"),
        }
    }

    /// Gives the place of `asker` to another key.
    fn succeed(&self, asker: &Fingerprint, key: &Fingerprint) -> Outcome {
        if self.is_enrolled(key) {
            return Outcome::Swapped;
        }
        if is_forgotten(&self.state, key) {
            let text = format!("key {key} was taken out of this witness");
            return refused(Reason::Invalid, text);
        }
        let mut done = clients::succeed(&self.state, asker, key, &asker.to_string());
        // Either this finds the asker taken out, or who does it finds the next key.
        let is_out = self.is_forgotten(asker);
        if is_out {
            done = done.and_then(|()| clients::withdraw(&self.state, key));
        }
        match done {
            Ok(()) if is_out => taken_out(asker),
            Ok(()) => {
                tracing::info!(key = %asker, next = %key, "a node's next key is enrolled");
                Outcome::Swapped
            }
            Err(error) => refused(Reason::Storage, error.to_string()),
        }
    }

    /// Binds a register to other keys; what it says stays.
    fn bind(
        &mut self,
        asker: &Fingerprint,
        id: RegisterId,
        stored: Option<Kept>,
        members: &[Fingerprint],
    ) -> Outcome {
        let Some(stored) = stored else {
            let text = format!("there is no register {id} yet");
            return refused(Reason::Invalid, text);
        };
        let members = match self.judge_members(asker, members) {
            Ok(members) => members,
            Err(refusal) => return refusal,
        };
        if members == stored.members {
            return Outcome::Swapped;
        }
        let content = stored.content;
        match self.write(id, &Kept { content, members }) {
            Ok(()) => {
                tracing::info!(register = %id, %asker, "register bound to other keys");
                Outcome::Swapped
            }
            Err(error) => {
                tracing::error!(register = %id, %error, "a register could not be written");
                refused(
                    Reason::Storage,
                    format!("the witness's disk failed: {error}"),
                )
            }
        }
    }

    fn swap(
        &mut self,
        asker: &Fingerprint,
        id: RegisterId,
        stored: Option<Kept>,
        expect: Option<(u64, u64)>,
        new: Content,
        members: &[Fingerprint],
    ) -> Outcome {
        match judge(stored.as_ref().map(|stored| &stored.content), expect, &new) {
            Judgement::Write => {}
            Judgement::Done => return Outcome::Swapped,
            Judgement::Other => return Outcome::State(stored.map(|stored| stored.content)),
            Judgement::Senseless(why) => return refused(Reason::Invalid, why),
        }
        let created = stored.is_none();
        let members = match stored {
            Some(stored) => stored.members,
            None => match self.members_of_new(asker, members) {
                Ok(members) => members,
                Err(refusal) => return refusal,
            },
        };
        match self.write(
            id,
            &Kept {
                content: new,
                members,
            },
        ) {
            Ok(()) => {
                self.registers += usize::from(created);
                Outcome::Swapped
            }
            Err(error) => {
                tracing::error!(register = %id, %error, "a register could not be written");
                refused(
                    Reason::Storage,
                    format!("the witness's disk failed: {error}"),
                )
            }
        }
    }

    /// Judges the keys that a new register is to be bound to.
    fn members_of_new(
        &self,
        asker: &Fingerprint,
        members: &[Fingerprint],
    ) -> Result<Vec<Fingerprint>, Outcome> {
        if self.registers >= MAX_REGISTERS {
            let text = format!("this witness has {MAX_REGISTERS} registers, and takes no more");
            return Err(refused(Reason::Full, text));
        }
        self.judge_members(asker, members)
    }

    /// The keys that a register may be bound to: the asker's and at least one other that is enrolled.
    fn judge_members(
        &self,
        asker: &Fingerprint,
        members: &[Fingerprint],
    ) -> Result<Vec<Fingerprint>, Outcome> {
        if !members.contains(asker) || members.len() > MAX_MEMBERS {
            let text = "a register must be bound to the node that asks, and to its peer".to_owned();
            return Err(refused(Reason::Invalid, text));
        }
        // One unknown key may be there: a node's next key, enrolled only when it is in use.
        let strangers: Vec<_> = members
            .iter()
            .filter(|key| !self.is_enrolled(key))
            .collect();
        if members.len() - strangers.len() < 2 {
            let names = strangers
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            let text = format!(
                "the peer is not enrolled at this witness yet (its key is {names}): enrol it, then go on"
            );
            return Err(refused(Reason::Stranger, text));
        }
        let unique: BTreeSet<_> = members.iter().copied().collect();
        Ok(unique.into_iter().collect())
    }

    fn path(&self, id: RegisterId) -> PathBuf {
        self.state.join("registers").join(id.to_string())
    }

    fn read(&self, id: RegisterId) -> Result<Option<Kept>, KeptFault> {
        let file = match File::open(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::with_capacity(512);
        file.take(MAX_KEPT as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > MAX_KEPT {
            return Err(KeptFault::Length(bytes.len()));
        }
        Kept::decode(id, &bytes).map(Some)
    }

    fn write(&mut self, id: RegisterId, stored: &Kept) -> io::Result<()> {
        let path = self.path(id);
        let new = path.with_extension("new");
        write_synced(&new, &stored.encode(id))?;
        fs::rename(&new, &path)?;
        // From here on a reader sees the new state; if it can't be made durable, nobody may.
        let folder = self.state.join("registers");
        if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
            self.unsure.insert(id);
            return Err(error);
        }
        Ok(())
    }
}

/// The answer to the holder of a key that a person took out.
fn taken_out(asker: &Fingerprint) -> Outcome {
    let text = format!(
        "key {asker} was taken out of this witness: its node has no register here any more"
    );
    refused(Reason::NotAMember, text)
}

fn refused(reason: Reason, text: String) -> Outcome {
    Outcome::Refused(reason, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A person takes the node out after it was looked whether one has, and before its next key is written.
    #[test]
    fn a_node_that_is_taken_out_as_it_names_its_next_key_is_out() {
        let folder = tempfile::tempdir().expect("tempdir");
        let (old, new) = ([1; 32], [2; 32]);
        let (old, new) = (Fingerprint::from_bytes(old), Fingerprint::from_bytes(new));
        enrol(folder.path(), &old, "alpha").expect("enrol");
        let store = Store::open(folder.path(), []).expect("store");
        forget(folder.path(), "alpha", &[]).expect("forget");
        let outcome = store.succeed(&old, &new);
        assert!(
            matches!(outcome, Outcome::Refused(Reason::NotAMember, _)),
            "{outcome:?}"
        );
        assert!(!store.is_enrolled(&new));
    }
}
