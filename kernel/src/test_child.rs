//! For tests that change what a whole process may do.

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// Runs a check in a child process and says whether it held. A panic or a signal counts as no.
#[expect(unsafe_code, reason = "fork(2)")]
pub(crate) fn in_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child of a process with threads may only do what is safe in a signal handler;
    // glibc also keeps malloc working in the child of fork, and the checks use nothing beyond.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(if matches!(held, Ok(true)) { 0 } else { 1 }) }
        }
        ForkResult::Parent { child } => {
            matches!(waitpid(child, None), Ok(WaitStatus::Exited(_, 0)))
        }
    }
}
