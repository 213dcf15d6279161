//! What the door remembers in memory, all of it bounded: whose turn it is, who died, who was refused.

use mayfly_wire::link::HEARTBEAT_SECONDS;
use mayfly_wire::{Evidence, WorkloadKey};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::OwnedMutexGuard;

/// Dead workloads that are remembered: far more than can be on their way in when they die.
const MOST_DEAD: usize = 16 * 1024;
/// Refused workloads that are remembered.
const MOST_REFUSED: usize = 512;
/// Refusals of one workload that go on record within a [`MINUTE`]: all that one session can be refused,
/// and a few more.
const RECORDED: usize = 300;
/// A node that was silent for this long is not known to live.
const SILENCE: Duration = Duration::from_secs(3 * HEARTBEAT_SECONDS);
/// In milliseconds.
const MINUTE: u64 = 60_000;

/// One turn for each workload.
#[derive(Default)]
pub struct Locks(Mutex<HashMap<WorkloadKey, Arc<tokio::sync::Mutex<()>>>>);

/// A workload's turn, until it is dropped.
pub struct Turn<'a> {
    locks: &'a Locks,
    key: WorkloadKey,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits for the workload's turn.
    pub async fn turn(&self, key: &WorkloadKey) -> Turn<'_> {
        let mutex = Arc::clone(super::lock(&self.0).entry(key.clone()).or_default());
        let mut turn = Turn {
            locks: self,
            key: key.clone(),
            guard: None,
        };
        turn.guard = Some(mutex.lock_owned().await);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut locks = super::lock(&self.locks.0);
        let unused = locks
            .get(&self.key)
            .is_some_and(|mutex| Arc::strong_count(mutex) == 1);
        if unused {
            locks.remove(&self.key);
        }
    }
}

/// Workloads that died. The kernel uses no key twice within a boot, so one that is here stays dead.
#[derive(Default)]
pub struct Tombs {
    keys: HashSet<WorkloadKey>,
    order: VecDeque<WorkloadKey>,
}

impl Tombs {
    pub fn contains(&self, key: &WorkloadKey) -> bool {
        self.keys.contains(key)
    }

    pub fn add(&mut self, key: WorkloadKey) {
        if self.keys.insert(key.clone()) {
            self.order.push_back(key);
        }
        if self.order.len() > MOST_DEAD
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }
}

/// When each node was heard of last.
#[derive(Default)]
pub struct Heard(Mutex<BTreeMap<String, Instant>>);

impl Heard {
    /// A node was heard of now.
    pub fn now(&self, node: &str) {
        super::lock(&self.0).insert(node.to_owned(), Instant::now());
    }

    /// Whether a node was heard of lately.
    #[must_use]
    pub fn lately(&self, node: &str) -> bool {
        let heard = super::lock(&self.0);
        heard.get(node).is_some_and(|last| last.elapsed() < SILENCE)
    }

    /// Every node that was ever heard of, with the time since then.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Duration)> {
        let heard = super::lock(&self.0);
        let times = heard.iter();
        times
            .map(|(name, last)| (name.clone(), last.elapsed()))
            .collect()
    }
}

/// The latest evidence of workloads that were refused, and how often each was.
#[derive(Default)]
pub struct Recent(VecDeque<Refused>);

struct Refused {
    evidence: Arc<Evidence>,
    /// Refusals on record since `since`.
    recorded: usize,
    since: u64,
}

impl Recent {
    /// Remembers that a workload was refused something, and says how many of `wanted` records about it
    /// may be written: one that keeps asking must not fill the disk.
    pub fn add(&mut self, evidence: &Evidence, wanted: usize, now: u64) -> usize {
        let key = &evidence.workload;
        let before = self
            .0
            .iter()
            .position(|known| known.evidence.workload == *key);
        let before = before.and_then(|place| self.0.remove(place));
        let (recorded, since) = before
            .filter(|known| now.abs_diff(known.since) < MINUTE)
            .map_or((0, now), |known| (known.recorded, known.since));
        let may = wanted.min(RECORDED.saturating_sub(recorded));
        self.0.push_back(Refused {
            evidence: Arc::new(evidence.clone()),
            recorded: recorded + may,
            since,
        });
        if self.0.len() > MOST_REFUSED {
            self.0.pop_front();
        }
        may
    }

    pub fn remove(&mut self, key: &WorkloadKey) {
        self.0.retain(|known| known.evidence.workload != *key);
    }

    pub fn all(&self) -> Vec<Arc<Evidence>> {
        self.0
            .iter()
            .map(|known| Arc::clone(&known.evidence))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> WorkloadKey {
        WorkloadKey {
            boot_id: "b".into(),
            cgroup_id: number,
            pidns_id: 1,
        }
    }

    #[tokio::test]
    async fn turns_are_one_at_a_time_and_leave_nothing() {
        let locks = Locks::default();
        let (one, three) = (key(1), key(3));
        let first = locks.turn(&key(1)).await;
        let mut second = Box::pin(locks.turn(&one));
        let waited = tokio::time::timeout(Duration::from_millis(10), &mut second);
        assert!(waited.await.is_err());
        let _other = locks.turn(&key(2)).await;
        drop(first);
        drop(second.await);
        assert!(!locks.0.lock().unwrap().contains_key(&key(1)));
        // One that gave up waiting leaves nothing either.
        let held = locks.turn(&key(3)).await;
        let gave_up = tokio::time::timeout(Duration::from_millis(1), locks.turn(&three));
        assert!(gave_up.await.is_err());
        drop(held);
        assert!(!locks.0.lock().unwrap().contains_key(&key(3)));
    }

    #[test]
    fn refusals_on_record_are_bounded() {
        let mut recent = Recent::default();
        let evidence = crate::testing::evidence(1);
        assert_eq!(recent.add(&evidence, 256, 0), 256);
        assert_eq!(recent.add(&evidence, 256, 1000), RECORDED - 256);
        assert_eq!(recent.add(&evidence, 1, MINUTE - 1), 0);
        assert_eq!(recent.add(&crate::testing::evidence(2), 1, MINUTE - 1), 1);
        assert_eq!(recent.add(&evidence, 1, MINUTE), 1);
        // A clock that was set back does not silence it for long.
        assert_eq!(recent.add(&evidence, 256, 10 * MINUTE), 256);
        assert_eq!(recent.add(&evidence, 256, MINUTE), 256);
        for number in 10..2000 {
            recent.add(&crate::testing::evidence(number), 1, 0);
        }
        assert_eq!(recent.all().len(), MOST_REFUSED);
    }

    #[test]
    fn the_dead_are_bounded() {
        let mut tombs = Tombs::default();
        for number in 0..(MOST_DEAD as u64 + 10) {
            tombs.add(key(number));
        }
        assert_eq!(tombs.keys.len(), MOST_DEAD);
        assert!(!tombs.contains(&key(0)));
        assert!(tombs.contains(&key(MOST_DEAD as u64 + 9)));
    }
}
