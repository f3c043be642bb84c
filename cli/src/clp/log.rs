//! `clplogcmd`, `clplogcc`, `ARMLOG`, `ARMBCAST`: words that become alerts, and logs that are gathered.

use std::path::Path;
use std::process::{Command, Stdio};

use kagami_failover::config::Severity;
use kagami_failover::control::message::Reach;
use kagami_failover::control::{Answer, Ask};

use super::misused;
use super::options::{Known, parse};
use crate::args::LogsVerb;
use crate::commands::Context;
use crate::commands::cluster::{logs, unexpected};
use crate::exit::{DONE, Outcome};

/// `clplogcmd -m TEXT [-i ID] [-l LEVEL]`
///
/// # Errors
/// No manager answers.
pub async fn clplogcmd(context: &Context, arguments: &[String]) -> Outcome {
    const KNOWN: Known = Known {
        name: "clplogcmd",
        flags: &["--syslog", "--alert", "--mail", "--trap"],
        values: &["-m", "-i", "-l"],
        optional: &[],
        words: 0,
    };
    let given = parse(&KNOWN, arguments)?;
    let Some(text) = given.value("-m") else {
        return Err(misused("clplogcmd", "-m: the text is missing"));
    };
    let severity = match given.value("-l").unwrap_or("INFO") {
        "ERR" | "ERROR" => Severity::Error,
        "WARN" | "WARNING" => Severity::Warning,
        "INFO" => Severity::Info,
        other => {
            return Err(misused(
                "clplogcmd",
                format!("-l: `{other}` is none of ERR, WARN, INFO"),
            ));
        }
    };
    let id = given.number("clplogcmd", "-i")?.unwrap_or(1);
    let id =
        u32::try_from(id).map_err(|_| misused("clplogcmd", format!("-i: {id} is too large")))?;
    note(context, text.to_owned(), Some(id), severity, Reach::Node).await
}

async fn note(
    context: &Context,
    text: String,
    id: Option<u32>,
    severity: Severity,
    reach: Reach,
) -> Outcome {
    let ask = Ask::Note {
        text,
        id,
        severity,
        reach,
    };
    match context.manager().await?.ask(ask).await? {
        Answer::Done => DONE,
        // A start script that tells everybody goes on where the other node is down: that is when it is run.
        Answer::DoneHere { without, why } => {
            anstream::eprintln!("told here; node {without} did not get it: {why}");
            DONE
        }
        other => Err(unexpected(&other)),
    }
}

/// `ARMLOG TEXT`
///
/// # Errors
/// No manager answers.
pub async fn armlog(context: &Context, arguments: &[String]) -> Outcome {
    if arguments.is_empty() || arguments[0].starts_with("--") {
        return Err(misused("ARMLOG", "the text is missing"));
    }
    note(
        context,
        arguments.join(" "),
        None,
        Severity::Info,
        Reach::Node,
    )
    .await
}

/// `ARMBCAST /MSG TEXT [/A]`: to all operators, those at this machine's terminals among them.
///
/// # Errors
/// No manager answers here. That the other node's does not is only said.
pub async fn armbcast(context: &Context, arguments: &[String]) -> Outcome {
    let mut text = Vec::new();
    let mut rest = arguments.iter();
    let mut told = false;
    while let Some(one) = rest.next() {
        match one.to_ascii_uppercase().as_str() {
            "/MSG" => {
                told = true;
                text.extend(rest.next().cloned());
            }
            "/A" => {}
            // The text may be several words.
            _ if told && !one.starts_with('/') => text.push(one.clone()),
            _ => return Err(misused("ARMBCAST", format!("`{one}` is not known"))),
        }
    }
    if text.is_empty() {
        return Err(misused("ARMBCAST", "/MSG: the text is missing"));
    }
    let text = text.join(" ");
    // Where nobody sits, or there is no `wall`, the alert is what counts.
    let _ = Command::new("wall")
        .arg(&text)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    note(context, text, None, Severity::Warning, Reach::Cluster).await
}

/// `clplogcc [-o FOLDER] [-l]`
///
/// # Errors
/// The archive can't be written.
pub async fn clplogcc(context: &Context, arguments: &[String]) -> Outcome {
    const KNOWN: Known = Known {
        name: "clplogcc",
        flags: &["-l"],
        values: &["-o", "-t", "-n", "-r"],
        optional: &[],
        words: 0,
    };
    let given = parse(&KNOWN, arguments)?;
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let archive = given
        .value("-o")
        .map(|folder| Path::new(folder).join(format!("kagami-logs-{now}.tar")));
    let verb = LogsVerb::Collect {
        archive,
        this_node: given.has("-l"),
        json: false,
    };
    logs::run(context, verb).await
}
