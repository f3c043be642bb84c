//! The lives of managers in one process (a reload ends one and begins the next), where they write the same file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::lock;
use crate::planted::{Defect, planted};

/// By the file.
static LIVES: Mutex<BTreeMap<PathBuf, Lives>> = Mutex::new(BTreeMap::new());

/// The lives of managers that have used one file, one after the other, in one process: what an earlier one's writer
/// has not written when the next one begins is never written.
#[derive(Clone, Debug, Default)]
pub struct Lives(Arc<Mutex<u64>>);

/// One of them.
#[derive(Clone, Debug)]
pub struct Life {
    lives: Lives,
    number: u64,
}

impl Lives {
    fn now(&self) -> MutexGuard<'_, u64> {
        lock(&self.0)
    }

    /// Begins the next one. What is being written is waited for.
    pub fn begin(&self) -> Life {
        let number = {
            let mut now = self.now();
            *now += 1;
            *now
        };
        let lives = self.clone();
        Life { lives, number }
    }
}

impl Life {
    /// Begins the next one of this file's.
    pub fn of(file: &Path) -> Self {
        let lives = {
            let mut all = lock(&LIVES);
            all.entry(file.to_owned()).or_default().clone()
        };
        lives.begin()
    }

    /// Does that if this life is the last one, and no other begins before it is done; `None`: one has begun.
    pub fn carry_out<T>(&self, deed: impl FnOnce() -> T) -> Option<T> {
        let now = self.lives.now();
        (*now == self.number || planted(Defect::LateMark)).then(deed)
    }
}
