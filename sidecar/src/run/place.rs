//! The publishing directory, taken over only if it will do.

use crate::clock::Moment;
use crate::config::Config;
use crate::ending::Ending;
use crate::log::{Level, Log, wall_clock};
use crate::options::Options;
use crate::publish::dir::{Dir, Unreachable};
use crate::publish::draft::give;
use crate::publish::{Access, Publisher, fault_of, tmpfs};
use mayfly_wire::PublishFault;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{getegid, geteuid};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;

/// Opens, checks and takes over the directory. Also returns what an earlier sidecar should have
/// removed and others did.
///
/// # Errors
/// [`Ending::Unfit`], which says what was found and what to do.
pub fn take(
    options: &Options,
    config: &Config,
    log: Log,
) -> Result<(Publisher, Vec<String>), Ending> {
    let path = &options.dir;
    let dir = Dir::open(path).map_err(|error| unfit(unreachable(&error), error))?;
    let facts = tmpfs::gather(&dir).map_err(|error| {
        let why = format!("cannot find out what {} is: {error}", path.display());
        unfit(fault_of(&error), why)
    })?;
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let warnings = tmpfs::judge(&facts, options.allow_swap).map_err(|found| {
        let advice = tmpfs::advice(found, &facts, path, uid, gid);
        unfit(found.fault(), advice)
    })?;
    for warning in warnings {
        log.event(Level::Warn, "directory", &[("why", warning.into())]);
    }
    let mut accesses = config.accesses().chain([options.access]);
    accesses
        .try_for_each(|access| rehearse(&dir, access))
        .or_else(|(step, error)| match error.kind() {
            // What an earlier process left is removed below, and publishing waits for room.
            io::ErrorKind::StorageFull => Ok(()),
            _ => Err((step, error)),
        })
        .map_err(|(step, error)| {
            let why = format!(
                "cannot {step} in {}, as uid {uid} and gid {gid}: {error}. The directory must be \
                 writable for the sidecar (mount it with uid={uid}); to give files to another user it \
                 needs CAP_CHOWN and CAP_DAC_OVERRIDE, or run it as that user and leave --owner out",
                path.display()
            );
            unfit(fault_of(&error), why)
        })?;
    let mut missed = super::report::overdue(path, wall_clock());
    let (publisher, trouble) =
        Publisher::open(dir, Moment::now()).map_err(|error| unfit(error.fault(), error))?;
    super::tell(log, &trouble);
    missed.retain(|path| publisher.held().all(|(item, _)| item.as_str() != path));
    Ok((publisher, missed))
}

fn unfit(fault: PublishFault, why: impl ToString) -> Ending {
    let why = why.to_string();
    Ending::Unfit { fault, why }
}

fn unreachable(error: &Unreachable) -> PublishFault {
    match error {
        Unreachable::NotPlain(_) | Unreachable::Missing(_) => PublishFault::NoDirectory,
        Unreachable::NotADirectory(name) => match fs::symlink_metadata(name) {
            Ok(found) if found.is_symlink() => PublishFault::Symlink,
            _ => PublishFault::Foreign,
        },
        Unreachable::Io(_, error) => fault_of(error),
    }
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
