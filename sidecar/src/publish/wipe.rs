//! Overwriting before unlinking: the kernel does not wipe the freed pages of a tmpfs, but zeros that
//! are written in place stand in the very pages that held the secret.

use super::dir::{Dir, kind};
use super::generation::Generation;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// How deep a generation can be: itself, and the directory of a credential with fields. Anything
/// deeper was not made by us.
const DEPTH: u32 = 4;

/// What is unlinked without being overwritten.
pub enum Spare<'a> {
    /// Nothing. That a file has another name saves it from nothing: whoever gave it one would keep the
    /// secret.
    Nothing,
    /// What these generations still show, as the same file at the same path.
    UsedBy(Vec<&'a Generation>),
}

impl Spare<'_> {
    fn has(&self, path: &str, file: &FileStat) -> bool {
        match self {
            // A file with one name is nobody else's.
            Self::UsedBy(others) if file.st_nlink > 1 => others
                .iter()
                .any(|other| other.inode(path) == Some(file.st_ino)),
            _ => false,
        }
    }
}

/// Removes a name from a directory: files are overwritten with zeros first, directories are emptied so
/// first, and symlinks are never followed. With something to spare, `name` is a generation's.
///
/// Goes on after a failure, so that one file that cannot be overwritten does not keep the others.
///
/// # Errors
/// The first failure. A file that cannot be overwritten is unlinked all the same.
pub fn remove(dir: &Dir, name: &str, spare: &Spare<'_>) -> io::Result<()> {
    remove_to_depth(dir, name, "", spare, DEPTH)
}

/// `path` is what leads to `name` from where it began.
fn remove_to_depth(
    dir: &Dir,
    name: &str,
    path: &str,
    spare: &Spare<'_>,
    depth: u32,
) -> io::Result<()> {
    let Some(stat) = dir.look(name)? else {
        return Ok(());
    };
    match kind(&stat) {
        SFlag::S_IFDIR => {
            let Some(depth) = depth.checked_sub(1) else {
                return Err(Errno::ELOOP.into());
            };
            let child = dir.child(name)?;
            let mut outcome = Ok(());
            for inner in child.names()? {
                let path = match path {
                    "" => inner.clone(),
                    path => format!("{path}/{inner}"),
                };
                outcome = outcome.and(remove_to_depth(&child, &inner, &path, spare, depth));
            }
            outcome.and(dir.remove(name))
        }
        SFlag::S_IFREG => {
            let overwritten = match stat.st_size == 0 || spare.has(path, &stat) {
                true => Ok(()),
                false => overwrite(dir, name),
            };
            let unlinked = dir.unlink(name);
            overwritten.and(unlinked)
        }
        _ => dir.unlink(name),
    }
}

/// Writes zeros over the whole content, in place. Truncating first would free the pages as they are.
fn overwrite(dir: &Dir, name: &str) -> io::Result<()> {
    let file = open_to_overwrite(dir, name)?;
    let stat = fstat(&file)?;
    if kind(&stat) != SFlag::S_IFREG {
        return Ok(());
    }
    let zeros = [0; 4096];
    let length = u64::try_from(stat.st_size).unwrap_or(0);
    let mut at = 0;
    while at < length {
        let left = usize::try_from(length - at).unwrap_or(usize::MAX);
        let part = zeros.get(..left).unwrap_or(&zeros);
        match file.write_at(part, at)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => at += written as u64,
        }
    }
    Ok(())
}

fn open_to_overwrite(dir: &Dir, name: &str) -> io::Result<File> {
    match dir.write(name) {
        // Mode 0400 and no CAP_DAC_OVERRIDE: its owner can still make it writable.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fchmod(dir.read(name)?, Mode::S_IRUSR | Mode::S_IWUSR)?;
            dir.write(name)
        }
        other => other,
    }
}
