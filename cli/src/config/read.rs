//! From the text of the file to checked values, by the table of [`super::keys`].
//!
//! Every fault is collected with its line, so that one `kagami config check` shows all of them.
//! What keys mean together is left to [`super::check`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use toml_edit::{Document, Item, TableLike};

use super::fault::{ConfigError, Fault};
use super::keys::{self, Fallback, Key, Kind, Section};
use super::value::{self, Latency};

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text, names, paths, choices, uuids.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
    /// A number, or a size in bytes.
    Number(u64),
    /// A time.
    Time(Duration),
    /// Bytes per second; `None`: unlimited.
    Rate(Option<u64>),
    /// A bound on latency.
    Latency(Latency),
    /// Addresses, fingerprints.
    List(Vec<String>),
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// As it would be written in the file.
    pub written: String,
    /// The line; `None` for a default.
    pub line: Option<usize>,
}

/// A section that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The NAME in its heading; empty for `[node]` and its like.
    pub name: String,
    /// Its line.
    pub line: usize,
}

/// Everything the file says, with the table's defaults where it says nothing.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    entries: BTreeMap<(Section, String, &'static str), Entry>,
    instances: BTreeMap<Section, Vec<Instance>>,
}

impl Sheet {
    /// The entry of a key; `None` where it is absent and has no written default.
    pub fn entry(&self, section: Section, name: &str, key: &'static str) -> Option<&Entry> {
        assert!(
            keys::find(section, key).is_some(),
            "{key} is not in the table of keys"
        );
        self.entries.get(&(section, name.to_owned(), key))
    }

    /// The sections of a kind, in the file's order.
    pub fn instances(&self, section: Section) -> &[Instance] {
        self.instances.get(&section).map_or(&[], Vec::as_slice)
    }

    /// Takes over one key's entry from another sheet, or its absence.
    pub fn copy_from(&mut self, other: &Self, section: Section, name: &str, key: &'static str) {
        let place = (section, name.to_owned(), key);
        match other.entries.get(&place) {
            Some(entry) => self.entries.insert(place, entry.clone()),
            None => self.entries.remove(&place),
        };
    }

    /// Takes over a whole section from another sheet, or its absence.
    pub fn copy_section(&mut self, other: &Self, section: Section, name: &str) {
        self.entries
            .retain(|(kind, of, _), _| *kind != section || of != name);
        let theirs = other
            .entries
            .iter()
            .filter(|((kind, of, _), _)| *kind == section && of == name);
        for (place, entry) in theirs {
            self.entries.insert(place.clone(), entry.clone());
        }
        let ours = self.instances.entry(section).or_default();
        ours.retain(|instance| instance.name != name);
        let there = other.instances(section).iter();
        ours.extend(there.filter(|instance| instance.name == name).cloned());
    }

    /// The line to blame for a key: its own, else its section's, else the first.
    pub fn line(&self, section: Section, name: &str, key: &'static str) -> usize {
        self.entry(section, name, key)
            .and_then(|entry| entry.line)
            .or_else(|| {
                self.instances(section)
                    .iter()
                    .find(|instance| instance.name == name)
                    .map(|instance| instance.line)
            })
            .unwrap_or(1)
    }
}

/// Reads `text` by the table of keys.
///
/// # Errors
/// Every fault found, sorted by line.
pub fn read(file: &Path, text: &str) -> Result<Sheet, ConfigError> {
    let document = Document::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, &span));
        ConfigError::one(
            file,
            Fault::at(
                line,
                format!("this is not TOML: {}", error.message()),
                "see https://toml.io, or `kagami config show --defaults` for what can be written",
            ),
        )
    })?;
    let mut reader = Reader {
        text,
        sheet: Sheet::default(),
        faults: Vec::new(),
    };
    reader.root(document.as_table());
    if reader.faults.is_empty() {
        Ok(reader.sheet)
    } else {
        let mut faults = reader.faults;
        faults.sort_by_key(|fault| fault.line);
        Err(ConfigError {
            file: file.to_owned(),
            faults,
        })
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    let end = span.start.min(text.len());
    1 + text[..end].matches('\n').count()
}

struct Reader<'a> {
    text: &'a str,
    sheet: Sheet,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, line: usize, what: impl Into<String>, next: impl Into<String>) {
        self.faults.push(Fault::at(line, what, next));
    }

    /// The line of `key` in `table`.
    fn line(&self, table: &dyn TableLike, key: &str) -> usize {
        table
            .get_key_value(key)
            .and_then(|(key, item)| key.span().or_else(|| item.span()))
            .map_or(1, |span| line_of(self.text, &span))
    }

    fn root(&mut self, root: &dyn TableLike) {
        for (name, item) in root.iter() {
            let line = self.line(root, name);
            let one = [Section::Node, Section::Nbd, Section::Witness]
                .into_iter()
                .find(|section| section.word() == name);
            let many = [Section::Mirror, Section::Peer, Section::Arbiter]
                .into_iter()
                .find(|section| section.word() == name);
            match (one, many, item.as_table_like()) {
                (Some(section), _, Some(table)) => self.section(section, "", line, table),
                (_, Some(section), Some(table)) => self.named(section, table),
                (Some(section), _, None) | (_, Some(section), None) => self.fault(
                    line,
                    format!("`{name}` is not a section"),
                    format!("write a heading {}", section.heading("NAME")),
                ),
                (None, None, table) => self.unknown_at_top(line, name, table.is_some()),
            }
        }
        if self.sheet.instances(Section::Node).is_empty() {
            self.faults.push(Fault::of_file(
                "there is no [node] section",
                "`kagami init` writes one with a name and an id",
            ));
        }
    }

    fn unknown_at_top(&mut self, line: usize, name: &str, table: bool) {
        let headings = ["node", "mirror", "peer", "arbiter", "nbd", "witness"];
        let near = keys::nearest(name, headings);
        if table {
            let next = near.map_or_else(
                || format!("there are [{}]", headings.join("], [")),
                |near| format!("did you mean [{near}]?"),
            );
            self.fault(line, format!("unknown section [{name}]"), next);
        } else {
            let next = match keys::KEYS.iter().find(|key| key.name == name) {
                Some(key) => format!("it belongs under {}", key.section.heading("NAME")),
                None => "every key belongs under a heading like [node] or [mirror.NAME]".to_owned(),
            };
            self.fault(line, format!("key `{name}` outside of any section"), next);
        }
    }

    /// `[mirror.NAME]` and its like.
    fn named(&mut self, section: Section, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let line = self.line(table, name);
            if let Err(why) = value::check_name(name) {
                self.fault(line, why, format!("rename {}", section.heading(name)));
                continue;
            }
            let Some(inner) = item.as_table_like() else {
                let next = match keys::find(section, name) {
                    Some(_) => format!("it belongs under a heading {}", section.heading("NAME")),
                    None => format!("write a heading {}", section.heading("NAME")),
                };
                self.fault(
                    line,
                    format!("`{name}` is under [{}] without a NAME", section.word()),
                    next,
                );
                continue;
            };
            self.section(section, name, line, inner);
            if section == Section::Mirror && inner.get("resync").is_none() {
                self.defaults(Section::Resync, name, line);
            }
        }
    }

    fn section(&mut self, section: Section, name: &str, line: usize, table: &dyn TableLike) {
        self.sheet
            .instances
            .entry(section)
            .or_default()
            .push(Instance {
                name: name.to_owned(),
                line,
            });
        for (word, item) in table.iter() {
            let at = self.line(table, word);
            if section == Section::Mirror && word == "resync" {
                match item.as_table_like() {
                    Some(inner) => self.section(Section::Resync, name, at, inner),
                    None => self.fault(
                        at,
                        "`resync` is not a section",
                        format!("write a heading {}", Section::Resync.heading(name)),
                    ),
                }
                continue;
            }
            let Some(key) = keys::find(section, word) else {
                self.unknown(section, name, at, word);
                continue;
            };
            match value_of(key, item) {
                Ok(value) => {
                    self.sheet.entries.insert(
                        (section, name.to_owned(), key.name),
                        Entry {
                            value,
                            written: item.to_string().trim().to_owned(),
                            line: Some(at),
                        },
                    );
                }
                Err((what, next)) => self.fault(
                    at,
                    format!("{} {word}: {what}", section.heading(name)),
                    next,
                ),
            }
        }
        self.defaults_beside(section, name, line, Some(table));
    }

    fn defaults(&mut self, section: Section, name: &str, line: usize) {
        self.defaults_beside(section, name, line, None);
    }

    /// Puts the table's defaults where the file says nothing.
    fn defaults_beside(
        &mut self,
        section: Section,
        name: &str,
        line: usize,
        table: Option<&dyn TableLike>,
    ) {
        for key in keys::of(section) {
            if table.is_some_and(|table| table.contains_key(key.name)) {
                continue;
            }
            match key.fallback {
                Fallback::Required => self.fault(
                    line,
                    format!("{} has no `{}`", section.heading(name), key.name),
                    format!(
                        "add `{} = …`, {}. {}",
                        key.name,
                        key.kind.spelled(),
                        key.explanation
                    ),
                ),
                Fallback::Value(text) => {
                    let entry = default_entry(key, text);
                    self.sheet
                        .entries
                        .insert((section, name.to_owned(), key.name), entry);
                }
                Fallback::Nothing(_) | Fallback::Derived(_) => {}
            }
        }
    }

    fn unknown(&mut self, section: Section, name: &str, line: usize, word: &str) {
        let heading = section.heading(name);
        let known = keys::of(section).map(|key| key.name);
        let next = if let Some(near) = keys::nearest(word, known) {
            format!("did you mean `{near}`?")
        } else if let Some(key) = keys::KEYS.iter().find(|key| key.name == word) {
            format!(
                "it belongs under {}",
                key.section
                    .heading(if name.is_empty() { "NAME" } else { name })
            )
        } else {
            format!(
                "there are {}",
                keys::of(section)
                    .map(|key| format!("`{}`", key.name))
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        };
        self.fault(line, format!("unknown key `{word}` in {heading}"), next);
    }
}

/// A default, as the file would have it.
pub fn default_entry(key: &Key, text: &str) -> Entry {
    let item: Item = match key.kind {
        Kind::Addresses { .. } | Kind::Endpoints | Kind::Fingerprints => {
            toml_edit::Array::from_iter([text]).into()
        }
        Kind::Flag => (text == "true").into(),
        Kind::Number { .. } => text
            .parse::<i64>()
            .expect("a default number in the table of keys")
            .into(),
        Kind::Choice(_) => text.parse::<i64>().map_or_else(|_| text.into(), Into::into),
        _ => text.into(),
    };
    let value = value_of(key, &item).unwrap_or_else(|(what, _)| {
        panic!("the default of {} in the table of keys: {what}", key.name)
    });
    Entry {
        value,
        written: item.to_string().trim().to_owned(),
        line: None,
    }
}

/// Checks one value. The error is what is wrong, and what would be right.
#[expect(clippy::too_many_lines, reason = "an arm for each kind of value")]
fn value_of(key: &Key, item: &Item) -> Result<Value, (String, String)> {
    let next = || format!("write {}", key.kind.spelled());
    let wrong_kind = || {
        (
            format!("{} is not {}", kind_name(item), article(key.kind)),
            next(),
        )
    };
    let text = || item.as_str().ok_or_else(wrong_kind);
    let number = || {
        item.as_integer()
            .map(|n| u64::try_from(n).map_err(|_| (format!("{n} is less than 0"), next())))
    };
    let said = |why: String| match why.split_once(": ") {
        Some((what, right)) => (what.to_owned(), right.to_owned()),
        None => (why, next()),
    };
    match key.kind {
        Kind::Text => Ok(Value::Text(text()?.to_owned())),
        Kind::Name | Kind::NameOf(_) => {
            let name = text()?;
            value::check_name(name).map_err(said)?;
            Ok(Value::Text(name.to_owned()))
        }
        Kind::Path => {
            let path = text()?;
            if !path.starts_with('/') {
                return Err((
                    format!("`{path}` is not an absolute path"),
                    "write the whole path, beginning with `/`".to_owned(),
                ));
            }
            Ok(Value::Text(path.to_owned()))
        }
        Kind::Flag => item.as_bool().map(Value::Flag).ok_or_else(wrong_kind),
        Kind::Size { min, multiple } => {
            let bytes = match number() {
                Some(bytes) => bytes?,
                None => value::parse_size(text()?).map_err(said)?,
            };
            if bytes < min {
                return Err((
                    format!("{} is too small", value::spell_size(bytes)),
                    format!("write at least {}", value::spell_size(min)),
                ));
            }
            if !bytes.is_multiple_of(multiple) {
                let down = bytes - bytes % multiple;
                return Err((
                    format!("{bytes} bytes are not a multiple of {multiple}"),
                    format!("write {down} or {}", down.saturating_add(multiple)),
                ));
            }
            Ok(Value::Number(bytes))
        }
        Kind::Time { min_ms, max_ms } => {
            let time = match number() {
                Some(n) => {
                    let n = n?;
                    return Err((
                        format!("{n} has no unit"),
                        format!("write \"{n}s\" or \"{n}ms\""),
                    ));
                }
                None => value::parse_time(text()?).map_err(said)?,
            };
            let (min, max) = (Duration::from_millis(min_ms), Duration::from_millis(max_ms));
            if time < min || time > max {
                let spell = humantime::format_duration;
                return Err((
                    format!("{} is out of bounds", spell(time)),
                    format!("write a time from {} to {}", spell(min), spell(max)),
                ));
            }
            Ok(Value::Time(time))
        }
        Kind::Number { min, max } => {
            let n = number().ok_or_else(wrong_kind)??;
            if n < min || n > max {
                return Err((format!("{n} is out of bounds"), next()));
            }
            Ok(Value::Number(n))
        }
        Kind::Choice(words) => {
            let word = match item.as_integer() {
                Some(n) => n.to_string(),
                None => text()?.to_owned(),
            };
            if words.contains(&word.as_str()) {
                return Ok(Value::Text(word));
            }
            let next = match keys::nearest(&word, words.iter().copied()) {
                Some(near) if word.len() > 1 => format!("did you mean \"{near}\"?"),
                _ => next(),
            };
            Err((format!("`{word}` is not one of the choices"), next))
        }
        Kind::Addresses { names } => list(item, key, |text| check_address(text, names)),
        Kind::Endpoints => list(item, key, check_endpoint),
        Kind::Fingerprints => {
            let value = list(item, key, check_fingerprint)?;
            if matches!(&value, Value::List(prints) if prints.len() > 2) {
                return Err(("more than two fingerprints".to_owned(), next()));
            }
            Ok(value)
        }
        Kind::Rate => match number() {
            Some(n) => {
                let n = n?;
                Err((format!("{n} has no unit"), next()))
            }
            None => value::parse_rate(text()?).map(Value::Rate).map_err(said),
        },
        Kind::Latency => match number() {
            Some(n) => {
                let n = n?;
                Err((
                    format!("{n} has no unit"),
                    format!("write \"{n}x\" or \"{n}ms\""),
                ))
            }
            None => value::parse_latency(text()?)
                .map(Value::Latency)
                .map_err(said),
        },
        Kind::Uuid => {
            let text = text()?;
            let digits = text.replace('-', "").to_ascii_lowercase();
            match value::parse_hex::<16>(&digits) {
                Some(bytes) if bytes != [0; 16] => Ok(Value::Text(digits)),
                _ => Err((format!("`{text}` is not a mirror's uuid"), next())),
            }
        }
    }
}

fn list(
    item: &Item,
    key: &Key,
    check: impl Fn(&str) -> Result<(), (String, String)>,
) -> Result<Value, (String, String)> {
    let next = || format!("write {}", key.kind.spelled());
    let Some(array) = item.as_array() else {
        return Err((format!("{} is not a list", kind_name(item)), next()));
    };
    if array.is_empty() {
        return Err(("the list is empty".to_owned(), next()));
    }
    let mut texts: Vec<String> = Vec::new();
    for element in array {
        let Some(text) = element.as_str() else {
            return Err((format!("{element} is not text").replace("  ", " "), next()));
        };
        check(text)?;
        if texts.iter().any(|other| other == text) {
            return Err((
                format!("`{text}` is there twice"),
                "write it once".to_owned(),
            ));
        }
        texts.push(text.to_owned());
    }
    Ok(Value::List(texts))
}

/// An address with a port; a host name where the resolver may be asked.
fn check_address(text: &str, names: bool) -> Result<(), (String, String)> {
    let right = "write \"10.0.0.1:7789\" or \"[fd00::1]:7789\"".to_owned();
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err((format!("`{text}` has no port"), right));
    };
    // To listen on it is to take any that is free.
    if names && port.parse() == Ok(0_u16) {
        return Err((format!("`{text}`: nothing is reached at port 0"), right));
    }
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(());
    }
    let named = !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        })
        && host.contains(|c: char| c.is_ascii_alphabetic());
    if named && port.parse::<u16>().is_ok_and(|port| port > 0) {
        if names {
            return Ok(());
        }
        return Err((
            format!("`{text}` is a host name; listening needs an address of this machine"),
            right,
        ));
    }
    if host.contains(':') && !host.starts_with('[') {
        return Err((
            format!("`{text}`: an IPv6 address needs brackets before its port"),
            right,
        ));
    }
    Err((format!("`{text}` is not an address with a port"), right))
}

/// An address with a port, and before it how it is spoken to.
fn check_endpoint(text: &str) -> Result<(), (String, String)> {
    let right = "write \"https://10.0.0.3:2379\", or \"http://10.0.0.3:2379\" for clear text";
    let wrong = |what: String| Err((what, right.to_owned()));
    let Some((scheme, rest)) = text.split_once("://") else {
        return wrong(format!("`{text}` does not say https:// or http://"));
    };
    if !matches!(scheme, "https" | "http") {
        return wrong(format!("`{text}`: etcd does not speak {scheme}://"));
    }
    check_address(rest, true).or_else(|(what, _)| wrong(what))
}

/// `sha256:` and 64 hexadecimal digits.
fn check_fingerprint(text: &str) -> Result<(), (String, String)> {
    match text.strip_prefix("sha256:").map(value::parse_hex::<32>) {
        Some(Some(_)) => Ok(()),
        _ => Err((
            format!("`{text}` is not a fingerprint"),
            "write sha256: and 64 hexadecimal digits, as `fingerprint` of `node` in `kagami status --json` on the other machine".to_owned(),
        )),
    }
}

fn kind_name(item: &Item) -> String {
    let text = item.to_string();
    match item.type_name() {
        "string" | "integer" | "float" | "boolean" | "datetime" => text.trim().to_owned(),
        other => format!("a TOML {other}"),
    }
}

fn article(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Name | Kind::NameOf(_) => "a name",
        Kind::Path => "a path",
        Kind::Flag => "true or false",
        Kind::Size { .. } => "a size",
        Kind::Time { .. } => "a time",
        Kind::Number { .. } => "a whole number",
        Kind::Choice(_) => "one of the choices",
        Kind::Addresses { .. } | Kind::Endpoints | Kind::Fingerprints => "a list",
        Kind::Rate => "a rate",
        Kind::Latency => "a latency",
        Kind::Uuid => "a uuid",
    }
}
