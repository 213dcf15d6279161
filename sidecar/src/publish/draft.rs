//! A generation that is being written: nobody sees it before it is complete.

use super::dir::{Dir, kind};
use super::generation::{Ends, Generation, PREFIX};
use super::item::{End, Item};
use super::{Access, PublishError};
use mayfly_wire::{FieldName, Secret};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use zeroize::Zeroizing;

/// The next generation.
pub struct Draft<'a> {
    generation: Generation,
    before: Option<&'a Generation>,
    ends: Ends,
    changed: BTreeSet<Item>,
}

impl<'a> Draft<'a> {
    /// Makes its directory, which nobody else can enter yet.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn begin(root: &Dir, before: Option<&'a Generation>) -> Result<Self, PublishError> {
        // Random, so that nobody can stand in the way of the next name.
        let random = getrandom::u64()
            .map_err(|error| PublishError::io("name", PREFIX, io::Error::other(error)))?;
        let name = format!("{PREFIX}{random:016x}");
        let dir = root
            .make(&name)
            .map_err(|error| PublishError::io("make", &name, error))?;
        Ok(Self {
            generation: Generation {
                name,
                dir,
                files: BTreeSet::new(),
                ends: Ends::new(),
            },
            before,
            ends: Ends::new(),
            changed: BTreeSet::new(),
        })
    }

    /// Says that an item is part of it, and when it ends.
    pub fn expect(&mut self, item: &Item, end: End) {
        self.ends.insert(item.clone(), end);
    }

    /// Adds one file: the item itself, or `ITEM/FIELD`. If the last generation has the very same
    /// file, that file gets a second name here, and is not written again.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn put(
        &mut self,
        item: &Item,
        field: Option<&FieldName>,
        access: Access,
        value: &Secret,
    ) -> Result<(), PublishError> {
        let path = match field {
            Some(field) => format!("{item}/{field}"),
            None => item.to_string(),
        };
        let io = |error| PublishError::io("write", &path, error);
        let linked = self
            .add(&path, |before, now, file| {
                if let Some(before) = before
                    && is_same(before, file, access, value)
                    && now.link(before, file).is_ok()
                {
                    return Ok(true);
                }
                write(now, file, access, value).map(|()| false)
            })
            .map_err(io)?;
        if !linked {
            self.changed.insert(item.clone());
        }
        self.generation.files.insert(path);
        Ok(())
    }

    /// Carries an item over from the last generation as it is. Returns whether that has it.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn keep(&mut self, item: &Item) -> Result<bool, PublishError> {
        let Some(before) = self.before else {
            return Ok(false);
        };
        let Some(end) = before.ends.get(item) else {
            return Ok(false);
        };
        self.expect(item, *end);
        for path in before.files.iter().filter(|path| item.owns(path)) {
            self.add(path, |before, now, file| match before {
                Some(before) => now.link(before, file),
                None => Err(io::ErrorKind::NotFound.into()),
            })
            .map_err(|error| PublishError::io("keep", path, error))?;
            self.generation.files.insert(path.clone());
        }
        Ok(true)
    }

    /// Calls `add` with the directory of the last generation and of this one that `path` is in.
    fn add<T>(
        &self,
        path: &str,
        add: impl FnOnce(Option<&Dir>, &Dir, &str) -> io::Result<T>,
    ) -> io::Result<T> {
        let before = self.before.map(|before| &before.dir);
        let now = &self.generation.dir;
        let Some((directories, file)) = path.rsplit_once('/') else {
            return add(before, now, path);
        };
        let before = before.and_then(|before| before.descend(directories).ok());
        add(before.as_ref(), &now.make_all(directories)?, file)
    }

    /// Completes it. Returns the items that differ from the last generation, in more than their
    /// ends; also those that it lacks.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn finish(&mut self) -> Result<BTreeSet<Item>, PublishError> {
        let mut changed = std::mem::take(&mut self.changed);
        if let Some(before) = self.before {
            let files = &self.generation.files;
            for path in before.files.symmetric_difference(files) {
                let mut items = before.ends.keys().chain(self.ends.keys());
                changed.extend(items.find(|item| item.owns(path)).cloned());
            }
        }
        let visible = self.before.is_none() || !changed.is_empty();
        self.generation.record(std::mem::take(&mut self.ends))?;
        if visible {
            self.let_in()
                .map_err(|error| PublishError::io("open", &self.generation.name, error))?;
        }
        Ok(changed)
    }

    fn let_in(&self) -> io::Result<()> {
        let mut directories = BTreeSet::new();
        for path in &self.generation.files {
            let ends = path.match_indices('/').map(|(end, _)| end);
            directories.extend(ends.filter_map(|end| path.get(..end)));
        }
        for directory in directories {
            self.generation.dir.descend(directory)?.let_in()?;
        }
        self.generation.dir.let_in()
    }

    /// The generation, complete or not.
    pub fn into_generation(self) -> Generation {
        self.generation
    }
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
