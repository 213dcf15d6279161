//! Runs a command under a pid that the caller chooses, for tests that force a pid to be used again.
//!
//! `with_pid PIDS COMMAND ARGS…`, where PIDS are joined by commas, innermost pid namespace first: with
//! the pid namespace for children set to a container's (setns(2)), `7,4711` is process 7 there and
//! 4711 on the host. Needs CAP_CHECKPOINT_RESTORE over each of the namespaces. Exits as the command
//! does, or with 125 if the pid is taken.

#![expect(unsafe_code, reason = "nix has no clone3(2)")]

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(pids), Some(program)) = (arguments.first(), arguments.get(1)) else {
        eprintln!("usage: with_pid PIDS COMMAND ARGS...");
        return ExitCode::from(64);
    };
    let Ok(pids) = pids.split(',').map(str::parse).collect::<Result<_, _>>() else {
        eprintln!("with_pid: PIDS are numbers, joined by commas");
        return ExitCode::from(64);
    };
    match spawn(pids) {
        Ok(None) => {
            let error = Command::new(program).args(&arguments[2..]).exec();
            eprintln!("with_pid: {program}: {error}");
            ExitCode::from(127)
        }
        Ok(Some(child)) => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
            _ => ExitCode::FAILURE,
        },
        Err(error) => {
            eprintln!("with_pid: clone3: {error}");
            ExitCode::from(125)
        }
    }
}

/// Forks; `None` is the child.
fn spawn(mut pids: Vec<libc::pid_t>) -> Result<Option<Pid>, Errno> {
    let arguments = libc::clone_args {
        flags: 0,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: pids.as_mut_ptr() as u64,
        set_tid_size: pids.len() as u64,
        cgroup: 0,
    };
    // SAFETY: without CLONE_VM this is a fork of a process with one thread; the arguments, and the
    // pids that they point to, outlive the call. No safe function takes pids.
    let child = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    })?;
    Ok((child != 0).then(|| Pid::from_raw(child as libc::pid_t)))
}
