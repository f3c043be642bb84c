//! `kagami config check` and `kagami config show`.

use serde_json::json;

use super::{Context, print_json, print_out};
use crate::args::ConfigVerb;
use crate::config::{Config, ConfigError, disks, show};
use crate::exit::{DONE, Failure, Outcome, Status};

/// Checks or shows the configuration.
///
/// # Errors
/// It is wrong, or not there.
pub fn run(context: &Context, verb: &ConfigVerb) -> Outcome {
    match verb {
        ConfigVerb::Check { file_only, json } => check(context, *file_only, *json),
        ConfigVerb::Show { defaults, json } => {
            let lines = show::shown(&context.config()?, *defaults);
            if *json {
                print_json(&lines)?;
            } else {
                print_out(&format!(
                    "# {}\n{}",
                    context.file.display(),
                    show::text(&lines)
                ))?;
            }
            DONE
        }
    }
}

/// The configuration as the daemon would take it: the file, and the disks it names.
///
/// # Errors
/// Everything that is wrong.
pub fn checked(context: &Context) -> Result<Config, ConfigError> {
    let config = Config::load(&context.file)?;
    let faults = disks::check(&config);
    if faults.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError {
            file: context.file.clone(),
            faults,
        })
    }
}

fn check(context: &Context, file_only: bool, as_json: bool) -> Outcome {
    let result = if file_only {
        Config::load(&context.file)
    } else {
        checked(context)
    };
    match result {
        Ok(config) => {
            let words = format!(
                "{}: right: node {}, {} mirrors",
                context.file.display(),
                config.node.name,
                config.mirrors.len()
            );
            if as_json {
                print_json(&json!({"file": context.file, "faults": []}))?;
            } else {
                print_out(&format!("{words}\n"))?;
            }
            DONE
        }
        Err(error) if as_json => {
            let faults: Vec<_> = error
                .faults
                .iter()
                .map(|fault| json!({"line": fault.line, "what": fault.what, "next": fault.next}))
                .collect();
            print_json(&json!({"file": error.file, "faults": faults}))?;
            Ok(Status::Usage as u8)
        }
        Err(error) => Err(Failure::from(error)),
    }
}
