//! Starting, ending and signalling processes, where std and nix stop short.

#![expect(unsafe_code, reason = "descriptors, real-time signals and pre_exec")]

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{getpid, getppid};

/// Closes every descriptor from 3 on.
///
/// Call it first in `main`: it closes what the parent left open (a runtime once leaked a directory
/// of the host's, CVE-2024-21626), and would close our own as well.
///
/// # Errors
///
/// Where close_range(2) is missing (before Linux 5.9, or behind a seccomp filter that does not know
/// it), those of reading `/proc/self/fd`.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: as the first act of the process nothing of ours is open. nix lacks the call, and std
    // cannot close what it did not open.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    if answer == 0 { Ok(()) } else { close_listed() }
}

fn close_listed() -> io::Result<()> {
    let names = std::fs::read_dir("/proc/self/fd")?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    for number in names
        .iter()
        .filter_map(|name| name.to_str()?.parse::<i32>().ok())
    {
        if number > 2 {
            // SAFETY: as above. The listing's own descriptor is closed by now: EBADF, no harm.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}

/// Undoes an inherited "ignore" of SIGCHLD, under which the kernel reaps children itself and
/// nobody learns how they ended.
///
/// # Errors
///
/// None that Linux documents for this signal; see sigaction(2).
pub fn watch_children() -> io::Result<()> {
    // SAFETY: the default action runs no code of ours.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    if before == libc::SIG_ERR {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
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

/// Gives the command's process a signal mask, which std would let it inherit, and makes the kernel
/// send it `on_death` when the thread that starts it dies, however it dies (PR_SET_PDEATHSIG). Both
/// hold over exec; the second not if that gains privileges.
pub fn prepare_child(command: &mut Command, mask: SigSet, on_death: Signal) {
    let parent = getpid();
    // SAFETY: between fork and exec, the closure makes three system calls and allocates nothing
    // (`from_raw_os_error` does not). std has no safe way to run code there.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(on_death)?;
            // It may have died before that took hold.
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            mask.thread_set_mask()?;
            Ok(())
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
        for close in [close_inherited, close_listed] {
            let closed = in_child(|| {
                let file = std::fs::File::open("/proc/self/status").unwrap();
                let high = nix::fcntl::fcntl(&file, nix::fcntl::F_DUPFD(700)).unwrap();
                close().unwrap();
                // SAFETY: only asks for flags, of numbers that may be closed.
                let open = [file.as_raw_fd(), high, 2]
                    .map(|number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0);
                std::mem::forget(file);
                open == [false, false, true]
            });
            assert!(closed);
        }
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "`reap` is what is tested")]
    fn every_kind_of_death_is_told() {
        for (signal, code) in [(0, 42), (libc::SIGKILL, 0), (libc::SIGRTMIN() + 1, 0)] {
            let told = in_child(|| {
                // SAFETY: to ignore a signal runs no code of ours.
                unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
                watch_children().unwrap();
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
    fn a_child_has_the_mask_that_it_is_given() {
        let held = in_child(|| {
            SigSet::all().thread_set_mask().unwrap();
            let mut command = Command::new("/bin/grep");
            command.args(["-q", "SigBlk:.0000000000000200", "/proc/self/status"]);
            prepare_child(&mut command, SigSet::from(Signal::SIGUSR1), Signal::SIGKILL);
            command.status().unwrap().success()
        });
        assert!(held);
    }

    #[test]
    fn a_child_dies_with_its_parent() {
        let (mut reader, writer) = io::pipe().unwrap();
        let held = in_child(|| {
            let mut command = Command::new("/bin/sleep");
            command.arg("60").stdout(writer.try_clone().unwrap());
            prepare_child(&mut command, SigSet::empty(), Signal::SIGKILL);
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
