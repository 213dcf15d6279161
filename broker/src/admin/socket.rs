//! Where the admin socket stands: a directory of mode 0700, a socket of mode 0600.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A step fails.
    #[error("{path}: cannot {step}: {error}")]
    Step {
        /// The path.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// Others could put a socket of theirs in its place.
    #[error(
        "{path}: expected a directory of the broker's own user that nobody else can write to, found \
         owner {owner} and mode {mode:04o}"
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
    /// Another broker answers there.
    #[error("{0}: another broker answers on it; stop that one, or give this one another socket")]
    Taken(PathBuf),
    /// Something else stands there.
    #[error("{0}: expected a socket or nothing, found something else; move it away")]
    InTheWay(PathBuf),
}

/// Makes the socket and listens on it.
///
/// # Errors
/// [`SocketError`].
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let step = |step| {
        move |error| SocketError::Step {
            path: path.to_owned(),
            step,
            error,
        }
    };
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(step("make its directory"))?;
    let metadata = directory
        .metadata()
        .map_err(step("look at its directory"))?;
    let own = nix::unistd::geteuid().as_raw();
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if (owner != own && owner != 0) || mode & 0o022 != 0 {
        return Err(SocketError::Open {
            path: directory.to_owned(),
            owner,
            mode,
        });
    }
    match path.symlink_metadata() {
        Ok(found) if found.file_type().is_socket() => {
            if UnixStream::connect(path).is_ok() {
                return Err(SocketError::Taken(path.to_owned()));
            }
            std::fs::remove_file(path)
                .map_err(step("remove the socket of a broker that is gone"))?;
        }
        Ok(_) => return Err(SocketError::InTheWay(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(step("look at it")(error)),
    }
    let listener = UnixListener::bind(path).map_err(step("listen on it"))?;
    // Nobody but the owner could have connected before: that takes write permission, which the
    // umask never gives to others here, and each peer's uid is checked besides.
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(step("set its mode"))?;
    Ok(listener)
}
