//! `kagami config check` and `kagami config show`.

use serde_json::json;

use super::{Context, print_json, print_out};
use crate::args::ConfigVerb;
use crate::config::fault::Fault;
use crate::config::{Config, ConfigError, check, disks, show, tls};
use crate::exit::{DONE, Failure, Outcome, Status};

/// Checks or shows the configuration.
///
/// # Errors
/// It is wrong, or not there.
pub fn run(context: &Context, verb: &ConfigVerb) -> Outcome {
    match verb {
        ConfigVerb::Check { file_only, json } => judge(context, *file_only, *json),
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

/// The configuration as the daemon would take it: the file, and the disks, certificates and keys that it names.
///
/// # Errors
/// Everything that is wrong.
pub fn checked(context: &Context) -> Result<Config, ConfigError> {
    let config = Config::load(&context.file)?;
    let mut faults = disks::check(&config);
    faults.extend(tls::check(&config));
    faults.sort_by_key(|fault| fault.line);
    if faults.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError {
            file: context.file.clone(),
            faults,
        })
    }
}

fn listed(faults: &[Fault]) -> Vec<serde_json::Value> {
    let one = |fault: &Fault| json!({"line": fault.line, "what": fault.what, "next": fault.next});
    faults.iter().map(one).collect()
}

fn judge(context: &Context, file_only: bool, as_json: bool) -> Outcome {
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
            let warnings = check::warnings(&config);
            if as_json {
                print_json(
                    &json!({"file": context.file, "faults": [], "warnings": listed(&warnings)}),
                )?;
                return DONE;
            }
            for warning in &warnings {
                let of_file = ConfigError::one(context.file.clone(), warning.clone());
                anstream::eprintln!("warning: {of_file}");
            }
            print_out(&format!("{words}\n"))?;
            DONE
        }
        Err(error) if as_json => {
            let faults = listed(&error.faults);
            print_json(&json!({"file": error.file, "faults": faults, "warnings": []}))?;
            Ok(Status::Usage as u8)
        }
        Err(error) => Err(Failure::from(error)),
    }
}
