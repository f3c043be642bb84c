//! Each mutant in processes of its own: one test program after the other until one fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::list::Mutant;

/// What a process may have: a mutant that only allocates is to die of it, not the machine.
const MEMORY_KIB: u64 = 4 << 20;

/// One test program, or some of its tests.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What it is called in the results.
    pub name: &'static str,
    /// The folder of its package.
    pub package: &'static str,
    /// The test program; `lib` for the library's unit tests.
    pub program: &'static str,
    /// Which of its tests.
    pub filters: &'static [&'static str],
    /// For the simulator: how many seeds.
    pub seeds: Option<u32>,
}

/// How a mutant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A test failed.
    Caught,
    /// A test did not end.
    Timeout,
    /// No test noticed.
    Survived,
}

impl Verdict {
    /// As the results have it.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Caught => "caught",
            Verdict::Timeout => "timeout",
            Verdict::Survived => "survived",
        }
    }

    /// The other way round.
    pub fn of(word: &str) -> Option<Verdict> {
        [Verdict::Caught, Verdict::Timeout, Verdict::Survived]
            .into_iter()
            .find(|verdict| verdict.word() == word)
    }
}

/// The test programs with how long they may take.
pub struct Trials {
    steps: Vec<Ready>,
    copy: PathBuf,
    seeds: Option<u32>,
    /// What a mutant that all of these let through has in the results.
    last: &'static str,
}

/// A step that was run without a mutant.
struct Ready {
    step: Step,
    program: PathBuf,
    limit: Duration,
    /// The mutants whose place it comes to. Another one it can't notice.
    meets: BTreeSet<u32>,
}

/// The step of a mutant that all of them let through.
pub const ALL: &str = "-";

impl Trials {
    /// Runs each step without a mutant, which it has to pass, to know how long it takes and which mutants it meets.
    /// The first `count` of them.
    pub fn measure(
        steps: &[Step],
        programs: &BTreeMap<(String, String), PathBuf>,
        copy: &Path,
        seeds: Option<u32>,
        count: usize,
    ) -> Result<Trials, String> {
        let met = copy.with_extension("met");
        let mut trials = Trials {
            steps: Vec::new(),
            copy: copy.to_owned(),
            seeds,
            last: steps[..count].last().map_or(ALL, |last| last.name),
        };
        if count == steps.len() {
            trials.last = ALL;
        }
        for step in &steps[..count] {
            let key = (step.package.to_owned(), step.program.to_owned());
            let program = programs
                .get(&key)
                .ok_or_else(|| format!("{key:?} has not been built"))?;
            std::fs::write(&met, "").map_err(|e| format!("{}: {e}", met.display()))?;
            let began = Instant::now();
            let verdict = trials.run(step, program, 0, Duration::from_mins(10), Some(&met))?;
            let took = began.elapsed();
            if verdict != Verdict::Survived {
                return Err(format!("{} fails without a mutant", step.name));
            }
            // What loops is told from what has to share its processors.
            let limit = Duration::from_secs(5) + took * 8;
            let meets: BTreeSet<u32> = std::fs::read_to_string(&met)
                .map_err(|e| format!("{}: {e}", met.display()))?
                .lines()
                .filter_map(|number| number.parse().ok())
                .collect();
            eprintln!(
                "{}: {:.2} s, at most {} s; meets {}",
                step.name,
                took.as_secs_f64(),
                limit.as_secs(),
                meets.len()
            );
            trials.steps.push(Ready {
                step: *step,
                program: program.clone(),
                limit,
                meets,
            });
        }
        Ok(trials)
    }

    /// Whether any step comes to the mutant's place.
    pub fn is_met(&self, number: u32) -> bool {
        self.steps.iter().any(|ready| ready.meets.contains(&number))
    }

    /// Tries one mutant with the steps behind the one named `after`, or with all. Gives the step that noticed it, or the last
    /// one that let it through.
    pub fn try_one(
        &self,
        number: u32,
        after: Option<&str>,
    ) -> Result<(Verdict, &'static str), String> {
        let done = self
            .steps
            .iter()
            .position(|ready| Some(ready.step.name) == after);
        for ready in &self.steps[done.map_or(0, |done| done + 1)..] {
            if !ready.meets.contains(&number) {
                continue;
            }
            let verdict = self.run(&ready.step, &ready.program, number, ready.limit, None)?;
            if verdict != Verdict::Survived {
                return Ok((verdict, ready.step.name));
            }
        }
        Ok((Verdict::Survived, self.last))
    }

    fn run(
        &self,
        step: &Step,
        program: &Path,
        number: u32,
        limit: Duration,
        met: Option<&Path>,
    ) -> Result<Verdict, String> {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                &format!("ulimit -v {MEMORY_KIB}; ulimit -c 0; exec \"$@\""),
                "sh",
            ])
            .arg(program)
            .args(["--test-threads", "1"])
            .args(step.filters)
            .current_dir(self.copy.join(step.package))
            .env("KAGAMI_MUTANT", number.to_string())
            // What a mutant breaks is no example to keep.
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(met) = met {
            command.env("KAGAMI_MUTANTS_MET", met);
        }
        if let Some(seeds) = step.seeds {
            let seeds = self.seeds.filter(|_| seeds >= 100).unwrap_or(seeds);
            command.env("KAGAMI_SEEDS", seeds.to_string());
        }
        let failed = |e: io::Error| format!("{}: {e}", program.display());
        let mut child = command.spawn().map_err(failed)?;
        let (tell, told) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            // The other tests need not run when one has failed.
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
                let failed =
                    lines.any(|line| line.starts_with("test ") && line.ends_with("... FAILED"));
                // Nobody listens once the time is over.
                tell.send(failed).ok();
            });
        }
        let has_failed = told.recv_timeout(limit);
        if has_failed != Ok(false) {
            child.kill().map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        Ok(match has_failed {
            Ok(false) if status.success() => Verdict::Survived,
            Ok(_) => Verdict::Caught,
            Err(_) => Verdict::Timeout,
        })
    }
}

/// The results so far: a line for each mutant that was tried, `verdict  step  milliseconds  name`.
pub struct Results {
    file: Mutex<File>,
    /// By name.
    pub have: BTreeMap<String, (Verdict, String)>,
}

impl Results {
    /// Opens them, or begins.
    pub fn open(path: &Path) -> Result<Results, String> {
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        let text = if path.exists() {
            std::fs::read_to_string(path).map_err(failed)?
        } else {
            String::new()
        };
        let mut have = BTreeMap::new();
        for line in text.lines() {
            let fields: Vec<_> = line.split('\t').collect();
            if let [verdict, step, _, name] = fields[..]
                && let Some(verdict) = Verdict::of(verdict)
            {
                // One that was tried again has its last result.
                have.insert(name.to_owned(), (verdict, step.to_owned()));
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(failed)?;
        Ok(Results {
            file: Mutex::new(file),
            have,
        })
    }

    /// Tries these, `jobs` at a time.
    pub fn go_on(
        &mut self,
        trials: &Trials,
        mutants: &[&Mutant],
        jobs: usize,
    ) -> Result<(), String> {
        let have = self.have.clone();
        let queue = Mutex::new(mutants.iter());
        let done = Mutex::new(Vec::new());
        let began = Instant::now();
        let file = &self.file;
        let worker = || -> Result<(), String> {
            loop {
                let next = queue.lock().map_err(|e| e.to_string())?.next();
                let Some(mutant) = next else {
                    return Ok(());
                };
                let after = have.get(&mutant.name).map(|(_, step)| step.as_str());
                let began_this = Instant::now();
                let (verdict, step) = trials.try_one(mutant.number, after)?;
                let line = format!(
                    "{}\t{step}\t{}\t{}\n",
                    verdict.word(),
                    began_this.elapsed().as_millis(),
                    mutant.name
                );
                file.lock()
                    .map_err(|e| e.to_string())?
                    .write_all(line.as_bytes())
                    .map_err(|e| format!("the results: {e}"))?;
                if verdict != Verdict::Caught {
                    eprintln!("{}: {} ({step})", verdict.word(), mutant.name);
                }
                let mut done = done.lock().map_err(|e| e.to_string())?;
                done.push((mutant.name.clone(), (verdict, step.to_owned())));
                if done.len().is_multiple_of(100) {
                    eprintln!(
                        "{} of {} after {} s",
                        done.len(),
                        mutants.len(),
                        began.elapsed().as_secs()
                    );
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err("a worker panicked".to_owned()))
            })
        })?;
        self.have
            .extend(done.into_inner().map_err(|e| e.to_string())?);
        Ok(())
    }
}
