//! Does the simulator find bugs? Defects are planted one at a time, and each has to be caught.
//!
//! A defect is a wrong line behind a switch (`kagami_bitmap::planted`). Seeds run from 0 on, of
//! the general mix or of the profile that is made for what the defect breaks, until one shows a
//! violation; a defect that none shows within the bound is a hole in the simulator, and the exit
//! status says so.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anstream::{eprintln, println};
use kagami_bitmap::planted::Defect;

use super::check::Violation;
use super::profile::Profile;
use super::replay::Trace;
use super::run_profile;

/// What is asked for.
#[derive(Debug)]
pub struct Wanted {
    /// Only those whose names contain this.
    pub only: Option<String>,
    /// Only those that are caught quickly: what every test run does.
    pub quick: bool,
    /// Seeds that a defect may take at most.
    pub seeds: u64,
    /// Threads.
    pub threads: usize,
    /// The form of the results.
    pub form: Form,
}

/// The form of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A line for each defect, as it is found.
    Lines,
    /// One JSON object for each, as it is found.
    Json,
    /// The table of docs/simulation.md, in the order of the catalogue.
    Markdown,
}

/// What became of a defect.
#[derive(Debug)]
struct Found {
    defect: Defect,
    /// The seed that caught it, and how.
    caught: Option<(u64, Violation)>,
    /// A seed that shows a violation without it, too.
    fails_without: Option<(u64, Violation)>,
    took: Duration,
}

#[cfg(planted)]
fn plant(defect: Option<Defect>) {
    kagami_bitmap::planted::plant(defect);
}

#[cfg(not(planted))]
fn plant(_: Option<Defect>) {}

/// The runs that are to catch it: made for what it breaks, where the general mix seldom has that.
fn profile(defect: Defect) -> Profile {
    use Defect as D;
    match defect {
        D::NoWaitForTheLease | D::ReadWithoutLease | D::ReadCheckedTooEarly => Profile::LeaseRace,
        D::MintAtLinkLoss
        | D::FormerPrimaryNeedNotAsk
        | D::GrantIgnoresCopies
        | D::LateAnswerAccepted
        | D::AttemptSurvivesHandshake
        | D::NamedAlreadyNoMint
        | D::EmptyRegisterGrants => Profile::LateAnswers,
        D::EarlyWritesForgotten | D::AheadForgotten => Profile::EarlyAnswers,
        D::GrantKeepsWasPrimary | D::GrantOutlivesItsSession | D::DemotedUnflushed => {
            Profile::HandOver
        }
        D::CoolsUnflushed | D::CoolsUnwritten | D::PageOfTheFuture => Profile::Cooling,
        D::LeaveBeforeOutdated => Profile::CleanLeave,
        D::AllMarkedForgottenEarly | D::AllMarkedNotWritten => Profile::Invalidated,
        D::AlwaysMarks | D::LoserByMarks | D::BadAheadWins => Profile::OldCopies,
        D::NoFreezeAtTheEnd => Profile::BusyEnd,
        D::NotNamedGoesOn => Profile::Forced,
        D::WordForEver | D::WordTurnedRound | D::WordOverAPrimary => Profile::Words,
        D::GuestOutlivesAPrimary | D::GuestWritesUnmarked => Profile::Guests,
        D::FullCopyDetached => Profile::FullStores,
        D::AckOverdueIgnored => Profile::Hanging,
        D::HangKeepsToken | D::DoubtedCopyCompared | D::BootNamedInSyncAlone => Profile::Unheard,
        D::BadBlockRefused | D::RepairOutlivesTheRole | D::RepairOutlivesTheVerification => {
            Profile::BadBlocks
        }
        D::AnswerCountsAsRead | D::SpentAccountHoldsUpOthers | D::FirstWaiterAloneIsWoken => {
            Profile::Mirrors
        }
        D::FlushWithoutACopy
        | D::CarriedOutlivesAPrimary
        | D::CarrierPromotedBesideThePrimary
        | D::ReadDiesWithTheDisk => Profile::Carried,
        _ => Profile::General,
    }
}

/// Those that every test run plants: of each part some, caught within few seeds.
const QUICK: &[Defect] = &[
    Defect::ClearOnAcknowledgement,
    Defect::FlushCoversUnderWay,
    Defect::SkipActivityLog,
    Defect::EqualNothingToDo,
    Defect::CrashedPrimaryIsSource,
    Defect::InconsistentMayAsk,
    Defect::ReadWithoutLease,
    Defect::DemotedUnflushed,
    Defect::CoolsUnwritten,
    Defect::PageOfTheFuture,
    Defect::GrantKeepsWasPrimary,
    Defect::GrantOutlivesItsSession,
    Defect::AllMarkedForgottenEarly,
    Defect::AlwaysMarks,
    Defect::LeaveBeforeOutdated,
    Defect::NotNamedGoesOn,
];

/// Plants each defect and tells what caught it. Exit status: 0 all were caught, 1 some were not,
/// 2 there is nothing to plant.
pub fn run(wanted: &Wanted) -> u8 {
    if !cfg!(planted) {
        eprintln!("this build has no defects to plant: use `./do planted`");
        return 2;
    }
    let all = if wanted.quick { QUICK } else { Defect::ALL };
    let is_wanted = |defect: &Defect| {
        let only = wanted.only.as_ref();
        only.is_none_or(|only| defect.name().contains(only.as_str()))
    };
    let chosen: Vec<Defect> = all.iter().copied().filter(is_wanted).collect();
    if chosen.is_empty() {
        eprintln!("no defect has a name like that");
        return 2;
    }
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..wanted.threads.max(1) {
            scope.spawn(|| {
                while let Some(defect) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = hunt(*defect, wanted.seeds);
                    match wanted.form {
                        Form::Lines => tell(&one, wanted.seeds),
                        Form::Json => tell_json(&one, wanted.seeds),
                        Form::Markdown => {}
                    }
                    if let Ok(mut found) = found.lock() {
                        found.push(one);
                    }
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_default();
    let caught = found.iter().filter(|one| one.caught.is_some()).count();
    match wanted.form {
        Form::Lines => println!(
            "{} defects planted, {caught} caught, {} missed",
            chosen.len(),
            chosen.len() - caught
        ),
        Form::Json => {}
        Form::Markdown => table(&chosen, &found),
    }
    u8::from(caught < chosen.len())
}

fn hunt(defect: Defect, seeds: u64) -> Found {
    let began = Instant::now();
    let profile = profile(defect);
    let hunted = hunt_with(seeds, |defective, seed| {
        plant(defective.then_some(defect));
        let violation = run_profile(profile, seed, Trace::off()).violation;
        plant(None);
        violation
    });
    let (caught, fails_without) = match hunted {
        Hunted::Caught(seed, violation) => (Some((seed, violation)), None),
        Hunted::FailsWithout(seed, violation) => (None, Some((seed, violation))),
        Hunted::Missed => (None, None),
    };
    Found {
        defect,
        caught,
        fails_without,
        took: began.elapsed(),
    }
}

/// What a hunt comes to.
#[derive(Debug, PartialEq, Eq)]
enum Hunted {
    /// By this seed, which shows nothing without the defect.
    Caught(u64, Violation),
    /// This seed shows a violation, and another one without the defect: it says nothing of it.
    FailsWithout(u64, Violation),
    Missed,
}

/// Runs seeds with the defect until one shows a violation, and that one without it.
fn hunt_with(seeds: u64, mut run: impl FnMut(bool, u64) -> Option<Violation>) -> Hunted {
    let caught = (0..seeds).find_map(|seed| Some((seed, run(true, seed)?)));
    match caught {
        None => Hunted::Missed,
        Some((seed, violation)) => match run(false, seed) {
            None => Hunted::Caught(seed, violation),
            Some(without) => Hunted::FailsWithout(seed, without),
        },
    }
}

fn tell_json(found: &Found, seeds: u64) {
    let (defect, caught) = (found.defect, found.caught.as_ref());
    println!(
        "{}",
        serde_json::json!({
            "version": 1,
            "defect": defect.name(),
            "what": defect.what(),
            "profile": profile(defect).name(),
            "caught_by": caught.map(|(_, violation)| &violation.invariant),
            "seeds": caught.map_or(seeds, |(seed, _)| seed + 1),
            "seconds": found.took.as_secs_f64(),
        })
    );
}

fn tell(found: &Found, seeds: u64) {
    let (defect, runs) = (found.defect, profile(found.defect).name());
    if let Some((seed, violation)) = &found.fails_without {
        let name = defect.name();
        println!("{name:<26} NOT CAUGHT: seed {seed} of {runs} fails without it: {violation}");
        return;
    }
    match &found.caught {
        Some((seed, violation)) => {
            let (count, name) = (seed + 1, &violation.invariant);
            println!(
                "{:<26} {name:<24} {count:>5} seeds of {runs}: {}",
                defect.name(),
                defect.what()
            );
        }
        None => println!(
            "{:<26} NOT CAUGHT in {seeds} seeds of {runs} ({:.0} s): {}",
            defect.name(),
            found.took.as_secs_f64(),
            defect.what()
        ),
    }
}

fn table(chosen: &[Defect], found: &[Found]) {
    println!("| defect | what is wrong | caught by | seeds | of |");
    println!("|---|---|---|---|---|");
    for defect in chosen {
        let one = found.iter().find(|one| one.defect == *defect);
        let caught = one.and_then(|one| one.caught.as_ref());
        let (name, seeds) = match caught {
            Some((seed, violation)) => (violation.invariant.as_str(), (seed + 1).to_string()),
            None => ("**not caught**", "-".to_owned()),
        };
        println!(
            "| {} | {} | {name} | {seeds} | {} |",
            defect.name(),
            defect.what(),
            profile(*defect).name()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(what: &str) -> Violation {
        Violation::new("Test", what)
    }

    #[test]
    fn a_seed_that_fails_without_the_defect_catches_nothing() {
        let always = |_, seed| (seed == 3).then(|| violation("always"));
        assert_eq!(
            hunt_with(9, always),
            Hunted::FailsWithout(3, violation("always"))
        );
        let by_it = |defective, seed| (defective && seed == 3).then(|| violation("by it"));
        assert_eq!(hunt_with(9, by_it), Hunted::Caught(3, violation("by it")));
        assert_eq!(hunt_with(3, by_it), Hunted::Missed);
    }
}
