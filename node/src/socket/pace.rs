//! How fast one container may ask, or connect. Each answer that carries a credential is a record on the broker's
//! disk, so a loop in one container would fill it, and then nobody gets anything.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Most keys that are paced apart; beyond, those that come new share one pace.
const MOST: usize = 4096;

/// Paces each key, such as a workload, by the generic cell rate algorithm (ITU-T I.371), which is a token bucket kept
/// as one time: when the bucket will be full again.
pub(super) struct Pace<K> {
    /// Between two requests of one that asks all the time.
    interval: Duration,
    /// How far ahead of that pace one may be.
    ahead: Duration,
    full_at: Mutex<HashMap<Option<K>, Instant>>,
}

impl<K: Clone + Eq + Hash> Pace<K> {
    /// `burst` requests at once, and `rate` a second from then on.
    pub(super) fn new(rate: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        Self {
            interval,
            ahead: interval * burst.saturating_sub(1),
            full_at: Mutex::default(),
        }
    }

    /// Takes one request of this key, or says how long it must wait.
    pub(super) fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = Some(key.clone());
        if full_at.len() >= MOST && !full_at.contains_key(&key) {
            // A full bucket is like one that never was.
            full_at.retain(|_, full| *full > now);
            if full_at.len() >= MOST {
                key = None;
            }
        }
        let full = full_at.entry(key).or_insert(now);
        let base = (*full).max(now);
        let early = base.saturating_duration_since(now);
        if early > self.ahead {
            return Err(early - self.ahead);
        }
        *full = base + self.interval;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::WorkloadKey;

    fn key(number: u64) -> WorkloadKey {
        WorkloadKey {
            boot_id: "b".into(),
            cgroup_id: number,
            pidns_id: 1,
        }
    }

    fn served(pace: &Pace<WorkloadKey>, number: u64, now: Instant, tries: usize) -> usize {
        let tries = (0..tries).filter(|_| pace.take(&key(number), now).is_ok());
        tries.count()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let pace = Pace::new(20, 100);
        let start = Instant::now();
        assert_eq!(served(&pace, 1, start, 500), 100);
        let wait = pace.take(&key(1), start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(50));
        let second = start + Duration::from_secs(1);
        assert_eq!(served(&pace, 1, second, 500), 20);
        assert_eq!(served(&pace, 2, second, 500), 100, "another has its own");
        let later = second + Duration::from_secs(3600);
        assert_eq!(served(&pace, 1, later, 500), 100, "a burst is not saved up");
    }

    #[test]
    fn a_burst_of_one_is_served() {
        let pace = Pace::new(1, 1);
        let start = Instant::now();
        assert_eq!(served(&pace, 1, start, 5), 1);
        assert_eq!(served(&pace, 1, start + Duration::from_secs(1), 5), 1);
    }

    #[test]
    fn memory_is_bounded_and_the_rest_share() {
        let pace = Pace::new(1, 2);
        let start = Instant::now();
        let taken = (0..10_000).filter(|&number| pace.take(&key(number), start).is_ok());
        assert_eq!(taken.count(), MOST + 2);
        assert_eq!(pace.full_at.lock().unwrap().len(), MOST + 1);
        assert_eq!(served(&pace, 0, start, 5), 1, "who was there keeps its own");
        let later = start + Duration::from_secs(60);
        assert_eq!(served(&pace, 9_999, later, 5), 2);
        assert_eq!(
            pace.full_at.lock().unwrap().len(),
            1,
            "full ones are forgotten"
        );
    }
}
