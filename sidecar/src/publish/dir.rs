//! A directory held by its descriptor, and operations on single names in it.
//!
//! Nothing here takes a path of several components or follows a symlink, so whoever can write into
//! the directory cannot send an operation elsewhere.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, symlinkat, unlinkat};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Opens a file that may turn out to be a pipe or a device without waiting for it or acting on it.
const FILE: OFlag = OFlag::O_NOFOLLOW
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY);

/// Why a directory could not be reached by its path.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The path is relative, or has `..` in it.
    #[error("expected an absolute path without `..`, found {0}")]
    NotPlain(String),
    /// A component is missing.
    #[error("{0} does not exist; mount a tmpfs there")]
    Missing(String),
    /// A component is a symlink, or no directory.
    #[error(
        "{0} is a symlink or not a directory, and symlinks are not followed; name the real path"
    )]
    NotADirectory(String),
    /// Anything else.
    #[error("cannot open {0}: {1}")]
    Io(String, io::Error),
}

/// A directory.
pub struct Dir(OwnedFd);

impl Dir {
    /// Opens an absolute path, component by component, following no symlink.
    ///
    /// # Errors
    /// [`Unreachable`], which names the component.
    pub fn open(path: &Path) -> Result<Self, Unreachable> {
        let not_plain = || Unreachable::NotPlain(path.display().to_string());
        let mut parts = path.components();
        if parts.next() != Some(Component::RootDir) {
            return Err(not_plain());
        }
        let mut so_far = std::path::PathBuf::from("/");
        let failed = |so_far: &Path, error: Errno| {
            let name = so_far.display().to_string();
            match error {
                Errno::ENOENT => Unreachable::Missing(name),
                Errno::ELOOP | Errno::ENOTDIR => Unreachable::NotADirectory(name),
                other => Unreachable::Io(name, other.into()),
            }
        };
        let mut dir = nix::fcntl::open("/", OFlag::O_PATH | DIRECTORY, Mode::empty())
            .map_err(|error| failed(&so_far, error))?;
        for part in parts {
            let Component::Normal(name) = part else {
                return Err(not_plain());
            };
            so_far.push(name);
            // O_PATH: passing through needs no right to list.
            dir = openat(&dir, name, OFlag::O_PATH | DIRECTORY, Mode::empty())
                .map_err(|error| failed(&so_far, error))?;
        }
        let dir =
            openat(&dir, ".", DIRECTORY, Mode::empty()).map_err(|error| failed(&so_far, error))?;
        Ok(Self(dir))
    }

    /// Opens a directory in this one.
    ///
    /// # Errors
    /// ENOENT; ENOTDIR or ELOOP for anything but a directory.
    pub fn child(&self, name: &str) -> io::Result<Self> {
        Ok(Self(openat(&self.0, name, DIRECTORY, Mode::empty())?))
    }

    /// Makes a directory in this one that nobody else can enter yet, and opens it.
    ///
    /// # Errors
    /// EEXIST whatever is there, ENOSPC, EACCES.
    pub fn make(&self, name: &str) -> io::Result<Self> {
        mkdirat(&self.0, name, Mode::S_IRWXU)?;
        self.child(name)
    }

    /// Opens a directory under this one, name by name.
    ///
    /// # Errors
    /// As [`Dir::child`].
    pub fn descend(&self, path: &str) -> io::Result<Self> {
        self.walk(path, Self::child)
    }

    /// The same, and makes what is missing on the way.
    ///
    /// # Errors
    /// As [`Dir::child`] and [`Dir::make`].
    pub fn make_all(&self, path: &str) -> io::Result<Self> {
        self.walk(path, |dir, name| match dir.make(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => dir.child(name),
            made => made,
        })
    }

    fn walk(&self, path: &str, step: fn(&Self, &str) -> io::Result<Self>) -> io::Result<Self> {
        let mut dir = None;
        for name in path.split('/') {
            dir = Some(step(dir.as_ref().unwrap_or(self), name)?);
        }
        dir.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Makes a file that was not there and opens it for writing.
    ///
    /// # Errors
    /// EEXIST whatever is there, ENOSPC, EACCES.
    pub fn create(&self, name: &str) -> io::Result<File> {
        let flags = FILE | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
        Ok(File::from(openat(&self.0, name, flags, Mode::S_IRUSR)?))
    }

    /// Makes a file without a name, which vanishes when it is closed.
    ///
    /// # Errors
    /// As [`Dir::create`].
    pub fn create_nameless(&self) -> io::Result<File> {
        let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.0, ".", flags, Mode::S_IRUSR)?))
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// ELOOP for a symlink.
    pub fn read(&self, name: &str) -> io::Result<File> {
        let flags = FILE | OFlag::O_RDONLY;
        Ok(File::from(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// Opens a file for writing in place. Its content stays as it is.
    ///
    /// # Errors
    /// ELOOP for a symlink.
    pub fn write(&self, name: &str) -> io::Result<File> {
        let flags = FILE | OFlag::O_WRONLY;
        Ok(File::from(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// What stands at a name; `None` if nothing does.
    ///
    /// # Errors
    /// What fstatat(2) documents.
    pub fn look(&self, name: &str) -> io::Result<Option<FileStat>> {
        match fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory's own status.
    ///
    /// # Errors
    /// None in practice.
    pub fn stat(&self) -> io::Result<FileStat> {
        Ok(fstat(&self.0)?)
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// EINVAL if it is no symlink.
    pub fn target(&self, name: &str) -> io::Result<String> {
        let target = nix::fcntl::readlinkat(&self.0, name)?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// Makes a symlink that was not there.
    ///
    /// # Errors
    /// EEXIST, ENOSPC.
    pub fn symlink(&self, target: &str, name: &str) -> io::Result<()> {
        Ok(symlinkat(target, &self.0, name)?)
    }

    /// Gives the file `name` of `from` the same name in this directory too.
    ///
    /// # Errors
    /// EEXIST, ENOSPC; EPERM where fs.protected_hardlinks forbids it.
    pub fn link(&self, from: &Self, name: &str) -> io::Result<()> {
        Ok(linkat(&from.0, name, &self.0, name, LinkatFlags::empty())?)
    }

    /// Renames within this directory, replacing what is at `to`.
    ///
    /// # Errors
    /// What rename(2) documents.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(nix::fcntl::renameat(&self.0, from, &self.0, to)?)
    }

    /// Removes a name that is no directory.
    ///
    /// # Errors
    /// What unlink(2) documents.
    pub fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What rmdir(2) documents.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Lets everybody pass through and list, and nobody but the owner write.
    ///
    /// # Errors
    /// EPERM if it is not ours.
    pub fn let_in(&self) -> io::Result<()> {
        Ok(fchmod(&self.0, Mode::from_bits_truncate(0o755))?)
    }

    /// All names in it but `.` and `..`. Names that are not UTF-8 are left out: none is ours.
    ///
    /// # Errors
    /// What getdents64(2) documents.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut list = nix::dir::Dir::openat(&self.0, ".", DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in list.iter() {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The kind of a file, from its status.
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// The kind of a file, in words.
pub fn kind_in_words(stat: &FileStat) -> &'static str {
    match kind(stat) {
        SFlag::S_IFREG => "a file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFLNK => "a symlink",
        _ => "neither file, directory nor symlink",
    }
}
