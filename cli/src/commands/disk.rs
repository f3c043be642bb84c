//! `kagami replace-disk`: a new, empty copy of this node in the place of the one it has.
//!
//! Same mirror, same node. The old stores are left as they are; the new ones are made as by `init`,
//! with its look at what is on them. What may be lost is judged from the old copy's record: the peer
//! has all of it only if that record says so.

use std::time::Duration;

use kagami_replicator::shell::engine::OfflineCopy;
use serde_json::json;

use super::stores::{Made, Plan, Wanted};
use super::worth::Worth;
use super::{Context, confirm, print_dry_run, print_json, print_out, stopped};
use crate::args::{ReplaceDiskArgs, StoreArgs};
use crate::config::edit::Editor;
use crate::config::keys::Section;
use crate::config::{Config, Mirror};
use crate::exit::{DONE, Failure, Outcome};
use crate::unit::Starter;

/// The copy that goes, as its metadata have it.
struct Old {
    worth: Worth,
    logical_block: u32,
    max_size: Option<u64>,
    /// Its metadata, so that no daemon takes it up after it was judged; `None`: it can't be used any more.
    held: Option<OfflineCopy>,
}

/// Makes the new copy and writes it into the configuration.
///
/// # Errors
/// The daemon runs, the copy is needed, a store looks used, the system refuses.
pub async fn run(context: &Context, args: &ReplaceDiskArgs) -> Outcome {
    let name = &args.mirror;
    let config = context.config()?;
    let Some(mirror) = config.mirror(name) else {
        return Err(Failure::refused(format!(
            "there is no mirror {name} in {}\n  next: `kagami init` makes one; `kagami pair --join` brings one from another node",
            context.file.display()
        )));
    };
    let command = format!("kagami replace-disk {name} …");
    stopped(
        &config,
        &format!("mirror {name}: disk not replaced"),
        &command,
    )
    .await?;
    let old = judge(&config, mirror)?;
    let worth = &old.worth;
    if let (Some(why), false) = (&worth.needed, args.force) {
        let next = match &mirror.peer {
            Some(peer) => format!(
                "start the daemon here, make {peer} Primary (`kagami promote {name}` there, when they are in sync), `{}` here, then again; or --force, if the copy here is worth nothing",
                Starter::of_file(&context.file).down()
            ),
            None => format!(
                "bring a second node with `kagami pair {name}`, make it Primary when they are in sync, then again; or --force, if the copy here is worth nothing"
            ),
        };
        return Err(Failure::refused(format!(
            "mirror {name}: disk not replaced: {why}\n  {}\n  next: {next}",
            worth.words
        )));
    }
    let plan = plan(&config, mirror, args, &old)?;
    let lines = plan.lines();
    let what = match &worth.needed {
        Some(why) => format!(
            "mirror {name}: this node's copy is given up by force: {why}\n  {}",
            worth.words
        ),
        None => format!(
            "mirror {name}: this node's copy is given up\n  {}",
            worth.words
        ),
    };
    if args.danger.dry_run {
        let words = format!("{what}\n  {}", lines.join("\n  "));
        return print_dry_run("mirror", name, &words, args.json);
    }
    confirm(&what, args.danger.yes)?;
    let made = plan.make()?;
    // Held until the configuration says where the new one is.
    let written = (|| {
        let mut editor = Editor::open(&context.file)?;
        write(&mut editor, name, &made);
        Ok::<_, Failure>(editor.save(&context.places)?)
    })();
    if let Err(failure) = written {
        made.take_back();
        return Err(failure);
    }
    drop(old.held);
    if args.json {
        print_json(&json!({
            "mirror": name, "backing": made.backing, "metadata": made.metadata,
            "old_backing": mirror.backing, "old_metadata": mirror.metadata,
        }))?;
        return DONE;
    }
    let peer = mirror.peer.as_deref().unwrap_or("the other node");
    print_out(&format!(
        "mirror {name}: a new, empty copy on node {}\n  {}\n  the old stores are as they were ({}, {}): remove them when the copies are in sync\nnext: `{}`: everything is copied from {peer}; `kagami status {name}` shows how far it is\n",
        config.node.name,
        lines.join("\n  "),
        mirror.backing.display(),
        mirror.metadata.display(),
        Starter::of_file(&context.file).up()
    ))?;
    DONE
}

fn write(editor: &mut Editor, name: &str, made: &Made) {
    let mut set = |key: &str, path: &std::path::Path| {
        editor.set(Section::Mirror, name, key, path.display().to_string());
    };
    set("backing", &made.backing);
    set("metadata", &made.metadata);
}

/// What is lost with the present copy, by its own record.
fn judge(config: &Config, mirror: &Mirror) -> Result<Old, Failure> {
    let id = u128::from_be_bytes(mirror.uuid);
    match OfflineCopy::open(&mirror.name, id, &mirror.metadata, Duration::ZERO) {
        Ok(copy) => Ok(Old {
            worth: Worth::of(&copy, config.node.id, &mirror.backing),
            logical_block: copy.record().logical_block,
            max_size: Some(copy.superblock().layout.max_size),
            held: Some(copy),
        }),
        Err(error) if error.is_held() => {
            Err(Failure::refused(format!("disk not replaced: {error}")))
        }
        Err(error) => Ok(Old {
            worth: Worth {
                words: format!("it can't be used any more: {error}"),
                needed: None,
            },
            logical_block: mirror.logical_block,
            max_size: None,
            held: None,
        }),
    }
}

fn plan(
    config: &Config,
    mirror: &Mirror,
    args: &ReplaceDiskArgs,
    old: &Old,
) -> Result<Plan, Failure> {
    let metadata = args.metadata.clone().unwrap_or_else(|| {
        // The first name that nobody has.
        let place = |number: u32| {
            let file = format!("{}-{number}.meta", mirror.name);
            config.node.state_dir.join(file)
        };
        let numbers = 2..u32::MAX;
        let free = numbers.map(place).find(|path| !path.exists());
        free.unwrap_or_else(|| place(2))
    });
    let store = StoreArgs {
        device: args.device.clone(),
        backing: args.backing.clone(),
        metadata: Some(metadata),
        max_size: args.max_size.or(old.max_size),
    };
    let peer = mirror.peer.as_deref().and_then(|peer| config.peer(peer));
    Plan::new(&Wanted {
        name: &mirror.name,
        uuid: mirror.uuid,
        node: config.node.id,
        peer: peer.map(|peer| peer.id),
        size: Some(mirror.size),
        keep_data: false,
        logical_block: old.logical_block,
        extents: mirror.activity_log_extents,
        state_dir: &config.node.state_dir,
        store: &store,
    })
}

#[cfg(test)]
mod tests {
    use kagami_replicator::shell::fence::StoreFile;

    use super::*;
    use crate::config::places::Places;
    use crate::config::value::spell_hex;

    #[test]
    fn a_copy_that_was_judged_is_taken_up_by_nobody_until_it_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let uuid = [7; 16];
        let store = StoreArgs {
            device: None,
            backing: None,
            metadata: None,
            max_size: None,
        };
        let plan = Plan::new(&Wanted {
            name: "pg",
            uuid,
            node: 1,
            peer: None,
            size: Some(16 << 20),
            keep_data: false,
            logical_block: 512,
            extents: 1024,
            state_dir: folder.path(),
            store: &store,
        });
        let made = plan.and_then(Plan::make).expect("made");
        let text = format!(
            "[node]\nname = \"alpha\"\nid = 1\n[mirror.pg]\nuuid = \"{}\"\nsize = \"16MiB\"\nbacking = \"{}\"\nmetadata = \"{}\"\n",
            spell_hex(&uuid),
            made.backing.display(),
            made.metadata.display()
        );
        let file = folder.path().join("kagami.toml");
        let config = Config::parse(&file, &text, &Places::of_root()).expect("a configuration");
        let mirror = config.mirror("pg").expect("the mirror");
        let old = judge(&config, mirror).expect("judged");
        let taken = StoreFile::open(&made.metadata, Duration::ZERO);
        assert!(taken.expect_err("it is held").is_held());
        drop(old);
        // (A child that another test is about to begin has it until it becomes its program.)
        StoreFile::open(&made.metadata, Duration::from_secs(20)).expect("it is free");
    }
}
