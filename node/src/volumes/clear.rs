//! Empties a volume that nobody has any more.

use mayfly_kernel::expiry::{Area, lines};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::{SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

/// Most names that are gone through. A volume holds fewer.
const MOST: usize = 64 * 1024;

/// What was there.
#[derive(Debug, Default)]
pub(crate) struct Cleared {
    /// The items of the last record.
    pub(crate) items: Vec<String>,
    /// How many files were overwritten and removed.
    pub(crate) files: u64,
    /// The first name that could not be removed, and why.
    pub(crate) failed: Option<(String, Errno)>,
}

/// Whether there is anything in it.
pub(crate) fn is_empty(area: &Area) -> bool {
    area.names(area.as_fd(), 1, |_| true).is_empty()
}

/// Overwrites and removes all that is in it. However deep directories stand in each other, they are
/// taken out one by one and never gone down into.
pub(crate) fn clear(area: &Area) -> Cleared {
    let record = area.record();
    let mut cleared = Cleared {
        items: lines(&record).map(|line| line.path.to_owned()).collect(),
        ..Cleared::default()
    };
    let root = area.as_fd();
    let (mut left, mut moved) = (MOST, 0_u64);
    loop {
        let names = area.names(root, left, |_| true);
        let before = left;
        for name in &names {
            left = left.saturating_sub(1);
            if let Err(errno) = remove(area, name, &mut left, &mut moved, &mut cleared.files) {
                let name = name.to_string_lossy().into_owned();
                cleared.failed.get_or_insert((name, errno));
            }
        }
        // What could not be removed would be found again and again.
        if names.is_empty() || cleared.failed.is_some() || left == 0 || left == before {
            return cleared;
        }
    }
}

fn remove(
    area: &Area,
    name: &CStr,
    left: &mut usize,
    moved: &mut u64,
    files: &mut u64,
) -> nix::Result<()> {
    let root = area.as_fd();
    if !is_directory(root, name)? {
        *files += 1;
        return area.wipe(root, name, false);
    }
    let directory = area.child(root, name)?;
    let mut outcome = Ok(());
    for inner in area.names(directory.as_fd(), *left, |_| true) {
        *left = left.saturating_sub(1);
        let done = if is_directory(directory.as_fd(), &inner)? {
            *moved += 1;
            take_out(&directory.as_fd(), &inner, root, *moved)
        } else {
            *files += 1;
            area.wipe(directory.as_fd(), &inner, false)
        };
        outcome = outcome.and(done);
    }
    outcome.and(unlinkat(root, name, UnlinkatFlags::RemoveDir))
}

/// Moves a directory to the root, where its turn comes. An empty one of the same name is replaced;
/// what else has the name is removed first, and this one is found again.
fn take_out(
    directory: &BorrowedFd<'_>,
    name: &CStr,
    root: BorrowedFd<'_>,
    number: u64,
) -> nix::Result<()> {
    let to = CString::new(format!("..left-{number}")).map_err(|_| Errno::EINVAL)?;
    renameat(directory, name, root, to.as_c_str())
}

fn is_directory(directory: BorrowedFd<'_>, name: &CStr) -> nix::Result<bool> {
    let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
    Ok(kind == SFlag::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn everything_goes_however_deep_and_nothing_outside() {
        let base = std::env::temp_dir().join(format!("mayfly-clear-{}", std::process::id()));
        let (inside, outside) = (base.join("in"), base.join("out"));
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::write(&outside, "stays").unwrap();
        let mut deep = inside.clone();
        for _ in 0..200 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("secret"), "hunter2").unwrap();
        symlink(&outside, deep.join("link")).unwrap();
        symlink(&base, inside.join("..data")).unwrap();
        std::fs::create_dir(inside.join("..left-1")).unwrap();
        std::fs::write(inside.join("..left-2"), "x").unwrap();
        let held = std::fs::File::open(deep.join("secret")).unwrap();

        let area = Area::open(&inside).unwrap();
        let mut cleared = clear(&area);
        // A name that was taken: the next look, which the keeper has soon, gets at it.
        if cleared.failed.is_some() {
            cleared = clear(&area);
        }
        assert!(cleared.failed.is_none(), "{cleared:?}");
        assert!(is_empty(&area));
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "stays");
        let mut content = String::new();
        std::io::Read::read_to_string(&mut { held }, &mut content).unwrap();
        assert_eq!(content, "\0".repeat(7));
        std::fs::remove_dir_all(&base).unwrap();
    }
}
