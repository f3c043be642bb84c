//! The trace of a run: what each core was told and what it wanted, one line each.
//!
//! Time is in microseconds of the world. `->` is what a core does, no arrow what happens to it.

use std::fmt::Write as _;

use kagami_replicator::core::disk::DiskOp;
use kagami_replicator::core::event::{Event, Request};
use kagami_replicator::core::message::Message;
use kagami_replicator::core::{Action, Class};

use super::content;

/// Where a trace goes.
#[derive(Debug, Default)]
pub struct Trace {
    lines: Option<Vec<String>>,
}

impl Trace {
    /// No trace: nothing is formatted.
    pub fn off() -> Self {
        Self { lines: None }
    }

    /// A trace that is kept.
    pub fn kept() -> Self {
        Self {
            lines: Some(Vec::new()),
        }
    }

    /// The lines so far.
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or(&[])
    }

    /// A line of its own.
    pub fn line(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.lines().len()
    }

    /// True if nothing was told yet.
    pub fn is_empty(&self) -> bool {
        self.lines().is_empty()
    }

    /// A line before those that came since.
    pub fn line_at(&mut self, at: usize, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.insert(at, line());
        }
    }

    /// What a core is handed.
    pub fn event(&mut self, now: u64, tick: u64, name: &str, event: &Event) {
        self.line(|| format!("{:>10} {name} {} [{tick}]", now / 1000, event_text(event)));
    }

    /// What a core wants.
    pub fn action(&mut self, name: &str, action: &Action) {
        self.line(|| format!("           {name}   -> {}", action_text(action)));
    }
}

fn data_text(data: &[u8]) -> String {
    let mut text = String::new();
    let mut last = None;
    let mut count = 0;
    let mut put = |value: Option<Option<u64>>, count: u32| {
        if let Some(value) = value {
            let separator = if text.is_empty() { "" } else { " " };
            let _ = match value {
                Some(0) => write!(text, "{separator}0"),
                Some(value) => write!(text, "{separator}w{}", content::writer(value)),
                None => write!(text, "{separator}damage"),
            };
            if count > 1 {
                let _ = write!(text, "*{count}");
            }
        }
    };
    let values =
        content::from_bytes(data).map(|value| value.map(|value| u64::from(content::writer(value))));
    for value in values {
        if last == Some(value) {
            count += 1;
        } else {
            put(last, count);
            last = Some(value);
            count = 1;
        }
    }
    put(last, count);
    text
}

fn event_text(event: &Event) -> String {
    match event {
        Event::Request { id, request } => format!("request {id}: {}", request_text(request)),
        Event::Disk { id, result } => match result {
            Ok(data) if data.is_empty() => format!("disk {id} done"),
            Ok(data) => format!("disk {id} read {}", data_text(data)),
            Err(fault) => format!("disk {id} FAILED: {fault}"),
        },
        Event::MetadataDone { id, result: Ok(()) } => format!("metadata {id} durable"),
        Event::LinkUp { session, .. } => format!("link up, session {session}"),
        Event::LinkDown { session, reason } => format!("link down, session {session}: {reason}"),
        Event::Message { session, message } => {
            format!("receives [{session}] {}", message_text(message))
        }
        Event::Arbiter { attempt, answer } => format!("arbiter answers {attempt}: {answer:?}"),
        Event::Command { id, command } => format!("order {id}: {command:?}"),
        Event::Tags(tags) => format!("{} tags", tags.len()),
        other => format!("{other:?}"),
    }
}

fn request_text(request: &Request) -> String {
    let blocks = |offset: u64, len: u64| format!("block {} ({offset}+{len})", offset / 4096);
    match request {
        Request::Read { offset, len } => format!("read {}", blocks(*offset, u64::from(*len))),
        Request::Write { offset, data, fua } => {
            let fua = if *fua { " fua" } else { "" };
            format!(
                "write {} {}{fua}",
                blocks(*offset, data.len() as u64),
                data_text(data)
            )
        }
        Request::WriteZeroes { offset, len, .. } => format!("zero {}", blocks(*offset, *len)),
        Request::Discard { offset, len, .. } => format!("discard {}", blocks(*offset, *len)),
        Request::Flush => "flush".to_owned(),
    }
}

fn op_text(op: &DiskOp) -> String {
    match op {
        DiskOp::Read { offset, len } => format!("read block {}+{}", offset / 4096, len / 4096),
        DiskOp::Write { offset, data, fua } => {
            let fua = if *fua { " fua" } else { "" };
            format!(
                "write block {}+{} {}{fua}",
                offset / 4096,
                data.len() / 4096,
                data_text(data)
            )
        }
        DiskOp::Zero { offset, len, .. } => format!("zero block {}+{}", offset / 4096, len / 4096),
        DiskOp::Flush => "flush".to_owned(),
    }
}

fn message_text(message: &Message) -> String {
    let blocks = |offset: u64, data: &[u8]| {
        format!(
            "block {}+{} {}",
            offset / 4096,
            data.len() / 4096,
            data_text(data)
        )
    };
    match message {
        Message::Write {
            seq,
            offset,
            data,
            fua,
            early,
        } => format!(
            "write seq={seq} {}{}{}",
            blocks(*offset, data),
            if *fua { " fua" } else { "" },
            if *early { " early" } else { "" }
        ),
        Message::ResyncBlocks { seq, offset, data } => {
            format!("resync seq={seq} {}", blocks(*offset, data))
        }
        Message::ReadReply {
            id,
            result: Ok(data),
        } => format!("read-reply {id} {}", data_text(data)),
        Message::Compare {
            id, offset, hashes, ..
        } => {
            format!("compare {id} block {}+{}", offset / 4096, hashes.len())
        }
        Message::Compared {
            id,
            result: Ok(different),
        } => format!("compared {id}: {} differ", different.len()),
        other => format!("{other:?}"),
    }
}

fn action_text(action: &Action) -> String {
    match action {
        Action::Disk { id, op } => format!("disk {id} {}", op_text(op)),
        Action::Metadata { id, steps } => {
            let step = |step: &Vec<(u64, bytes::Bytes)>| {
                let writes = step
                    .iter()
                    .map(|(offset, bytes)| format!("{offset}+{}", bytes.len()));
                writes.collect::<Vec<_>>().join(" ")
            };
            format!(
                "metadata {id} {}",
                steps.iter().map(step).collect::<Vec<_>>().join(" then ")
            )
        }
        Action::Send {
            session,
            class,
            message,
        } => {
            let class = match class {
                Class::Control => "",
                Class::Data => " (data)",
                Class::Resync => " (resync)",
            };
            format!("sends [{session}]{class} {}", message_text(message))
        }
        Action::CloseSession { session, reason } => format!("closes session {session}: {reason}"),
        Action::Complete { id, result } => match result {
            Ok(data) if data.is_empty() => format!("answers {id}: done"),
            Ok(data) => format!("answers {id}: {}", data_text(data)),
            Err(error) => format!("answers {id}: {error}"),
        },
        Action::CommandDone {
            id,
            result: Ok(reply),
        } => format!("tells the operator {id}: {reply:?}"),
        Action::CommandDone {
            id,
            result: Err(refusal),
        } => format!(
            "refuses the order {id}: {} {:?}",
            refusal.what, refusal.facts
        ),
        Action::SetTimer { at: Some(at) } => format!("timer at {} us of its clock", at.0 / 1000),
        Action::Report(notice) => format!("says {notice:?}"),
        other => format!("{other:?}"),
    }
}
