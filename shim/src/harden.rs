//! What the shim takes away, from itself and so from all that it starts.

use std::io;

use mayfly_kernel::{caps, keyring, memory, process, seccomp};
use nix::libc;
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid};

use crate::args::Identity;
use crate::exit::{Failure, OS_ERROR};
use crate::say;

/// Hardens this process. The order matters: nothing is open before the descriptors are closed,
/// capabilities go when nothing needs them any more, and the filter needs no_new_privs.
pub fn harden(user: Option<Identity>, drop_caps: bool) -> Result<(), Failure> {
    step("close inherited descriptors", process::close_inherited())?;
    step("join a session keyring of its own", join_session())?;
    step("forbid core dumps", memory::forbid_core_dumps())?;
    if drop_caps {
        step("empty the capability bounding set", caps::drop_bounding())?;
    }
    if let Some(user) = user {
        step("become the user of --user", become_user(user))?;
    }
    if drop_caps {
        step("drop capabilities", caps::drop_all())?;
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

fn step(purpose: &str, result: io::Result<()>) -> Result<(), Failure> {
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
