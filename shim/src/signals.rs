//! Signals as a queue, and what becomes of each.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mayfly_kernel::process;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, getsid};

/// All signals that are sent to the shim, in a queue instead of interrupting it.
///
/// They are blocked, not ignored: as PID 1 of a container the kernel would drop a signal without
/// a handler, but it keeps a blocked one.
pub struct Signals {
    queue: SignalFd,
    before: SigSet,
    session_leader: bool,
}

/// What to do about a signal.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// A child died.
    Reap,
    /// A name appeared in a directory that is watched.
    Look,
    /// Pass it on to the application.
    Forward(i32),
    /// The terminal stopped our process group; stop with it.
    Stop(Signal),
    /// The application has it already, or it was only for us.
    Ignore,
}

impl Signals {
    /// Blocks every signal that can be blocked, and opens the queue. A fault of our own still kills
    /// us: the kernel does not honour the mask for it.
    pub fn take_over() -> io::Result<Self> {
        process::watch_children()?;
        let all = SigSet::all();
        let before = all.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let queue = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let session_leader = getsid(Some(Pid::from_raw(0)))? == getpid();
        Ok(Self {
            queue,
            before: if getpid().as_raw() == 1 {
                SigSet::empty()
            } else {
                before
            },
            session_leader,
        })
    }

    /// The mask that was there before, which is what the application expects. None for PID 1: who
    /// makes a container may block signals so that the kernel keeps them until we listen.
    pub fn mask_before(&self) -> SigSet {
        self.before
    }

    /// Waits until a signal came, `other` can be read, or the time is over (`None`: no end).
    pub fn wait(&self, time: Option<Duration>, other: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let queue = self.queue.as_fd();
        let mut watched =
            [queue, other.unwrap_or(queue)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let time = match time {
            // Rounded up, or the last millisecond would be spent spinning.
            Some(time) => {
                PollTimeout::try_from(time.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        match poll(&mut watched, time) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The next signal's number, before the application runs: nobody has it yet.
    pub fn next_number(&self) -> io::Result<Option<i32>> {
        Ok(self
            .queue
            .read_signal()?
            .map(|received| received.ssi_signo as i32))
    }

    /// What becomes of the next signal, while the application runs.
    pub fn next(&self) -> io::Result<Option<Fate>> {
        let received = self.queue.read_signal()?;
        Ok(received.map(|signal| {
            let ours = signal.ssi_pid == std::process::id();
            fate(
                signal.ssi_signo as i32,
                signal.ssi_code,
                ours,
                self.session_leader,
            )
        }))
    }

    /// Stops this process as the terminal wanted, until it is continued. The kernel applies its
    /// own rule for a group that nobody could continue.
    pub fn stop(signal: Signal) -> io::Result<()> {
        let set = SigSet::from(signal);
        raise(signal)?;
        set.thread_unblock()?;
        set.thread_block()?;
        Ok(())
    }
}

/// The application stands in our process group, so what the terminal sends (Ctrl-C, Ctrl-Z, a new
/// window size) it gets from the kernel as well, and twice would be wrong. What someone sends to
/// the shim alone (`docker stop`) it gets from us. When the terminal goes away, the kernel tells
/// the leader of the session alone.
fn fate(number: i32, code: i32, ours: bool, session_leader: bool) -> Fate {
    let by_kernel = code == libc::SI_KERNEL;
    match number {
        libc::SIGCHLD => Fate::Reap,
        libc::SIGIO if by_kernel => Fate::Look,
        libc::SIGHUP | libc::SIGCONT if by_kernel && session_leader => Fate::Forward(number),
        libc::SIGTSTP if by_kernel => Fate::Stop(Signal::SIGTSTP),
        libc::SIGTTIN if by_kernel => Fate::Stop(Signal::SIGTTIN),
        libc::SIGTTOU if by_kernel => Fate::Stop(Signal::SIGTTOU),
        // `ours` is SIGPIPE, when we wrote to someone who stopped reading.
        _ if by_kernel || ours => Fate::Ignore,
        _ => Fate::Forward(number),
    }
}

/// Whether a signal ends a process that has no handler for it, and is meant to: what stops the
/// start-up.
pub fn ends(number: i32) -> bool {
    matches!(
        number,
        libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_to_us_is_passed_on() {
        for number in (1..=64).filter(|number| *number != libc::SIGCHLD) {
            for code in [libc::SI_USER, libc::SI_QUEUE, libc::SI_TKILL] {
                assert_eq!(fate(number, code, false, true), Fate::Forward(number));
            }
        }
        assert_eq!(
            fate(libc::SIGCHLD, libc::CLD_EXITED, false, false),
            Fate::Reap
        );
    }

    #[test]
    fn what_the_terminal_sends_is_not_sent_twice() {
        for number in [libc::SIGINT, libc::SIGQUIT, libc::SIGWINCH] {
            assert_eq!(fate(number, libc::SI_KERNEL, false, true), Fate::Ignore);
        }
        assert_eq!(fate(libc::SIGIO, libc::SI_KERNEL, false, false), Fate::Look);
        let stop = Fate::Stop(Signal::SIGTSTP);
        assert_eq!(fate(libc::SIGTSTP, libc::SI_KERNEL, false, false), stop);
        assert_eq!(
            fate(libc::SIGHUP, libc::SI_KERNEL, false, false),
            Fate::Ignore
        );
        assert_eq!(
            fate(libc::SIGPIPE, libc::SI_USER, true, false),
            Fate::Ignore
        );
        assert_eq!(
            fate(libc::SIGHUP, libc::SI_KERNEL, false, true),
            Fate::Forward(libc::SIGHUP)
        );
    }
}
