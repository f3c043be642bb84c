//! The names under which scripts and people know the commands of CLUSTERPRO: the same binary, called
//! through a link of that name, or as `kagami clp NAME …`.
//!
//! What they print and how they end is as that product's public manuals have it, as far as scripts go
//! by it: the layout of clpstat, 0 or not. Each maps to a command of kagami's own.

use std::ffi::OsString;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::{fs, io};

use crate::commands::Context;
use crate::config::places::Places;
use crate::exit::{DONE, Failure, Outcome};

mod arm;
mod cluster;
mod configuration;
mod group;
mod layout;
mod log;
mod mirror;
mod options;
mod stat;

/// All names, with what each is for: a line of its help.
pub const NAMES: &[(&str, &str)] = &[
    (
        "clpstat",
        "[-s|-g|-m|-n|-i] [--cl] [--sv|--hb|--svg|--grp|--rsc|--mon [NAME]] [--local] [--long] [-h HOST]",
    ),
    (
        "clpgrp",
        "-s|-t|-m|-n [GROUP] [-a NODE] [-h HOST] [--apito SECONDS]",
    ),
    (
        "clpcl",
        "-s|-t [-a] [-h HOST] [-w SECONDS] | -r [-h HOST] [-w SECONDS] | --suspend | --resume",
    ),
    ("clpdown", "[-r] [-h HOST]"),
    ("clpstdn", "[-r] [-h HOST]"),
    (
        "clpmdctrl",
        "-a|-d|-b|-f|-r|-c NAME | --rwait NAME [-timeout SECONDS]",
    ),
    ("clpmdstat", "-m NAME | -l"),
    (
        "clpcfctrl",
        "--push [-x FOLDER] [--force] | --pull [-x FOLDER]",
    ),
    ("clplogcc", "[-o FOLDER] [-l]"),
    ("clplogcmd", "-m TEXT [-i ID] [-l ERR|WARN|INFO]"),
    ("ARMBCAST", "/MSG TEXT [/A]"),
    ("ARMLOG", "TEXT"),
    ("ARMSLEEP", "SECONDS"),
    (
        "ARMLOAD",
        "ID [/M] [/U USER] [/R N [/H HOURS]] [/WINDOW hide] PROGRAM [ARGUMENT…]",
    ),
    ("ARMLOADC", "ID /W PAUSE|CONTINUE"),
    ("ARMKILL", "ID [/C] [/T SECONDS]"),
    ("ARMRSP", "/A /PL ADDRESS…"),
];

/// The name by which this process was called, if it is one of these.
pub fn called(argument: Option<OsString>) -> Option<&'static str> {
    let argument = argument?;
    let name = Path::new(&argument).file_name()?.to_str()?;
    find(name)
}

fn find(name: &str) -> Option<&'static str> {
    NAMES
        .iter()
        .map(|(known, _)| *known)
        .find(|known| *known == name)
}

/// What this process does that was called by one of these names.
///
/// # Errors
/// See [`run`].
pub fn main(name: &str) -> Outcome {
    let arguments = std::env::args_os().skip(1).map(OsString::into_string);
    let arguments = arguments
        .collect::<Result<Vec<String>, _>>()
        .map_err(|bad| misused(name, format!("{} is no text in UTF-8", bad.display())))?;
    let configuration = std::env::var_os("KAGAMI_CONFIG").map(std::path::PathBuf::from);
    run(name, &arguments, configuration.as_deref())
}

/// Makes a folder in which every one of these names is a link to `program`: scripts find it first in
/// their PATH. What is there under such a name is replaced.
///
/// # Errors
/// The folder or a link can't be made.
pub fn make_links(folder: &Path, program: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, _) in NAMES {
        let link = folder.join(name);
        if fs::read_link(&link).is_ok_and(|there| there == program) {
            continue;
        }
        // In one step: a script may be looking for it just now.
        let new = folder.join(format!(".{name}"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(program, &new)?,
        }
        fs::rename(&new, &link)?;
    }
    Ok(())
}

/// `kagami clp links FOLDER`: the links, for people's own PATH and for packages.
fn links(arguments: &[String]) -> Outcome {
    let [folder] = arguments else {
        return Err(Failure::usage(
            "links: name one folder\n  next: kagami clp links /usr/local/sbin",
        ));
    };
    let program = crate::program()?;
    make_links(Path::new(folder), &program).map_err(|error| {
        Failure::system(format!(
            "{folder}: {error}\n  next: name a folder that this user may write"
        ))
    })?;
    DONE
}

/// Runs a command of that name.
///
/// # Errors
/// It did not do what was asked: any status but 0.
pub fn run(name: &str, arguments: &[String], configuration: Option<&Path>) -> Outcome {
    if name == "links" {
        return links(arguments);
    }
    let name = find(name).ok_or_else(|| {
        let names = NAMES.iter().map(|(name, _)| *name);
        let next = kagami_failover::config::fault::choose(name, names);
        Failure::usage(format!("there is no command {name}\n  next: {next}"))
    })?;
    if matches!(arguments.first().map(String::as_str), Some("--help" | "/?")) {
        return crate::commands::print_out(&format!("usage: {}\n", usage(name))).and(DONE);
    }
    let places = Places::of_this_process();
    let context = Context {
        file: places.config_file(configuration),
        places,
    };
    let context = &context;
    let end = match name {
        "clpstat" => wait(stat::run(context, arguments)),
        "clpgrp" => wait(group::run(context, arguments)),
        "clpcl" => wait(cluster::clpcl(context, arguments)),
        "clpdown" => wait(cluster::clpdown(context, arguments)),
        "clpstdn" => wait(cluster::clpstdn(context, arguments)),
        "clpmdctrl" => wait(mirror::clpmdctrl(context, arguments)),
        "clpmdstat" => wait(mirror::clpmdstat(context, arguments)),
        "clpcfctrl" => wait(configuration::clpcfctrl(context, arguments)),
        "clplogcc" => wait(log::clplogcc(context, arguments)),
        "clplogcmd" => wait(log::clplogcmd(context, arguments)),
        "ARMBCAST" => wait(log::armbcast(context, arguments)),
        "ARMLOG" => wait(log::armlog(context, arguments)),
        "ARMSLEEP" => arm::sleep(arguments),
        "ARMLOAD" => arm::load(context, arguments),
        "ARMLOADC" => arm::control(context, arguments),
        "ARMKILL" => arm::kill(context, arguments),
        "ARMRSP" => wait(arm::respond(arguments)),
        other => unreachable!("{other} is in the list and has nothing to do"),
    };
    end.map_err(|failure| Failure::new(failure.status, format!("{name}: {}", failure.words)))
}

fn usage(name: &str) -> String {
    let of = NAMES.iter().find(|(known, _)| *known == name);
    format!("{name} {}", of.map_or("", |(_, usage)| *usage))
}

/// Arguments that make no sense to `name`.
fn misused(name: &str, why: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{why}\n  next: {}", usage(name)))
}

fn wait(future: impl Future<Output = Outcome>) -> Outcome {
    crate::commands::block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_known_by_its_name() {
        let called_as = |name: &str| called(Some(OsString::from(name)));
        assert_eq!(called_as("/usr/lib/kagami/clp/clpstat"), Some("clpstat"));
        assert_eq!(called_as("ARMLOAD"), Some("ARMLOAD"));
        for other in ["/usr/bin/kagami", "armload", "clpstat.old", ""] {
            assert_eq!(called_as(other), None, "{other}");
        }
    }

    #[test]
    fn links_are_made_anew_and_lead_to_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let links = folder.path().join("run/bin");
        for program in ["/usr/bin/old", "/usr/bin/kagami", "/usr/bin/kagami"] {
            make_links(&links, Path::new(program)).unwrap();
            for (name, _) in NAMES {
                assert_eq!(
                    fs::read_link(links.join(name)).unwrap(),
                    Path::new(program),
                    "{name}"
                );
            }
        }
        assert_eq!(
            fs::read_dir(&links).unwrap().count(),
            NAMES.len(),
            "and nothing else"
        );
    }

    #[test]
    fn every_name_has_help_and_refuses_what_it_does_not_know() {
        for (name, _) in NAMES {
            assert_eq!(run(name, &["--help".to_owned()], None), DONE, "{name}");
            // A program that is not there, a time that is none, an option that nobody knows.
            let failure = run(name, &["--frobnicate".to_owned()], None).unwrap_err();
            assert!(failure.words.starts_with(name), "{failure:?}");
            assert_eq!(failure.status, crate::exit::Status::Usage, "{failure:?}");
        }
        assert!(
            run("clpstta", &[], None)
                .unwrap_err()
                .words
                .contains("did you mean \"clpstat\"?")
        );
    }
}
