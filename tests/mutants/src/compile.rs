//! One build of all mutants: a copy of the workspace with the switches, without those that do not compile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::list::Mutant;
use crate::schema::{self, Schema, Without};

/// Why a mutant is not tried in the common build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// It would not compile by itself either.
    DoesNotCompile(String),
    /// Perhaps it would: cargo-mutants has to build it.
    Alone(String),
}

/// What has been built.
pub struct Built {
    /// The test programs, by package and name.
    pub programs: BTreeMap<(String, String), PathBuf>,
    /// Those that are not in it.
    pub out: BTreeMap<u32, Out>,
}

/// Copies the workspace's files, as git lists them, into `copy`, and builds the mutants there, but for those that
/// are `out` already.
pub fn build(
    root: &Path,
    copy: &Path,
    profile: &str,
    builds: &[&[&str]],
    mutants: &[Mutant],
    mut out: BTreeMap<u32, Out>,
) -> Result<Built, String> {
    let files = tracked(root)?;
    remove_others(copy, copy, &files).map_err(|e| format!("{}: {e}", copy.display()))?;
    let of_file = by_file(mutants);
    for file in files.iter().filter(|file| !of_file.contains_key(*file)) {
        let bytes = fs::read(root.join(file)).map_err(|e| format!("{file}: {e}"))?;
        put(copy, file, &bytes)?;
    }
    put(copy, "bitmap/src/mutant.rs", include_bytes!("switch.rs"))?;
    let wrapper = copy.with_extension("rustc");
    // A mutant may well be what a lint denies, such as arithmetic that overflows.
    fs::write(&wrapper, "#!/bin/sh\nexec \"$@\" --cap-lints allow\n")
        .and_then(|()| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))
        })
        .map_err(|e| format!("{}: {e}", wrapper.display()))?;

    // The dependencies there are built already.
    let target = root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    loop {
        let schemas = write_all(root, copy, &of_file, &mut out)?;
        eprintln!(
            "building: {} of {} mutants have a switch",
            mutants.len() - out.len(),
            mutants.len()
        );
        let mut programs = BTreeMap::new();
        let mut errors = Vec::new();
        for arguments in builds {
            cargo(
                copy,
                &wrapper,
                &target,
                profile,
                arguments,
                &mut programs,
                &mut errors,
            )?;
            if !errors.is_empty() {
                break;
            }
        }
        if errors.is_empty() {
            return Ok(Built { programs, out });
        }
        let before = out.len();
        for error in &errors {
            blame(error, &schemas, mutants, &mut out);
        }
        if out.len() == before {
            let texts: Vec<_> = errors
                .iter()
                .filter_map(|e| e["rendered"].as_str())
                .collect();
            return Err(format!(
                "no mutant is to blame for this:\n{}",
                texts.join("\n")
            ));
        }
    }
}

fn tracked(root: &Path) -> Result<BTreeSet<String>, String> {
    let list = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("git: {e}"))?;
    let text = String::from_utf8_lossy(&list.stdout);
    let files: BTreeSet<_> = text
        .split('\0')
        .filter(|file| !file.is_empty() && root.join(file).is_file())
        .map(str::to_owned)
        .collect();
    if files.is_empty() {
        Err("git lists no files here".to_owned())
    } else {
        Ok(files)
    }
}

fn remove_others(folder: &Path, copy: &Path, files: &BTreeSet<String>) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_others(&entry.path(), copy, files)?;
        } else {
            let path = entry.path();
            let name = path
                .strip_prefix(copy)
                .map(|name| name.to_string_lossy().into_owned());
            // What is made here is written over each time; what is the same keeps its time.
            if name.is_ok_and(|name| name != "bitmap/src/mutant.rs" && !files.contains(&name)) {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

/// Writes a file unless it is so already: cargo goes by the time.
fn put(copy: &Path, file: &str, bytes: &[u8]) -> Result<(), String> {
    let path = copy.join(file);
    if fs::read(&path).is_ok_and(|have| have == bytes) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(copy);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, bytes))
        .map_err(|e| format!("{}: {e}", path.display()))
}

fn by_file(mutants: &[Mutant]) -> BTreeMap<String, Vec<&Mutant>> {
    let mut of_file: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for mutant in mutants {
        of_file.entry(mutant.file.clone()).or_default().push(mutant);
    }
    // It names the switch's module.
    of_file.entry("bitmap/src/lib.rs".to_owned()).or_default();
    of_file
}

fn write_all(
    root: &Path,
    copy: &Path,
    of_file: &BTreeMap<String, Vec<&Mutant>>,
    out: &mut BTreeMap<u32, Out>,
) -> Result<BTreeMap<String, Schema>, String> {
    let mut schemas = BTreeMap::new();
    for (file, mutants) in of_file {
        let mut source = fs::read_to_string(root.join(file)).map_err(|e| format!("{file}: {e}"))?;
        if file == "bitmap/src/lib.rs" {
            source.push_str("\npub mod mutant;\n");
        }
        let mutants: Vec<_> = mutants
            .iter()
            .copied()
            .filter(|mutant| !out.contains_key(&mutant.number))
            .collect();
        let schema = schema::write(&source, &mutants, file.starts_with("bitmap/src/"))
            .map_err(|e| format!("{file}: {e}"))?;
        put(copy, file, schema.text.as_bytes())?;
        for (number, why) in &schema.without {
            let why = match why {
                Without::Forbidden => Out::DoesNotCompile("the language forbids it".to_owned()),
                Without::InAConstant => Out::Alone("in a constant".to_owned()),
                Without::NotFound => Out::Alone("not found in the source".to_owned()),
            };
            out.insert(*number, why);
        }
        schemas.insert(file.clone(), schema);
    }
    Ok(schemas)
}

fn cargo(
    copy: &Path,
    wrapper: &Path,
    target: &Path,
    profile: &str,
    arguments: &[&str],
    programs: &mut BTreeMap<(String, String), PathBuf>,
    errors: &mut Vec<Value>,
) -> Result<(), String> {
    let ran = Command::new("cargo")
        .args([
            "test",
            "--quiet",
            "--no-run",
            "--message-format",
            "json",
            "--profile",
            profile,
        ])
        .args(arguments)
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", target)
        .env("RUSTC_WORKSPACE_WRAPPER", wrapper)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("cargo: {e}"))?;
    for line in String::from_utf8_lossy(&ran.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if message["message"]["level"] == "error"
            && message["message"]["spans"] != Value::Array(Vec::new())
        {
            errors.push(message["message"].clone());
        } else if let Some(program) = message["executable"].as_str()
            && message["profile"]["test"] == true
        {
            let package = text(&message["manifest_path"]);
            let package = Path::new(&package)
                .parent()
                .and_then(|folder| folder.strip_prefix(copy).ok());
            let package =
                package.map_or_else(String::new, |folder| folder.to_string_lossy().into_owned());
            let is_lib = message["target"]["kind"][0] == "lib";
            let name = if is_lib {
                "lib".to_owned()
            } else {
                text(&message["target"]["name"])
            };
            programs.insert((package, name), PathBuf::from(program));
        }
    }
    if !ran.status.success() && errors.is_empty() {
        return Err(format!("cargo test {} failed", arguments.join(" ")));
    }
    Ok(())
}

/// Takes out those that an error of the compiler is about.
fn blame(
    error: &Value,
    schemas: &BTreeMap<String, Schema>,
    mutants: &[Mutant],
    out: &mut BTreeMap<u32, Out>,
) {
    let code = error["code"]["code"].as_str().unwrap_or_default();
    let text = format!("{code} {}", error["message"].as_str().unwrap_or_default());
    let mut primary = Vec::new();
    let mut others = Vec::new();
    places(error, &mut primary, &mut others);
    let own = |places: &[(String, usize, usize)]| -> Vec<u32> {
        places
            .iter()
            .filter_map(|(file, start, end)| Some((schemas.get(file)?, start, end)))
            .flat_map(|(schema, start, end)| {
                schema
                    .own
                    .iter()
                    .filter(move |(_, range)| range.start <= *start && *end <= range.end)
            })
            .map(|(number, _)| *number)
            .collect()
    };
    let to_blame = own(&primary);
    for number in &to_blame {
        let why = if is_certain(code, &mutants[*number as usize - 1]) {
            Out::DoesNotCompile
        } else {
            Out::Alone
        };
        out.insert(*number, why(text.clone()));
    }
    if !to_blame.is_empty() {
        return;
    }
    let to_blame = own(&others);
    for number in &to_blame {
        out.insert(*number, Out::Alone(text.clone()));
    }
    if !to_blame.is_empty() {
        return;
    }
    // What is around the mutants no longer compiles: all of the smallest place with switches.
    let around = primary
        .iter()
        .chain(&others)
        .find_map(|(file, start, end)| {
            let sites = schemas.get(file)?.sites.iter();
            sites
                .filter(|(range, _)| range.start <= *start && *end <= range.end)
                .min_by_key(|(range, _)| range.len())
        });
    for number in around.iter().flat_map(|(_, numbers)| numbers) {
        out.insert(*number, Out::Alone(text.clone()));
    }
}

/// Whether the mutant by itself has this error as well: a type without the operator, function or trait that it uses.
fn is_certain(code: &str, mutant: &Mutant) -> bool {
    match code {
        "E0277" | "E0369" | "E0368" | "E0599" | "E0600" | "E0614" | "E0425" | "E0433" | "E0423"
        | "E0063" => true,
        // Where a function's value is an `impl Trait`, a `return` of another type is the switch's own fault.
        "E0308" => !mutant.name.contains("-> impl "),
        _ => false,
    }
}

type PlaceInFile = (String, usize, usize);

fn places(message: &Value, primary: &mut Vec<PlaceInFile>, others: &mut Vec<PlaceInFile>) {
    for span in message["spans"].as_array().into_iter().flatten() {
        let place = (|| {
            let at = |key: &str| usize::try_from(span[key].as_u64()?).ok();
            Some((
                span["file_name"].as_str()?.to_owned(),
                at("byte_start")?,
                at("byte_end")?,
            ))
        })();
        if span["is_primary"] == true {
            primary.extend(place)
        } else {
            others.extend(place)
        }
    }
    for child in message["children"].as_array().into_iter().flatten() {
        let mut of_child = Vec::new();
        places(child, &mut of_child, others);
        others.append(&mut of_child);
    }
}
