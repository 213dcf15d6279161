//! The shim's course: harden, wait for the first bundle, run the application, end the sidecar.

use std::time::{Duration, Instant};

use mayfly_kernel::process::reap;
use nix::libc;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;

use crate::app::{self, App};
use crate::args::{Identity, Run};
use crate::bundle::{Missing, Watch, missing, withdraw};
use crate::deadman::Deadman;
use crate::exit::{Failure, OS_ERROR, UNAVAILABLE, by_signal, code_of};
use crate::sidecar::{Death, Sidecar};
use crate::signals::{Signals, ends};
use crate::{harden, say};

/// How often the directory is looked at while it is waited for, besides when it tells a change.
const LOOK: Duration = Duration::from_millis(50);
/// How long what was killed is waited for.
pub const CLEARING: Duration = Duration::from_secs(1);

pub struct Shim<'a> {
    pub run: &'a Run,
    pub signals: Signals,
    pub sidecar: Option<Sidecar>,
    /// The sidecar's user, which is ours too, if the application has another.
    pub alone: Option<Identity>,
    pub deadman: Deadman,
}

/// Does what the command line asks for, and returns the exit code. Without a sidecar, and without
/// restarts, there is nothing to supervise: the application takes our place, and this returns only on
/// failure.
pub fn run(run: &Run) -> Result<u8, Failure> {
    harden::close_inherited()?;
    // As early as can be: what comes before is lost, if we are PID 1.
    let signals = Signals::take_over().map_err(lost)?;
    let alone = harden::alone(run)?;
    let sidecar = match &run.sidecar {
        Some(options) => Some(Sidecar::new(options, &run.dir, alone.is_some())?),
        None => None,
    };
    harden::harden(run, alone)?;
    if sidecar.is_some() {
        withdraw(&run.dir)?;
    }
    let mut shim = Shim {
        run,
        signals,
        sidecar,
        alone,
        deadman: Deadman::new(&run.dir),
    };
    let result = shim.live();
    shim.end_sidecar();
    result
}

pub fn lost(error: impl Into<std::io::Error>) -> Failure {
    let error = error.into();
    Failure::new(
        OS_ERROR,
        format!("cannot go on, the kernel refuses to wait: {error}"),
    )
}

impl Shim<'_> {
    fn live(&mut self) -> Result<u8, Failure> {
        if let Some(signal) = self.first_bundle()? {
            return Ok(self.stopped(signal));
        }
        if self.sidecar.is_none() && !self.run.restart_on_rotate {
            // What is still in the queue would strike once the mask is gone: the directory's own
            // signal among it, whose default action is to end the process.
            while let Some(number) = self.signals.next_number().map_err(lost)? {
                if ends(number) {
                    return Ok(self.stopped(number));
                }
            }
            self.signals.mask_before().thread_set_mask().map_err(lost)?;
            return Err(app::exec(self.run));
        }
        // Orphans of the application come to us, and not to an init above us.
        set_child_subreaper(true).map_err(lost)?;
        self.supervise()
    }

    fn stopped(&self, signal: i32) -> u8 {
        say(&format!(
            "stopped by signal {signal} before the application started"
        ));
        by_signal(signal) as u8
    }

    /// Waits until the bundle is complete, or says which signal ended the waiting.
    fn first_bundle(&mut self) -> Result<Option<i32>, Failure> {
        let deadline = Instant::now() + self.run.timeout;
        let mut watch = Watch::new(&self.run.dir);
        loop {
            watch.renew();
            let Some(missing) = missing(&self.run.dir, &self.run.wait) else {
                return Ok(None);
            };
            let now = Instant::now();
            if now >= deadline {
                return Err(self.too_late(&missing));
            }
            let mut time = LOOK.min(deadline - now);
            if let Some(sidecar) = &mut self.sidecar {
                let mask = self.signals.mask_before();
                sidecar.start_if_due(now, mask, Some(&self.run.wait))?;
                time = sidecar.due_in(now).map_or(time, |due| due.min(time));
            }
            self.signals.wait(Some(time), None).map_err(lost)?;
            while let Some(number) = self.signals.next_number().map_err(lost)? {
                if number == libc::SIGCHLD {
                    match self.bury(None).1 {
                        Some(Death::Refused(failure)) => return Err(failure),
                        Some(Death::Unexpected(what)) => say(&what),
                        None => {}
                    }
                } else if ends(number) {
                    return Ok(Some(number));
                }
            }
        }
    }

    fn too_late(&self, missing: &Missing) -> Failure {
        let (dir, time) = (self.run.dir.display(), self.run.timeout);
        let message = format!("no complete bundle in {dir} after {time:?}: {missing}");
        Failure::new(UNAVAILABLE, message)
    }

    /// Reaps all that is dead: the application, whose exit code it returns, the sidecar, and
    /// orphans that came to us as PID 1.
    pub fn bury(&mut self, app: Option<&App>) -> (Option<u8>, Option<Death>) {
        let (mut code, mut death) = (None, None);
        while let Some((pid, status)) = reap() {
            self.deadman.buried(pid);
            if app.is_some_and(|app| app.is(pid)) {
                code = Some(code_of(status));
            } else if let Some(sidecar) = &mut self.sidecar {
                death = sidecar.buried(pid, status, Instant::now()).or(death);
            }
        }
        (code, death)
    }

    /// Lets the sidecar wipe its files, for as long as `--grace` says, and wipes what it leaves.
    fn end_sidecar(&mut self) {
        if self.signal_sidecar(Signal::SIGTERM) {
            // One that is frozen hears of it only now.
            self.signal_sidecar(Signal::SIGCONT);
            self.await_sidecar(self.run.grace());
        }
        if self.signal_sidecar(Signal::SIGKILL) {
            say("the sidecar did not end in time and was killed; --grace gives it longer");
            self.await_sidecar(CLEARING);
        }
        if self.sidecar.is_some() {
            self.deadman.wipe();
        }
    }

    fn signal_sidecar(&self, signal: Signal) -> bool {
        (self.sidecar.as_ref()).is_some_and(|sidecar| sidecar.signal(signal))
    }

    /// Waits until it is dead, no longer than this.
    fn await_sidecar(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while self.sidecar.as_ref().and_then(Sidecar::pid).is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            let waited = self.signals.wait(Some(left), None);
            while let Ok(Some(_)) = self.signals.next() {}
            // How it ended is of no use any more.
            drop(self.bury(None));
            if left.is_zero() || waited.is_err() {
                break;
            }
        }
    }
}
