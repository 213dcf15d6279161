//! When the broker hears that the application uses what was published. Until then it keeps the
//! credential that was there before, to the end of its grace.

use super::Runner;
use crate::log::Level;
use mayfly_wire::PublishFault;
use nix::libc;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often it is looked, while there is something to look for.
const LOOK: Duration = Duration::from_millis(20);
/// The same, once the application has had its time.
const LATE_LOOK: Duration = Duration::from_secs(1);
/// Longer than the name of any generation.
const MAX_NAME: u64 = 256;

/// The application's word, which is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Until then it has time.
    Until(Instant),
    /// It has had its time, and that was said.
    Late,
}

impl Word {
    /// How soon to look again.
    pub fn look(self) -> Duration {
        match self {
            Self::Until(_) => LOOK,
            Self::Late => LATE_LOOK,
        }
    }
}

impl Runner<'_> {
    /// Something changed that the application uses: from now on its word is waited for.
    pub(super) fn expect_word(&mut self, now: Instant) {
        if let Some(by) = &self.config.acknowledge {
            self.word = Some(Word::Until(now + by.timeout.0));
        }
    }

    /// Whether the application has given its word, or none is needed. That it is late is said once;
    /// the broker is not told what is not so.
    pub(super) fn has_word(&mut self, now: Instant) -> bool {
        let (Some(word), Some(by)) = (self.word, &self.config.acknowledge) else {
            return true;
        };
        let given = match (&by.file, self.publisher.current()) {
            (Some(file), Some(generation)) => names(file, generation),
            _ => self.notifier.is_settled(),
        };
        if given {
            self.word = None;
        } else if matches!(word, Word::Until(until) if until <= now) {
            self.word = Some(Word::Late);
            let why = format!(
                "no word within {:?}; what it had before is good until its grace ends",
                by.timeout.0
            );
            let fields = [("why", why.as_str().into())];
            self.log.event(Level::Warn, "not acknowledged", &fields);
            self.owed
                .add(self.generation, PublishFault::NotAcknowledged, &why);
        }
        given
    }
}

/// Whether the file holds this name and nothing else. It is the application's: it can be anything.
fn names(file: &Path, generation: &str) -> bool {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let Ok(file) = options.open(file) else {
        return false;
    };
    let mut text = String::new();
    file.metadata().is_ok_and(|found| found.is_file())
        && file.take(MAX_NAME).read_to_string(&mut text).is_ok()
        && text.trim() == generation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_itself_counts() {
        let dir = std::env::temp_dir().join(format!("mayfly-word-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("loaded");
        assert!(!names(&file, "..gen-1"));
        for (text, good) in [
            ("..gen-1\n", true),
            ("..gen-12", false),
            ("", false),
            ("..gen-1 x", false),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(names(&file, "..gen-1"), good, "{text:?}");
        }
        std::fs::write(&file, "..gen-1").unwrap();
        std::os::unix::fs::symlink(&file, dir.join("link")).unwrap();
        assert!(!names(&dir.join("link"), "..gen-1"));
        // Does not wait for a writer.
        nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(!names(&dir.join("pipe"), "..gen-1") && !names(&dir, "..gen-1"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
