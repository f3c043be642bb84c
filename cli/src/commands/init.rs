//! `kagami init`: this node's copy of a new mirror.

use std::path::Path;

use serde_json::json;

use super::stores::{Plan, Wanted, random_uuid};
use super::{Context, node, print_dry_run, print_json, print_out};
use crate::args::InitArgs;
use crate::config::disks;
use crate::config::edit::Editor;
use crate::config::keys::{self, Section};
use crate::config::value::{spell_hex, spell_size};
use crate::exit::{DONE, Failure, Outcome};

/// What the default means, and the way out of it.
const SOLO: &str = "\
solo = \"never\" is the default: when the other node is lost, this mirror holds its I/O until that node
is back (or `kagami promote NAME --force`); it never forks by itself. To let one copy go on alone, name
an arbiter on a third machine: `kagami witness` and `kagami witness enrol` there, then here
`kagami arbiter join TOKEN --mirror NAME` (see docs/guide.md).";

/// Makes the copy and writes it into the configuration.
///
/// # Errors
/// The mirror is there already, a store looks used, the system refuses.
pub fn run(context: &Context, args: InitArgs) -> Outcome {
    let name = &args.mirror;
    let mut editor = Editor::open(&context.file)?;
    let config = node::ensure(&mut editor, &args.node, &context.places)?;
    if config.mirror(name).is_some() {
        return Err(Failure::refused(format!(
            "mirror {name} is in {} already\n  next: choose another name; `kagami status {name}` shows that mirror",
            context.file.display()
        )));
    }
    let uuid = random_uuid()?;
    let plan = Plan::new(&Wanted {
        name,
        uuid,
        node: config.node.id,
        peer: None,
        size: args.size,
        keep_data: args.keep_data,
        logical_block: args.logical_block,
        extents: args.activity_log_extents.unwrap_or_else(default_extents),
        state_dir: &config.node.state_dir,
        store: &args.store,
    })?;
    if args.dry_run {
        let mut text = format!("mirror {name} of {} would be made:", spell_size(plan.size));
        for line in plan.lines() {
            text.push_str(&format!("\n  {line}"));
        }
        return print_dry_run("mirror", name, &text, args.json);
    }
    let lines = plan.lines();
    let made = plan.make()?;
    let saved = (|| {
        let keys = config.keys()?;
        write_mirror(&mut editor, name, &uuid, &made, args.logical_block);
        if let Some(extents) = args.activity_log_extents {
            let key = "activity-log-extents";
            editor.set(Section::Mirror, name, key, i64::from(extents));
        }
        editor.save(&context.places)?;
        Ok(keys.current.fingerprint().to_string())
    })();
    let fingerprint = match saved {
        Ok(fingerprint) => fingerprint,
        Err(failure) => {
            made.take_back();
            return Err(failure);
        }
    };
    if args.json {
        print_json(&json!({
            "mirror": name, "uuid": spell_hex(&uuid), "size_bytes": made.size,
            "backing": made.backing, "metadata": made.metadata, "zeroed": made.zeroed,
            "node": config.node.name, "fingerprint": fingerprint, "config": context.file,
        }))?;
        return DONE;
    }
    let mut text = format!("mirror {name}: made on node {}\n", config.node.name);
    for line in lines {
        text.push_str(&format!("  {line}\n"));
    }
    text.push_str(&format!("  config    {}\n", context.file.display()));
    for store in [&made.backing, &made.metadata] {
        if let Some(lasting) = disks::lasting_name(store, Path::new("/dev/disk/by-id")) {
            text.push_str(&format!(
                "  note      {} may be another disk after the next boot: write {} in its place into the configuration\n",
                store.display(),
                lasting.display()
            ));
        }
    }
    text.push('\n');
    text.push_str(&SOLO.replace("NAME", name));
    text.push_str(&format!(
        "\n\nnext: `kagami pair {name}` prints the line for the other node\n"
    ));
    print_out(&text)?;
    DONE
}

/// The table's default for the activity log.
pub fn default_extents() -> u32 {
    match keys::find(Section::Mirror, "activity-log-extents").map(|key| key.fallback) {
        Some(keys::Fallback::Value(text)) => text.parse().expect("a number in the table of keys"),
        other => unreachable!("activity-log-extents has {other:?}"),
    }
}

/// Writes what a mirror's section must have.
pub fn write_mirror(
    editor: &mut Editor,
    name: &str,
    uuid: &[u8; 16],
    made: &super::stores::Made,
    logical_block: u32,
) {
    let mut set = |key: &str, value: toml_edit::Value| {
        editor.set(Section::Mirror, name, key, value);
    };
    set("uuid", spell_hex(uuid).into());
    set("size", spell_size(made.size).into());
    set("backing", made.backing.display().to_string().into());
    set("metadata", made.metadata.display().to_string().into());
    if logical_block != 512 {
        set("logical-block", i64::from(logical_block).into());
    }
    set("solo", "never".into());
}
