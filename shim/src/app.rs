//! The application: in our place, or as a child that may be started more than once.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use mayfly_kernel::landlock::Ruleset;
use mayfly_kernel::process::{prepare_child, send_signal};
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;

use crate::args::{MAX_VARIABLE, Run, Variable};
use crate::bundle;
use crate::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND, OS_ERROR, UNAVAILABLE};
use crate::say;

/// Becomes the application. Returns only if it cannot.
pub fn exec(run: &Run) -> Failure {
    let prepared = command(run).and_then(|command| match rules(run)? {
        Some(rules) => rules.enforce().map(|()| command).map_err(unconfined),
        None => Ok(command),
    });
    match prepared {
        Ok(mut command) => cannot_start(run, &command.exec()),
        Err(failure) => failure,
    }
}

/// The application as our child.
pub struct App {
    pid: i32,
    /// When it is killed, if it was asked to end and has that long.
    kill_at: Option<Instant>,
    /// What becomes of us when it ends.
    pub after: After,
}

/// What follows the application's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// We end too, with its status.
    End,
    /// The same, and it was told to end: it is not started again, whoever asks for that.
    Stop,
    /// It starts again.
    Again,
}

impl App {
    /// Starts it in our own process group, so that a terminal treats it as if we were not there. If the
    /// shim is killed, it is killed: nobody would renew its secrets. `alone` is whether it has to change
    /// to the user of `--user` first, because the shim is the sidecar's.
    pub fn start(run: &Run, alone: bool, mask: SigSet) -> Result<Self, Failure> {
        let mut command = command(run)?;
        if let Some(user) = run.user.filter(|_| alone) {
            command.uid(user.uid).gid(user.gid);
        }
        prepare_child(&mut command, mask, Signal::SIGKILL);
        if let Some(rules) = rules(run)? {
            rules.confine(&mut command);
        }
        match command.spawn() {
            Ok(child) => Ok(Self {
                pid: child.id() as i32,
                kill_at: None,
                after: After::End,
            }),
            Err(error) => Err(cannot_start(run, &error)),
        }
    }

    /// Whether it is this process.
    pub fn is(&self, pid: i32) -> bool {
        self.pid == pid
    }

    /// Passes a signal on. It may have ended meanwhile; its number is not reused before it is reaped.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        send_signal(self.pid, number)
    }

    /// Asks it to end, and kills it at that time if it does not.
    pub fn end(&mut self, after: After, kill_at: Option<Instant>) {
        self.after = after;
        self.limit(kill_at);
        let _ = self.signal(Signal::SIGTERM as i32);
    }

    /// Kills it at that time, or at an earlier one that stands already.
    pub fn limit(&mut self, kill_at: Option<Instant>) {
        self.kill_at = self.kill_at.into_iter().chain(kill_at).min();
    }

    /// How long until it is killed.
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        Some(self.kill_at?.saturating_duration_since(now))
    }

    /// Kills it if that is due.
    pub fn kill_if_due(&mut self, now: Instant) {
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            say("the application did not end in time and is killed; --grace gives it longer");
            let _ = self.signal(Signal::SIGKILL as i32);
        }
    }
}

fn command(run: &Run) -> Result<Command, Failure> {
    let mut command = Command::new(&run.program);
    command.args(&run.arguments);
    if !run.env.is_empty() {
        // Once, so that all values are of one generation.
        let generation = bundle::current(&run.dir).map_err(|errno| no_value("..data", errno))?;
        for variable in &run.env {
            command.env(&variable.name, value(&generation, variable)?);
        }
    }
    Ok(command)
}

/// A variable's value. Whatever held it is zeroed when it is freed: our heap does that.
fn value(generation: &OwnedFd, variable: &Variable) -> Result<OsString, Failure> {
    let path = variable.path.as_str();
    let read = || -> io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(generation, path, flags, Mode::empty())?);
        let length = file.metadata()?.len();
        if length >= (MAX_VARIABLE - variable.name.len().min(MAX_VARIABLE)) as u64 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // Of the right size at once, so that nothing is read through a buffer that nobody zeroes.
        let mut bytes = vec![0; length as usize];
        file.read_exact(&mut bytes)?;
        if bytes.contains(&0) {
            // Zeros are also what it is overwritten with when it ends.
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(bytes)
    };
    read()
        .map(OsString::from_vec)
        .map_err(|error| no_value(path, error))
}

fn no_value(path: &str, error: impl Into<io::Error>) -> Failure {
    let error = error.into();
    let message = format!(
        "cannot set a variable to {path}: {error}; it must be a file of less than 127 KiB without a \
         zero byte"
    );
    Failure::new(UNAVAILABLE, message)
}

/// What `--landlock` asks for. Made anew for each start: what stands beside the directory changes.
fn rules(run: &Run) -> Result<Option<Ruleset>, Failure> {
    if !run.landlock {
        return Ok(None);
    }
    Ruleset::read_only(&run.dir).map(Some).map_err(unconfined)
}

fn unconfined(error: io::Error) -> Failure {
    let message = format!(
        "--landlock: cannot confine the application: {error}; it needs Linux 6.2 with Landlock \
         switched on, and a container engine whose seccomp profile knows it"
    );
    Failure::new(OS_ERROR, message)
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

/// Our children, without those that we started and know, `spare`.
pub fn left(spare: Option<i32>) -> Vec<i32> {
    // Without /proc, nothing is known of them.
    let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    let children = text.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.filter(|pid| Some(*pid) != spare).collect()
}
