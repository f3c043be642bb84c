//! What a person who looks for a cause needs of a node, in one place; secrets are left out.
//!
//! Keys and passwords are in files that are never read here. What configuration and logs could carry
//! of them all the same is blanked: values of words that sound like secrets, what is between `//` and
//! `@` of a URL, a webhook's path (it is often a token), and PEM blocks of private keys.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A file of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFile {
    /// Its name in the archive, below the node's folder.
    pub name: String,
    /// Its text; what was no UTF-8 is shown as such.
    pub text: String,
    /// Only the end of it, since it is longer than [`FILE_MAX`], or nothing, since all together are.
    #[serde(default)]
    pub cut: bool,
}

/// Of each file the last so many bytes are taken.
pub const FILE_MAX: u64 = 4 << 20;
/// All files of a node together.
pub const ALL_MAX: usize = 24 << 20;

/// Reads these files: name in the archive, path. What is not there is left out; what can't be read says why.
pub fn collect(files: &[(String, PathBuf)]) -> Vec<LogFile> {
    let mut all = Vec::new();
    let mut room = ALL_MAX;
    for (name, path) in files {
        let (text, mut cut) = match tail(path) {
            Ok(Some(read)) => read,
            Ok(None) => continue,
            Err(error) => (
                format!("{} can't be read: {error}\n", path.display()),
                false,
            ),
        };
        let mut text = redact(&text);
        if text.len() > room {
            text = String::new();
            cut = true;
        }
        room -= text.len();
        all.push(LogFile {
            name: name.clone(),
            text,
            cut,
        });
    }
    all
}

/// The logs in a folder, and below it: files that are called so (`alerts`, `alerts.1`, `pg.start.log`).
/// A folder that is not there has none. `prefix` is their folder in the archive.
pub fn below(prefix: &str, folder: &Path) -> Vec<(String, PathBuf)> {
    let mut all = Vec::new();
    let mut folders = vec![(prefix.to_owned(), folder.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let full = format!("{prefix}/{name}");
            // The kind of the entry itself: a link could lead anywhere.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push((full, entry.path())),
                Ok(kind) if kind.is_file() && is_log(&name) => all.push((full, entry.path())),
                _ => {}
            }
        }
    }
    all
}

fn is_log(name: &str) -> bool {
    let bare = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    ["log", "alerts", "jsonl"]
        .iter()
        .any(|end| bare.ends_with(end))
}

fn tail(path: &Path) -> std::io::Result<Option<(String, bool)>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(None);
    }
    let cut = meta.len() > FILE_MAX;
    if cut {
        file.seek(SeekFrom::Start(meta.len() - FILE_MAX))?;
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(FILE_MAX).read_to_end(&mut bytes)?;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if cut {
        // A line of which only the end is there could be a secret without its name.
        let line = text.find('\n').map_or(text.len(), |end| end + 1);
        text.drain(..line);
    }
    Ok(Some((text, cut)))
}

const BLANK: &str = "(left out)";

/// A word whose value is a secret. A file's name is none.
fn is_secret(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    if word.ends_with("file") || word.ends_with("path") || word.ends_with("dir") {
        return false;
    }
    [
        "passw",
        "passphrase",
        "secret",
        "token",
        "credential",
        "apikey",
        "api_key",
        "api-key",
        "private",
    ]
    .iter()
    .any(|secret| word.contains(secret))
        || word == "pw"
        || word == "pass"
        || word.ends_with("_pass")
        || word.ends_with("-pass")
}

/// The text without what sounds like a secret.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut pem = false;
    let mut webhook = false;
    for line in text.lines() {
        if line.contains("-----BEGIN") && line.contains("PRIVATE") {
            pem = true;
        }
        if pem {
            if line.contains("-----END") {
                pem = false;
                out.push_str(BLANK);
                out.push('\n');
            }
            continue;
        }
        if line.trim_start().starts_with('[') {
            webhook = line.trim_start().starts_with("[webhook");
        }
        out.push_str(&values(&urls(line, webhook)));
        out.push('\n');
    }
    if pem {
        out.push_str(BLANK);
        out.push('\n');
    }
    out
}

/// Blanks what is between `//` and `@` of each URL, and all after the host where `path` says so.
fn urls(line: &str, path: bool) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail
            .find(|c: char| {
                c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ',' | ')' | '}')
            })
            .unwrap_or(tail.len());
        let (url, after) = tail.split_at(end);
        let (authority, below) = url.split_at(url.find('/').unwrap_or(url.len()));
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                out.push_str(BLANK);
                out.push('@');
                out.push_str(host);
            }
            None => out.push_str(authority),
        }
        let hidden = path && below.len() > 1;
        out.push_str(if hidden { "/" } else { below });
        if hidden {
            out.push_str(BLANK);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Blanks the values of words that sound like secrets: `word = value`, `"word": value`, `WORD=value`.
fn values(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    while let Some(start) = rest.find(is_word) {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let end = from.find(|c| !is_word(c)).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        out.push_str(word);
        rest = after;
        // A quote may close the word, blanks may surround the sign.
        let bare = after
            .strip_prefix(['"', '\''])
            .unwrap_or(after)
            .trim_start();
        let Some(value) = bare.strip_prefix(['=', ':']) else {
            continue;
        };
        if !is_secret(word) {
            continue;
        }
        let value = value.trim_start();
        out.push_str(&after[..after.len() - value.len()]);
        let end = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => closing(value, quote),
            // `password: two words` hides both: better too much than a part.
            _ => value.find([',', '}', ']', ';', '&']).unwrap_or(value.len()),
        };
        if end > 0 {
            out.push_str(BLANK);
        }
        rest = &value[end..];
    }
    out.push_str(rest);
    out
}

/// Where the quoted text at the front ends: behind its closing quote.
fn closing(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_blanked_and_the_rest_stays() {
        for (text, expected) in [
            (
                "parameters = { user = \"x\", passwd = \"a\\\"b\", port = 1 }",
                "parameters = { user = \"x\", passwd = (left out), port = 1 }",
            ),
            (
                "environment = { PGPASSWORD = \"s3\", PGUSER = \"pg\" }",
                "environment = { PGPASSWORD = (left out), PGUSER = \"pg\" }",
            ),
            (
                "password-file = \"/etc/kagami/mail\"",
                "password-file = \"/etc/kagami/mail\"",
            ),
            (
                "GET http://bob:pw@host/x?token=abc&y=1 200",
                "GET http://(left out)@host/x?token=(left out)&y=1 200",
            ),
            (
                "{\"api_key\":\"v\",\"n\":1}",
                "{\"api_key\":(left out),\"n\":1}",
            ),
            (
                "monitor rows: failed: connection refused",
                "monitor rows: failed: connection refused",
            ),
            ("password:", "password:"),
        ] {
            assert_eq!(redact(text).trim_end(), expected);
        }
    }

    #[test]
    fn a_webhook_shows_its_host_alone() {
        let text = "[webhook.chat]\nurl = \"https://chat.example.org/hooks/T0/B1/xyz\"\n[monitor.page]\nurl = \"http://10.0.0.11/health\"\n";
        let said = redact(text);
        assert!(
            said.contains("url = \"https://chat.example.org/(left out)\""),
            "{said}"
        );
        assert!(said.contains("url = \"http://10.0.0.11/health\""), "{said}");
    }

    #[test]
    fn a_private_key_is_never_shown_even_where_its_end_is_missing() {
        let whole = "a\n-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\nb\n";
        assert_eq!(redact(whole), "a\n(left out)\nb\n");
        assert_eq!(
            redact("-----BEGIN EC PRIVATE KEY-----\nMIIE\n"),
            "(left out)\n"
        );
    }

    #[test]
    fn logs_are_found_by_their_names_and_keys_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("scripts");
        std::fs::create_dir(&deep).unwrap();
        for name in [
            "alerts",
            "alerts.1",
            "key.pem",
            "state",
            "scripts/pg.start.log",
            "scripts/pg.log.3",
        ] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", deep.join("evil.log")).unwrap();
        let mut names: Vec<String> = below("failover", folder.path())
            .into_iter()
            .map(|f| f.0)
            .collect();
        names.sort();
        let expected = [
            "alerts",
            "alerts.1",
            "scripts/pg.log.3",
            "scripts/pg.start.log",
        ];
        assert_eq!(names, expected.map(|name| format!("failover/{name}")));
        assert_eq!(below("x", &folder.path().join("none")), []);
    }

    #[test]
    fn a_long_file_is_cut_at_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("alerts.log");
        let line = format!("password={}\n", "x".repeat(1000));
        std::fs::write(&path, line.repeat(5000)).unwrap();
        let missing = folder.path().join("none");
        let files = collect(&[
            ("alerts.log".to_owned(), path),
            ("none".to_owned(), missing),
        ]);
        assert_eq!(files.len(), 1);
        assert!(files[0].cut);
        assert!(files[0].text.starts_with("password=(left out)\n"));
        assert!(!files[0].text.contains('x'));
    }
}
