//! Keeps a target that does not answer from being asked all the time.

use std::time::Duration;
use tokio::time::Instant;

/// Open after a failed connect: refuses, with its cause, until a while has passed, and then lets one
/// through at a time until one succeeds.
#[derive(Debug)]
pub(super) struct Breaker {
    /// The wait after the first failure, and the longest.
    backoff: (Duration, Duration),
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    failures: u32,
    since: Instant,
    until: Instant,
    cause: String,
    probing: bool,
}

impl Breaker {
    pub(super) fn new(backoff: (Duration, Duration)) -> Self {
        Self {
            backoff,
            open: None,
        }
    }

    /// Whether a connection may be opened. Who is let through reports what became of it.
    pub(super) fn ask(&mut self, now: Instant) -> Result<(), String> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if open.probing {
            return Err(format!("it is being tried again; before: {}", open.cause));
        }
        if now < open.until {
            let left = open.until.duration_since(now).as_millis();
            return Err(format!("{} (next try in {left} ms)", open.cause));
        }
        open.probing = true;
        Ok(())
    }

    pub(super) fn succeeded(&mut self) {
        self.open = None;
    }

    /// An attempt that began at `began` failed. Returns the wait that follows, or nothing if others that
    /// were under way with it have failed already: together they count once.
    pub(super) fn failed(&mut self, began: Instant, now: Instant, cause: &str) -> Option<Duration> {
        let failures = match &self.open {
            Some(open) if began < open.since => return None,
            Some(open) => open.failures + 1,
            None => 1,
        };
        let (shortest, longest) = self.backoff;
        let doubled = shortest.saturating_mul(1 << (failures - 1).min(5));
        let wait = jittered(doubled.min(longest));
        self.open = Some(Open {
            failures: failures.min(30),
            since: now,
            until: now + wait,
            cause: cause.to_owned(),
            probing: false,
        });
        Some(wait)
    }
}

/// Between three quarters of it and all of it, so that brokers do not come all at once.
fn jittered(wait: Duration) -> Duration {
    let random = crate::seal::random::<1>().map_or(255, |[byte]| byte);
    wait.mul_f64(0.75 + f64::from(random) / 1020.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECT: Duration = Duration::from_secs(5);
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn refuses_at_once_and_lets_one_through_when_time_has_passed() {
        let start = Instant::now();
        let mut breaker = Breaker::new((SHORTEST, LONGEST));
        breaker.ask(start).unwrap();
        breaker.ask(start).unwrap();
        let wait = breaker.failed(start, start, "refused").unwrap();
        assert!(wait >= SHORTEST.mul_f64(0.75) && wait <= SHORTEST);
        assert!(breaker.ask(start).unwrap_err().contains("refused"));
        let later = start + wait;
        breaker.ask(later).unwrap();
        assert!(breaker.ask(later).is_err(), "only one probe");
        breaker.succeeded();
        breaker.ask(later).unwrap();
    }

    #[test]
    fn waits_grow_to_a_limit_and_attempts_side_by_side_count_once() {
        let mut breaker = Breaker::new((SHORTEST, LONGEST));
        let mut now = Instant::now();
        for failures in 0..50 {
            let wait = breaker.failed(now, now + CONNECT, "late").unwrap();
            if failures > 6 {
                assert!(wait > LONGEST / 2 && wait <= LONGEST);
            }
            assert_eq!(breaker.failed(now, now + CONNECT, "late"), None);
            now += CONNECT + wait;
            breaker.ask(now).unwrap();
        }
    }
}
