//! `kagami-model`: searches the protocol's model, plants mistakes in it, goes through the table.
//!
//! Exit status: 0 as it should be; 1 a broken promise, a search that is smaller than it was, or a planted mistake not caught;
//! 2 wrong usage.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anstream::println;
use clap::{Args, Parser, Subcommand, ValueEnum};
use kagami_tests::model::bounds::Bounds;
use kagami_tests::model::mistake::Mistake;
use kagami_tests::model::runs::{FULL, LONG, QUICK, Run};
use kagami_tests::model::search::{self, Found};
use kagami_tests::model::table;

/// Goes through every interleaving of two nodes, their link, their disks and the arbiter, within
/// bounds, and checks what docs/design.md promises in every state.
#[derive(Parser)]
#[command(
    name = "kagami-model",
    version,
    after_help = "Example: kagami-model check quick\n         kagami-model check --with served_target=1 --with writes=2 --with drops=2"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Search the runs of a profile, or one with bounds of your own, and print a table.
    #[command(after_help = keys())]
    Check(CheckArgs),
    /// Plant mistakes one at a time, and show the shortest trace to what each one breaks.
    Bugs(BugsArgs),
    /// Ask the core for its verdict over every pair of small copies.
    Table(TableArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum Profile {
    /// Seconds.
    Quick,
    /// About a minute.
    Full,
    /// Hours.
    Long,
}

#[derive(Args)]
struct CheckArgs {
    /// Which runs.
    #[arg(default_value = "full")]
    profile: Profile,
    /// One run with these bounds instead: KEY=VALUE, repeated or separated by spaces.
    #[arg(long, value_name = "KEY=VALUE")]
    with: Vec<String>,
    /// Only the runs whose words contain this.
    #[arg(long)]
    only: Option<String>,
    /// Cut a run of `--with` at so many states.
    #[arg(long, default_value_t = 20_000_000)]
    most: usize,
    /// Runs at a time; each takes one thread and up to 2 GiB.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// One JSON object for each run.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct BugsArgs {
    /// Only those whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// Cut each search at so many states.
    #[arg(long, default_value_t = 6_000_000)]
    most: usize,
    /// Searches at a time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// One JSON object for each mistake.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct TableArgs {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

fn keys() -> String {
    let mut lines = vec!["Bounds (default):".to_owned()];
    for (key, standard, what) in Bounds::keys() {
        lines.push(format!("  {key:<16} {standard:<8} {what}"));
    }
    lines.join("\n")
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let good = match cli.command {
        Command::Check(args) => check(&args),
        Command::Bugs(args) => bugs(&args),
        Command::Table(args) => show_table(&args),
    };
    match good {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(what) => {
            eprintln!("kagami-model: {what}");
            ExitCode::from(2)
        }
    }
}

/// Calls `work` for each index below `count`, on so many threads.
fn spread(count: usize, threads: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    work(index);
                }
            });
        }
    });
}

fn check(args: &CheckArgs) -> Result<bool, String> {
    let runs: Vec<(&str, Bounds, usize, Option<&Run>)> = if args.with.is_empty() {
        let list = match args.profile {
            Profile::Quick => QUICK,
            Profile::Full => FULL,
            Profile::Long => LONG,
        };
        list.iter()
            .filter(|run| {
                args.only
                    .as_ref()
                    .is_none_or(|only| run.about.contains(only.as_str()))
            })
            .map(|run| (run.about, run.parsed(), run.most, Some(run)))
            .collect()
    } else {
        let mut bounds = Bounds::default();
        for assignment in args.with.iter().flat_map(|text| text.split_whitespace()) {
            bounds.set(assignment)?;
        }
        vec![("your bounds", bounds, args.most, None)]
    };
    if runs.is_empty() {
        return Err("no run has these words; `kagami-model check` shows all".into());
    }
    if !args.json {
        println!(
            "{:<28} {:<9} {:>11} {:>6} {:>6}  bounds",
            "run", "outcome", "states", "depth", "s"
        );
    }
    let failed = AtomicUsize::new(0);
    let printing = Mutex::new(());
    spread(runs.len(), args.threads, |index| {
        let (about, bounds, most, run) = &runs[index];
        let found = search::run(bounds, *most);
        let far = run.map_or(Ok(()), |run| run.went_far_enough(&found));
        let good = found.violation.is_none() && far.is_ok();
        failed.fetch_add(usize::from(!good), Ordering::Relaxed);
        let shown = printing.lock();
        if args.json {
            println!("{}", json(about, bounds, &found));
        } else {
            println!(
                "{about:<28} {:<9} {:>11} {:>6} {:>6.1}  {bounds}",
                found.word(),
                found.states,
                found.depth,
                found.took.as_secs_f64()
            );
            tell(&found);
        }
        if let (Err(what), None) = (far, &found.violation) {
            eprintln!("{about}: {what}");
        }
        drop(shown);
    });
    Ok(failed.into_inner() == 0)
}

fn tell(found: &Found) {
    if let Some(violation) = &found.violation {
        println!("  {}", violation.what);
        println!("  {}", in_words(found));
    }
}

fn in_words(found: &Found) -> String {
    found
        .violation
        .as_ref()
        .map_or_else(String::new, |violation| {
            let steps: Vec<_> = violation.trace.iter().map(ToString::to_string).collect();
            format!("{} steps: {}", steps.len(), steps.join(", "))
        })
}

fn json(about: &str, bounds: &Bounds, found: &Found) -> serde_json::Value {
    serde_json::json!({
        "version": 1,
        "run": about,
        "bounds": bounds.to_string(),
        "outcome": found.word(),
        "states": found.states,
        "steps": found.steps,
        "depth": found.depth,
        "seconds": found.took.as_secs_f64(),
        "violation": found.violation.as_ref().map(|violation| serde_json::json!({
            "what": violation.what,
            "trace": violation.trace.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })),
    })
}

fn bugs(args: &BugsArgs) -> Result<bool, String> {
    let wanted: Vec<Mistake> = Mistake::ALL
        .iter()
        .copied()
        .filter(|mistake| *mistake != Mistake::None)
        .filter(|mistake| {
            args.only
                .as_ref()
                .is_none_or(|only| mistake.name().contains(only.as_str()))
        })
        .collect();
    if wanted.is_empty() {
        return Err("no mistake has such a name; `kagami-model bugs` shows all".into());
    }
    let wrong = AtomicUsize::new(0);
    let printing = Mutex::new(());
    spread(wanted.len(), args.threads, |index| {
        let mistake = wanted[index];
        let mut last = None;
        for text in mistake.bounds() {
            let bounds = Bounds {
                mistake,
                ..Bounds::of(text)
            };
            let found = search::run(&bounds, args.most);
            let caught = found.violation.is_some();
            last = Some((bounds, found));
            if caught {
                break;
            }
        }
        let Some((bounds, found)) = last else { return };
        let caught = found.violation.is_some();
        let as_told = caught != mistake.is_known_to_pass();
        wrong.fetch_add(usize::from(!as_told), Ordering::Relaxed);
        let word = match (caught, as_told) {
            (true, true) => "caught",
            (true, false) => "caught, though docs/model.md says it is not",
            (false, true) => "passes, as docs/model.md says",
            (false, false) => "NOT CAUGHT",
        };
        let shown = printing.lock();
        if args.json {
            let mut object = json(mistake.name(), &bounds, &found);
            object["caught"] = caught.into();
            object["what_is_wrong"] = mistake.what().into();
            println!("{object}");
        } else {
            println!("{}: {}", mistake.name(), mistake.what());
            println!(
                "  {word}; {} states, {:.1} s",
                found.states,
                found.took.as_secs_f64()
            );
            tell(&found);
        }
        drop(shown);
    });
    Ok(wrong.into_inner() == 0)
}

fn show_table(args: &TableArgs) -> Result<bool, String> {
    match table::check() {
        Ok((copies, counts)) => {
            if args.json {
                println!(
                    "{}",
                    serde_json::json!({ "version": 1, "copies": copies, "rows": counts })
                );
            } else {
                println!("{copies} copies");
                for (row, count) in counts {
                    println!("{count:>12}  {row}");
                }
            }
            Ok(true)
        }
        Err(what) => {
            println!("{what}");
            Ok(false)
        }
    }
}
