//! Asking on a terminal without showing what is typed. Whatever ends or stops us meanwhile, Ctrl-C
//! first, finds the terminal as it was: the signals are taken here, and passed on once it is.

use crate::failure::Failure;
use mayfly_wire::Secret;
use mayfly_wire::session::MAX_VALUE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;

/// Most bytes of one read: more than a line of a terminal can have (termios(3)).
const CHUNK: usize = 8 * 1024;

/// The terminal on standard input, without echo until this is dropped.
pub struct Quiet {
    before: Termios,
    signals: SigSet,
    arrived: SignalFd,
}

impl Quiet {
    /// # Errors
    /// When standard input is no terminal.
    pub fn new() -> Result<Self, Failure> {
        let before = tcgetattr(io::stdin().as_fd())?;
        let signals = SigSet::from_iter([
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGTSTP,
        ]);
        let arrived = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
        let quiet = Self {
            before,
            signals,
            arrived,
        };
        quiet.hush()?;
        Ok(quiet)
    }

    fn hush(&self) -> Result<(), Failure> {
        // Before the echo goes, so that no signal comes between. We are one thread.
        self.signals.thread_block()?;
        let mut quiet = self.before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        quiet.local_flags.insert(LocalFlags::ECHONL);
        tcsetattr(io::stdin().as_fd(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(())
    }

    fn restore(&self) {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSAFLUSH, &self.before);
    }

    /// Asks for one line.
    ///
    /// # Errors
    /// When the terminal cannot be read, or the line is longer than a value can be.
    pub fn ask(&self, question: &str) -> Result<Secret, Failure> {
        loop {
            let _ = io::stderr().write_all(question.as_bytes());
            match self.line()? {
                Ok(line) => return Ok(line),
                Err(signal) => {
                    self.restore();
                    raise(signal)?;
                    // It does to us what it would have done. We are here again if that was to stop and
                    // go on, or to be ignored.
                    self.signals.thread_unblock()?;
                    self.hush()?;
                }
            }
        }
    }

    /// One line, or the signal that came instead.
    fn line(&self) -> Result<Result<Secret, Signal>, Failure> {
        // All the room at once, so that no copy is left behind by a vector that grows; and read from
        // the descriptor, because the standard library's buffer would keep one too.
        let mut bytes = Vec::with_capacity(MAX_VALUE + CHUNK);
        let stdin = io::stdin();
        loop {
            let mut wait = [
                PollFd::new(self.arrived.as_fd(), PollFlags::POLLIN),
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut wait, PollTimeout::NONE)?;
            if let [signal, _] = &wait
                && signal.any().unwrap_or_default()
                && let Some(found) = self.arrived.read_signal()?
                && let Ok(number) = i32::try_from(found.ssi_signo)
            {
                return Ok(Err(Signal::try_from(number)?));
            }
            let start = bytes.len();
            bytes.resize(start + CHUNK, 0);
            let room = bytes.get_mut(start..).unwrap_or_default();
            let length = nix::unistd::read(stdin.as_fd(), room)?;
            bytes.truncate(start + length);
            let ended = length == 0 || bytes.ends_with(b"\n");
            if bytes.ends_with(b"\n") {
                bytes.pop();
            }
            if bytes.len() > MAX_VALUE {
                return Err(Failure::Usage(format!(
                    "a value can have {MAX_VALUE} bytes at most"
                )));
            }
            if ended {
                return Ok(Ok(Secret::from(bytes)));
            }
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.restore();
        let _ = self.signals.thread_unblock();
    }
}
