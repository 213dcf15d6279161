//! What the sidecar should have done and did not, because it is frozen, or dead and does not come back:
//! removes what has expired, and ends the application that is not to run without it.
//!
//! The shim can do so where it may write what the sidecar wrote: as the same uid, or as root. Where it
//! may not, it says so, and can still end the application.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use mayfly_kernel::dirwatch::DirWatch;
use mayfly_kernel::expiry::{Area, Sweep};

use crate::say;

/// A sidecar that lives removes its files at the very moment.
const SLACK_MS: u64 = 1_000;
/// The longest time without a look: the clock can be set.
const LONGEST_MS: u64 = 3_600_000;
/// The same where new files are not told.
const UNTOLD_MS: u64 = 60_000;
/// How long the broker has to hear why, before the application is told to end.
const WORD: Duration = Duration::from_secs(3);

/// Looks when something is due, and whenever the shim wakes up: a new file wakes it, and what it comes
/// with can end before all that was there.
pub struct Deadman {
    dir: PathBuf,
    watch: Option<DirWatch>,
    /// When the next look is due.
    due: Instant,
    /// Who tells the broker why the application is to end, as this process, and until when that is
    /// waited for.
    word: Option<(i32, Instant)>,
    /// Whether the application was to end.
    ended: bool,
    /// When that expired which is kept, and which the broker was told of.
    stale: Option<u64>,
    complained: bool,
}

impl Deadman {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            watch: None,
            due: Instant::now(),
            word: None,
            ended: false,
            stale: None,
            complained: false,
        }
    }

    /// Does what is due, and says whether the application must end now; it says so once. `report` starts
    /// somebody who tells the broker, and gives its pid.
    pub fn tend(&mut self, now: Instant, report: impl FnOnce() -> Option<i32>) -> bool {
        if self.ended {
            return false;
        }
        if self.word.is_none() {
            self.look(now, report);
        }
        self.ended = self.word.is_some_and(|(_, until)| until <= now);
        self.ended
    }

    /// How long until there is something to do.
    pub fn due_in(&self, now: Instant) -> Duration {
        let due = match self.word {
            Some((_, until)) if !self.ended => until,
            _ => self.due,
        };
        due.saturating_duration_since(now)
    }

    /// Notes that a child is dead: if it was the one that tells the broker, the application's turn has
    /// come.
    pub fn buried(&mut self, pid: i32) {
        if let Some((word, until)) = &mut self.word
            && *word == pid
        {
            *until = Instant::now();
        }
    }

    /// Wipes what is on record, whenever it ends: at the end of all, what a sidecar leaves that was killed,
    /// does not come back, or did its work once.
    pub fn wipe(&mut self) {
        // Where there is no directory, nothing is left.
        let Ok(area) = Area::open(&self.dir) else {
            return;
        };
        let sweep = area.sweep(u64::MAX);
        if !sweep.removed.is_empty() {
            say(&format!(
                "wiped what was left there: {}",
                sweep.removed.join(",")
            ));
        }
        if let Some((_, errno)) = sweep.failed.first() {
            self.complain(errno.desc());
        }
    }

    fn look(&mut self, now: Instant, report: impl FnOnce() -> Option<i32>) {
        if self.watch.is_none() {
            self.watch = DirWatch::new(&self.dir).ok();
        }
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let wall = wall.map_or(0, |wall| wall.as_millis() as u64);
        let mut wait = if self.watch.is_some() {
            LONGEST_MS
        } else {
            UNTOLD_MS
        };
        match Area::open(&self.dir) {
            Ok(area) => {
                let sweep = area.sweep(wall.saturating_sub(SLACK_MS));
                if let Some(next) = sweep.next {
                    wait = wait.min(next.saturating_add(SLACK_MS).saturating_sub(wall));
                }
                self.act(now, &sweep, report);
            }
            Err(error) => self.complain(&error.to_string()),
        }
        self.due = now + Duration::from_millis(wait);
    }

    fn act(&mut self, now: Instant, sweep: &Sweep, report: impl FnOnce() -> Option<i32>) {
        if let Some((_, errno)) = sweep.failed.first() {
            self.complain(errno.desc());
        }
        if !sweep.removed.is_empty() {
            let paths = sweep.removed.join(",");
            say(&format!(
                "removed what the sidecar left there past its end: {paths}"
            ));
        }
        let stop = sweep.stop.is_some();
        let stale = sweep.stale > std::mem::replace(&mut self.stale, sweep.stale);
        if !stop && !stale && sweep.removed.is_empty() {
            return;
        }
        let word = report();
        if stop {
            say("stopping the application, which is not to run without what has expired");
            self.word = Some(word.map_or((0, now), |pid| (pid, now + WORD)));
        }
    }

    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            say(&format!(
                "cannot remove what the sidecar leaves there: {why}; run shim and sidecar under one uid, \
                 or see that a sidecar always lives"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn dir(name: &str, line: &str) -> PathBuf {
        let dir =
            std::env::temp_dir().join(format!("mayfly-deadman-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("..gen-1")).unwrap();
        symlink("..gen-1", dir.join("..data")).unwrap();
        fs::write(dir.join("..gen-1/key"), "hunter2").unwrap();
        fs::write(dir.join("..gen-1/..expiry"), line).unwrap();
        dir
    }

    fn wall() -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap().as_millis() as u64
    }

    #[test]
    fn it_waits_until_something_is_due() {
        // How long, once it is looked at that much before or after its end. What took the machine too
        // long shows nothing.
        let wait = |name: &str, end: fn(u64) -> u64| loop {
            let start = Instant::now();
            let dir = dir(name, &format!("key {0} {0} stop\n", end(wall())));
            let (mut deadman, now) = (Deadman::new(&dir), Instant::now());
            let mut reported = false;
            let ended = deadman.tend(now, || {
                reported = true;
                None
            });
            let (kept, due) = (dir.join("..gen-1/key").exists(), deadman.due_in(now));
            fs::remove_dir_all(dir).unwrap();
            if start.elapsed() < Duration::from_millis(500) {
                assert!(!ended && !reported && kept);
                break due.as_millis();
            }
        };
        assert!((5_400..=6_000).contains(&wait("soon", |now| now + 5_000)));
        // The sidecar, if it lives, comes first.
        assert!((300..=900).contains(&wait("just", |now| now - 100)));
        assert_eq!(wait("far", |_| u64::MAX), u128::from(LONGEST_MS));
    }

    #[test]
    fn what_is_overdue_goes_and_takes_the_application_along() {
        let dir = dir("stop", "key 1 1 stop\n");
        let (mut deadman, now) = (Deadman::new(&dir), Instant::now());
        // The broker is told first, for as long as that may take.
        assert!(!deadman.tend(now, || Some(77)));
        assert!(!dir.join("..gen-1/key").exists());
        let again = || panic!("it is being told");
        deadman.buried(76);
        assert!(!deadman.tend(now, again));
        assert_eq!(deadman.due_in(now), WORD);
        deadman.buried(77);
        assert_eq!(deadman.due_in(Instant::now()), Duration::ZERO);
        assert!(deadman.tend(Instant::now(), again));
        assert!(!deadman.tend(Instant::now(), again), "once");
        assert!(deadman.due_in(Instant::now()) > WORD);
        // Where nobody can tell the broker, or takes too long.
        let mut deadman = Deadman::new(&dir);
        assert!(deadman.tend(now, || None));
        let mut deadman = Deadman::new(&dir);
        assert!(!deadman.tend(now, || Some(77)));
        assert!(deadman.tend(now + WORD, again));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_kept_is_told_of_once_and_again_when_it_is_more() {
        let dir = dir("kept", &format!("key {} 5 remove\n", u64::MAX));
        let (mut deadman, now) = (Deadman::new(&dir), Instant::now());
        let mut told = 0;
        let mut tend = || {
            let report = || {
                told += 1;
                Some(77)
            };
            assert!(!deadman.tend(now, report));
        };
        tend();
        tend();
        let record = format!("key {0} 5 remove\nother {0} 6 remove\n", u64::MAX);
        fs::write(dir.join("..gen-1/..expiry"), record).unwrap();
        tend();
        assert_eq!(told, 2);
        fs::remove_dir_all(dir).unwrap();
    }
}
