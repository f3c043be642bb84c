//! The ARM* commands of start and stop scripts that wait, or start programs under a watch.

use std::time::Duration;

use super::misused;
use crate::exit::{DONE, Failure, Outcome};

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
        return Err(misused("ARMSLEEP", "the seconds are missing, or no whole number"));
    };
    std::thread::sleep(Duration::from_secs(seconds));
    DONE
}

/// What `ARMLOAD` was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The name of the watch.
    pub id: String,
    /// `/M`
    pub monitored: bool,
    /// `/U`
    pub user: Option<String>,
    /// `/R` and `/H`; 0 hours: in all.
    pub restart: Option<(u32, u32)>,
    /// The program and its arguments: never empty.
    pub program: Vec<String>,
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
        ..Load::default()
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
                    _ if value.is_none() => return Err(misused(NAME, "/WINDOW: its value is missing")),
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
        (Some(times), hours) => Some((times, hours.unwrap_or(0))),
    };
    Ok(load)
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
                    addresses.push(address.parse().map_err(|_| {
                        misused(NAME, format!("/PL: `{address}` is no address"))
                    })?);
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
        let load = parse_load(&words("WatchDb /M /U postgres /R 3 /H 24 /WINDOW hide /opt/db/run -D /srv /M")).unwrap();
        assert_eq!(
            load,
            Load {
                id: "WatchDb".to_owned(),
                monitored: true,
                user: Some("postgres".to_owned()),
                restart: Some((3, 24)),
                program: words("/opt/db/run -D /srv /M"),
            }
        );
        let load = parse_load(&words("w /m sleep 60")).unwrap();
        assert_eq!((load.monitored, load.program, load.restart), (true, words("sleep 60"), None));
        assert_eq!(parse_load(&words("w /R 2 /bin/x")).unwrap().restart, Some((2, 0)));
        assert_eq!(parse_load(&words("w /srv/x")).unwrap().program, words("/srv/x"));
        for bad in ["", "/M w x", "w", "w /M", "w /R x y", "w /H 2 x", "w /Q x", "w /U", "w /WINDOW"] {
            assert!(parse_load(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_other_switches() {
        assert_eq!(parse_control(&words("w /W PAUSE")), Ok(("w".to_owned(), true)));
        assert_eq!(parse_control(&words("w /w continue")), Ok(("w".to_owned(), false)));
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
