//! One generation: one directory that holds everything the workload has, complete before anybody
//! can see it, with the times at which its credentials end beside them in `..expiry`.

use super::dir::{Dir, kind};
use super::item::{End, Item};
use super::{PublishError, expiry, wipe};
use crate::clock::Offset;
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;

/// What every generation's directory name begins with.
pub const PREFIX: &str = "..gen-";
const EXPIRY: &str = "..expiry";
const EXPIRY_NEW: &str = "..expiry_new";

/// Everything that is published, and when it ends.
pub type Ends = BTreeMap<Item, End>;

/// A generation on disk.
pub struct Generation {
    /// Its directory's name.
    pub name: String,
    /// Its directory.
    pub dir: Dir,
    /// The paths of its files.
    pub files: BTreeSet<String>,
    /// Its items and their ends.
    pub ends: Ends,
    /// Whether the record says so too.
    pub on_record: bool,
}

impl Generation {
    /// Reads back what an earlier process published. A file whose end is not on record has ended:
    /// its end is 0.
    ///
    /// # Errors
    /// What listing and reading documents.
    pub fn load(dir: Dir, name: String, wall: Offset) -> io::Result<Self> {
        let mut files = BTreeSet::new();
        list(&dir, "", &mut files)?;
        wipe::remove(&dir, EXPIRY_NEW, &wipe::Spare::Nothing)?;
        let mut text = String::new();
        if let Ok(file) = dir.read(EXPIRY) {
            // A bound on what is read; a damaged record is a record of nothing.
            let _ = file.take(1 << 20).read_to_string(&mut text);
        }
        let mut ends: Ends = text
            .lines()
            .filter_map(|line| expiry::read(line, wall))
            .collect();
        ends.retain(|item, _| files.iter().any(|path| item.owns(path)));
        for path in &files {
            if !ends.keys().any(|item| item.owns(path))
                && let Ok(item) = Item::try_from(path.clone())
            {
                ends.insert(item, End::at(0));
            }
        }
        Ok(Self {
            name,
            dir,
            files,
            ends,
            on_record: true,
        })
    }

    /// Takes over new ends and puts them on record, atomically; on a tmpfs that is full, in the room that
    /// the record before has: whoever acts by it must not take for overdue what was renewed.
    ///
    /// # Errors
    /// [`PublishError::Io`]; they then hold in this process, and the old record stands.
    pub fn record(&mut self, ends: Ends, wall: Offset) -> Result<(), PublishError> {
        let io = |error| PublishError::io("record the expiry of", &self.name, error);
        self.ends = ends;
        self.on_record = false;
        let lines = self.ends.iter();
        let text: String = lines
            .map(|(item, end)| expiry::line(item, end, wall))
            .collect();
        wipe::remove(&self.dir, EXPIRY_NEW, &wipe::Spare::Nothing).map_err(io)?;
        let written = self.dir.create(EXPIRY_NEW).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            fchmod(&file, Mode::from_bits_truncate(0o444))?;
            self.dir.rename(EXPIRY_NEW, EXPIRY)
        });
        let written = written.or_else(|error| match error.kind() {
            io::ErrorKind::StorageFull => self.record_in_place(text.as_bytes()).map_err(|_| error),
            _ => Err(error),
        });
        written.map_err(io)?;
        self.on_record = true;
        Ok(())
    }

    /// Writes over the record that is there, if its pages are enough.
    fn record_in_place(&self, text: &[u8]) -> io::Result<()> {
        let old = self.dir.read(EXPIRY)?;
        let found = fstat(&old)?;
        let pages = u64::try_from(found.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        if kind(&found) != SFlag::S_IFREG || pages < text.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        fchmod(&old, Mode::from_bits_truncate(0o644))?;
        let file = self.dir.write(EXPIRY)?;
        file.write_all_at(text, 0)?;
        file.set_len(text.len() as u64)?;
        fchmod(&file, Mode::from_bits_truncate(0o444))?;
        Ok(())
    }

    /// The inode of what is at a path in it, if something is.
    pub fn inode(&self, path: &str) -> Option<u64> {
        let stat = match path.rsplit_once('/') {
            None => self.dir.look(path),
            Some((directories, file)) => {
                let parent = self.dir.descend(directories);
                parent.and_then(|parent| parent.look(file))
            }
        };
        stat.ok().flatten().map(|stat| stat.st_ino)
    }

    /// Removes one item, overwritten, from this generation.
    ///
    /// # Errors
    /// As [`wipe::remove`].
    pub fn forget(&mut self, item: &Item) -> io::Result<()> {
        self.ends.remove(item);
        self.files.retain(|file| !item.owns(file));
        let Some((directories, last)) = item.as_str().rsplit_once('/') else {
            return wipe::remove(&self.dir, item.as_str(), &wipe::Spare::Nothing);
        };
        match self.dir.descend(directories) {
            Ok(parent) => wipe::remove(&parent, last, &wipe::Spare::Nothing),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Collects the paths of all files, as deep as an item can have them. What has a name of ours that
/// begins with `..` is no item's.
fn list(dir: &Dir, prefix: &str, files: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in dir.names()? {
        let path = format!("{prefix}{entry}");
        if entry.starts_with("..") || path.matches('/').count() > 3 {
            continue;
        }
        match dir.look(&entry)?.map(|stat| kind(&stat)) {
            Some(SFlag::S_IFREG) => {
                files.insert(path);
            }
            Some(SFlag::S_IFDIR) => list(&dir.child(&entry)?, &format!("{path}/"), files)?,
            _ => {}
        }
    }
    Ok(())
}
