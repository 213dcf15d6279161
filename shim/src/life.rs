//! The application's life, or lives: one loop that waits for what comes and for what falls due.

use std::time::{Duration, Instant};

use nix::libc;

use crate::app::{self, After, App};
use crate::channel::Request;
use crate::exit::Failure;
use crate::rotation::Rotation;
use crate::say;
use crate::sidecar::{Death, Sidecar};
use crate::signals::{Fate, Signals};
use crate::supervise::{CLEARING, Shim, lost};

impl Shim<'_> {
    /// Runs until the application ends for good, and returns its exit code.
    pub fn supervise(&mut self) -> Result<u8, Failure> {
        let mut rotation = (self.run.restart_on_rotate).then(|| Rotation::new(&self.run.dir));
        loop {
            if let Some(rotation) = &mut rotation {
                rotation.begin();
            }
            let mut app = App::start(self.run, self.alone.is_some(), self.signals.mask_before())?;
            let code = self.one_life(&mut app, &mut rotation)?;
            if app.after != After::Again {
                self.answer("ok");
                return Ok(code);
            }
            self.clear();
        }
    }

    /// From the application's start to its end, whose exit code it returns.
    fn one_life(&mut self, app: &mut App, rotation: &mut Option<Rotation>) -> Result<u8, Failure> {
        // Whoever asked for this life.
        self.answer("ok");
        loop {
            let now = Instant::now();
            app.kill_if_due(now);
            if rotation
                .as_mut()
                .is_some_and(|rotation| rotation.take_due(now))
            {
                self.restart(app, now);
            }
            if let Some(sidecar) = &mut self.sidecar
                && let Err(failure) = sidecar.start_if_due(now, self.signals.mask_before(), None)
            {
                say(&failure.message);
            }
            self.serve(app, now);
            if let Some(sidecar) = &self.sidecar
                && (self.deadman).tend(now, || sidecar.report(self.signals.mask_before()))
            {
                app.end(After::Stop, self.limit(now));
            }
            let due = [
                app.due_in(now),
                self.sidecar.as_ref().map(|_| self.deadman.due_in(now)),
                rotation.as_ref().and_then(|rotation| rotation.due_in(now)),
                self.sidecar
                    .as_ref()
                    .and_then(|sidecar| sidecar.due_in(now)),
            ];
            let asked = self.sidecar.as_ref().and_then(Sidecar::watched);
            let waited = self.signals.wait(due.into_iter().flatten().min(), asked);
            waited.map_err(lost)?;
            while let Some(fate) = self.signals.next().map_err(lost)? {
                match fate {
                    Fate::Reap => {
                        let (ended, sidecar) = self.bury(Some(&*app));
                        // The application lives and needs its secrets: go on trying, and say so.
                        match sidecar {
                            Some(Death::Refused(failure)) => say(&failure.message),
                            Some(Death::Unexpected(what)) => say(&what),
                            None => {}
                        }
                        if let Some(code) = ended {
                            return Ok(code);
                        }
                    }
                    Fate::Forward(number) => self.forward(app, number),
                    Fate::Look => {
                        if let Some(rotation) = rotation {
                            rotation.look(Instant::now());
                        }
                    }
                    Fate::Stop(signal) => Signals::stop(signal).map_err(lost)?,
                    Fate::Ignore => {}
                }
            }
        }
    }

    /// Does what the sidecar asks for. What takes time is answered when it is done.
    fn serve(&mut self, app: &mut App, now: Instant) {
        while let Some(request) = self.sidecar.as_mut().and_then(|s| s.channel()?.next()) {
            match request {
                Request::Signal(number) => match app.signal(number) {
                    Ok(()) => self.answer("ok"),
                    Err(error) => self.answer(&error.to_string()),
                },
                Request::Restart => {
                    if !self.restart(app, now) {
                        self.answer("it was told to end, and is not started again");
                    }
                }
                Request::Stop => app.end(After::Stop, self.limit(now)),
            }
        }
    }

    fn answer(&mut self, answer: &str) {
        if let Some(channel) = self.sidecar.as_mut().and_then(Sidecar::channel) {
            channel.answer(answer);
        }
    }

    /// Ends it and has it started again, unless it was told to end for good.
    fn restart(&self, app: &mut App, now: Instant) -> bool {
        if app.after == After::End {
            app.end(After::Again, self.limit(now));
        }
        app.after == After::Again
    }

    /// When an application that is asked to end now is killed.
    fn limit(&self, now: Instant) -> Option<Instant> {
        Some(now + self.run.grace())
    }

    /// Passes on what somebody sent us. Who sends SIGTERM wants an end: a restart that comes later, or is
    /// under way, must not keep a container that is being stopped. The same holds for the other signals
    /// that stop, but only while a restart is under way: an application may live on with those.
    fn forward(&self, app: &mut App, number: i32) {
        let stops = match number {
            libc::SIGTERM => true,
            libc::SIGINT | libc::SIGQUIT => app.after == After::Again,
            _ => false,
        };
        if stops {
            app.after = After::Stop;
            // Only if it was said: an engine's own limit, which we do not know, may be longer.
            app.limit(self.run.grace.map(|grace| Instant::now() + grace));
        }
        let _ = app.signal(number);
    }

    /// Kills what is left of the application, as the end of a container does: the next one must not find
    /// its ports and locks taken. All of it is ours by now, because orphans come to us.
    fn clear(&mut self) {
        let deadline = Instant::now() + CLEARING;
        loop {
            // A death of the sidecar in between is noted, and seen to by the next life.
            drop(self.bury(None));
            let left = app::left(self.sidecar.as_ref().and_then(Sidecar::pid));
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = mayfly_kernel::process::send_signal(pid, libc::SIGKILL);
            }
            // Looked at last: even who was kept from running for long has killed them once.
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
