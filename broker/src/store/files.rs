//! The state directory and the files in it: whose they are, and who may use them.

use super::StoreError;
use crate::unseal::UnsealError;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

/// Why the store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or the directory.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The directory is not fit to hold secrets.
    #[error("state directory {path}: expected {expected}, found {found}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// Another broker has it.
    #[error("state directory {0}: another mayfly-broker is using it; stop that one first")]
    InUse(PathBuf),
    /// The store itself.
    #[error("{path}: {error}")]
    Store {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: StoreError,
    },
    /// The root keys.
    #[error(transparent)]
    Unseal(#[from] UnsealError),
}

pub(super) fn prepare_directory(dir: &Path) -> Result<(), OpenError> {
    let file = |error| OpenError::File {
        path: dir.to_owned(),
        error,
    };
    match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(file(error)),
        _ => {}
    }
    let metadata = std::fs::metadata(dir).map_err(file)?;
    let directory = |expected, found| OpenError::Directory {
        path: dir.to_owned(),
        expected,
        found,
    };
    let uid = nix::unistd::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != uid {
        return Err(directory(
            "a directory that belongs to the broker's user",
            format!("owner {}, broker {uid}", metadata.uid()),
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        // A volume's root or systemd's default is 0755, and there is nothing of ours in it yet that
        // somebody could have opened, or it would be 0700.
        if dir.join("store.db").exists() {
            return Err(directory(
                "mode 0700, as the broker left it (chmod 700, and find out who changed it)",
                format!("mode {:04o}", metadata.mode() & 0o7777),
            ));
        }
        std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(file)?;
    }
    Ok(())
}

pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = |error| OpenError::File {
        path: path.clone(),
        error,
    };
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .map_err(file)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(file(error)),
    }
}

/// SQLite gives its other files the mode of this one, so it must be right before SQLite opens it.
pub(super) fn prepare_file(path: &Path) -> Result<(), OpenError> {
    let file = |error| OpenError::File {
        path: path.to_owned(),
        error,
    };
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(file)?;
    made.set_permissions(Permissions::from_mode(0o600))
        .map_err(file)
}
