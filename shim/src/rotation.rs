//! `--restart on-rotate`: when another generation is published, a restart falls due.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mayfly_kernel::dirwatch::DirWatch;
use nix::fcntl::readlink;

use crate::bundle::CURRENT;

/// How long more changes are waited for. What is due is not put off by them.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// How often the link is looked at where the kernel does not tell of changes.
const LOOK: Duration = Duration::from_secs(1);

/// What the application has, and when it must have something else.
pub struct Rotation {
    link: PathBuf,
    /// A signal comes when a name appears in the directory; `None` where it cannot be watched.
    watch: Option<DirWatch>,
    generation: Option<OsString>,
    due: Option<Instant>,
}

impl Rotation {
    /// Of this directory. Nothing is due before it [begins](Self::begin).
    pub fn new(dir: &Path) -> Self {
        Self {
            link: dir.join(CURRENT),
            watch: DirWatch::new(dir).ok(),
            generation: None,
            due: None,
        }
    }

    /// An application is about to start: it has this generation or a later one.
    pub fn begin(&mut self) {
        self.generation = readlink(&self.link).ok();
        self.due = None;
    }

    /// Looks whether there is another generation. One that was withdrawn leaves no link, and nothing to
    /// start with.
    pub fn look(&mut self, now: Instant) {
        let Ok(generation) = readlink(&self.link) else {
            return;
        };
        if self.generation.as_ref() != Some(&generation) {
            self.generation = Some(generation);
            self.due.get_or_insert(now + DEBOUNCE);
        }
    }

    /// How long until there is something to do.
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        let look = self.watch.is_none().then_some(LOOK);
        let due = self.due.map(|at| at.saturating_duration_since(now));
        due.into_iter().chain(look).min()
    }

    /// Whether a restart is due; it is then taken as done.
    pub fn take_due(&mut self, now: Instant) -> bool {
        if self.watch.is_none() {
            self.look(now);
        }
        self.due.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn changes_are_told_once_and_late() {
        let dir = std::env::temp_dir().join(format!("mayfly-rotation-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let publish = |name: &str| {
            symlink(name, dir.join("..new")).unwrap();
            std::fs::rename(dir.join("..new"), dir.join(CURRENT)).unwrap();
        };
        publish("..1");
        let start = Instant::now();
        // As where the kernel does not tell.
        let mut rotation = Rotation {
            watch: None,
            ..Rotation::new(&dir)
        };
        rotation.begin();
        assert!(!rotation.take_due(start) && rotation.due_in(start) == Some(LOOK));
        publish("..2");
        assert!(!rotation.take_due(start), "it waits for more");
        publish("..3");
        let late = start + DEBOUNCE / 2;
        assert!(!rotation.take_due(late), "and does not put it off");
        assert_eq!(rotation.due_in(late), Some(DEBOUNCE / 2));
        assert!(rotation.take_due(start + DEBOUNCE));
        assert!(!rotation.take_due(start + DEBOUNCE * 3));
        std::fs::remove_file(dir.join(CURRENT)).unwrap();
        assert!(!rotation.take_due(start + DEBOUNCE * 5), "withdrawn");
        publish("..3");
        assert!(!rotation.take_due(start + DEBOUNCE * 7), "the same again");
        publish("..4");
        assert!(!rotation.take_due(start));
        rotation.begin();
        assert!(!rotation.take_due(start + DEBOUNCE * 9), "it has that one");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
