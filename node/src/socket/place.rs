//! Makes the workload socket where containers can bind-mount its directory.

use std::fs::{DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A system call failed.
    #[error("{path}: {step}: {cause}")]
    Io {
        /// The path that was acted on.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The directory is not one that can be shared with every container.
    #[error(
        "{path}: expected a directory of this user's that no one else can write to, found {found}; \
         it is bind-mounted into every container"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// There is something else in it, which every container would see.
    #[error(
        "{path}: expected nothing but the workload socket in its directory, which is bind-mounted \
         into every container; move this away, or give the socket a directory of its own"
    )]
    NotAlone {
        /// What is there.
        path: PathBuf,
    },
    /// Another node answers on it.
    #[error("{path}: another process already listens there; stop it, or configure another path")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
}

fn failed(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |cause| PlaceError::Io { path, step, cause }
}

/// Listens at `path`, in its own directory of mode 0755, with mode 0666.
///
/// The directory is kept when it exists, so that containers that bind-mounted it before a restart
/// find the new socket in it. The socket appears complete, by rename: nobody can connect before its
/// mode is set, and there is no moment without one.
///
/// `options` sets what must hold for every connection.
///
/// # Errors
/// [`PlaceError`].
pub(crate) fn listen(
    path: &Path,
    options: impl FnOnce(&UnixListener) -> io::Result<()>,
) -> Result<UnixListener, PlaceError> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(PlaceError::NotAlone {
            path: path.to_owned(),
        });
    };
    prepare(directory)?;
    let mut new = name.to_owned();
    new.push(".new");
    let new = directory.join(new);
    for entry in std::fs::read_dir(directory).map_err(failed(directory, "reading"))? {
        let found = entry.map_err(failed(directory, "reading"))?.path();
        if found != path && found != new {
            return Err(PlaceError::NotAlone { path: found });
        }
    }
    refuse_live(path)?;
    remove_socket(&new)?;
    let listener = UnixListener::bind(&new).map_err(failed(&new, "binding the socket"))?;
    listener
        .set_nonblocking(true)
        .and_then(|()| options(&listener))
        .map_err(failed(&new, "setting options of the socket"))?;
    std::fs::set_permissions(&new, Permissions::from_mode(0o666))
        .map_err(failed(&new, "setting mode 0666"))?;
    std::fs::rename(&new, path).map_err(failed(path, "renaming the socket into place"))?;
    Ok(listener)
}

fn prepare(directory: &Path) -> Result<(), PlaceError> {
    if let Some(above) = directory.parent() {
        std::fs::create_dir_all(above).map_err(failed(above, "making the directory"))?;
    }
    match DirBuilder::new().mode(0o755).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed(directory, "making the directory")(error));
        }
        _ => {}
    }
    let found = std::fs::symlink_metadata(directory).map_err(failed(directory, "looking"))?;
    let wrong = |found| {
        Err(PlaceError::Directory {
            path: directory.to_owned(),
            found,
        })
    };
    if !found.is_dir() {
        return wrong("something that is not a directory");
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return wrong("a directory of another user's");
    }
    if found.mode() & 0o022 != 0 {
        return wrong("a directory that others can write to");
    }
    // The umask may have taken bits that containers under other uids need.
    std::fs::set_permissions(directory, Permissions::from_mode(0o755))
        .map_err(failed(directory, "setting mode 0755"))
}

/// Tells whether a socket's path still leads to it. Root in a container that mounted the directory
/// writable could put a socket of its own there, and speak to other containers in the node's place.
pub(crate) struct Spot {
    path: PathBuf,
    found: (u64, u64),
}

impl Spot {
    /// What is there now counts as the node's own.
    ///
    /// # Errors
    /// When nothing is there.
    pub(crate) fn remember(path: &Path) -> Result<Self, PlaceError> {
        let found = std::fs::symlink_metadata(path).map_err(failed(path, "looking"))?;
        Ok(Self {
            path: path.to_owned(),
            found: (found.dev(), found.ino()),
        })
    }

    /// Whether it is still there.
    pub(crate) fn is_held(&self) -> bool {
        std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.found)
    }
}

/// Only a socket that nobody listens on may be replaced.
fn refuse_live(path: &Path) -> Result<(), PlaceError> {
    let Some(found) = look(path)? else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(PlaceError::NotAlone {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(failed(path, "asking whether anyone listens")(error)),
        Ok(_) => Err(PlaceError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Removes what a node left that died between bind and rename.
fn remove_socket(path: &Path) -> Result<(), PlaceError> {
    match look(path)? {
        None => Ok(()),
        Some(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(failed(path, "removing"))
        }
        Some(_) => Err(PlaceError::NotAlone {
            path: path.to_owned(),
        }),
    }
}

fn look(path: &Path) -> Result<Option<Metadata>, PlaceError> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "looking")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fresh directory, removed when dropped.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new() -> Self {
            let random = getrandom::u64().unwrap();
            let path = std::env::temp_dir().join(format!("mayfly-place-{random:x}"));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
        fn socket(&self) -> PathBuf {
            self.0.join("own/workload.sock")
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn makes_directory_and_socket_for_everyone() {
        let temporary = Temporary::new();
        let path = temporary.socket();
        let _listener = listen(&path, |_| Ok(())).unwrap();
        let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&path), 0o666);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn replaces_a_dead_socket_in_the_same_directory_but_not_a_live_one() {
        let temporary = Temporary::new();
        let path = temporary.socket();
        let first = listen(&path, |_| Ok(())).unwrap();
        let directory = std::fs::metadata(path.parent().unwrap()).unwrap().ino();
        assert!(matches!(
            listen(&path, |_| Ok(())),
            Err(PlaceError::InUse { .. })
        ));
        drop(first);
        // As if it had also died between bind and rename.
        drop(UnixListener::bind(path.with_file_name("workload.sock.new")).unwrap());
        let _second = listen(&path, |_| Ok(())).unwrap();
        UnixStream::connect(&path).unwrap();
        let after = std::fs::metadata(path.parent().unwrap()).unwrap().ino();
        assert_eq!(directory, after);
    }

    #[test]
    fn a_socket_that_someone_replaced_is_noticed() {
        let temporary = Temporary::new();
        let path = temporary.socket();
        let _listener = listen(&path, |_| Ok(())).unwrap();
        let spot = Spot::remember(&path).unwrap();
        assert!(spot.is_held());
        std::fs::rename(&path, path.with_file_name("away")).unwrap();
        assert!(!spot.is_held());
        let _other = UnixListener::bind(&path).unwrap();
        assert!(!spot.is_held());
    }

    #[test]
    fn shares_no_directory_and_trusts_no_strange_one() {
        let temporary = Temporary::new();
        let path = temporary.socket();
        let directory = path.parent().unwrap();
        std::fs::create_dir(directory).unwrap();
        std::fs::write(directory.join("key"), "").unwrap();
        let error = listen(&path, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("own/key"), "{error}");
        std::fs::remove_file(directory.join("key")).unwrap();

        std::fs::write(&path, "").unwrap();
        assert!(matches!(
            listen(&path, |_| Ok(())),
            Err(PlaceError::NotAlone { .. })
        ));
        std::fs::remove_file(&path).unwrap();

        std::fs::set_permissions(directory, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            listen(&path, |_| Ok(())),
            Err(PlaceError::Directory { .. })
        ));
        std::fs::remove_dir(directory).unwrap();
        std::os::unix::fs::symlink(&temporary.0, directory).unwrap();
        assert!(matches!(
            listen(&path, |_| Ok(())),
            Err(PlaceError::Directory { .. })
        ));
    }
}
