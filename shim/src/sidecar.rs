//! The sidecar as a child: started, and started again when it dies.

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use mayfly_kernel::process::{prepare_child, send_signal};
use nix::sys::signal::{SigSet, Signal};

use crate::args::SidecarOptions;
use crate::channel::Channel;
use crate::exit::{CONFIGURATION, Failure, USAGE, code_of};

/// The most that the first restart waits; it doubles with each failure after it.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// The most that any restart waits.
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// One that lived this long was well: its death counts as the first again.
const WELL_AFTER: Duration = Duration::from_secs(10);

/// The sidecar's program, and what it is doing.
pub struct Sidecar {
    program: PathBuf,
    arguments: Vec<OsString>,
    state: State,
    failures: u32,
    /// On which the running one asks of us.
    channel: Option<Channel>,
}

/// What a death of the sidecar means.
pub enum Death {
    /// Starting it again may mend it; this says what happened.
    Unexpected(String),
    /// Its configuration is wrong, which starting it again does not mend.
    Refused(Failure),
}

enum State {
    Running {
        pid: i32,
        since: Instant,
    },
    Due(Instant),
    /// It was told to do its work once, and did.
    Finished,
}

impl Sidecar {
    /// One that is due now. It publishes to `dir`, for the group too if it is `alone`: if the
    /// application is another user.
    pub fn new(options: &SidecarOptions, dir: &Path, alone: bool) -> Result<Self, Failure> {
        let program = match &options.path {
            Some(path) => path.clone(),
            None => std::env::current_exe()
                .map_err(|error| {
                    let message = format!("cannot find my own file: {error}; give --sidecar-path");
                    Failure::new(CONFIGURATION, message)
                })?
                .with_file_name("mayfly-sidecar"),
        };
        let mut arguments: Vec<OsString> = vec!["--shim".into(), "--dir".into(), dir.into()];
        if alone {
            arguments.extend(["--mode", "0440"].map(OsString::from));
        }
        // What is said by hand comes last, and wins.
        arguments.extend(options.arguments.iter().cloned());
        Ok(Self {
            program,
            arguments,
            state: State::Due(Instant::now()),
            failures: 0,
            channel: None,
        })
    }

    /// How long until it must be started; `None` if it runs or is finished.
    pub fn due_in(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Due(at) => Some(at.saturating_duration_since(now)),
            State::Running { .. } | State::Finished => None,
        }
    }

    /// Starts it if that is due; an error counts as a death, and it is due again later.
    ///
    /// It is in a process group of its own, away from the terminal's Ctrl-C: it must still wipe
    /// when the application has ended. Its stdin is our channel, and it says all on stderr, because
    /// stdout is the application's. When the shim is killed, the kernel asks it to end, and it wipes.
    ///
    /// While the application is not started, it hears what is `awaited` for that: until then there is
    /// nobody to tell.
    pub fn start_if_due(
        &mut self,
        now: Instant,
        mask: SigSet,
        awaited: Option<&[String]>,
    ) -> Result<(), Failure> {
        if self.due_in(now) != Some(Duration::ZERO) {
            return Ok(());
        }
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).process_group(0);
        if let Some(names) = awaited {
            command.arg(format!("--awaited={}", names.join(",")));
        }
        prepare_child(&mut command, mask, Signal::SIGTERM);
        let mut start = || {
            let (channel, theirs) = Channel::pair()?;
            let stderr = io::stderr().as_fd().try_clone_to_owned()?;
            let child = command.stdin(theirs).stdout(stderr).spawn()?;
            Ok::<_, io::Error>((child.id() as i32, channel))
        };
        match start() {
            Ok((pid, channel)) => {
                self.channel = Some(channel);
                self.state = State::Running { pid, since: now };
                Ok(())
            }
            Err(error) => {
                self.retry_later(now);
                let program = self.program.display();
                let message = format!(
                    "cannot start the sidecar {program}: {error}; put it there, or give \
                     --sidecar-path"
                );
                Err(Failure::new(CONFIGURATION, message))
            }
        }
    }

    /// Has the sidecar's program tell the broker what is overdue, because the sidecar itself is frozen
    /// or dead. It is waited for by nobody but whoever reaps; the answer is its pid.
    pub fn report(&self, mask: SigSet) -> Option<i32> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .arg("--report")
            .process_group(0);
        prepare_child(&mut command, mask, Signal::SIGKILL);
        command.stdin(Stdio::piped());
        let stderr = io::stderr().as_fd().try_clone_to_owned().ok()?;
        let child = command.stdout(stderr).spawn().ok()?;
        Some(child.id() as i32)
    }

    /// Notes the death of a child, if it was this one: it is due again, unless it is finished.
    pub fn buried(&mut self, dead: i32, status: ExitStatus, now: Instant) -> Option<Death> {
        let State::Running { pid, since } = self.state else {
            return None;
        };
        if pid != dead {
            return None;
        }
        self.channel = None;
        if status.success() && self.arguments.iter().any(|argument| argument == "--once") {
            self.state = State::Finished;
            return None;
        }
        if now.saturating_duration_since(since) >= WELL_AFTER {
            self.failures = 0;
        }
        self.retry_later(now);
        let code = code_of(status);
        Some(match code {
            USAGE | CONFIGURATION => Death::Refused(Failure::new(
                code,
                format!("the sidecar refused its set-up ({status}); see what it said"),
            )),
            _ => Death::Unexpected(format!("the sidecar ended ({status}) and is started again")),
        })
    }

    fn retry_later(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        // Each RandomState has keys of its own, from the kernel's randomness.
        let random = RandomState::new().build_hasher().finish();
        self.state = State::Due(now + delay(self.failures, random));
    }

    /// Sends it a signal; whether it was there to get one.
    pub fn signal(&self, signal: Signal) -> bool {
        self.pid()
            .is_some_and(|pid| send_signal(pid, signal as i32).is_ok())
    }

    /// Its process, if it runs, as far as deaths were noted.
    pub fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::Due(_) | State::Finished => None,
        }
    }

    /// What it asks on, while it runs.
    pub fn channel(&mut self) -> Option<&mut Channel> {
        self.channel.as_mut()
    }

    /// What to wait for, besides its death.
    pub fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref()?.watched()
    }
}

/// Full jitter: anything from nothing to the bound, so that the sidecars of a host which all lost
/// the same node do not come back in step.
fn delay(failures: u32, random: u64) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let bound = doubled.min(LONGEST_DELAY).as_micros() as u64;
    Duration::from_micros(random % (bound + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn running(arguments: &[&str], since: Instant) -> Sidecar {
        Sidecar {
            program: "/none".into(),
            arguments: arguments.iter().map(Into::into).collect(),
            state: State::Running { pid: 7, since },
            failures: 3,
            channel: None,
        }
    }

    fn exit(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn the_delay_stays_below_a_bound_that_doubles_up_to_a_limit() {
        let bound = |failures| {
            let samples = (0..5_000_000)
                .step_by(997)
                .map(|random| delay(failures, random));
            samples.max().unwrap().as_millis()
        };
        assert_eq!([bound(1), bound(2), bound(3)], [49, 99, 199]);
        assert!(delay(30, u64::MAX) <= LONGEST_DELAY);
        assert!(delay(u32::MAX, 9_999_999) > Duration::from_secs(9));
        assert_eq!(delay(9, 0), Duration::ZERO);
    }

    #[test]
    fn a_death_makes_it_due_again() {
        let now = Instant::now();
        for status in [exit(0), exit(1), ExitStatus::from_raw(9)] {
            let mut sidecar = running(&[], now);
            assert!(
                sidecar.buried(8, status, now).is_none(),
                "another child's death"
            );
            assert!(sidecar.pid().is_some());
            let death = sidecar.buried(7, status, now);
            assert!(matches!(death, Some(Death::Unexpected(_))));
            assert!(sidecar.due_in(now).is_some());
            assert_eq!(sidecar.failures, 4);
        }
    }

    #[test]
    fn one_that_was_well_begins_anew() {
        let since = Instant::now();
        let mut sidecar = running(&[], since);
        let now = since + WELL_AFTER;
        sidecar.buried(7, exit(1), now);
        assert_eq!(sidecar.failures, 1);
        assert!(sidecar.due_in(now).unwrap() <= FIRST_DELAY);
    }

    #[test]
    fn once_is_once() {
        let now = Instant::now();
        let mut sidecar = running(&["--once"], now);
        assert!(sidecar.buried(7, exit(0), now).is_none());
        assert!(sidecar.due_in(now).is_none() && sidecar.pid().is_none());
        let mut sidecar = running(&["--once"], now);
        assert!(sidecar.buried(7, exit(1), now).is_some());
        assert!(sidecar.due_in(now).is_some());
    }

    #[test]
    fn a_refused_set_up_is_told() {
        let now = Instant::now();
        for code in [64, 78] {
            let Some(Death::Refused(failure)) = running(&[], now).buried(7, exit(code), now) else {
                panic!("{code} is not a refusal");
            };
            assert_eq!(i32::from(failure.code), code);
        }
    }

    #[test]
    fn a_program_that_is_missing_is_named() {
        let now = Instant::now();
        let mut sidecar = running(&[], now);
        sidecar.state = State::Due(now);
        let failure = sidecar
            .start_if_due(now, SigSet::empty(), None)
            .unwrap_err();
        assert!(failure.message.contains("/none"), "{failure}");
        assert!(sidecar.due_in(now).is_some());
    }
}
