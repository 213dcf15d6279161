//! Seeing whether the first complete bundle is there, and waiting until it is.
//!
//! The sidecar publishes one generation as one directory, and makes `DIR/..data` a link to it by
//! rename, as kubelet does. A bundle is complete once that link leads to a directory which holds
//! every name that was asked for, or, if none was, once the sidecar awaits nothing more.

use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use mayfly_kernel::dirwatch::DirWatch;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstatat};

use crate::exit::{CONFIGURATION, Failure};

/// The link to the current generation.
pub const CURRENT: &str = "..data";

/// Beside it while the first set lacks what can still come by itself.
const INCOMPLETE: &str = "..incomplete";

/// Why the bundle is not complete.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    /// The directory itself is not there.
    Directory,
    /// Nothing was published.
    Bundle,
    /// Something was published, and the sidecar says that more can come.
    More,
    /// Something was published, without these.
    Names(Vec<String>),
    /// It cannot be looked at.
    Unreadable(Errno),
}

impl fmt::Display for Missing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => write!(out, "the directory does not exist; mount a tmpfs there"),
            Self::Bundle => write!(
                out,
                "nothing was published there; look at what the sidecar says, and whether policy \
                 allows this container any credential"
            ),
            Self::More => write!(
                out,
                "a bundle that is not complete; look at what the sidecar is missing"
            ),
            Self::Names(names) => write!(
                out,
                "a bundle without {}; look whether policy allows this container to have it",
                names.join(", ")
            ),
            Self::Unreadable(errno) => write!(out, "it cannot be read: {}", errno.desc()),
        }
    }
}

/// Looks at the bundle once: `None` if it is complete.
///
/// The link is followed once, so that all names are looked up in one generation.
pub fn missing(dir: &Path, names: &[String]) -> Option<Missing> {
    let generation = match current(dir) {
        Ok(generation) => generation,
        Err(Errno::ENOENT) if dir.exists() => return Some(Missing::Bundle),
        Err(Errno::ENOENT) => return Some(Missing::Directory),
        Err(errno) => return Some(Missing::Unreadable(errno)),
    };
    let mut absent = Vec::new();
    for name in names {
        match fstatat(&generation, name.as_str(), nix::fcntl::AtFlags::empty()) {
            Ok(_) => {}
            Err(Errno::ENOENT) => absent.push(name.clone()),
            Err(errno) => return Some(Missing::Unreadable(errno)),
        }
    }
    if absent.is_empty() {
        // The sidecar makes it before it publishes such a set, and removes it after a complete one:
        // looked for in this order, it cannot be overlooked. Who names what is needed needs no more.
        let more = names.is_empty() && dir.join(INCOMPLETE).symlink_metadata().is_ok();
        more.then_some(Missing::More)
    } else {
        Some(Missing::Names(absent))
    }
}

/// The current generation, held: whatever is read through it is of one set.
pub fn current(dir: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(&dir.join(CURRENT), flags, Mode::empty())
}

/// Takes away what an earlier life of this container left published, if its sidecar was killed
/// before it could wipe: those credentials are revoked, and must not count as a first bundle. The
/// generations themselves are the sidecar's to wipe.
pub fn withdraw(dir: &Path) -> Result<(), Failure> {
    let link = dir.join(CURRENT);
    match fs::symlink_metadata(&link) {
        Ok(_) => fs::remove_file(&link).map_err(|error| {
            let path = link.display();
            Failure::new(
                CONFIGURATION,
                format!("cannot remove the stale {path}: {error}; the directory must be writable"),
            )
        }),
        // Whatever else is wrong there, the sidecar says.
        Err(_) => Ok(()),
    }
}

/// Wakes the one who waits, by a signal, when something changes in the directory.
pub struct Watch<'a> {
    dir: &'a Path,
    /// `None` while it cannot be watched: then the caller's clock must do.
    current: Option<DirWatch>,
}

impl<'a> Watch<'a> {
    pub fn new(dir: &'a Path) -> Self {
        Self { dir, current: None }
    }

    /// Makes sure that the directory is watched which is there now: it may have come into being, or
    /// been mounted over. Call it before looking, so that no change falls between.
    pub fn renew(&mut self) {
        // The new one is made before the old one goes.
        self.current = DirWatch::new(self.dir).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("mayfly-shim-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn complete_is_a_link_to_a_directory_with_every_name() {
        let dir = Dir::new("complete");
        let path = &dir.0;
        assert_eq!(missing(&path.join("none"), &[]), Some(Missing::Directory));
        assert_eq!(missing(path, &[]), Some(Missing::Bundle));
        symlink("..gen1", path.join(CURRENT)).unwrap();
        assert_eq!(
            missing(path, &[]),
            Some(Missing::Bundle),
            "the link leads nowhere yet"
        );
        fs::create_dir(path.join("..gen1")).unwrap();
        assert_eq!(missing(path, &[]), None);
        fs::write(path.join(INCOMPLETE), "").unwrap();
        assert_eq!(missing(path, &[]), Some(Missing::More));
        fs::write(path.join("..gen1/a"), "").unwrap();
        assert_eq!(missing(path, &names(&["a"])), None, "it was named");
        let absent = Missing::Names(names(&["b", "c"]));
        assert_eq!(missing(path, &names(&["a", "b", "c"])), Some(absent));
        fs::create_dir(path.join("..gen1/b")).unwrap();
        assert_eq!(missing(path, &names(&["a", "b"])), None);
    }

    #[test]
    fn a_file_in_the_place_of_the_generation_does_not_count() {
        let dir = Dir::new("file");
        fs::write(dir.0.join(CURRENT), "").unwrap();
        assert_eq!(
            missing(&dir.0, &[]),
            Some(Missing::Unreadable(Errno::ENOTDIR))
        );
    }

    #[test]
    fn what_an_earlier_life_published_is_withdrawn() {
        let dir = Dir::new("withdraw");
        withdraw(&dir.0).unwrap();
        fs::create_dir(dir.0.join("..gen1")).unwrap();
        symlink("..gen1", dir.0.join(CURRENT)).unwrap();
        withdraw(&dir.0).unwrap();
        assert_eq!(missing(&dir.0, &[]), Some(Missing::Bundle));
        withdraw(&dir.0.join("none")).unwrap();
    }
}
