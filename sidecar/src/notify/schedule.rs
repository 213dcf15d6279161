//! When one way of telling the application is tried. No I/O and no clock.

use crate::config::Notify;
use std::time::{Duration, Instant};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What is due, and what came of the last attempts.
#[derive(Debug, Default)]
pub struct Schedule {
    state: State,
    /// Failures in a row.
    failures: u32,
    error: Option<String>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Due(Instant),
    Running {
        /// When it is due once more, because something changed meanwhile.
        again: Option<Instant>,
    },
    /// It runs, and whatever comes of it, there is no need any more.
    Dropped,
    /// Tried as often as it may be; the next change begins anew.
    GivenUp,
}

/// What follows an attempt.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It succeeded.
    Done,
    /// It is tried again.
    Again,
    /// It is not.
    GivenUp,
}

impl Schedule {
    /// Something changed. What is due already is not put off: a stream of changes would put it off
    /// for ever.
    pub fn ask(&mut self, now: Instant, debounce: Duration) {
        match &mut self.state {
            State::Due(at) => *at = (*at).min(now + debounce),
            State::Running { again } => *again = again.or(Some(now + debounce)),
            State::Dropped => {
                self.state = State::Running {
                    again: Some(now + debounce),
                };
            }
            State::Idle | State::GivenUp => self.state = State::Due(now + debounce),
        }
        self.failures = 0;
    }

    /// There is no need for it any more.
    pub fn drop_it(&mut self) {
        self.state = match self.state {
            State::Running { .. } | State::Dropped => State::Dropped,
            _ => State::Idle,
        };
        self.failures = 0;
        self.error = None;
    }

    /// When it is due.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Due(at) => Some(at),
            _ => None,
        }
    }

    /// Whether it is due; it then runs.
    pub fn start(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|at| at <= now);
        if due {
            self.state = State::Running { again: None };
        }
        due
    }

    /// An attempt is over.
    pub fn finished(&mut self, now: Instant, error: Option<&str>, notify: &Notify) -> Step {
        let again = match self.state {
            State::Running { again } => again,
            State::Dropped => {
                self.state = State::Idle;
                return Step::Done;
            }
            _ => None,
        };
        self.error = error.map(str::to_owned);
        let (state, step) = match (error, again) {
            (None, None) => (State::Idle, Step::Done),
            (None, Some(at)) => (State::Due(at), Step::Done),
            (Some(_), Some(at)) => (State::Due(at), Step::Again),
            (Some(_), None) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures < notify.attempts {
                    let doubled = FIRST_RETRY.saturating_mul(1 << (self.failures - 1).min(16));
                    (State::Due(now + doubled.min(LONGEST_RETRY)), Step::Again)
                } else {
                    (State::GivenUp, Step::GivenUp)
                }
            }
        };
        if error.is_none() {
            self.failures = 0;
        }
        self.state = state;
        step
    }

    /// Whether nothing is due, runs, or failed.
    pub fn is_well(&self) -> bool {
        matches!(self.state, State::Idle | State::Dropped)
    }

    /// Whether it is due or runs.
    pub fn is_pending(&self) -> bool {
        matches!(self.state, State::Due(_) | State::Running { .. })
    }

    /// In a word.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Idle | State::Dropped => "idle",
            State::Due(_) | State::Running { .. } => "pending",
            State::GivenUp => "failed",
        }
    }

    /// Why the last attempt failed, if it did.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Action;

    fn notify(attempts: u32) -> Notify {
        Notify {
            on: vec![],
            action: Action::Restart,
            timeout: Duration::from_secs(1),
            debounce: Duration::from_millis(100),
            attempts,
        }
    }

    #[test]
    fn changes_in_a_row_are_told_once_and_not_put_off() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut schedule = Schedule::default();
        assert!(schedule.is_well() && schedule.due().is_none());
        for after in [0, 30, 60, 90] {
            schedule.ask(start + ms(after), ms(100));
        }
        assert_eq!(schedule.due(), Some(start + ms(100)));
        assert!(!schedule.start(start + ms(99)) && schedule.start(start + ms(100)));
        // While it runs, it is not started again; afterwards it is, once.
        schedule.ask(start + ms(110), ms(100));
        schedule.ask(start + ms(120), ms(100));
        assert!(!schedule.start(start + ms(500)) && !schedule.is_well());
        assert_eq!(
            schedule.finished(start + ms(600), None, &notify(5)),
            Step::Done
        );
        assert_eq!(schedule.due(), Some(start + ms(210)));
        assert!(schedule.start(start + ms(600)));
        assert_eq!(
            schedule.finished(start + ms(601), None, &notify(5)),
            Step::Done
        );
        assert!(schedule.is_well());
    }

    #[test]
    fn what_is_dropped_is_not_tried_again_until_it_is_asked_for_anew() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.ask(now, Duration::ZERO);
        schedule.drop_it();
        assert!(schedule.due().is_none() && schedule.is_well());
        schedule.ask(now, Duration::ZERO);
        assert!(schedule.start(now));
        schedule.drop_it();
        assert!(!schedule.is_pending());
        assert_eq!(schedule.finished(now, Some("no"), &notify(9)), Step::Done);
        assert!(schedule.due().is_none() && schedule.is_well());
        // While the dropped attempt still runs.
        schedule.ask(now, Duration::ZERO);
        assert!(schedule.start(now));
        schedule.drop_it();
        schedule.ask(now, Duration::ZERO);
        assert!(schedule.is_pending() && !schedule.start(now));
        schedule.finished(now, None, &notify(9));
        assert!(schedule.start(now));
    }

    #[test]
    fn failures_are_tried_again_later_and_later_and_given_up() {
        let mut now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.ask(now, Duration::ZERO);
        let mut waits = Vec::new();
        loop {
            assert!(schedule.start(now));
            let step = schedule.finished(now, Some("no"), &notify(9));
            assert_eq!(schedule.error(), Some("no"));
            if step == Step::GivenUp {
                break;
            }
            let due = schedule.due().unwrap();
            waits.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(
            (schedule.state(), schedule.due(), schedule.is_well()),
            ("failed", None, false)
        );
        // The next change begins anew.
        schedule.ask(now, Duration::ZERO);
        assert!(schedule.start(now));
        assert_eq!(schedule.finished(now, None, &notify(9)), Step::Done);
        assert!(schedule.is_well() && schedule.error().is_none());
    }
}
