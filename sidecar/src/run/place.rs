//! The publishing directory, taken over only if it will do.

use crate::ending::Ending;
use crate::log::{Level, Log};
use crate::options::Options;
use crate::publish::dir::Dir;
use crate::publish::generation::give;
use crate::publish::{Access, Publisher, tmpfs};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{getegid, geteuid};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;

/// Opens, checks and takes over the directory.
///
/// # Errors
/// [`Ending::Unfit`], which says what was found and what to do.
pub fn take(options: &Options, log: Log) -> Result<Publisher, Ending> {
    let path = &options.dir;
    let dir = Dir::open(path).map_err(|error| Ending::Unfit(error.to_string()))?;
    let facts = tmpfs::gather(&dir).map_err(|error| {
        Ending::Unfit(format!(
            "cannot find out what {} is: {error}",
            path.display()
        ))
    })?;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let warnings = tmpfs::judge(&facts, options.allow_swap)
        .map_err(|unfit| Ending::Unfit(tmpfs::advice(unfit, &facts, path, uid, gid)))?;
    for warning in warnings {
        log.event(Level::Warn, "directory", &[("why", warning.into())]);
    }
    rehearse(&dir, options.access)
        .or_else(|(step, error)| match error.kind() {
            // What an earlier process left is removed below, and publishing waits for room.
            io::ErrorKind::StorageFull => Ok(()),
            _ => Err((step, error)),
        })
        .map_err(|(step, error)| {
            Ending::Unfit(format!(
                "cannot {step} in {}, as uid {uid} and gid {gid}: {error}. The directory must be \
             writable for the sidecar (mount it with uid={uid}); to give files to another user it \
             needs CAP_CHOWN and CAP_DAC_OVERRIDE, or run it as that user and leave --owner out",
                path.display()
            ))
        })?;
    let (publisher, trouble) =
        Publisher::open(dir, options.access).map_err(|error| Ending::Unfit(error.to_string()))?;
    super::report(log, &trouble);
    Ok(publisher)
}

/// Does with a file without a name what will be done with each: make, give away, open to overwrite.
fn rehearse(dir: &Dir, access: Access) -> Result<(), (&'static str, io::Error)> {
    let file = dir
        .create_nameless()
        .map_err(|error| ("make a file", error))?;
    give(&file, access).map_err(|error| ("set mode and owner of a file", error))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reopen = || OpenOptions::new().write(true).open(&path);
    reopen()
        .or_else(|_| {
            fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR)?;
            reopen()
        })
        .map(|_| ())
        .map_err(|error| ("overwrite a file later", error))
}
