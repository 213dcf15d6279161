//! The application: in our place, or as a child.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use mayfly_kernel::process::prepare_child;
use nix::sys::signal::{SigSet, Signal};

use crate::args::Run;
use crate::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND};

/// Becomes the application. Returns only if it cannot.
pub fn exec(run: &Run) -> Failure {
    let error = Command::new(&run.program).args(&run.arguments).exec();
    cannot_start(run, &error)
}

/// Starts the application as a child, in our own process group, so that a terminal treats it as if
/// we were not there. If the shim is killed, it is killed: nobody would renew its secrets.
pub fn start(run: &Run, mask: SigSet) -> Result<i32, Failure> {
    let mut command = Command::new(&run.program);
    command.args(&run.arguments);
    prepare_child(&mut command, mask, Signal::SIGKILL);
    match command.spawn() {
        Ok(child) => Ok(child.id() as i32),
        Err(error) => Err(cannot_start(run, &error)),
    }
}

fn cannot_start(run: &Run, error: &io::Error) -> Failure {
    let program = run.program.display();
    if error.kind() == io::ErrorKind::NotFound {
        let message = format!(
            "cannot find {program}: it must be a path or in PATH, and its interpreter or loader \
             must be in the image too"
        );
        return Failure::new(NOT_FOUND, message);
    }
    let message = format!(
        "cannot execute {program}: {error}; it must be an executable file for this machine"
    );
    Failure::new(NOT_EXECUTABLE, message)
}
