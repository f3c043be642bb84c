//! `kagami cluster push`: a new configuration for both nodes.

use std::path::Path;

use kagami_failover::control::message::Pushed;
use kagami_failover::control::{Answer, Ask};

use super::check::{faults, read};
use super::{Context, print_json, print_out, unexpected};
use crate::exit::{DONE, Failure, Outcome};

/// Checks the file against this node, and hands it to both.
///
/// # Errors
/// It is wrong, refused, or there is no failover manager.
pub async fn run(
    context: &Context,
    file: &Path,
    force: bool,
    dry_run: bool,
    json: bool,
) -> Outcome {
    let text = read(file)?;
    let mut client = context.manager().await?;
    if let Err(error) = faults(Some(context), file, &text)? {
        return Err(Failure::usage(format!("{error}\nnothing was changed")));
    }
    let ask = Ask::Push {
        text,
        force,
        dry_run,
    };
    let pushed = match client.ask(ask).await? {
        Answer::Pushed(pushed) => pushed,
        other => return Err(unexpected(&other)),
    };
    if json {
        print_json(&pushed)?;
    } else {
        print_out(&tell(&pushed, dry_run))?;
    }
    DONE
}

fn tell(pushed: &Pushed, dry_run: bool) -> String {
    let mut text = String::new();
    let nodes = pushed.nodes.join(" and ");
    text.push_str(&match (pushed.from == pushed.revision, dry_run) {
        // It says nothing of the other node's, which a push brings to the same.
        (true, true) => format!(
            "revision {} is in force on this node, and would be on {nodes}; nothing was changed\n",
            pushed.revision
        ),
        (true, false) => format!("revision {} is in force on {nodes}\n", pushed.revision),
        (false, true) => format!(
            "revision {} would replace {} on {nodes}; nothing was changed\n",
            pushed.revision, pushed.from
        ),
        (false, false) => format!(
            "revision {} is in force on {nodes} (before: {})\n",
            pushed.revision, pushed.from
        ),
    });
    for change in &pushed.changes {
        text.push_str(&format!("  {change}\n"));
    }
    if let Some(missing) = &pushed.missing {
        text.push_str(&format!("  not there: {missing}\n  next: push it again when that node is back; until then it takes nothing over\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_says_nothing_of_the_other_node_that_may_not_be_true() {
        let pushed = Pushed {
            from: 7,
            revision: 7,
            nodes: vec!["beta".to_owned(), "alpha".to_owned()],
            ..Pushed::default()
        };
        assert_eq!(
            tell(&pushed, true),
            "revision 7 is in force on this node, and would be on beta and alpha; nothing was changed\n"
        );
        assert_eq!(
            tell(&pushed, false),
            "revision 7 is in force on beta and alpha\n"
        );
    }
}
