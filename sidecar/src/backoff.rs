//! How long to wait before the next attempt: full jitter, so that a thousand sidecars that lost one
//! broker do not all come back at once.

use std::time::Duration;

const FIRST_LEAST: u64 = 20;
const FIRST_MOST: u64 = 100;
const MOST: u64 = 30_000;
/// A refusal that stands until an operator changes something is asked for again less often.
const REFUSED_LEAST: u64 = 5_000;
const REFUSED_MOST: u64 = 60_000;

/// Counts attempts since the last good session.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    /// A session was good: begin anew.
    pub fn reset(&mut self) {
        self.0 = 0;
    }

    /// The next wait, after a failure that can pass by itself.
    pub fn transient(&mut self, random: u32) -> Duration {
        let attempt = self.0;
        self.0 = attempt.saturating_add(1);
        let most = FIRST_MOST << attempt.min(16);
        between(FIRST_LEAST, most.min(MOST), random)
    }

    /// The next wait, after a refusal that somebody must lift.
    pub fn refused(&mut self, random: u32) -> Duration {
        self.0 = self.0.saturating_add(1);
        between(REFUSED_LEAST, REFUSED_MOST, random)
    }
}

fn between(least: u64, most: u64, random: u32) -> Duration {
    let span = most - least;
    Duration::from_millis(least + span * u64::from(random) / u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_cap_and_begins_anew() {
        let mut backoff = Backoff::default();
        let first = [0, u32::MAX].map(|random| Backoff::default().transient(random).as_millis());
        assert_eq!(first, [20, 100]);
        let waits: Vec<_> = (0..12)
            .map(|_| backoff.transient(u32::MAX).as_millis())
            .collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 30_000);
        assert_eq!(backoff.transient(0).as_millis(), 20);
        backoff.reset();
        assert_eq!(backoff.transient(u32::MAX).as_millis(), 100);
    }

    #[test]
    fn a_refusal_is_not_asked_about_at_once() {
        let mut backoff = Backoff::default();
        assert!(backoff.refused(0) >= Duration::from_secs(5));
        assert!(backoff.refused(u32::MAX) <= Duration::from_secs(60));
    }
}
