//! What can go wrong with files.

use mayfly_wire::PublishFault;
use nix::libc::ELOOP;
use std::io;

/// Why something could not be published or removed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Something that we did not make stands where we would write.
    #[error(
        "expected {expected} at `{name}` in the publishing directory, found {found}, which the \
         sidecar did not make and does not follow or replace: remove it"
    )]
    Foreign {
        /// What kind of thing it is.
        fault: PublishFault,
        /// Its name.
        name: String,
        /// What we would have there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A system call failed.
    #[error("cannot {action} `{name}` in the publishing directory: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
        /// What the kernel said.
        error: io::Error,
    },
}

impl PublishError {
    /// A system call failed.
    pub fn io(action: &'static str, name: &str, error: io::Error) -> Self {
        Self::Io {
            action,
            name: name.to_owned(),
            error,
        }
    }

    /// In a word that does not change.
    #[must_use]
    pub fn fault(&self) -> PublishFault {
        match self {
            Self::Foreign { fault, .. } => *fault,
            Self::Io { error, .. } => fault_of(error),
        }
    }
}

/// What the kernel said, in a word that does not change.
pub fn fault_of(error: &io::Error) -> PublishFault {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PublishFault::NoSpace,
        io::ErrorKind::PermissionDenied => PublishFault::NoPermission,
        io::ErrorKind::ReadOnlyFilesystem => PublishFault::ReadOnly,
        io::ErrorKind::NotFound => PublishFault::NoDirectory,
        // Every name is opened with O_NOFOLLOW.
        _ if error.raw_os_error() == Some(ELOOP) => PublishFault::Symlink,
        _ => PublishFault::Io,
    }
}

/// What went wrong while old files were removed. It does not stop the rest, and it is not lost.
#[derive(Debug, Default)]
pub struct Trouble(Vec<PublishError>);

impl Trouble {
    /// Notes a failure.
    pub fn push(&mut self, error: PublishError) {
        self.0.push(error);
    }

    /// Notes how a system call went.
    pub fn note(&mut self, action: &'static str, name: &str, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.push(PublishError::io(action, name, error));
        }
    }

    /// Notes what else went wrong.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Whether all went well.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The failures.
    pub fn iter(&self) -> impl Iterator<Item = &PublishError> {
        self.0.iter()
    }
}
