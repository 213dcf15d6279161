//! One generation: one directory that holds everything the workload has, complete before anybody
//! can see it, with the times at which its credentials end beside them in `..expiry`.

use super::dir::{Dir, kind};
use super::{Access, PublishError, wipe};
use mayfly_wire::{CredentialName, FieldName, Secret};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use zeroize::Zeroizing;

/// What every generation's directory name begins with.
pub const PREFIX: &str = "..gen-";
const EXPIRY: &str = "..expiry";
const EXPIRY_NEW: &str = "..expiry_new";

/// When each credential ends: milliseconds since the Unix epoch.
pub type Expiries = BTreeMap<CredentialName, u64>;

/// A generation on disk.
pub struct Generation {
    /// Its directory's name.
    pub name: String,
    /// Its directory.
    pub dir: Dir,
    /// Its files: `NAME` or `NAME/FIELD`.
    pub files: BTreeSet<String>,
    /// Its credentials and their ends.
    pub expiries: Expiries,
}

impl Generation {
    /// Reads back what an earlier process published. A credential whose end is not on record has
    /// ended: its end is 0.
    ///
    /// # Errors
    /// What listing and reading documents.
    pub fn load(dir: Dir, name: String) -> io::Result<Self> {
        let mut files = BTreeSet::new();
        let mut expiries = Expiries::new();
        for entry in dir.names()? {
            let Ok(credential) = entry.parse::<CredentialName>() else {
                continue;
            };
            match dir.look(&entry)?.map(|stat| kind(&stat)) {
                Some(SFlag::S_IFREG) => {
                    files.insert(entry);
                }
                Some(SFlag::S_IFDIR) => {
                    let fields = dir.child(&entry)?.names()?.into_iter();
                    files.extend(fields.map(|field| format!("{entry}/{field}")));
                }
                _ => continue,
            }
            expiries.insert(credential, 0);
        }
        wipe::remove(&dir, EXPIRY_NEW)?;
        let mut text = String::new();
        if let Ok(file) = dir.read(EXPIRY) {
            // A bound on what is read; a damaged record is a record of nothing.
            let _ = file.take(1 << 20).read_to_string(&mut text);
        }
        for line in text.lines() {
            if let Some((name, end)) = line.split_once(' ')
                && let (Ok(name), Ok(end)) = (name.parse(), end.parse())
                && let Some(known) = expiries.get_mut::<CredentialName>(&name)
            {
                *known = end;
            }
        }
        Ok(Self {
            name,
            dir,
            files,
            expiries,
        })
    }

    /// Puts new ends on record, atomically.
    ///
    /// # Errors
    /// [`PublishError::Io`]; the old record then stands.
    pub fn record(&mut self, expiries: Expiries) -> Result<(), PublishError> {
        let io = |error| PublishError::io("record the expiry of", &self.name, error);
        let text: String = expiries
            .iter()
            .map(|(name, end)| format!("{name} {end}\n"))
            .collect();
        wipe::remove(&self.dir, EXPIRY_NEW).map_err(io)?;
        let written = self.dir.create(EXPIRY_NEW).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            fchmod(&file, Mode::from_bits_truncate(0o444))?;
            self.dir.rename(EXPIRY_NEW, EXPIRY)
        });
        written.map_err(io)?;
        self.expiries = expiries;
        Ok(())
    }

    /// Removes one credential, overwritten, from this generation.
    ///
    /// # Errors
    /// As [`wipe::remove`].
    pub fn forget(&mut self, name: &CredentialName) -> io::Result<()> {
        self.expiries.remove(name);
        let within = format!("{name}/");
        self.files
            .retain(|file| file != name.as_str() && !file.starts_with(&within));
        wipe::remove(&self.dir, name.as_str())
    }
}

/// A generation that is being written.
pub struct Draft<'a> {
    generation: Generation,
    before: Option<&'a Generation>,
    access: Access,
    expiries: Expiries,
    changed: bool,
}

impl<'a> Draft<'a> {
    /// Makes its directory, which nobody else can enter yet.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn begin(
        root: &Dir,
        access: Access,
        before: Option<&'a Generation>,
    ) -> Result<Self, PublishError> {
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
                expiries: Expiries::new(),
            },
            before,
            access,
            expiries: Expiries::new(),
            changed: before.is_none(),
        })
    }

    /// Says that a credential is part of it, and when it ends.
    pub fn expect(&mut self, name: &CredentialName, expires_at: u64) {
        self.expiries.insert(name.clone(), expires_at);
    }

    /// Adds one value: as the file `NAME`, or as `NAME/FIELD`. If the last generation has the very
    /// same file, that file gets a second name here, and is not written again.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn put(
        &mut self,
        name: &CredentialName,
        field: Option<&FieldName>,
        value: &Secret,
    ) -> Result<(), PublishError> {
        let path = match field {
            Some(field) => format!("{name}/{field}"),
            None => name.to_string(),
        };
        let io = |error| PublishError::io("write", &path, error);
        let access = self.access;
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
        self.changed |= !linked;
        self.generation.files.insert(path);
        Ok(())
    }

    /// Carries a credential over from the last generation as it is.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn keep(&mut self, name: &CredentialName, expires_at: u64) -> Result<(), PublishError> {
        self.expect(name, expires_at);
        let Some(before) = self.before else {
            return Ok(());
        };
        let within = format!("{name}/");
        for path in &before.files {
            if path == name.as_str() || path.starts_with(&within) {
                self.add(path, |before, now, file| match before {
                    Some(before) => now.link(before, file),
                    None => Err(io::ErrorKind::NotFound.into()),
                })
                .map_err(|error| PublishError::io("keep", path, error))?;
                self.generation.files.insert(path.clone());
            }
        }
        Ok(())
    }

    /// Calls `add` with the directory of the last generation and of this one that `path` is in.
    fn add<T>(
        &self,
        path: &str,
        add: impl FnOnce(Option<&Dir>, &Dir, &str) -> io::Result<T>,
    ) -> io::Result<T> {
        let before = self.before.map(|before| &before.dir);
        let now = &self.generation.dir;
        let Some((directory, file)) = path.split_once('/') else {
            return add(before, now, path);
        };
        let before = before.and_then(|before| before.child(directory).ok());
        let now = match now.make(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => now.child(directory)?,
            made => made?,
        };
        add(before.as_ref(), &now, file)
    }

    /// Completes it. Returns whether anything but the ends differs from the last generation.
    ///
    /// # Errors
    /// [`PublishError::Io`].
    pub fn finish(&mut self) -> Result<bool, PublishError> {
        let changed = self.changed
            || self
                .before
                .is_some_and(|before| before.files != self.generation.files);
        self.generation.record(std::mem::take(&mut self.expiries))?;
        if changed {
            self.let_in()
                .map_err(|error| PublishError::io("open", &self.generation.name, error))?;
        }
        Ok(changed)
    }

    fn let_in(&self) -> io::Result<()> {
        let directories = self.generation.files.iter();
        for (directory, _) in directories.filter_map(|path| path.split_once('/')) {
            self.generation.dir.child(directory)?.let_in()?;
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
