//! The demonstration: what a mirror is for, shown on real files, each claim proved or the whole fails.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use super::archive::{self, Index};
use super::fault::DemoError;
use super::load::{Found, Journal, Load};
use super::node::wait_until;
use super::scratch::{MIRROR, PATIENCE, Scratch, Wanted, in_sync};
use super::tell::{Teller, bytes, seconds};
use crate::commands::bench::client::Client;
use crate::control::report::{Condition, MirrorReport, Role};
use crate::render::{Look, units};

const MIB: u64 = 1 << 20;
/// The device.
pub const SIZE: u64 = 512 * MIB;
/// The files of the first steps, and those written while one node is dead.
const FIRST: Range<u64> = 0..128 * MIB;
const SECOND: Range<u64> = 128 * MIB..256 * MIB;
/// Where the write load writes.
const LOADED: Range<u64> = 256 * MIB..320 * MIB;
const FIRST_FILES: u64 = 48 * MIB;
const SECOND_FILES: u64 = 72 * MIB;
/// A client's longest wait for the mirror: takeovers are far shorter.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes sent for each byte marked: what a resynchronisation may cost at most.
const LARGEST_RATIO: f64 = 1.05;

/// One showing.
pub struct Story<'a> {
    tell: &'a mut Teller,
    look: Look,
    pair: Scratch,
    files: usize,
    first: Index,
    second: Index,
    journal: Journal,
}

/// What a resynchronisation moved, seen from its source.
struct Resynced {
    marked: u64,
    sent: u64,
    equal: u64,
    time: Duration,
}

impl<'a> Story<'a> {
    /// Makes the pair and tells the whole story.
    ///
    /// # Errors
    /// Something did not come to its end; a claim that does not hold is told by the teller alone.
    pub fn show(tell: &'a mut Teller, look: Look, wanted: &Wanted) -> Result<(), DemoError> {
        tell.title("kagami: a mirror disk in userspace, shown on this machine");
        tell.say(&format!(
            "Two nodes and a witness are about to start, as processes of this very program that talk over \
             the loopback network; files in {} are their disks. Nothing needs root, and all of it is gone \
             at the end.",
            wanted.folder.display()
        ));
        tell.step("Two nodes become a mirror");
        tell.say(
            "alpha makes its copy, a one-line token brings beta to it, and another one lets both ask a \
             witness, which decides who may go on alone when they lose sight of each other:",
        );
        let pair = Scratch::make(wanted, &mut |who, what| tell.command(who, what))?;
        let mut story = Self {
            tell,
            look,
            pair,
            files: 0,
            first: Index::default(),
            second: Index::default(),
            journal: Journal::default(),
        };
        story.meet()?;
        story.store_files()?;
        story.lose_the_secondary()?;
        story.bring_it_back()?;
        story.lose_the_primary()?;
        story.read_everything_back()?;
        story.bring_the_old_primary_back()?;
        story.compare_the_disks()?;
        story.tell.step("In short");
        Ok(())
    }

    fn alpha_client(&self) -> Result<Client, DemoError> {
        Ok(Client::connect(
            &Scratch::socket(&self.pair.alpha)?,
            MIRROR,
            CLIENT_PATIENCE,
        )?)
    }

    fn beta_client(&self) -> Result<Client, DemoError> {
        Ok(Client::connect(
            &Scratch::socket(&self.pair.beta)?,
            MIRROR,
            CLIENT_PATIENCE,
        )?)
    }

    fn meet(&mut self) -> Result<(), DemoError> {
        let began = Instant::now();
        self.pair
            .alpha
            .wait(MIRROR, "beta to be met", PATIENCE, |state| {
                state.condition == Condition::InSync || in_sync(state)
            })?;
        self.tell.say(&format!(
            "They have met, {} after the second daemon was started. Both stores read as zeroes, so there \
             is nothing to copy.",
            seconds(began.elapsed())
        ));
        self.tell
            .command("alpha", &format!("kagami promote {MIRROR}"));
        self.pair.alpha.run(&["promote", MIRROR])?;
        self.pair.wait_in_sync(PATIENCE)?;
        self.tell.command("alpha", "kagami status");
        let screen = self.pair.alpha.screen(&self.look)?;
        self.tell.quote(&screen);
        Ok(())
    }

    fn store_files(&mut self) -> Result<(), DemoError> {
        self.tell.step("Real files go on the mirror");
        let files = archive::find(FIRST_FILES, 0)?;
        self.files = files.len();
        let began = Instant::now();
        let mut client = self.alpha_client()?;
        self.first = archive::store(&mut client, &files, FIRST.start, FIRST.end)?;
        let time = began.elapsed();
        client.disconnect();
        let state = self.pair.alpha.mirror(MIRROR)?;
        let (count, size) = (self.first.files.len(), self.first.bytes());
        self.tell.say(&format!(
            "{} files of this machine ({}), each with its name and SHA-256, were written through NBD to \
             alpha in {}, and flushed: every answer meant that the block was on both disks.",
            units::count(count as u64),
            units::size(size),
            seconds(time),
        ));
        let ratio =
            state.counters.replicated_bytes as f64 / state.counters.write_bytes.max(1) as f64;
        self.tell.say(&format!(
            "alpha sent {} to beta for {} that were written.",
            units::size(state.counters.replicated_bytes),
            units::size(state.counters.write_bytes)
        ));
        self.tell.remember(
            "files stored on both nodes",
            units::size(size),
            &format!(
                "{} files at {}, {ratio:.2} bytes sent for each byte written",
                units::count(count as u64),
                units::rate(size as f64 / time.as_secs_f64())
            ),
        );
        Ok(())
    }

    fn start_load(&mut self, socket: &Path) -> Result<Load, DemoError> {
        let journal = std::mem::take(&mut self.journal);
        let load = Load::start(socket, MIRROR, LOADED, CLIENT_PATIENCE, journal);
        wait_until("the application", "its first flushes", PATIENCE, || {
            (load.progress().flushes() >= 8 || load.has_ended()).then_some(())
        })?;
        Ok(load)
    }

    fn lose_the_secondary(&mut self) -> Result<(), DemoError> {
        self.tell.step("The Secondary dies");
        let socket = Scratch::socket(&self.pair.alpha)?;
        let load = self.start_load(&socket)?;
        let (writes, id) = (
            load.progress().writes(),
            self.pair.beta.daemon_id().unwrap_or(0),
        );
        self.tell.say(&format!(
            "An application writes to the mirror all the time now ({} writes so far). In the middle of it \
             beta's daemon gets SIGKILL:",
            units::count(writes)
        ));
        self.tell.command("beta", &format!("kill -9 {id}"));
        let killed = Instant::now();
        self.pair.beta.kill()?;
        let state =
            self.pair
                .alpha
                .wait(MIRROR, "permission to go on alone", PATIENCE, |state| {
                    state.condition == Condition::Alone
                })?;
        let alone = killed.elapsed();
        let flushes = load.progress().flushes();
        wait_until(
            "the application",
            "flushes after the loss",
            PATIENCE,
            || (load.progress().flushes() >= flushes + 8 || load.has_ended()).then_some(()),
        )?;
        let longest = load.progress().longest_wait();
        // Other files, where this machine has so many.
        let files =
            archive::find(SECOND_FILES, self.files).or_else(|_| archive::find(SECOND_FILES, 0))?;
        let mut client = self.alpha_client()?;
        self.second = archive::store(&mut client, &files, SECOND.start, SECOND.end)?;
        client.disconnect();
        let (writes_after, (journal, fault)) = (load.progress().writes(), load.stop());
        self.journal = journal;
        let by = state
            .alone
            .as_ref()
            .and_then(|alone| alone.by.clone())
            .unwrap_or_else(|| "nobody".to_owned());
        self.tell.say(&format!(
            "After {} alpha noticed, asked and went on alone, in a generation of its own, with permission \
             from: {by}. The application saw no error: one of its writes took {}, and {} writes later it \
             still runs. Another {} files ({}) went on the mirror meanwhile.",
            seconds(alone),
            seconds(longest),
            units::count(writes_after - writes),
            units::count(self.second.files.len() as u64),
            units::size(self.second.bytes())
        ));
        self.tell.command("alpha", "kagami status");
        let screen = self.pair.alpha.screen(&self.look)?;
        self.tell.quote(&screen);
        self.tell.prove(
            fault.is_none(),
            &match &fault {
                None => "no write failed when the Secondary died".to_owned(),
                Some(fault) => format!("no write fails when the Secondary dies: {fault}"),
            },
        );
        self.tell.prove(
            by.contains("arbiter"),
            "alpha goes on only because the witness said so",
        );
        self.tell.remember(
            "Secondary killed",
            seconds(longest),
            "longest wait of the application, no errors",
        );
        Ok(())
    }

    fn bring_it_back(&mut self) -> Result<(), DemoError> {
        self.tell.step("The Secondary comes back");
        let marked = self.pair.alpha.mirror(MIRROR)?.marked_bytes;
        self.tell.say(&format!(
            "alpha has marked the {} that beta lacks, of {}. beta starts again, and nothing else is done:",
            units::size(marked),
            units::size(SIZE)
        ));
        self.tell.command("beta", "kagami up");
        let before = self.pair.alpha.mirror(MIRROR)?.counters;
        let began = Instant::now();
        self.pair.beta.start(&["up"])?;
        let moved =
            self.watch_resync(true, began, before.resync_bytes, before.resync_equal_bytes)?;
        self.tell_resync("the Secondary's resync", &moved);
        Ok(())
    }

    /// Watches the source of a resynchronisation until both are in sync, and quotes its progress.
    fn watch_resync(
        &mut self,
        alpha_is_source: bool,
        began: Instant,
        sent_before: u64,
        equal_before: u64,
    ) -> Result<Resynced, DemoError> {
        let (tell, pair) = (&mut *self.tell, &mut self.pair);
        let source = if alpha_is_source {
            &mut pair.alpha
        } else {
            &mut pair.beta
        };
        let name = source.name().to_owned();
        let (mut marked, mut shown, mut first_seen) = (0, None, None);
        let state = source.wait(
            MIRROR,
            "the resynchronisation to end",
            2 * PATIENCE,
            |state| {
                if let Some(progress) = &state.progress {
                    marked = marked.max(progress.total_bytes);
                    first_seen.get_or_insert_with(Instant::now);
                    let quarter = progress.done_bytes * 4 / progress.total_bytes.max(1);
                    if shown != Some(quarter) {
                        shown = Some(quarter);
                        tell.quote(&progress_line(state));
                    }
                } else if state.condition != Condition::InSync {
                    marked = marked.max(state.marked_bytes);
                }
                in_sync(state)
            },
        )?;
        let time = began.elapsed();
        if let Some(first_seen) = first_seen {
            let sent = state.counters.resync_bytes - sent_before;
            let words = format!(
                "resync  done: {} of marked blocks handled, {} sent, in {}",
                units::size(marked),
                units::size(sent),
                seconds(first_seen.elapsed())
            );
            tell.quote(&words);
        }
        self.pair.wait_in_sync(PATIENCE)?;
        self.tell.command(&name, "kagami status");
        let screen = if alpha_is_source {
            self.pair.alpha.screen(&self.look)?
        } else {
            self.pair.beta.screen(&self.look)?
        };
        self.tell.quote(&screen);
        Ok(Resynced {
            marked,
            sent: state.counters.resync_bytes - sent_before,
            equal: state.counters.resync_equal_bytes - equal_before,
            time,
        })
    }

    fn tell_resync(&mut self, what: &str, moved: &Resynced) {
        let ratio = moved.sent as f64 / moved.marked.max(1) as f64;
        self.tell.prove(
            moved.marked > 0 && moved.sent > 0 && ratio <= LARGEST_RATIO,
            &format!(
                "only marked blocks were sent: {} of {} marked, {ratio:.3} bytes for each; the mirror has {}",
                bytes(moved.sent),
                units::size(moved.marked),
                units::size(SIZE)
            ),
        );
        let equal = match moved.equal {
            0 => String::new(),
            equal => format!(", {} equal and not sent", units::size(equal)),
        };
        self.tell.remember(
            what,
            units::size(moved.sent),
            &format!(
                "{} marked (ratio {ratio:.3}){equal}, in sync {} after the start",
                units::size(moved.marked),
                seconds(moved.time)
            ),
        );
    }

    fn lose_the_primary(&mut self) -> Result<(), DemoError> {
        self.tell.step("The Primary dies");
        let socket = Scratch::socket(&self.pair.alpha)?;
        let load = self.start_load(&socket)?;
        let (writes, id) = (
            load.progress().writes(),
            self.pair.alpha.daemon_id().unwrap_or(0),
        );
        self.tell.say(&format!(
            "The application writes again, flushes now and then, and notes what a flush has promised it. \
             After {} writes and {} flushes alpha gets SIGKILL:",
            units::count(writes),
            units::count(load.progress().flushes())
        ));
        self.tell.command("alpha", &format!("kill -9 {id}"));
        let killed = Instant::now();
        self.pair.alpha.kill()?;
        let (journal, fault) = load.stop();
        self.journal = journal;
        assert!(fault.is_some(), "a load that outlives its mirror's daemon");
        self.tell.say(
            "beta waits until alpha can no longer be answering anybody (its lease), asks the witness, and \
             becomes Primary:",
        );
        self.tell
            .command("beta", &format!("kagami promote {MIRROR}"));
        // Refused while alpha may still be serving: a failover manager would ask again, and so do we.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let printed = self.pair.beta.try_run(&["promote", MIRROR])?;
            if printed.success {
                break;
            }
            if printed.code != Some(1) || Instant::now() > deadline {
                return Err(DemoError::Command {
                    who: "beta".to_owned(),
                    command: format!("promote {MIRROR}"),
                    end: printed.end,
                    words: printed.err,
                });
            }
        }
        let mut client = self.beta_client()?;
        let mut first = vec![0; 4096];
        client.read(0, &mut first)?;
        let takeover = killed.elapsed();
        client.disconnect();
        self.pair
            .beta
            .wait(MIRROR, "beta to serve", PATIENCE, |state| {
                state.role == Role::Primary
            })?;
        self.tell.command("beta", "kagami status");
        let screen = self.pair.beta.screen(&self.look)?;
        self.tell.quote(&screen);
        self.tell.say(&format!(
            "{} after alpha's death beta answers its first read.",
            seconds(takeover)
        ));
        self.tell.remember(
            "Primary killed",
            seconds(takeover),
            "until the other node served",
        );
        Ok(())
    }

    fn read_everything_back(&mut self) -> Result<(), DemoError> {
        self.tell
            .step("Everything is read back from the other node");
        let mut client = self.beta_client()?;
        for (base, index, when) in [
            (FIRST.start, &self.first, "written before any fault"),
            (SECOND.start, &self.second, "written while alpha was alone"),
        ] {
            let (found, checked) = archive::check(&mut client, base)?;
            let mut words = format!(
                "{} of {} files {when} are the same on beta, byte for byte (SHA-256, {})",
                units::count(checked.good as u64),
                units::count(index.files.len() as u64),
                units::size(checked.bytes)
            );
            if let Some(bad) = checked.bad.first() {
                let _ = write!(words, "; {} is not", bad.display());
            }
            self.tell
                .prove(found == *index && checked.bad.is_empty(), &words);
        }
        let found = self.journal.check(&mut client)?;
        client.disconnect();
        self.tell_found(&found);
        let files = self.first.files.len() + self.second.files.len();
        self.tell.remember(
            "read back after the takeover",
            units::size(self.first.bytes() + self.second.bytes()),
            &format!(
                "{} files, and {} blocks that were flushed; {} of these not right",
                units::count(files as u64),
                units::count(found.promised as u64),
                found.broken.len()
            ),
        );
        Ok(())
    }

    fn tell_found(&mut self, found: &Found) {
        let newer = match found.newer {
            0 => "no other write came between".to_owned(),
            newer => format!(
                "{} newer ones that were on their way are there whole",
                units::count(newer as u64)
            ),
        };
        let mut words = format!(
            "each of {} blocks that a flush had promised is there; {newer}",
            units::count(found.promised as u64),
        );
        if let Some(broken) = found.broken.first() {
            words = format!(
                "{words}: {} blocks are not right, such as {broken}",
                found.broken.len()
            );
        }
        self.tell
            .prove(found.promised > 0 && found.broken.is_empty(), &words);
    }

    fn bring_the_old_primary_back(&mut self) -> Result<(), DemoError> {
        self.tell.step("The old Primary comes back");
        let socket = Scratch::socket(&self.pair.beta)?;
        let load = self.start_load(&socket)?;
        let (journal, fault) = load.stop();
        self.journal = journal;
        self.tell
            .prove(fault.is_none(), "beta takes writes meanwhile");
        self.tell.say(
            "Where alpha was cut off it may hold writes that nobody was promised. Its own log names the regions, \
             4 MiB each, that it was writing to; these and what beta has marked are compared by checksum, and \
             only what differs is sent.",
        );
        self.tell.command("alpha", "kagami up");
        let before = self.pair.beta.mirror(MIRROR)?.counters;
        let began = Instant::now();
        self.pair.alpha.start(&["up"])?;
        let moved =
            self.watch_resync(false, began, before.resync_bytes, before.resync_equal_bytes)?;
        self.tell_resync("the old Primary's resync", &moved);
        Ok(())
    }

    fn compare_the_disks(&mut self) -> Result<(), DemoError> {
        self.tell.step("Both disks are compared, byte for byte");
        let mut client = self.beta_client()?;
        let found = self.journal.check(&mut client)?;
        client.disconnect();
        self.tell_found(&found);
        self.tell
            .say("Both daemons stop cleanly, the Primary first, and their files are compared:");
        let files = (
            Scratch::backing(&self.pair.alpha)?,
            Scratch::backing(&self.pair.beta)?,
        );
        for node in [&mut self.pair.beta, &mut self.pair.alpha] {
            self.tell.command(node.name(), "kagami down");
            node.run(&["down"])?;
            node.stop(PATIENCE)?;
        }
        let difference = self.pair.first_difference()?;
        self.tell.command(
            "here",
            &format!("cmp {} {}", files.0.display(), files.1.display()),
        );
        self.tell.prove(
            difference.is_none(),
            &match difference {
                None => format!("all {} of both copies are the same", bytes(SIZE)),
                Some(at) => format!("both copies are the same: they differ at byte {at}"),
            },
        );
        let words = difference.map_or_else(
            || "not one byte differs".to_owned(),
            |at| format!("differ at byte {at}"),
        );
        self.tell
            .remember("both disks compared", units::size(SIZE), &words);
        Ok(())
    }
}

/// The line of `kagami status` that shows how a resynchronisation goes.
fn progress_line(state: &MirrorReport) -> String {
    let Some(progress) = &state.progress else {
        return String::new();
    };
    format!(
        "resync  {} of {} marked   {}",
        units::percent(progress.done_bytes, progress.total_bytes),
        units::size(progress.total_bytes),
        units::rate(progress.rate as f64)
    )
}
