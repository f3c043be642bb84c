//! Arguments as these commands take them: `-s`, `-timeout 5`, `--rwait NAME`, values that may be
//! missing. Strict all the same: what is not known is refused.

use crate::exit::Failure;

/// What a command knows.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The command, for messages.
    pub name: &'static str,
    /// Options without a value.
    pub flags: &'static [&'static str],
    /// Options with a value.
    pub values: &'static [&'static str],
    /// Options whose value may be missing.
    pub optional: &'static [&'static str],
    /// So many words may stand alone.
    pub words: usize,
}

/// What was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    options: Vec<(String, Option<String>)>,
    /// Words that stand alone.
    pub words: Vec<String>,
}

impl Given {
    /// It was given.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|(given, _)| given == option)
    }

    /// Its value.
    pub fn value(&self, option: &str) -> Option<&str> {
        let found = self.options.iter().find(|(given, _)| given == option);
        found.and_then(|(_, value)| value.as_deref())
    }

    /// Its value, a whole number.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&self, name: &str, option: &str) -> Result<Option<u64>, Failure> {
        let number = |text: &str| {
            text.parse().map_err(|_| {
                super::misused(name_of(name), format!("{option}: `{text}` is no number"))
            })
        };
        self.value(option).map(number).transpose()
    }

    /// Which of these was given.
    ///
    /// # Errors
    /// None, or several.
    pub fn one_of<'o>(&self, name: &str, options: &[&'o str]) -> Result<&'o str, Failure> {
        let given: Vec<&'o str> = (options.iter().copied())
            .filter(|one| self.has(one))
            .collect();
        match given[..] {
            [one] => Ok(one),
            [] => Err(super::misused(
                name_of(name),
                format!("none of {} is given", options.join(", ")),
            )),
            _ => Err(super::misused(
                name_of(name),
                format!("{} don't go together", given.join(" and ")),
            )),
        }
    }
}

fn name_of(name: &str) -> &'static str {
    super::find(name).unwrap_or("kagami clp")
}

/// Takes arguments apart.
///
/// # Errors
/// An option that is not known, a value that is missing, a word too many.
pub fn parse(known: &Known, arguments: &[String]) -> Result<Given, Failure> {
    let mut given = Given::default();
    let mut rest = arguments.iter().peekable();
    while let Some(one) = rest.next() {
        let one = one.as_str();
        if known.flags.contains(&one) {
            given.options.push((one.to_owned(), None));
        } else if known.values.contains(&one) {
            let Some(value) = rest.next() else {
                return Err(super::misused(
                    known.name,
                    format!("{one}: its value is missing"),
                ));
            };
            given.options.push((one.to_owned(), Some(value.clone())));
        } else if known.optional.contains(&one) {
            let value = rest.next_if(|next| !next.starts_with('-'));
            given.options.push((one.to_owned(), value.cloned()));
        } else if one.starts_with('-') {
            return Err(super::misused(
                known.name,
                format!("there is no option {one}"),
            ));
        } else if given.words.len() < known.words {
            given.words.push(one.to_owned());
        } else {
            return Err(super::misused(
                known.name,
                format!("`{one}` is a word too many"),
            ));
        }
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known {
        name: "clpgrp",
        flags: &["-s"],
        values: &["-a"],
        optional: &["--mon"],
        words: 1,
    };

    fn parsed(text: &str) -> Result<Given, String> {
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        parse(&KNOWN, &arguments)
            .map_err(|failure| failure.words.lines().next().unwrap().to_owned())
    }

    #[test]
    fn options_and_words_in_any_order() {
        let given = parsed("pg -a beta -s --mon").unwrap();
        assert_eq!(
            (given.value("-a"), given.has("-s"), given.has("--mon")),
            (Some("beta"), true, true)
        );
        assert_eq!(
            (given.words, given.options.len()),
            (vec!["pg".to_owned()], 3)
        );
        assert_eq!(parsed("--mon rows").unwrap().value("--mon"), Some("rows"));
        assert_eq!(parsed("--mon -s").unwrap().value("--mon"), None);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert_eq!(parsed("-x").unwrap_err(), "there is no option -x");
        assert_eq!(parsed("pg -a").unwrap_err(), "-a: its value is missing");
        assert_eq!(parsed("pg web").unwrap_err(), "`web` is a word too many");
        let given = parsed("-s -a b").unwrap();
        assert!(given.one_of("clpgrp", &["-t"]).is_err());
        assert!(given.one_of("clpgrp", &["-s", "-a"]).is_err());
        assert_eq!(given.one_of("clpgrp", &["-s", "-t"]), Ok("-s"));
        assert!(given.number("clpgrp", "-a").is_err());
    }
}
