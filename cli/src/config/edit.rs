//! Changes to the configuration file by commands: comments and layout stay, the result is checked
//! before it is written, and the file is replaced in one step.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use toml_edit::{DocumentMut, Item, Table};

use super::keys::{self, Section};
use super::places::Places;
use super::{Config, ConfigError, read_file};

/// How long another command may have the configuration.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

const HEADER: &str = "\
# kagami's configuration. Every key and its default: `kagami config show --defaults`.
# Check a change with `kagami config check`, hand it to the running daemon with `kagami reload`.
";

/// Why the file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file as it is, or as it would be, is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A system call failed.
    #[error("{}: not {what}: {source}\n  next: {next}", file.display())]
    Io {
        /// Which file or folder.
        file: PathBuf,
        /// "written", "locked".
        what: &'static str,
        /// The kernel's word.
        source: io::Error,
        /// What to do.
        next: &'static str,
    },
}

/// A configuration file being changed. Others that change it wait until this is dropped.
#[derive(Debug)]
pub struct Editor {
    file: PathBuf,
    document: DocumentMut,
    /// The folder's descriptor holds the lock.
    folder: File,
    existed: bool,
}

impl Editor {
    /// Opens the file for changes; a file that is not there begins empty.
    ///
    /// # Errors
    /// It is not TOML, or its folder can't be made or locked.
    pub fn open(file: &Path) -> Result<Self, EditError> {
        // A link is followed, so that the rename replaces the file and not the link.
        let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let folder_path = file.parent().unwrap_or(Path::new("/")).to_owned();
        let io = |what, next| {
            let file = folder_path.clone();
            move |source| EditError::Io {
                file,
                what,
                source,
                next,
            }
        };
        fs::create_dir_all(&folder_path).map_err(io(
            "created",
            "run the command as a user who may, or name another file with --config",
        ))?;
        let folder = File::open(&folder_path).map_err(io("opened", "check its permissions"))?;
        lock(&folder).map_err(|errno| match errno {
            Errno::WOULDBLOCK => io(
                "locked",
                "another program has held it for 10 s: end that one",
            )(errno.into()),
            errno => io("locked", "use a file system that knows locks")(errno.into()),
        })?;
        let existed = file.exists();
        let text = if existed {
            read_file(&file)?
        } else {
            String::new()
        };
        let document = text.parse::<DocumentMut>().map_err(|_| {
            // The reader says it with line and next step.
            super::read::read(&file, &text).expect_err("what does not parse does not read")
        })?;
        Ok(Self {
            file,
            document,
            folder,
            existed,
        })
    }

    /// The file was there before.
    pub fn existed(&self) -> bool {
        self.existed
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The configuration as it is now; `None` while the file does not exist.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn config(&self, places: &Places) -> Result<Option<Config>, ConfigError> {
        if !self.existed {
            return Ok(None);
        }
        Config::parse(&self.file, &self.text(), places).map(Some)
    }

    /// The text as it would be written.
    pub fn text(&self) -> String {
        if self.existed {
            self.document.to_string()
        } else {
            format!("{HEADER}{}", self.document)
        }
    }

    /// Sets a key; its section is made where it is missing, its comment stays.
    pub fn set(
        &mut self,
        section: Section,
        name: &str,
        key: &str,
        value: impl Into<toml_edit::Value>,
    ) {
        assert!(
            keys::find(section, key).is_some(),
            "{key} is not in the table of keys"
        );
        let mut value = value.into();
        let table = self.table(section, name);
        if let Some(old) = table.get(key).and_then(Item::as_value) {
            *value.decor_mut() = old.decor().clone();
        }
        table.insert(key, Item::Value(value));
    }

    /// Removes a key, if it is there.
    pub fn unset(&mut self, section: Section, name: &str, key: &str) {
        self.table(section, name).remove(key);
    }

    /// Removes a section, if it is there.
    pub fn remove(&mut self, section: Section, name: &str) {
        if let Some(all) = self.named(section) {
            all.remove(name);
        }
    }

    /// Gives a section another NAME; what refers to it is the caller's.
    pub fn rename(&mut self, section: Section, from: &str, to: &str) {
        if let Some(all) = self.named(section)
            && let Some(item) = all.remove(from)
        {
            all.insert(to, item);
        }
    }

    /// The table of the sections of a kind that have NAMEs.
    fn named(&mut self, section: Section) -> Option<&mut dyn toml_edit::TableLike> {
        assert!(
            matches!(section, Section::Mirror | Section::Peer | Section::Arbiter),
            "{section:?} has no NAMEs"
        );
        self.document
            .get_mut(section.word())
            .and_then(Item::as_table_like_mut)
    }

    fn table(&mut self, section: Section, name: &str) -> &mut dyn toml_edit::TableLike {
        let mut table: &mut dyn toml_edit::TableLike = self.document.as_table_mut();
        let mut path = vec![section.word()];
        if !matches!(section, Section::Node | Section::Nbd | Section::Witness) {
            path.push(name);
        }
        if section == Section::Resync {
            path.push("resync");
        }
        let depth = path.len();
        for (index, step) in path.into_iter().enumerate() {
            let implicit = index + 1 < depth && index == 0;
            table = table
                .entry(step)
                .or_insert_with(|| {
                    let mut new = Table::new();
                    new.set_implicit(implicit);
                    new.decor_mut().set_prefix("\n");
                    Item::Table(new)
                })
                .as_table_like_mut()
                .expect("the file was checked: its sections are tables");
        }
        table
    }

    /// Checks the result as the daemon would and replaces the file with it: whole, or not at all.
    ///
    /// # Errors
    /// The result would be wrong (nothing was written), or a system call failed.
    pub fn save(self, places: &Places) -> Result<Config, EditError> {
        let text = self.text();
        let config = Config::parse(&self.file, &text, places)?;
        let next = "the file is as it was; free some space or check permissions, and try again";
        self.replace(&text).map_err(|source| EditError::Io {
            file: self.file.clone(),
            what: "written",
            source,
            next,
        })?;
        Ok(config)
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let name = self.file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut temporary_name = std::ffi::OsString::from(".");
        temporary_name.push(name);
        temporary_name.push(".new");
        let temporary = self.file.with_file_name(temporary_name);
        // The lock makes this name ours: what is left there is from a command that died.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        write_whole(&self.file, &temporary, text.as_bytes(), 0o644)?;
        self.folder.sync_all()
    }
}

static REPLACING: Mutex<()> = Mutex::new(());

/// Puts these bytes in a file's place, whole and durably; its permissions and owner stay. A new one is its owner's alone.
///
/// # Errors
/// The file is as it was.
pub fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link is followed, so that the rename replaces the file and not the link.
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    // Two threads of a manager may do so at once, and a manager and a command.
    let _one = REPLACING.lock().unwrap_or_else(PoisonError::into_inner);
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = file.with_file_name(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write_whole(&file, &temporary, bytes, 0o600)?;
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn write_whole(file: &Path, temporary: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let before = fs::metadata(file).ok();
    let mode = before.as_ref().map_or(mode, |facts| facts.mode() & 0o7777);
    let written = (|| {
        let mut new = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(temporary)?;
        new.write_all(bytes)?;
        let mine = new.metadata()?;
        let old = before.filter(|old| (old.uid(), old.gid()) != (mine.uid(), mine.gid()));
        let mode = match old {
            Some(old) => keep_owner((old.uid(), old.gid()), mode, |uid, gid| {
                std::os::unix::fs::fchown(&new, uid, gid)
            })?,
            None => mode,
        };
        new.set_permissions(fs::Permissions::from_mode(mode))?;
        new.sync_all()?;
        fs::rename(temporary, file)
    })();
    if written.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(temporary);
    }
    written
}

/// Gives a new file the owner and the group of the old one, as far as this process may; gives its permissions. A group
/// that can't be kept has none.
fn keep_owner(
    (uid, gid): (u32, u32),
    mode: u32,
    chown: impl Fn(Option<u32>, Option<u32>) -> io::Result<()>,
) -> io::Result<u32> {
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    match chown(Some(uid), Some(gid)) {
        // Whoever may write the folder may put another file there, but not in another's name.
        Err(error) if denied(&error) => match chown(None, Some(gid)) {
            Err(error) if denied(&error) => Ok(mode & !0o070),
            kept => kept.map(|()| mode),
        },
        kept => kept.map(|()| mode),
    }
}

/// Takes the folder's lock, which another command has for a moment. Any user who may read the folder can
/// lock it: that must not hold up a command, or the daemon, for ever.
fn lock(folder: &File) -> Result<(), Errno> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places::of_root()
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_permissions_and_the_link_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.toml");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&file, b"new").unwrap();
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o600, "secrets may be in it");
        for kept in [0o600, 0o640, 0o644] {
            fs::set_permissions(&file, fs::Permissions::from_mode(kept)).unwrap();
            replace(&link, format!("{kept}").as_bytes()).unwrap();
            assert_eq!(mode(), kept);
            assert_eq!(fs::read_to_string(&file).unwrap(), format!("{kept}"));
        }
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        // root may give files away; anybody else has the one owner.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&file, Some(12), Some(34)).unwrap();
            replace(&file, b"again").unwrap();
            let facts = fs::metadata(&file).unwrap();
            assert_eq!((facts.uid(), facts.gid()), (12, 34));
        }
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 2, "nothing is left beside it");
    }

    #[test]
    fn two_threads_replace_a_file_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.toml");
        let texts = ["a".repeat(64 << 10), "b".repeat(48 << 10)];
        replace(&file, texts[0].as_bytes()).unwrap();
        std::thread::scope(|scope| {
            for text in &texts {
                scope.spawn(|| {
                    for _ in 0..50 {
                        replace(&file, text.as_bytes()).unwrap();
                    }
                });
            }
            for _ in 0..200 {
                let found = fs::read_to_string(&file).unwrap();
                assert!(texts.contains(&found), "{} bytes", found.len());
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_only_root_may_keep_is_kept_by_root_alone() {
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        let keep = |answers: fn(Option<u32>) -> bool| {
            keep_owner(
                (1, 2),
                0o640,
                |uid, _| {
                    if answers(uid) { Ok(()) } else { denied() }
                },
            )
            .unwrap()
        };
        assert_eq!(keep(|_| true), 0o640);
        assert_eq!(keep(|uid| uid.is_none()), 0o640, "a member of the group");
        assert_eq!(keep(|_| false), 0o600);
    }

    const FILE: &str = "\
# ours
[node]
name = \"alpha\"   # the left one
id = 7

[mirror.pg] # the database
uuid = \"00112233445566778899aabbccddeeff\"
size = \"20GiB\"
backing = \"/dev/vg0/pg\"
metadata = \"/dev/vg0/pg-meta\"
solo = \"never\"  # for now
";

    #[test]
    fn comments_and_layout_stay() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kagami.toml");
        fs::write(&file, FILE).unwrap();
        let mut editor = Editor::open(&file).unwrap();
        editor.set(Section::Mirror, "pg", "solo", "always");
        editor.set(Section::Mirror, "pg", "peer", "beta");
        editor.set(Section::Peer, "beta", "id", 8);
        editor.set(
            Section::Peer,
            "beta",
            "addresses",
            toml_edit::Array::from_iter(["10.0.0.2:7789"]),
        );
        let print = format!("sha256:{}", "ab".repeat(32));
        editor.set(
            Section::Peer,
            "beta",
            "fingerprints",
            toml_edit::Array::from_iter([print.as_str()]),
        );
        editor.save(&places()).unwrap();
        let expected = FILE.replace(
            "solo = \"never\"  # for now",
            "solo = \"always\"  # for now\npeer = \"beta\"",
        ) + &format!(
            "\n[peer.beta]\nid = 8\naddresses = [\"10.0.0.2:7789\"]\nfingerprints = [\"{print}\"]\n"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no temporary file is left");
    }

    #[test]
    fn a_wrong_result_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kagami.toml");
        fs::write(&file, FILE).unwrap();
        let mut editor = Editor::open(&file).unwrap();
        editor.set(Section::Mirror, "pg", "solo", "arbiter");
        let said = editor.save(&places()).unwrap_err().to_string();
        assert!(said.contains("without an arbiter"), "{said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), FILE);
    }

    #[test]
    fn a_new_file_begins_with_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/er/kagami.toml");
        let mut editor = Editor::open(&file).unwrap();
        assert!(!editor.existed());
        editor.set(Section::Node, "", "name", "alpha");
        editor.set(Section::Node, "", "id", 7);
        editor.save(&places()).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(
            text,
            format!("{HEADER}\n[node]\nname = \"alpha\"\nid = 7\n")
        );
        assert!(Config::parse(&file, &text, &places()).is_ok());
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("real.toml");
        let link = folder.path().join("link.toml");
        fs::write(&file, FILE).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut editor = Editor::open(&link).unwrap();
        editor.set(Section::Node, "", "log-level", "warn");
        editor.save(&places()).unwrap();
        assert!(link.is_symlink());
        assert!(
            fs::read_to_string(&file)
                .unwrap()
                .contains("log-level = \"warn\"")
        );
    }
}
