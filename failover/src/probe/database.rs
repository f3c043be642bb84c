//! A database that takes a row and gives it back: `PostgreSQL` and `MySQL`, by their own clients.
//!
//! The client is on every node that has the server, knows every way to log in that the server has,
//! and its libraries are mended with the distribution's: so a monitor needs no driver of its own.

use std::path::Path;

use crate::config::monitor::{Database, Engine};
use crate::place::Place;
use crate::process::{Deadline, Failure, Step, tool};

/// `host:port`, or the folder or file of a socket.
enum Server<'d> {
    Socket(&'d str),
    Port(&'d str, &'d str),
}

fn server(address: &str) -> Result<Server<'_>, String> {
    if address.starts_with('/') {
        return Ok(Server::Socket(address));
    }
    match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => Ok(Server::Port(
            host.trim_start_matches('[').trim_end_matches(']'),
            port,
        )),
        _ => Err(format!(
            "address {address}: write HOST:PORT, or the path of a socket"
        )),
    }
}

/// A name that goes into a statement.
fn name(text: &str) -> Result<&str, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_.".contains(c);
    if !text.is_empty() && text.chars().all(good) {
        return Ok(text);
    }
    Err(format!("table {text}: use letters, digits, `_` and `.`"))
}

fn password(own: &Database) -> Result<Option<String>, String> {
    let Some(file) = &own.password_file else {
        return Ok(None);
    };
    let text =
        std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
}

/// Writes a row and reads it back, once.
///
/// # Errors
/// The server can't be reached, refuses, or gives back something else.
pub async fn look(place: &Place, own: &Database, deadline: Deadline) -> Step {
    let table = name(&own.table)?;
    let node = place.cluster.nodes[place.me].replace('\'', "''");
    let now = jiff::Timestamp::now().as_millisecond().to_string();
    let (program, words, environment) = match own.engine {
        Engine::Postgresql => postgresql(own, table, &node, &now)?,
        Engine::Mysql => mysql(own, table, &node, &now)?,
    };
    let mut said = tool::ask(place, program, &words, &environment, deadline).await;
    if own.engine == Engine::Mysql && matches!(said, Err(Failure::Failed(_))) {
        // MySQL's own name for what MariaDB calls `mariadb`.
        said = tool::ask(place, "mysql", &words, &environment, deadline).await;
    }
    let said = said?;
    if said.status != 0 {
        let why = if said.error.is_empty() {
            said.output
        } else {
            said.error
        };
        return Err(Failure::Failed(format!(
            "{program} {}: {}",
            own.address,
            why.trim()
        )));
    }
    let found = said.output.lines().last().unwrap_or_default().trim();
    if found == now {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{program} {}: {now} was written to {table}, and \"{found}\" read",
        own.address
    )))
}

type Call = (&'static str, Vec<String>, Vec<(&'static str, String)>);

fn postgresql(own: &Database, table: &str, node: &str, now: &str) -> Result<Call, String> {
    let (host, port) = match server(&own.address)? {
        // A socket is known by its folder and the port in its name.
        Server::Socket(path) => {
            let file = Path::new(path)
                .file_name()
                .and_then(|n| n.to_str())
                .unwrap_or_default();
            match file.strip_prefix(".s.PGSQL.") {
                Some(port) => {
                    let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
                    (folder.display().to_string(), port.to_owned())
                }
                None => (path.to_owned(), "5432".to_owned()),
            }
        }
        Server::Port(host, port) => (host.to_owned(), port.to_owned()),
    };
    // A row for each node: two that look at once do not wait for each other.
    let statements = [
        "SET client_min_messages = error".to_owned(),
        format!("CREATE TABLE IF NOT EXISTS {table} (node text PRIMARY KEY, at bigint NOT NULL)"),
        format!(
            "INSERT INTO {table} VALUES ('{node}', {now}) ON CONFLICT (node) DO UPDATE SET at = excluded.at"
        ),
        format!("SELECT at FROM {table} WHERE node = '{node}'"),
    ];
    let mut words: Vec<String> = ["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1"]
        .map(str::to_owned)
        .into();
    for (flag, value) in [
        ("-h", host.as_str()),
        ("-p", &port),
        ("-U", &own.user),
        ("-d", &own.database),
    ] {
        words.extend([flag.to_owned(), value.to_owned()]);
    }
    for statement in statements {
        words.extend(["-c".to_owned(), statement]);
    }
    let mut environment = vec![("PGAPPNAME", "kagami".to_owned())];
    if let Some(password) = password(own)? {
        environment.push(("PGPASSWORD", password));
    }
    Ok(("psql", words, environment))
}

fn mysql(own: &Database, table: &str, node: &str, now: &str) -> Result<Call, String> {
    let mut words: Vec<String> = ["--no-defaults", "--batch", "--skip-column-names"]
        .map(str::to_owned)
        .into();
    match server(&own.address)? {
        Server::Socket(path) => words.push(format!("--socket={path}")),
        Server::Port(host, port) => {
            words.extend([
                "--protocol=tcp".to_owned(),
                format!("--host={host}"),
                format!("--port={port}"),
            ]);
        }
    }
    words.extend([
        format!("--user={}", own.user),
        format!("--database={}", own.database),
        format!(
            "--execute=CREATE TABLE IF NOT EXISTS {table} (node varchar(191) PRIMARY KEY, at bigint NOT NULL); \
             REPLACE INTO {table} VALUES ('{node}', {now}); SELECT at FROM {table} WHERE node = '{node}'"
        ),
    ]);
    let password = password(own)?.map(|password| ("MYSQL_PWD", password));
    Ok(("mariadb", words, password.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_checked() {
        assert!(matches!(server("/run/pg"), Ok(Server::Socket("/run/pg"))));
        assert!(matches!(server("db:5432"), Ok(Server::Port("db", "5432"))));
        assert!(matches!(server("[::1]:1"), Ok(Server::Port("::1", "1"))));
        assert!(server("db").is_err());
        assert!(name("public.kagami_monitor").is_ok());
        for bad in ["", "a b", "a;drop table b", "a'b"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
