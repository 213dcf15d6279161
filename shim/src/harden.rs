//! What the shim takes away, from itself and so from all that it starts.

use std::io;
use std::path::Path;

use mayfly_kernel::caps::CapSet;
use mayfly_kernel::{caps, keyring, memory, process, seccomp};
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::prctl::{set_keepcaps, set_no_new_privs};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{
    Gid, Uid, fchown, geteuid, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid,
};

use crate::args::{Identity, Run, SIDECAR_USER};
use crate::exit::{Failure, OS_ERROR};
use crate::say;

/// What the shim keeps when the sidecar has a user of its own: becoming the application's user each time
/// that this starts, and signalling it.
const SUPERVISING: CapSet = CapSet::of([caps::KILL, caps::SETGID, caps::SETUID]);
/// What it needs once, to give the directory to the sidecar.
const GIVING: CapSet = CapSet::of([caps::CHOWN, caps::FOWNER]);

/// Closes what whoever started us left open. Comes first: it would close what is ours as well.
pub fn close_inherited() -> Result<(), Failure> {
    step("close inherited descriptors", process::close_inherited())
}

/// Hardens this process. The order matters: capabilities go when nothing needs them any more, and the
/// filter needs no_new_privs.
///
/// With `alone`, the sidecar's user and the application's group, the shim becomes that and keeps
/// [`SUPERVISING`]; else it becomes the user of `--user`.
pub fn harden(run: &Run, alone: Option<Identity>) -> Result<(), Failure> {
    step("join a session keyring of its own", join_session())?;
    step("forbid core dumps", memory::forbid_core_dumps())?;
    if run.drop_caps {
        step("empty the capability bounding set", caps::drop_bounding())?;
    }
    if let Some(alone) = alone {
        let given = give(&run.dir, alone).map_err(unmapped);
        step("give the directory to the sidecar", given)?;
        let become_it = become_supervisor(alone).map_err(unmapped);
        step("become the sidecar's user", become_it)?;
    } else {
        if let Some(user) = run.user {
            let become_it = become_user(user).map_err(unmapped);
            step("become the user of --user", become_it)?;
        }
        if run.drop_caps {
            step("drop capabilities", caps::drop_all())?;
        }
    }
    step(
        "keep others of the uid from reading its memory",
        memory::forbid_reading_by_others(),
    )?;
    step(
        "set no_new_privs",
        set_no_new_privs().map_err(io::Error::from),
    )?;
    step("load the seccomp filter", seccomp::refuse_keyrings())
}

/// Who the sidecar is, if it can be somebody else than the application: its own user, so that the
/// application can neither trace it nor pass for it, and the application's group, which reads the files.
pub fn alone(run: &Run) -> Result<Option<Identity>, Failure> {
    let (Some(options), Some(user)) = (&run.sidecar, run.user.filter(|user| user.uid != 0)) else {
        return Ok(None);
    };
    let uid = options.user.unwrap_or(SIDECAR_USER);
    let held = step("read its capabilities", caps::Caps::read())?.effective;
    let able = geteuid().is_root() && held.holds(SUPERVISING) && held.holds(GIVING);
    if uid == user.uid || (options.user.is_none() && !able) {
        return Ok(None);
    }
    if !able {
        let message = "--sidecar-user needs root with CAP_CHOWN, CAP_FOWNER, CAP_KILL, CAP_SETGID and \
                       CAP_SETUID, as a container engine gives them if nothing is dropped";
        return Err(Failure::new(OS_ERROR, message));
    }
    Ok(Some(Identity { uid, ..user }))
}

/// Makes the publishing directory the sidecar's, and the application's to read. What is no tmpfs is left
/// as it is: the sidecar refuses it.
fn give(dir: &Path, to: Identity) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Ok(dir) = open(dir, flags, Mode::empty()) else {
        return Ok(());
    };
    if fstatfs(&dir)?.filesystem_type() == TMPFS_MAGIC {
        fchmod(&dir, Mode::from_bits_truncate(0o750))?;
        fchown(
            &dir,
            Some(Uid::from_raw(to.uid)),
            Some(Gid::from_raw(to.gid)),
        )?;
    }
    Ok(())
}

/// What chown(2) and setresuid(2) mean by EINVAL.
fn unmapped(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::other(
            "this user namespace has no such user or group; let --user and --sidecar-user name some \
             that it has",
        ),
        _ => error,
    }
}

fn become_supervisor(user: Identity) -> io::Result<()> {
    set_keepcaps(true)?;
    become_user(user)?;
    set_keepcaps(false)?;
    caps::keep_only(SUPERVISING)
}

fn step<T>(purpose: &str, result: io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| {
        let message = format!("cannot {purpose}: {error}; the application was not started");
        Failure::new(OS_ERROR, message)
    })
}

/// Where an outer filter refuses the calls already, as Docker's does, the inherited keyring is out
/// of reach for us and for the application, which is as good. The same holds for a uid that has
/// used up its quota of keys: our own filter follows.
fn join_session() -> io::Result<()> {
    match keyring::join_anonymous_session() {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOSYS) => Ok(()),
            Some(libc::EDQUOT) => {
                say("the uid has no quota left for a session keyring; the filter must do");
                Ok(())
            }
            _ => Err(error),
        },
    }
}

fn become_user(user: Identity) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let (uids, gids) = (getresuid()?, getresgid()?);
    // One who is that user already, and in no other group, needs no capability for it.
    let same_uid = [uids.real, uids.effective, uids.saved] == [uid; 3];
    let same_gid = [gids.real, gids.effective, gids.saved] == [gid; 3];
    if same_uid && same_gid && getgroups()?.iter().all(|group| *group == gid) {
        return Ok(());
    }
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}
