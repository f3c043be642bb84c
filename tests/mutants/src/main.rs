//! All mutants of a part of kagami in one build (mutant schemata), each switched on in a process of its own.
//!
//! cargo-mutants compiles for each mutant anew; here the compiler runs a few times for all of them. It still says what
//! the mutants are (its `--list --json`), and tries those that can't be switches. docs/mutants.md

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod compile;
mod list;
mod run;
mod schema;

use compile::Out;
use list::Mutant;
use run::{ALL, Results, Step, Trials, Verdict};

const USAGE: &str = "kagami-mutants FOLDER [--shard K/N] [--jobs J] [--seeds S] [--until STEP] [--again] [--only TEXT]
    [--profile P]

  FOLDER   has list.json; gets the copy and the results, and what it has is not tried again
  --until  the last step, such as directed; what all of them let through goes on there in a later run
  --again  tries once more what survived
  --only   of those whose name has TEXT
  --profile  of cargo: `dev` is built in less time, and tries take more (default: release)

From the root of the workspace. Status 1: some survived without a reason in tests/mutants/equivalent.txt.";

/// What is built for the mutants of each folder, and what tries them.
///
/// Few seeds first: they take a tenth of a second, the rest up to a minute.
const PARTS: &[Part] = &[
    Part {
        folder: "bitmap/src/",
        builds: &[
            &["-p", "kagami-bitmap"],
            &["-p", "kagami-tests", "--test", "seeds"],
        ],
        steps: &[
            Step {
                name: "3 seeds",
                seeds: Some(3),
                ..SEEDS
            },
            unit("unit tests", "bitmap", "lib", &[]),
            unit("log_places", "bitmap", "log_places", &[]),
            unit("pages", "bitmap", "pages", &[]),
            unit("format_doc", "bitmap", "format_doc", &[]),
            unit("growing", "bitmap", "growing", &[]),
            unit("damage", "bitmap", "damage", &[]),
            unit("bitmap_model", "bitmap", "bitmap_model", &[]),
            unit("log_crashes", "bitmap", "log_crashes", &[]),
            SEEDS,
        ],
    },
    Part {
        folder: "replicator/src/core/",
        builds: &[
            &[
                "-p",
                "kagami-replicator",
                "--lib",
                "--test",
                "decide_table",
                "--test",
                "replaced_peer",
            ],
            &["-p", "kagami-tests", "--lib", "--test", "seeds"],
        ],
        steps: &[
            Step {
                name: "3 seeds",
                seeds: Some(3),
                ..SEEDS
            },
            unit("decide_table", "replicator", "decide_table", &[]),
            unit("replaced_peer", "replicator", "replaced_peer", &[]),
            unit("unit tests", "replicator", "lib", &["core::"]),
            unit("directed", "tests", "lib", &["directed::"]),
            Step {
                name: "30 seeds",
                seeds: Some(30),
                ..SEEDS
            },
            SEEDS,
            Step {
                name: "seeds that once failed",
                package: "tests",
                program: "seeds",
                filters: &["what_was_broken_once_holds"],
                seeds: None,
            },
        ],
    },
];

const SEEDS: Step = Step {
    name: "seeds",
    package: "tests",
    program: "seeds",
    filters: &["the_first_seeds_hold"],
    seeds: Some(500),
};

const fn unit(
    name: &'static str,
    package: &'static str,
    program: &'static str,
    filters: &'static [&'static str],
) -> Step {
    Step {
        name,
        package,
        program,
        filters,
        seeds: None,
    }
}

/// What a folder's mutants are tried with.
struct Part {
    folder: &'static str,
    /// The arguments of each `cargo test --no-run`.
    builds: &'static [&'static [&'static str]],
    steps: &'static [Step],
}

struct Options {
    folder: PathBuf,
    shard: (usize, usize),
    jobs: usize,
    seeds: Option<u32>,
    until: Option<String>,
    again: bool,
    only: String,
    profile: String,
}

fn options(mut arguments: impl Iterator<Item = String>) -> Option<Options> {
    let mut options = Options {
        folder: PathBuf::from(arguments.next()?),
        shard: (0, 1),
        jobs: 1,
        seeds: None,
        until: None,
        again: false,
        only: String::new(),
        profile: "release".to_owned(),
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--shard" => {
                let (index, count) = arguments
                    .next()?
                    .split_once('/')
                    .map(|(k, n)| (k.parse(), n.parse()))?;
                options.shard = (index.ok()?, count.ok()?);
                if options.shard.0 >= options.shard.1 {
                    return None;
                }
            }
            "--jobs" => options.jobs = arguments.next()?.parse().ok().filter(|jobs| *jobs > 0)?,
            "--seeds" => options.seeds = Some(arguments.next()?.parse().ok()?),
            "--until" => options.until = Some(arguments.next()?),
            "--again" => options.again = true,
            "--only" => options.only = arguments.next()?,
            "--profile" => options.profile = arguments.next()?,
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let Some(options) = options(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match go(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kagami-mutants: {error}");
            ExitCode::from(2)
        }
    }
}

/// False: some survived without a reason.
fn go(options: &Options) -> Result<bool, String> {
    let root = std::env::current_dir().map_err(|e| format!("the working directory: {e}"))?;
    let folder = options
        .folder
        .canonicalize()
        .map_err(|e| format!("{}: {e}", options.folder.display()))?;
    let mutants = list::read(&read(&folder.join("list.json"))?)?;
    let reasons = reasons(&root.join("tests/mutants/equivalent.txt"))?;
    let part_of = |mutant: &Mutant| {
        PARTS
            .iter()
            .position(|part| mutant.file.starts_with(part.folder))
    };
    if let Some(mutant) = mutants.iter().find(|mutant| part_of(mutant).is_none()) {
        return Err(format!(
            "nothing is known to try this with: {}",
            mutant.name
        ));
    }
    let until = |part: usize| match &options.until {
        None => Some(PARTS[part].steps.len()),
        Some(last) => step_at(part, last).map(|at| at + 1),
    };
    let copy = folder.join("copy");
    let parts: BTreeSet<usize> = mutants.iter().filter_map(part_of).collect();
    let asked: BTreeSet<usize> = mutants
        .iter()
        .filter(|mutant| mutant.name.contains(&options.only))
        .filter_map(part_of)
        .collect();
    if let (Some(last), Some(part)) = (
        &options.until,
        asked.iter().find(|part| until(**part).is_none()),
    ) {
        let names: Vec<_> = PARTS[*part].steps.iter().map(|step| step.name).collect();
        return Err(format!("no step {last}; there are: {}", names.join(", ")));
    }
    let builds: Vec<_> = parts
        .iter()
        .flat_map(|part| PARTS[*part].builds)
        .copied()
        .collect();
    let known = out_before(&folder, &mutants)?;
    let built = compile::build(&root, &copy, &options.profile, &builds, &mutants, known)?;
    tell_out(&folder, &mutants, &built.out)?;

    let mut results = Results::open(&folder.join("results.tsv"))?;
    let of_shard: Vec<&Mutant> = mutants
        .iter()
        .filter(|mutant| mutant.number as usize % options.shard.1 == options.shard.0)
        .filter(|mutant| {
            !built.out.contains_key(&mutant.number) && mutant.name.contains(&options.only)
        })
        .collect();
    let to_try: Vec<&Mutant> = of_shard
        .iter()
        .copied()
        .filter(|mutant| {
            match results
                .have
                .get(&mutant.name)
                .map(|(verdict, step)| (*verdict, step.as_str()))
            {
                None => true,
                Some((Verdict::Survived, ALL)) => options.again,
                Some((Verdict::Survived, step)) => part_of(mutant)
                    .is_some_and(|part| step_at(part, step).map(|at| at + 1) < until(part)),
                Some(_) => false,
            }
        })
        .collect();
    eprintln!(
        "{} to try, {} have been",
        to_try.len(),
        of_shard.len() - to_try.len()
    );
    let mut unmet = Vec::new();
    for part in parts {
        let of_part: Vec<_> = to_try
            .iter()
            .copied()
            .filter(|mutant| part_of(mutant) == Some(part))
            .collect();
        if !of_part.is_empty() {
            let count = until(part).unwrap_or_default();
            let trials = Trials::measure(
                PARTS[part].steps,
                &built.programs,
                &copy,
                options.seeds,
                count,
            )?;
            unmet.extend(
                of_part
                    .iter()
                    .filter(|mutant| !trials.is_met(mutant.number))
                    .map(|mutant| format!("{}\n", mutant.name)),
            );
            results.go_on(&trials, &of_part, options.jobs)?;
        }
    }
    write(&folder.join("unmet.txt"), &unmet)?;
    tell(&folder, &of_shard, &results, &reasons)
}

/// Which of a part's steps has this name.
fn step_at(part: usize, name: &str) -> Option<usize> {
    PARTS[part].steps.iter().position(|step| step.name == name)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, lines: &[String]) -> Result<(), String> {
    fs::write(path, lines.concat()).map_err(|e| format!("{}: {e}", path.display()))
}

/// Why a mutant changes nothing that anybody could notice, by its lasting name. A line that begins with `#` is the reason of
/// those under it.
fn reasons(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = read(path)?;
    let mut reasons = BTreeMap::new();
    let mut reason = String::new();
    let mut after_reason = false;
    for line in text.lines().map(str::trim) {
        if let Some(more) = line.strip_prefix('#') {
            if !after_reason {
                reason.clear();
            }
            reason = format!("{reason} {}", more.trim()).trim().to_owned();
            after_reason = true;
        } else {
            after_reason = false;
            if !line.is_empty() && reasons.insert(line.to_owned(), reason.clone()).is_some() {
                return Err(format!("{}: twice: {line}", path.display()));
            }
        }
    }
    Ok(reasons)
}

/// What an earlier run found not to compile, so that it need not be found again.
fn out_before(folder: &Path, mutants: &[Mutant]) -> Result<BTreeMap<u32, Out>, String> {
    type Kind = fn(String) -> Out;
    let number: BTreeMap<&str, u32> = mutants
        .iter()
        .map(|mutant| (mutant.name.as_str(), mutant.number))
        .collect();
    let mut out = BTreeMap::new();
    let files: [(&str, Kind); 2] = [
        ("unviable.txt", Out::DoesNotCompile),
        ("alone-why.txt", Out::Alone),
    ];
    for (file, kind) in files {
        let path = folder.join(file);
        let text = if path.exists() {
            read(&path)?
        } else {
            String::new()
        };
        for (name, why) in text.lines().filter_map(|line| line.split_once('\t')) {
            out.extend(
                number
                    .get(name)
                    .map(|number| (*number, kind(why.to_owned()))),
            );
        }
    }
    Ok(out)
}

fn tell_out(folder: &Path, mutants: &[Mutant], out: &BTreeMap<u32, Out>) -> Result<(), String> {
    let mut does_not_compile = Vec::new();
    let mut alone = Vec::new();
    let mut alone_why = Vec::new();
    for mutant in mutants {
        match out.get(&mutant.number) {
            None => {}
            Some(Out::DoesNotCompile(why)) => {
                does_not_compile.push(format!("{}\t{why}\n", mutant.name))
            }
            Some(Out::Alone(why)) => {
                alone.push(format!("{}\n", mutant.name));
                alone_why.push(format!("{}\t{why}\n", mutant.name));
            }
        }
    }
    eprintln!(
        "{} mutants: {} do not compile (unviable.txt), {} have to be built alone (alone.txt)",
        mutants.len(),
        does_not_compile.len(),
        alone.len()
    );
    write(&folder.join("unviable.txt"), &does_not_compile)?;
    write(&folder.join("alone.txt"), &alone)?;
    write(&folder.join("alone-why.txt"), &alone_why)
}

fn tell(
    folder: &Path,
    mutants: &[&Mutant],
    results: &Results,
    reasons: &BTreeMap<String, String>,
) -> Result<bool, String> {
    let mut by_step: BTreeMap<&str, usize> = BTreeMap::new();
    let mut of_file: BTreeMap<&str, [usize; 5]> = BTreeMap::new();
    let (mut survived, mut so_far, mut timeout) = (Vec::new(), Vec::new(), Vec::new());
    let mut explained = 0;
    let mut caught_after_all = BTreeSet::new();
    for mutant in mutants {
        let Some((verdict, step)) = results.have.get(&mutant.name) else {
            continue;
        };
        let has_reason = reasons.contains_key(&mutant.lasting);
        let counts = of_file.entry(&mutant.file).or_default();
        match verdict {
            Verdict::Caught => {
                counts[0] += 1;
                *by_step.entry(step).or_default() += 1;
            }
            Verdict::Timeout => {
                counts[1] += 1;
                timeout.push(format!("{}\t{step}\n", mutant.name));
            }
            Verdict::Survived if has_reason => {
                counts[2] += 1;
                explained += 1;
            }
            Verdict::Survived if step != ALL => {
                counts[4] += 1;
                so_far.push(format!("{}\t{step}\n", mutant.name));
            }
            Verdict::Survived => {
                counts[3] += 1;
                survived.push(format!("{}\n", mutant.name));
            }
        }
        if has_reason && *verdict != Verdict::Survived {
            caught_after_all.insert(&mutant.lasting);
        }
    }
    for (step, count) in by_step {
        println!("caught by {step}: {count}");
    }
    println!("caught, out of time, survived with a reason, survived, let through so far:");
    for (file, [caught, timeout, explained, survived, so_far]) in of_file {
        println!("  {file}: {caught}, {timeout}, {explained}, {survived}, {so_far}");
    }
    for name in caught_after_all {
        println!("has a reason, and was caught: {name}");
    }
    println!(
        "{} out of time (timeout.txt), {explained} survived with a reason, {} without (survived.txt)",
        timeout.len(),
        survived.len()
    );
    if !so_far.is_empty() {
        println!(
            "{} let through so far (so-far.txt): steps are left",
            so_far.len()
        );
    }
    write(&folder.join("so-far.txt"), &so_far)?;
    write(&folder.join("timeout.txt"), &timeout)?;
    write(&folder.join("survived.txt"), &survived)?;
    for name in &survived {
        print!("{name}");
    }
    Ok(survived.is_empty())
}
