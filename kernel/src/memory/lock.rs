//! Memory that cannot be swapped out, all of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::caps::{Caps, IPC_LOCK};

/// Whether [`lock_what_fits`] has locked, so that a failed allocation may be the limit's doing.
static GIVES_WAY: AtomicBool = AtomicBool::new(false);

/// Keeps all memory of this process out of swap, now and later; pages are locked as they are used.
///
/// # Errors
///
/// EPERM if the limit on locked memory (RLIMIT_MEMLOCK) is finite and CAP_IPC_LOCK is missing:
/// the kernel would then fail a later allocation, which is worse than memory that can be swapped.
pub fn lock_all() -> io::Result<()> {
    if !is_free()? {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    lock()
}

/// The same, also within a finite limit: if the program grows to it, all is unlocked, and the program
/// lives on.
///
/// For a program of one thread whose heap is [`Zeroing`](crate::alloc::Zeroing), which is what
/// unlocks. Whatever else maps memory while little of the limit is left (a thread's stack, a C
/// library's `malloc`) is refused it.
///
/// # Errors
///
/// ENOMEM if the program is larger than the limit as it is, or there is no limit left at all.
pub fn lock_what_fits() -> io::Result<()> {
    if is_free()? {
        return lock();
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)?;
    let stack = stack_end()?;
    lock()?;
    // A locked stack that cannot grow ends the process with SIGSEGV. It grows from its lowest page,
    // so that one alone is let go of.
    // SAFETY: a page of the stack, whose content stays; unlocking changes no content.
    if let Err(error) = Errno::result(unsafe { libc::munlock(stack as *const _, 1) }) {
        unlock_all();
        return Err(error.into());
    }
    GIVES_WAY.store(true, Ordering::Release);
    Ok(())
}

/// Lets go of what [`lock_what_fits`] has locked, and says whether that was anything.
pub(crate) fn unlock() -> bool {
    let locked = GIVES_WAY.swap(false, Ordering::AcqRel);
    if locked {
        unlock_all();
    }
    locked
}

/// Whether no limit on locked memory holds for this process.
fn is_free() -> io::Result<bool> {
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    Ok(limit == libc::RLIM_INFINITY || Caps::read()?.effective.has(IPC_LOCK))
}

fn lock() -> io::Result<()> {
    // SAFETY: changes no content and no address. nix has it only with its whole `mman` feature.
    Errno::result(unsafe { libc::mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) })?;
    Ok(())
}

fn unlock_all() {
    // SAFETY: changes no content and no address. It fails only for a process without memory.
    unsafe { libc::munlockall() };
}

/// Where the first thread's stack ends: its lowest address. In a container without `/proc` it is not
/// known, and the stack is not risked.
fn stack_end() -> io::Result<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let line = maps.lines().find(|line| line.ends_with("[stack]"));
    let start = line.and_then(|line| line.split_once('-'));
    start
        .and_then(|(start, _)| usize::from_str_radix(start, 16).ok())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    //! That a program lives on which grows to its limit is seen with the sidecar, end to end: a test
    //! binary is larger than the limits that most machines have.

    use super::*;
    use crate::test_child::in_child;
    use nix::unistd::{Uid, setuid};

    /// Locked memory of this process, in KiB (proc_pid_status(5)).
    fn locked() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmLck:"));
        let words = line.unwrap().split_whitespace().nth(1);
        words.unwrap().parse().unwrap()
    }

    #[test]
    fn without_a_limit_all_is_locked() {
        assert!(in_child(|| lock_all().is_ok() && locked() > 0));
        assert!(in_child(|| lock_what_fits().is_ok()
            && locked() > 0
            && !unlock()));
    }

    #[test]
    fn a_program_beyond_the_limit_is_not_locked_and_lives() {
        let refused = in_child(|| {
            setrlimit(Resource::RLIMIT_MEMLOCK, 65_536, 65_536).unwrap();
            setuid(Uid::from_raw(65_534)).unwrap();
            lock_what_fits().is_err() && locked() == 0 && vec![1_u8; 64 << 20].len() == 64 << 20
        });
        assert!(refused);
    }
}
