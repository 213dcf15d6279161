//! Publishing, by kubelet's scheme:
//!
//! ```text
//! DIR/NAME            -> ..data/NAME
//! DIR/..data          -> ..gen-1f0c…      swapped by rename: one consistent set at any time
//! DIR/..gen-1f0c…/NAME                    a credential of one value
//! DIR/..gen-1f0c…/NAME/FIELD              a credential of several
//! DIR/..gen-1f0c…/PATH                    an output of the configuration
//! DIR/..gen-1f0c…/..expiry                when each ends; holds nothing secret
//! ```
//!
//! - A file that did not change is the same inode in the next generation.
//! - A replaced generation stays readable for [`GRACE`], for a reader who has its directory open;
//!   then it is overwritten and removed. What is withdrawn or has expired is overwritten at once,
//!   in every generation: whoever reads it at that moment reads zeros.
//! - Killed at any instant, the next start finds a complete set or none, and removes the rest.
//! - What stands in the directory and is not ours is never followed, replaced or removed.

pub mod dir;
pub mod draft;
mod error;
mod expiry;
mod generation;
pub mod item;
mod place;
#[cfg(test)]
mod tests;
pub mod tmpfs;
pub mod wipe;

pub use draft::Draft;
use draft::Drafted;
pub use error::{PublishError, Trouble, fault_of};

use crate::clock::{Moment, Offset};
use dir::{Dir, kind};
use generation::{Ends, Generation, PREFIX};
use item::{End, Item};
use nix::sys::stat::SFlag;
use place::{expect_generation, has_link, link_target, pointed};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};
use wipe::Spare;

/// How long a replaced generation stays readable.
pub const GRACE: Duration = Duration::from_secs(1);
/// Most replaced generations that are kept; while there are so many, the next one waits.
pub const MAX_RETIRED: usize = 64;
/// The symlink to the current generation.
pub const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";
/// Beside it while the first set lacks what can still come by itself. It is there before that set is, and
/// goes when a complete one is: who sees a set, and then does not see this, has seen a complete one.
pub const INCOMPLETE: &str = "..incomplete";

/// Who can read what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// 0400 or 0440.
    pub mode: u32,
    /// The files' owner, if not us.
    pub uid: Option<u32>,
    /// The files' group, if not ours.
    pub gid: Option<u32>,
}

/// What [`Publisher::publish`] did.
#[derive(Debug)]
pub struct Published {
    /// Whether it is the first set: there was none before, not even an empty one.
    pub first: bool,
    /// What readers see something new of, or do not see any more.
    pub changed: BTreeSet<Item>,
    /// What went wrong afterwards, when old files were removed.
    pub trouble: Trouble,
}

/// What [`Publisher::tend`] did.
#[derive(Debug, Default)]
pub struct Tended {
    /// What had reached its end, and is gone.
    pub expired: Vec<Item>,
    /// Those of them without which the application is not to run.
    pub stop: Vec<Item>,
    /// What expired and is kept.
    pub stale: Vec<Item>,
    /// What could not be removed as it should.
    pub trouble: Trouble,
}

/// The publishing directory.
pub struct Publisher {
    dir: Dir,
    current: Option<Generation>,
    /// What expired and is kept, and was told.
    stale: BTreeSet<Item>,
    /// With the time at which each goes, which only grows from front to back.
    retired: VecDeque<(Instant, Generation)>,
    /// The time of day, for the record.
    wall: Offset,
}

impl Publisher {
    /// Takes the directory over: looks at all that stands in it first, then removes what an earlier
    /// process left unfinished, and keeps its current generation. Also returns what could not be
    /// removed.
    ///
    /// # Errors
    /// [`PublishError::Foreign`] if one of our names is taken by what we did not make.
    pub fn open(dir: Dir, now: Moment) -> Result<(Self, Trouble), PublishError> {
        let wall = Offset::of_wall(now);
        let data = pointed(&dir, DATA)?;
        let unfinished = pointed(&dir, DATA_NEW)?.is_some();
        let list = |error| PublishError::io("list", "the publishing directory", error);
        let mut names = dir.names().map_err(list)?;
        names.retain(|name| name.starts_with(PREFIX));
        for name in &names {
            expect_generation(&dir, name)?;
        }
        let mut trouble = Trouble::default();
        if unfinished {
            trouble.note("remove", DATA_NEW, dir.unlink(DATA_NEW));
        }
        let mut current = None;
        if let Some(name) = data.filter(|data| names.contains(data)) {
            names.retain(|other| *other != name);
            let loaded = dir.child(&name);
            let loaded = loaded.and_then(|child| Generation::load(child, name.clone(), wall));
            let loaded = loaded.map(|loaded| current = Some(loaded));
            trouble.note("take over", &name, loaded);
        }
        for name in names {
            let spare = Spare::UsedBy(current.iter().collect());
            trouble.note("overwrite", &name, wipe::remove(&dir, &name, &spare));
        }
        let publisher = Self {
            dir,
            current,
            stale: BTreeSet::new(),
            retired: VecDeque::new(),
            wall,
        };
        if let Some(current) = &publisher.current {
            match publisher.add_links(current) {
                Err(foreign @ PublishError::Foreign { .. }) => return Err(foreign),
                Err(error) => trouble.push(error),
                Ok(()) => {}
            }
        }
        publisher.drop_links(&mut trouble);
        Ok((publisher, trouble))
    }

    /// The time of day at an uptime, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall(&self, uptime: u64) -> u64 {
        self.wall.from_uptime(uptime)
    }

    /// What is published, and when it ends.
    pub fn held(&self) -> impl Iterator<Item = (&Item, &End)> {
        self.current.iter().flat_map(|now| &now.ends)
    }

    /// What of it is kept although it expired.
    #[must_use]
    pub fn stale(&self) -> &BTreeSet<Item> {
        &self.stale
    }

    /// The name of the current generation's directory.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        self.current.as_ref().map(|now| now.name.as_str())
    }

    /// Whether something stands at this path in the current generation.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|now| now.inode(path).is_some())
    }

    /// The publishing directory itself.
    #[must_use]
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Whether a replaced generation still has its grace.
    #[must_use]
    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// When there is room for the next generation; `None` if there is now.
    #[must_use]
    pub fn room(&self) -> Option<Instant> {
        let (until, _) = self.retired.front()?;
        (self.retired.len() >= MAX_RETIRED).then_some(*until)
    }

    /// Publishes what `fill` puts into the draft as the next generation. If that is what is
    /// published already, only the ends are put on record, and readers see nothing happen.
    ///
    /// # Errors
    /// What `fill` or publishing failed with. The last generation then stands as before; if it was not
    /// `fill` that failed, with the new ends of what did not change in it.
    pub fn publish<E: From<PublishError>>(
        &mut self,
        now: Instant,
        fill: impl FnOnce(&mut Draft<'_>) -> Result<(), E>,
    ) -> Result<Published, E> {
        let first = self.current.is_none();
        let mut draft = Draft::begin(&self.dir, self.current.as_ref());
        let filled = fill(&mut draft);
        let Drafted {
            generation,
            ends,
            changed,
            failed,
        } = draft.finish(self.wall);
        let visible = first || !changed.is_empty();
        let outcome = match (&generation, failed) {
            _ if filled.is_err() => Ok(()),
            (_, Some(failed)) => Err(failed),
            (Some(next), None) if visible => self.show(next),
            _ => self.renew(ends.clone()),
        };
        let mut trouble = Trouble::default();
        let is_shown = visible && filled.is_ok() && outcome.is_ok();
        if let Some(next) = generation {
            if !is_shown {
                let spare = Spare::UsedBy(self.current.iter().collect());
                let removed = wipe::remove(&self.dir, &next.name, &spare);
                trouble.note("overwrite", &next.name, removed);
            } else if let Some(before) = self.current.replace(next) {
                self.retire(now, before, &mut trouble);
            }
        }
        filled?;
        if let Err(error) = outcome {
            self.take_over(&ends, &changed);
            self.drop_links(&mut trouble);
            return Err(error.into());
        }
        self.drop_links(&mut trouble);
        // What has a new end is not stale any more; `tend` looks at it anew.
        self.stale.retain(|item| ends.contains_key(item));
        Ok(Published {
            first,
            changed,
            trouble,
        })
    }

    /// What did not change is good until its new end, whatever became of the rest. In memory first: the
    /// record may fail for what publishing failed for, and is tried again with that.
    fn take_over(&mut self, ends: &Ends, changed: &BTreeSet<Item>) {
        let Some(current) = &mut self.current else {
            return;
        };
        let mut next = current.ends.clone();
        for (item, end) in &mut next {
            if let Some(new) = ends.get(item).filter(|_| !changed.contains(item)) {
                *end = *new;
            }
        }
        if current.ends != next || !current.on_record {
            let _ = current.record(next, self.wall);
        }
    }

    /// Makes readers see a complete generation.
    fn show(&self, next: &Generation) -> Result<(), PublishError> {
        pointed(&self.dir, DATA)?;
        // The names come first: they lead nowhere until the swap, and then all lead to the new set.
        self.add_links(next)?;
        if pointed(&self.dir, DATA_NEW)?.is_some() {
            let removed = self.dir.unlink(DATA_NEW);
            removed.map_err(|error| PublishError::io("remove", DATA_NEW, error))?;
        }
        self.dir
            .symlink(&next.name, DATA_NEW)
            .and_then(|()| self.dir.rename(DATA_NEW, DATA))
            .map_err(|error| PublishError::io("swap", DATA, error))
    }

    fn renew(&mut self, ends: Ends) -> Result<(), PublishError> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        if current.ends != ends || !current.on_record {
            current.record(ends, self.wall)?;
        }
        self.current.iter().try_for_each(|now| self.add_links(now))
    }

    /// Keeps a replaced generation for its grace, but nothing in it that is no longer held.
    fn retire(&mut self, now: Instant, before: Generation, trouble: &mut Trouble) {
        let mut gone: Vec<_> = before.ends.keys().cloned().collect();
        gone.retain(|item| !self.held().any(|(held, _)| held == item));
        self.retired.push_back((now + GRACE, before));
        self.forget(&gone, trouble);
    }

    /// Removes items at once. Readers of the others see the next generation; if there is no space
    /// for one, the files go from the current generation itself. Returns what was there to remove.
    pub fn withdraw(&mut self, now: Instant, items: &[Item]) -> (Vec<Item>, Trouble) {
        let mut trouble = Trouble::default();
        let held = self.held().map(|(item, _)| item.clone());
        let (gone, kept): (Vec<_>, Vec<_>) = held.partition(|item| items.contains(item));
        if gone.is_empty() {
            return (gone, trouble);
        }
        let published = self.publish(now, |draft| {
            for item in &kept {
                draft.keep(item);
            }
            Ok::<_, PublishError>(())
        });
        match published {
            Ok(published) => trouble = published.trouble,
            Err(error) => trouble.push(error),
        }
        self.forget(&gone, &mut trouble);
        self.drop_links(&mut trouble);
        (gone, trouble)
    }

    fn forget(&mut self, items: &[Item], trouble: &mut Trouble) {
        let retired = self.retired.iter_mut().map(|(_, generation)| generation);
        for generation in retired.chain(&mut self.current) {
            for item in items {
                trouble.note("overwrite", item.as_str(), generation.forget(item));
            }
        }
        self.stale.retain(|item| !items.contains(item));
    }

    /// When [`Publisher::tend`] has something to do next.
    #[must_use]
    pub fn due(&self, now: Moment) -> Option<Instant> {
        let next = |(item, end): (&Item, &End)| match self.stale.contains(item) {
            true => end.gone_at,
            false => end.expires_at.min(end.gone_at),
        };
        let end = self.held().map(next).min().map(|end| {
            // Not further than an hour: timers stand still while the machine sleeps.
            let left = end.saturating_sub(now.uptime).min(3_600_000);
            now.instant + Duration::from_millis(left)
        });
        let retired = self.retired.front().map(|(until, _)| *until);
        end.into_iter().chain(retired).min()
    }

    /// Removes what has expired, and the generations whose grace is over.
    pub fn tend(&mut self, now: Moment) -> Tended {
        let mut tended = Tended::default();
        self.mind_the_time(now, &mut tended.trouble);
        let mut stale = BTreeSet::new();
        for (item, end) in self.held() {
            if end.gone_at <= now.uptime {
                tended.expired.push(item.clone());
                if end.stop {
                    tended.stop.push(item.clone());
                }
            } else if end.expires_at <= now.uptime {
                stale.insert(item.clone());
            }
        }
        tended.stale = stale.difference(&self.stale).cloned().collect();
        self.stale = stale;
        if !tended.expired.is_empty() {
            let (_, trouble) = self.withdraw(now.instant, &tended.expired);
            tended.trouble.append(trouble);
        }
        while let Some((until, _)) = self.retired.front()
            && *until <= now.instant
            && let Some((_, old)) = self.retired.pop_front()
        {
            let retired = self.retired.iter().map(|(_, later)| later);
            let spare = Spare::UsedBy(self.current.iter().chain(retired).collect());
            let removed = wipe::remove(&self.dir, &old.name, &spare);
            tended.trouble.note("overwrite", &old.name, removed);
        }
        tended
    }

    /// When somebody sets the time of day, the record would say something else than it did.
    fn mind_the_time(&mut self, now: Moment, trouble: &mut Trouble) {
        if !self.wall.was_set(now.wall, now.uptime) {
            return;
        }
        self.wall = Offset::of_wall(now);
        if let Some(current) = &mut self.current
            && let Err(error) = current.record(current.ends.clone(), self.wall)
        {
            trouble.push(error);
        }
    }

    /// Whether no complete set was published yet.
    pub fn is_incomplete(&self) -> bool {
        self.current.is_none() || matches!(self.dir.look(INCOMPLETE), Ok(Some(_)))
    }

    /// Says that the next set is not complete.
    ///
    /// # Errors
    /// [`PublishError::Io`]; EEXIST never.
    pub fn mark_incomplete(&self) -> Result<(), PublishError> {
        match self.dir.create(INCOMPLETE) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(PublishError::io("make", INCOMPLETE, error))
            }
            _ => Ok(()),
        }
    }

    /// Says that the current set is complete.
    pub fn mark_complete(&self, trouble: &mut Trouble) {
        match self.dir.unlink(INCOMPLETE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => trouble.note("remove", INCOMPLETE, done),
        }
    }

    /// Overwrites and removes everything that was published.
    pub fn wipe(mut self) -> Trouble {
        let mut trouble = Trouble::default();
        // `..data` first, so that nobody finds half a set behind it.
        match pointed(&self.dir, DATA) {
            Ok(Some(_)) => trouble.note("remove", DATA, self.dir.unlink(DATA)),
            Ok(None) => {}
            Err(error) => trouble.push(error),
        }
        let retired = self.retired.drain(..).map(|(_, generation)| generation);
        for old in retired.chain(self.current.take()) {
            let removed = wipe::remove(&self.dir, &old.name, &Spare::Nothing);
            trouble.note("overwrite", &old.name, removed);
        }
        self.drop_links(&mut trouble);
        self.mark_complete(&mut trouble);
        trouble
    }

    /// Gives every item of a generation its name in the directory.
    fn add_links(&self, generation: &Generation) -> Result<(), PublishError> {
        let mut missing = BTreeSet::new();
        for top in generation.ends.keys().map(Item::top) {
            if !has_link(&self.dir, top)? {
                missing.insert(top);
            }
        }
        for name in missing {
            let made = self.dir.symlink(&link_target(name), name);
            made.map_err(|error| PublishError::io("link", name, error))?;
        }
        Ok(())
    }

    /// Removes the names that lead to nothing that is held.
    fn drop_links(&self, trouble: &mut Trouble) {
        let drop_one = |name: &str| -> io::Result<()> {
            let held = self.held().any(|(held, _)| held.top() == name);
            let is_link = |stat| kind(&stat) == SFlag::S_IFLNK;
            if !held
                && Item::try_from(name.to_owned()).is_ok()
                && self.dir.look(name)?.is_some_and(is_link)
                && self.dir.target(name)? == link_target(name)
            {
                self.dir.unlink(name)?;
            }
            Ok(())
        };
        match self.dir.names() {
            Ok(names) => {
                for name in names {
                    trouble.note("remove", &name, drop_one(&name));
                }
            }
            Err(error) => trouble.note("list", "the publishing directory", Err(error)),
        }
    }
}
