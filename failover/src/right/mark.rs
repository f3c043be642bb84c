//! What a node's disk says of the right to run a group without a mirror (Marked-first,
//! [`super::lease`]): one small file for each group, a line of text.
//!
//! ```text
//! held 0123456789abcdef0123456789abcdef 3000 0123456789abcdef
//! ```
//!
//! `held`: the node holds the right and has promised nothing since; `free`: it may have promised. Then the boot of
//! the machine that it was written in, and the longest lease that was counted here or promised for, in
//! milliseconds, and the instance of the register that both nodes have agreed on (`-`: none yet). No file: nothing of
//! either was ever done. Written whole: a new file, sync, rename, sync of the folder.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::lives::Life;

use super::lease::{Before, Kept, LONGEST, Left, Mark};

/// The folder of the marks, in the manager's state folder.
pub const FOLDER: &str = "right";

/// A group's mark, for one life of a manager.
#[derive(Clone, Debug)]
pub struct Marks {
    state: PathBuf,
    register: u128,
    boot: u128,
    life: Life,
}

impl Marks {
    /// For a life that begins now, and what the earlier ones left.
    pub fn take_over(state: &Path, register: u128, boot: u128) -> (Self, Left) {
        // First: then nothing of an earlier life is written after it was read.
        let life = Life::of(&file(state, register));
        let left = read(state, register, boot);
        let state = state.to_owned();
        let marks = Self {
            state,
            register,
            boot,
            life,
        };
        (marks, left)
    }

    /// Makes a mark durable. False: a later life has begun, and it was not written.
    ///
    /// # Errors
    /// The system refuses; what is there is the mark before, or this one.
    pub fn write(&self, kept: Kept) -> io::Result<bool> {
        let write = || write(&self.state, self.register, self.boot, kept);
        match self.life.carry_out(write) {
            Some(written) => written.map(|()| true),
            None => Ok(false),
        }
    }
}

/// In the place of a register's instance.
const NONE: &str = "-";

fn file(state: &Path, register: u128) -> PathBuf {
    state.join(FOLDER).join(format!("{register:032x}"))
}

/// What an earlier manager left. Of what can't be read the worst is taken.
fn read(state: &Path, register: u128, boot: u128) -> Left {
    let path = file(state, register);
    let unknown = |why: &dyn std::fmt::Display| {
        tracing::warn!("{}: {why}: it counts for nothing", path.display());
        Left {
            before: Before::Unknown,
            length: LONGEST,
            instance: None,
        }
    };
    match fs::read_to_string(&path) {
        Ok(text) => parse(&text, boot).unwrap_or_else(|| unknown(&"it is no mark")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Left {
            before: Before::Free,
            length: 0,
            instance: None,
        },
        Err(error) => unknown(&error),
    }
}

fn parse(text: &str, boot: u128) -> Option<Left> {
    let line = text.strip_suffix('\n')?;
    let mut words = line.split(' ');
    let mark = words.next()?;
    let of = u128::from_str_radix(words.next()?, 16).ok()?;
    let length = words.next()?.parse().ok()?;
    let instance = match words.next()? {
        NONE => None,
        digits => Some(u64::from_str_radix(digits, 16).ok()?),
    };
    let before = match mark {
        "held" if of == boot => Before::Held,
        "held" => Before::HeldBeforeBoot,
        "free" => Before::Free,
        _ => return None,
    };
    let left = Left {
        before,
        length,
        instance,
    };
    (words.next().is_none() && length <= LONGEST).then_some(left)
}

fn write(state: &Path, register: u128, boot: u128, kept: Kept) -> io::Result<()> {
    let path = file(state, register);
    let folder = state.join(FOLDER);
    fs::create_dir_all(&folder)?;
    let mark = match kept.mark {
        Mark::Held => "held",
        Mark::Free => "free",
    };
    let new = path.with_extension("new");
    let mut written = File::create(&new)?;
    let instance = kept.instance.map(|instance| format!("{instance:016x}"));
    let instance = instance.as_deref().unwrap_or(NONE);
    writeln!(written, "{mark} {boot:032x} {} {instance}", kept.length)?;
    written.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(&folder)?.sync_all()?;
    File::open(state)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_of_an_earlier_life_is_not_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path();
        let kept = |mark| Kept {
            mark,
            length: 3000,
            instance: None,
        };
        let (earlier, left) = Marks::take_over(state, 7, 1);
        assert_eq!(left.before, Before::Free);
        assert!(earlier.write(kept(Mark::Held)).expect("written"));
        let (later, left) = Marks::take_over(state, 7, 1);
        assert_eq!(left.before, Before::Held);
        assert!(!earlier.write(kept(Mark::Free)).expect("given up"));
        assert_eq!(read(state, 7, 1).before, Before::Held);
        // Another group's is another's.
        let (_other, _) = Marks::take_over(state, 8, 1);
        assert!(later.write(kept(Mark::Free)).expect("written"));
        assert_eq!(read(state, 7, 1).before, Before::Free);
    }

    #[test]
    fn a_mark_tells_its_boot_the_longest_lease_and_the_register() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path();
        let left = |before, length, instance| Left {
            before,
            length,
            instance,
        };
        let kept = |mark, length, instance| Kept {
            mark,
            length,
            instance,
        };
        let all = Some(u64::MAX);
        assert_eq!(read(state, 7, 1), left(Before::Free, 0, None));
        write(state, 7, 1, kept(Mark::Held, 3000, Some(5))).expect("written");
        assert_eq!(read(state, 7, 1), left(Before::Held, 3000, Some(5)));
        assert_eq!(
            read(state, 7, 2),
            left(Before::HeldBeforeBoot, 3000, Some(5))
        );
        let others = read(state, 8, 1);
        assert_eq!(others, left(Before::Free, 0, None), "another group's");
        write(state, 7, 1, kept(Mark::Free, 60_000, None)).expect("written");
        assert_eq!(read(state, 7, 1), left(Before::Free, 60_000, None));
        write(state, 7, 1, kept(Mark::Free, 60_000, all)).expect("written");
        assert_eq!(read(state, 7, 2), left(Before::Free, 60_000, all));
        for bad in [
            "?\n",
            "",
            "held 1 3000 5",
            "held 1 3000\n",
            "free 1 60001 5\n",
            "free 1 3 4 5\n",
            "free 1 3 x\n",
        ] {
            fs::write(file(state, 7), bad).expect("written");
            assert_eq!(
                read(state, 7, 1),
                left(Before::Unknown, LONGEST, None),
                "{bad}"
            );
        }
    }
}
