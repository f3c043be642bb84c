//! The ARM* commands of start and stop scripts that wait, or start programs under a watch.

use std::path::PathBuf;
use std::time::Duration;

use kagami_failover::watch_list::{self, Load, Restart, Silence, WatchError, WatchList};

use super::misused;
use crate::commands::Context;
use crate::exit::{DONE, Failure, Outcome, Status};

/// `ARMKILL` without `/T` waits so long before it ends the program by force.
const KILL_PATIENCE: Duration = Duration::from_secs(90);
/// Each address is asked so often, and is silent after so long.
const ASKED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3));

/// The list of this node's manager: where a script is told that it is, else where the configuration says.
fn list(context: &Context) -> Result<WatchList, Failure> {
    let run = match std::env::var_os("KAGAMI_RUN") {
        Some(run) => PathBuf::from(run),
        None => crate::failover::run_folder(&context.config()?),
    };
    Ok(WatchList::new(&run))
}

fn failed(error: &WatchError) -> Failure {
    let status = match error {
        WatchError::List { .. } => Status::System,
        _ => Status::Refused,
    };
    Failure::new(status, error.to_string())
}

/// `ARMSLEEP SECONDS`
///
/// # Errors
/// It is no time.
pub fn sleep(arguments: &[String]) -> Outcome {
    let seconds = match arguments {
        [seconds] => seconds.parse::<u64>().ok(),
        _ => None,
    };
    let Some(seconds) = seconds else {
        return Err(misused(
            "ARMSLEEP",
            "the seconds are missing, or no whole number",
        ));
    };
    std::thread::sleep(Duration::from_secs(seconds));
    DONE
}

fn number(name: &str, option: &str, value: Option<&String>) -> Result<u32, Failure> {
    let name = super::find(name).unwrap_or("kagami clp");
    let Some(value) = value else {
        return Err(misused(name, format!("{option}: its value is missing")));
    };
    value
        .parse()
        .map_err(|_| misused(name, format!("{option}: `{value}` is no whole number")))
}

/// The watch's name: what stands first.
fn id<'a>(
    name: &'static str,
    rest: &mut impl Iterator<Item = &'a String>,
) -> Result<String, Failure> {
    match rest.next() {
        Some(id) if !id.starts_with('/') && !id.starts_with('-') => Ok(id.clone()),
        _ => Err(misused(name, "the name of the watch is missing")),
    }
}

/// `ARMLOAD ID [/M] [/U USER] [/R N /H HOURS] [/WINDOW hide] PROGRAM ARG…`: switches end where the
/// program's name begins, with a path of its own or not.
///
/// # Errors
/// A switch that is not known, a value or the program that is missing.
pub fn parse_load(arguments: &[String]) -> Result<Load, Failure> {
    const NAME: &str = "ARMLOAD";
    let mut rest = arguments.iter().peekable();
    let mut load = Load {
        id: id(NAME, &mut rest)?,
        monitored: false,
        user: None,
        restart: None,
        program: Vec::new(),
    };
    let (mut times, mut hours) = (None, None);
    while let Some(one) = rest.peek() {
        let switch = one.to_ascii_uppercase();
        match switch.as_str() {
            "/M" => load.monitored = true,
            "/W" => {}
            "/U" | "/R" | "/H" | "/WINDOW" => {
                rest.next();
                let value = rest.peek().copied();
                match switch.as_str() {
                    "/U" => match value {
                        Some(user) => load.user = Some(user.clone()),
                        None => return Err(misused(NAME, "/U: its value is missing")),
                    },
                    "/R" => times = Some(number(NAME, "/R", value)?),
                    "/H" => hours = Some(number(NAME, "/H", value)?),
                    // There are no windows to hide.
                    _ if value.is_none() => {
                        return Err(misused(NAME, "/WINDOW: its value is missing"));
                    }
                    _ => {}
                }
            }
            // `/usr/bin/x` is a program; `/X` is a switch of another edition.
            _ if one.starts_with('/') && !one[1..].contains('/') && one.len() <= 3 => {
                return Err(misused(NAME, format!("there is no switch {one}")));
            }
            _ => break,
        }
        rest.next();
    }
    load.program = rest.cloned().collect();
    if load.program.is_empty() {
        return Err(misused(NAME, "the program is missing"));
    }
    load.restart = match (times, hours) {
        (None, None) => None,
        (None, Some(_)) => return Err(misused(NAME, "/H without /R: how often?")),
        (Some(times), hours) => Some(Restart {
            times,
            hours: hours.unwrap_or(0),
        }),
    };
    Ok(load)
}

/// `ARMLOAD`
///
/// # Errors
/// The name is taken, or the program can't be run.
pub fn load(context: &Context, arguments: &[String]) -> Outcome {
    let load = parse_load(arguments)?;
    list(context)?.load(&load).map_err(|error| failed(&error))?;
    DONE
}

/// `ARMLOADC`
///
/// # Errors
/// There is no such name.
pub fn control(context: &Context, arguments: &[String]) -> Outcome {
    let (id, pause) = parse_control(arguments)?;
    list(context)?
        .pause(&id, pause)
        .map_err(|error| failed(&error))?;
    DONE
}

/// `ARMKILL`
///
/// # Errors
/// There is no such name, or it can't be ended.
pub fn kill(context: &Context, arguments: &[String]) -> Outcome {
    let kill = parse_kill(arguments)?;
    let list = list(context)?;
    let time = kill
        .seconds
        .map_or(KILL_PATIENCE, |seconds| Duration::from_secs(seconds.into()));
    let done = if kill.only_watch {
        list.forget(&kill.id).map(|_| ())
    } else {
        list.kill(&kill.id, time)
    };
    done.map_err(|error| failed(&error))?;
    DONE
}

/// `ARMRSP`: ends, with a failure, when the addresses are silent.
///
/// # Errors
/// They are.
pub async fn respond(arguments: &[String]) -> Outcome {
    let (addresses, all) = parse_respond(arguments)?;
    let silence = if all { Silence::All } else { Silence::Any };
    let why = watch_list::respond(&addresses, silence, ASKED.0, ASKED.1).await;
    Err(Failure::refused(why))
}

/// `ARMLOADC ID /W PAUSE|CONTINUE`: the name, and whether the watch pauses.
///
/// # Errors
/// Neither of the two.
pub fn parse_control(arguments: &[String]) -> Result<(String, bool), Failure> {
    const NAME: &str = "ARMLOADC";
    let mut rest = arguments.iter();
    let id = id(NAME, &mut rest)?;
    let words: Vec<String> = rest.map(|word| word.to_ascii_uppercase()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["/W", "PAUSE"] => Ok((id, true)),
        ["/W", "CONTINUE"] => Ok((id, false)),
        _ => Err(misused(NAME, "/W PAUSE or /W CONTINUE is missing")),
    }
}

/// What `ARMKILL` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The name of the watch.
    pub id: String,
    /// `/C`: only the watch ends.
    pub only_watch: bool,
    /// `/T`: it may take so long.
    pub seconds: Option<u32>,
}

/// `ARMKILL ID [/C] [/T SECONDS]`
///
/// # Errors
/// A switch that is not known, a value that is missing.
pub fn parse_kill(arguments: &[String]) -> Result<Kill, Failure> {
    const NAME: &str = "ARMKILL";
    let mut rest = arguments.iter();
    let mut kill = Kill {
        id: id(NAME, &mut rest)?,
        only_watch: false,
        seconds: None,
    };
    while let Some(one) = rest.next() {
        match one.to_ascii_uppercase().as_str() {
            "/C" => kill.only_watch = true,
            "/T" => kill.seconds = Some(number(NAME, "/T", rest.next())?),
            _ => return Err(misused(NAME, format!("there is no switch {one}"))),
        }
    }
    Ok(kill)
}

/// `ARMRSP /A /PL ADDRESS…`: the addresses, and whether the silence of all of them is meant.
///
/// # Errors
/// A switch that is not known, no address.
pub fn parse_respond(arguments: &[String]) -> Result<(Vec<std::net::IpAddr>, bool), Failure> {
    const NAME: &str = "ARMRSP";
    let mut all = false;
    let mut addresses = Vec::new();
    let mut list = false;
    for one in arguments {
        match one.to_ascii_uppercase().as_str() {
            "/A" => all = true,
            "/PL" => list = true,
            _ if list => {
                // A list may be one word.
                for address in one.split(',').filter(|part| !part.is_empty()) {
                    addresses.push(
                        address.parse().map_err(|_| {
                            misused(NAME, format!("/PL: `{address}` is no address"))
                        })?,
                    );
                }
            }
            _ => return Err(misused(NAME, format!("there is no switch {one}"))),
        }
    }
    if addresses.is_empty() {
        return Err(misused(NAME, "/PL: the addresses are missing"));
    }
    Ok((addresses, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_load_has_its_switches_before_its_program() {
        let load = parse_load(&words(
            "WatchDb /M /U postgres /R 3 /H 24 /WINDOW hide /opt/db/run -D /srv /M",
        ))
        .unwrap();
        assert_eq!(
            load,
            Load {
                id: "WatchDb".to_owned(),
                monitored: true,
                user: Some("postgres".to_owned()),
                restart: Some(Restart {
                    times: 3,
                    hours: 24
                }),
                program: words("/opt/db/run -D /srv /M"),
            }
        );
        let load = parse_load(&words("w /m sleep 60")).unwrap();
        assert_eq!(
            (load.monitored, load.program, load.restart),
            (true, words("sleep 60"), None)
        );
        assert_eq!(
            parse_load(&words("w /R 2 /bin/x")).unwrap().restart,
            Some(Restart { times: 2, hours: 0 })
        );
        assert_eq!(
            parse_load(&words("w /srv/x")).unwrap().program,
            words("/srv/x")
        );
        for bad in [
            "",
            "/M w x",
            "w",
            "w /M",
            "w /R x y",
            "w /H 2 x",
            "w /Q x",
            "w /U",
            "w /WINDOW",
        ] {
            assert!(parse_load(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_other_switches() {
        assert_eq!(
            parse_control(&words("w /W PAUSE")),
            Ok(("w".to_owned(), true))
        );
        assert_eq!(
            parse_control(&words("w /w continue")),
            Ok(("w".to_owned(), false))
        );
        assert!(parse_control(&words("w PAUSE")).is_err());
        let kill = parse_kill(&words("w /C /T 5")).unwrap();
        assert_eq!((kill.only_watch, kill.seconds), (true, Some(5)));
        assert_eq!(parse_kill(&words("w")).unwrap().seconds, None);
        assert!(parse_kill(&words("w /T")).is_err());
        let (addresses, all) = parse_respond(&words("/A /PL 10.0.0.1 10.0.0.2,fd00::1")).unwrap();
        assert_eq!((addresses.len(), all), (3, true));
        assert!(parse_respond(&words("/A")).is_err());
        assert!(parse_respond(&words("/PL host")).is_err());
        assert!(sleep(&words("0")).is_ok());
        assert!(sleep(&words("1 2")).is_err());
    }
}
