//! Unsealing: who can unwrap the root keys that the store holds.

use crate::seal::{self, KEY, RecordId, RootKeys, SealError, Sealing};
use crate::store::{Op, Store, StoreError};
use mayfly_wire::Secret;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const WRAPPED: RecordId<'static> = RecordId {
    kind: "meta",
    path: "root-keys",
};

/// Why the root keys cannot be unwrapped or wrapped.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// The file cannot be read or made.
    #[error("key file {path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not as a key file must be.
    #[error("key file {path}: expected {expected}, found {found}")]
    Unfit {
        /// Which.
        path: PathBuf,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// The store exists and its key file does not.
    #[error(
        "key file {0}: not found, but the store beside it was made with one; put the key file back \
         from its backup: without it nothing in the store can be read, and a new one cannot help"
    )]
    Missing(PathBuf),
    /// The key file is another store's.
    #[error(
        "key file {0}: it does not open this store's root keys: it belongs to another store, or the \
         store was changed; put back the key file that this store was made with"
    )]
    WrongKey(PathBuf),
    /// The seal itself failed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Wraps and unwraps the root keys.
pub trait Unsealer: Send + Sync {
    /// Wraps the exported root keys of a store. `new_store` says that the store was made just now, so
    /// that what wraps may be made now too.
    ///
    /// # Errors
    /// [`UnsealError`].
    fn wrap(&self, keys: &Secret, new_store: bool) -> Result<Vec<u8>, UnsealError>;

    /// Unwraps them.
    ///
    /// # Errors
    /// [`UnsealError`].
    fn unwrap_keys(&self, wrapped: &[u8]) -> Result<Secret, UnsealError>;
}

/// Makes a new root key, which seals from now on; what the older ones sealed stays as it is and still
/// opens. The new key is on disk, wrapped, before it is used.
///
/// # Errors
/// [`RotateError`]; the root keys are then as they were.
pub async fn rotate_root_key(
    store: &dyn Store,
    keys: &RootKeys,
    unsealer: &dyn Unsealer,
) -> Result<u32, RotateError> {
    let next = keys.next().map_err(UnsealError::from)?;
    let wrapped = unsealer.wrap(&keys.export(Some(&next)), false)?;
    store.commit(vec![Op::RootKeysPut(wrapped)]).await?;
    keys.adopt(next);
    Ok(keys.current())
}

/// Why the root key was not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// It cannot be wrapped.
    #[error(transparent)]
    Unseal(#[from] UnsealError),
    /// It cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A file of 32 random bytes that its owner alone can read.
pub struct KeyFile(PathBuf);

impl KeyFile {
    /// The key file at `path`. Nothing is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    fn file(&self, error: io::Error) -> UnsealError {
        let path = self.0.clone();
        UnsealError::File { path, error }
    }

    fn read(&self) -> Result<Zeroizing<[u8; KEY]>, UnsealError> {
        // One descriptor for the checks and the read, so that they are about the same file.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&self.0)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => UnsealError::Missing(self.0.clone()),
                _ => self.file(error),
            })?;
        let metadata = file.metadata().map_err(|error| self.file(error))?;
        let unfit = |expected, found| UnsealError::Unfit {
            path: self.0.clone(),
            expected,
            found,
        };
        if metadata.mode() & 0o077 != 0 {
            return Err(unfit(
                "a file that its owner alone may read (chmod 400)",
                format!("mode {:04o}", metadata.mode() & 0o7777),
            ));
        }
        if !metadata.is_file() || metadata.len() != KEY as u64 {
            return Err(unfit(
                "a regular file of exactly 32 random bytes",
                format!("{} bytes", metadata.len()),
            ));
        }
        let mut key = Zeroizing::new([0; KEY]);
        file.read_exact(key.as_mut_slice())
            .map_err(|error| self.file(error))?;
        Ok(key)
    }

    fn create(&self) -> io::Result<()> {
        let mut key = Zeroizing::new([0; KEY]);
        getrandom::fill(key.as_mut_slice()).map_err(io::Error::other)?;
        // Under another name until it is whole, so that a crash leaves no key file that is refused. A
        // link, unlike a rename, never takes the place of one that is there.
        let mut new = self.0.clone().into_os_string();
        new.push(".new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(&new)?;
        file.write_all(key.as_slice())?;
        file.sync_all()?;
        std::fs::hard_link(&new, &self.0)?;
        std::fs::remove_file(&new)?;
        sync_parent(&self.0)
    }
}

/// Makes a new directory entry durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

impl Unsealer for KeyFile {
    fn wrap(&self, keys: &Secret, new_store: bool) -> Result<Vec<u8>, UnsealError> {
        if new_store && !self.0.try_exists().map_err(|error| self.file(error))? {
            self.create().map_err(|error| self.file(error))?;
        }
        let key = self.read()?;
        let sealing = Sealing {
            id: 0,
            key: key.as_slice(),
        };
        Ok(sealing.seal(&WRAPPED, 0, keys.expose())?)
    }

    fn unwrap_keys(&self, wrapped: &[u8]) -> Result<Secret, UnsealError> {
        let key = self.read()?;
        let sealing = Sealing {
            id: 0,
            key: key.as_slice(),
        };
        if seal::key_id_of(wrapped)? != 0 {
            return Err(UnsealError::WrongKey(self.0.clone()));
        }
        sealing
            .open(&WRAPPED, 0, wrapped)
            .map_err(|_| UnsealError::WrongKey(self.0.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;

    fn keys() -> Secret {
        Secret::from(vec![7; 36])
    }

    #[test]
    fn made_once_and_only_for_a_new_store() {
        let dir = TempDir::new();
        let path = dir.path().join("root.key");
        let file = KeyFile::new(&path);
        assert!(matches!(
            file.wrap(&keys(), false),
            Err(UnsealError::Missing(_))
        ));
        // What a crash of an earlier try left.
        std::fs::write(dir.path().join("root.key.new"), [1]).unwrap();
        let wrapped = file.wrap(&keys(), true).unwrap();
        assert!(!dir.path().join("root.key.new").exists());
        let made = std::fs::metadata(&path).unwrap();
        assert_eq!((made.mode() & 0o7777, made.len()), (0o400, 32));
        assert_eq!(file.unwrap_keys(&wrapped).unwrap().expose(), [7; 36]);
        let before = std::fs::read(&path).unwrap();
        file.wrap(&keys(), true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn another_key_or_a_changed_wrap_is_refused() {
        let dir = TempDir::new();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let mut wrapped = KeyFile::new(&one).wrap(&keys(), true).unwrap();
        KeyFile::new(&two).wrap(&keys(), true).unwrap();
        let Err(error) = KeyFile::new(&two).unwrap_keys(&wrapped) else {
            panic!("the wrong key opened it")
        };
        assert!(error.to_string().contains("belongs to another store"));
        wrapped[40] ^= 1;
        assert!(KeyFile::new(&one).unwrap_keys(&wrapped).is_err());
        assert!(KeyFile::new(&one).unwrap_keys(&[]).is_err());
    }

    #[test]
    fn a_key_file_that_others_can_read_or_of_another_size_is_refused() {
        let dir = TempDir::new();
        let path = dir.path().join("root.key");
        let file = KeyFile::new(&path);
        let wrapped = file.wrap(&keys(), true).unwrap();
        for mode in [0o440, 0o404, 0o620] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = file.unwrap_keys(&wrapped).err().unwrap().to_string();
            assert!(error.contains("chmod 400") && error.contains(&format!("{mode:04o}")));
        }
        set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, [1; 33]).unwrap();
        let error = file.unwrap_keys(&wrapped).err().unwrap().to_string();
        assert!(error.contains("33 bytes"), "{error}");
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(
            KeyFile::new(dir.path().join("link"))
                .unwrap_keys(&wrapped)
                .is_err()
        );
    }
}
