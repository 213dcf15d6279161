//! A generation that is being written: nobody sees it before it is complete.
//!
//! When something cannot be written, the rest is still compared with the last generation: what did not
//! change there has its new end all the same.

use super::dir::{Dir, kind};
use super::generation::{Ends, Generation, PREFIX};
use super::item::{End, Item};
use super::{Access, PublishError};
use crate::clock::Offset;
use mayfly_wire::{FieldName, Secret};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use zeroize::Zeroizing;

/// The next generation.
pub struct Draft<'a> {
    /// Its directory, if that could be made.
    made: Option<(String, Dir)>,
    before: Option<&'a Generation>,
    files: BTreeSet<String>,
    ends: Ends,
    changed: BTreeSet<Item>,
    /// The first thing that could not be written. Nothing is tried after it.
    failed: Option<PublishError>,
}

/// What came of a draft.
pub struct Drafted {
    /// The generation, if its directory could be made.
    pub generation: Option<Generation>,
    /// What it was to hold.
    pub ends: Ends,
    /// The items that differ from the last generation in more than their ends; also those that it lacks.
    pub changed: BTreeSet<Item>,
    /// Why it is not complete, if it is not.
    pub failed: Option<PublishError>,
}

impl<'a> Draft<'a> {
    /// Makes its directory, which nobody else can enter yet.
    pub fn begin(root: &Dir, before: Option<&'a Generation>) -> Self {
        // Random, so that nobody can stand in the way of the next name.
        let made = getrandom::u64()
            .map_err(|error| PublishError::io("name", PREFIX, io::Error::other(error)))
            .and_then(|random| {
                let name = format!("{PREFIX}{random:016x}");
                match root.make(&name) {
                    Ok(dir) => Ok((name, dir)),
                    Err(error) => Err(PublishError::io("make", &name, error)),
                }
            });
        let (made, failed) = match made {
            Ok(made) => (Some(made), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            made,
            before,
            files: BTreeSet::new(),
            ends: Ends::new(),
            changed: BTreeSet::new(),
            failed,
        }
    }

    /// Says that an item is part of it, and when it ends.
    pub fn expect(&mut self, item: &Item, end: End) {
        self.ends.insert(item.clone(), end);
    }

    /// Adds one file: the item itself, or `ITEM/FIELD`. If the last generation has the very same
    /// file, that file gets a second name here, and is not written again.
    pub fn put(&mut self, item: &Item, field: Option<&FieldName>, access: Access, value: &Secret) {
        let path = match field {
            Some(field) => format!("{item}/{field}"),
            None => item.to_string(),
        };
        let put = |before: Option<&Dir>, now: Option<&Dir>, file: &str| {
            let same = before.is_some_and(|before| is_same(before, file, access, value));
            let Some(now) = now else { return Ok(same) };
            if same
                && let Some(before) = before
                && now.link(before, file).is_ok()
            {
                return Ok(true);
            }
            write(now, file, access, value).map(|()| false)
        };
        let same = self.add("write", &path, put);
        // If it could not be written, it may still be what was there before.
        let same = same.or_else(|| self.add("write", &path, put));
        if same != Some(true) {
            self.changed.insert(item.clone());
        }
        self.files.insert(path);
    }

    /// Carries an item over from the last generation as it is, if that has it. What somebody took away
    /// there is not here either, and keeps nothing else from being published.
    pub fn keep(&mut self, item: &Item) {
        let Some((before, end)) = self
            .before
            .and_then(|before| Some((before, before.ends.get(item)?)))
        else {
            return;
        };
        self.expect(item, *end);
        for path in before.files.iter().filter(|path| item.owns(path)) {
            let kept = self.add("keep", path, |before, now, file| {
                let (Some(before), Some(now)) = (before, now) else {
                    return Ok(before.is_some());
                };
                match now.link(before, file) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                    linked => linked.map(|()| true),
                }
            });
            if kept != Some(false) {
                self.files.insert(path.clone());
            }
        }
    }

    /// Calls `add` with the directory of the last generation and of this one that `path` is in; of this
    /// one no more once something has failed.
    fn add<T>(
        &mut self,
        action: &'static str,
        path: &str,
        add: impl Fn(Option<&Dir>, Option<&Dir>, &str) -> io::Result<T>,
    ) -> Option<T> {
        let before = self.before.map(|before| &before.dir);
        let now = self.made.as_ref().map(|(_, dir)| dir);
        let now = now.filter(|_| self.failed.is_none());
        let added = match path.rsplit_once('/') {
            None => add(before, now, path),
            Some((directories, file)) => {
                let before = before.and_then(|before| before.descend(directories).ok());
                let now = now.map(|now| now.make_all(directories)).transpose();
                now.and_then(|now| add(before.as_ref(), now.as_ref(), file))
            }
        };
        match added {
            Ok(added) => Some(added),
            Err(error) => {
                self.failed = Some(PublishError::io(action, path, error));
                None
            }
        }
    }

    /// Completes it.
    pub fn finish(mut self, wall: Offset) -> Drafted {
        let mut changed = std::mem::take(&mut self.changed);
        if let Some(before) = self.before {
            for path in before.files.symmetric_difference(&self.files) {
                let mut items = before.ends.keys().chain(self.ends.keys());
                changed.extend(items.find(|item| item.owns(path)).cloned());
            }
        }
        let visible = self.before.is_none() || !changed.is_empty();
        let mut generation = self.made.map(|(name, dir)| Generation {
            name,
            dir,
            files: self.files,
            ends: Ends::new(),
            on_record: false,
        });
        let mut failed = self.failed;
        if failed.is_none()
            && let Some(generation) = &mut generation
        {
            let done = generation.record(self.ends.clone(), wall);
            let done = done.and_then(|()| if visible { let_in(generation) } else { Ok(()) });
            failed = done.err();
        }
        Drafted {
            generation,
            ends: self.ends,
            changed,
            failed,
        }
    }
}

fn let_in(generation: &Generation) -> Result<(), PublishError> {
    let mut directories = BTreeSet::new();
    for path in &generation.files {
        let ends = path.match_indices('/').map(|(end, _)| end);
        directories.extend(ends.filter_map(|end| path.get(..end)));
    }
    let inner = directories
        .into_iter()
        .try_for_each(|directory| generation.dir.descend(directory)?.let_in());
    inner
        .and_then(|()| generation.dir.let_in())
        .map_err(|error| PublishError::io("open", &generation.name, error))
}

/// Whether a file is what we would write: content, size, mode, owner.
fn is_same(dir: &Dir, name: &str, access: Access, value: &Secret) -> bool {
    let same = || -> io::Result<bool> {
        let mut file = dir.read(name)?;
        let stat = fstat(&file)?;
        let as_wanted = kind(&stat) == SFlag::S_IFREG
            && usize::try_from(stat.st_size) == Ok(value.len())
            && stat.st_mode & 0o7777 == access.mode
            && access.uid.is_none_or(|uid| stat.st_uid == uid)
            && access.gid.is_none_or(|gid| stat.st_gid == gid);
        if !as_wanted {
            return Ok(false);
        }
        let mut content = Zeroizing::new([0; 1024]);
        for part in value.expose().chunks(content.len()) {
            let Some(read) = content.get_mut(..part.len()) else {
                return Ok(false);
            };
            file.read_exact(read)?;
            if read != part {
                return Ok(false);
            }
        }
        Ok(true)
    };
    same().unwrap_or(false)
}

fn write(dir: &Dir, name: &str, access: Access, value: &Secret) -> io::Result<()> {
    let mut file = dir.create(name)?;
    file.write_all(value.expose())?;
    give(&file, access)
}

/// Sets mode and owner. The mode first: afterwards the file may belong to somebody else.
///
/// # Errors
/// EPERM without CAP_CHOWN, unless only the group changes, to one of ours.
pub fn give(file: &File, access: Access) -> io::Result<()> {
    fchmod(file, Mode::from_bits_truncate(access.mode))?;
    if access.uid.is_some() || access.gid.is_some() {
        let (uid, gid) = (access.uid.map(Uid::from_raw), access.gid.map(Gid::from_raw));
        fchown(file, uid, gid)?;
    }
    Ok(())
}
