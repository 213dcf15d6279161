//! Starting, ending and signalling processes, where std and nix stop short.

#![expect(unsafe_code, reason = "descriptors, real-time signals and pre_exec")]

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// Closes every descriptor from 3 on.
///
/// Call it first in `main`: it closes what the parent left open (a runtime once leaked a directory
/// of the host's, CVE-2024-21626), and would close our own as well.
///
/// # Errors
///
/// ENOSYS before Linux 5.9, or where a seccomp filter does not know the call; see close_range(2).
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: as the first act of the process nothing of ours is open. nix lacks the call, and std
    // cannot close what it did not open.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) })?;
    Ok(())
}

/// Sends a signal by number, real-time ones included, which nix cannot name. 0 only asks.
///
/// # Errors
///
/// ESRCH if the process is gone, EPERM if it is not ours; see kill(2).
pub fn send_signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers; no memory is passed.
    Errno::result(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// Takes one dead child, whichever it is, without waiting; `None` if none is dead.
///
/// Unlike nix's, it also tells a death by a real-time signal.
///
/// # Errors
///
/// None: no children at all is `None` too.
pub fn reap() -> Option<(i32, ExitStatus)> {
    let mut status = 0;
    // SAFETY: the kernel writes one int, which we own.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| (pid, ExitStatus::from_raw(status)))
}

/// Makes the kernel send `signal` to the command's process when the thread that starts it dies,
/// however it dies (PR_SET_PDEATHSIG). It holds over exec, unless that gains privileges.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec, the closure makes three system calls and allocates nothing
    // (`from_raw_os_error` does not). std has no safe way to run code there.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(signal)?;
            // It may have died before that took hold.
            if getppid() == parent {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_child::in_child;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    #[test]
    fn inherited_descriptors_are_closed() {
        let closed = in_child(|| {
            let file = std::fs::File::open("/proc/self/status").unwrap();
            let high = nix::fcntl::fcntl(&file, nix::fcntl::F_DUPFD(700)).unwrap();
            close_inherited().unwrap();
            // SAFETY: only asks for flags, of numbers that may be closed.
            let open = [file.as_raw_fd(), high, 2]
                .map(|number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0);
            std::mem::forget(file);
            open == [false, false, true]
        });
        assert!(closed);
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "`reap` is what is tested")]
    fn every_kind_of_death_is_told() {
        for (signal, code) in [(0, 42), (libc::SIGKILL, 0), (libc::SIGRTMIN() + 1, 0)] {
            let told = in_child(|| {
                let mut child = Command::new("/bin/sh")
                    .args(["-c", "read line; exit 42"])
                    .stdin(std::process::Stdio::piped())
                    .spawn()
                    .unwrap();
                let pid = child.id() as i32;
                if reap().is_some() {
                    return false;
                }
                if signal == 0 {
                    drop(child.stdin.take());
                } else {
                    send_signal(pid, signal).unwrap();
                }
                let (dead, status) = loop {
                    match reap() {
                        Some(told) => break told,
                        None => std::thread::sleep(Duration::from_millis(1)),
                    }
                };
                let as_expected = match signal {
                    0 => status.code() == Some(code),
                    signal => status.signal() == Some(signal),
                };
                dead == pid && as_expected && reap().is_none()
            });
            assert!(told, "signal {signal}, code {code}");
        }
    }

    #[test]
    fn a_child_dies_with_its_parent() {
        let (mut reader, writer) = io::pipe().unwrap();
        let held = in_child(|| {
            let mut command = Command::new("/bin/sleep");
            command.arg("60").stdout(writer.try_clone().unwrap());
            die_with_parent(&mut command, Signal::SIGKILL);
            command.spawn().is_ok()
        });
        drop(writer);
        assert!(held);
        // End of file comes when the sleeper, the last holder of the writing end, is dead.
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut reader, &mut rest).unwrap();
        assert!(rest.is_empty());
    }
}
