//! What the door remembers in memory, all of it bounded: whose turn it is, who died, who was refused.

use mayfly_wire::{Evidence, WorkloadKey};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::OwnedMutexGuard;

/// Dead workloads that are remembered: far more than can be on their way in when they die.
const MOST_DEAD: usize = 16 * 1024;
/// Refused workloads that are remembered.
const MOST_REFUSED: usize = 512;
/// Refusals of one workload that go on record within [`SECOND`].
const RECORDED: u32 = 5;
/// In milliseconds.
const SECOND: u64 = 1000;

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

/// The latest evidence of workloads that were refused, and how often each was.
#[derive(Default)]
pub struct Recent(VecDeque<Refused>);

struct Refused {
    evidence: Arc<Evidence>,
    /// Refusals on record since `since`.
    recorded: u32,
    since: u64,
}

impl Recent {
    /// Remembers a refusal, and says whether it goes on record: of those of one workload that keeps
    /// asking, a few a second do, so that it cannot fill the disk.
    pub fn add(&mut self, evidence: &Evidence, now: u64) -> bool {
        let key = &evidence.workload;
        let before = self
            .0
            .iter()
            .position(|known| known.evidence.workload == *key);
        let before = before.and_then(|place| self.0.remove(place));
        let (recorded, since) = before
            .filter(|known| now.saturating_sub(known.since) < SECOND)
            .map_or((0, now), |known| (known.recorded, known.since));
        self.0.push_back(Refused {
            evidence: Arc::new(evidence.clone()),
            recorded: recorded.saturating_add(1),
            since,
        });
        if self.0.len() > MOST_REFUSED {
            self.0.pop_front();
        }
        recorded < RECORDED
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
        let waited = tokio::time::timeout(std::time::Duration::from_millis(10), &mut second);
        assert!(waited.await.is_err());
        let _other = locks.turn(&key(2)).await;
        drop(first);
        drop(second.await);
        assert!(!locks.0.lock().unwrap().contains_key(&key(1)));
        // One that gave up waiting leaves nothing either.
        let held = locks.turn(&key(3)).await;
        let gave_up = tokio::time::timeout(std::time::Duration::from_millis(1), locks.turn(&three));
        assert!(gave_up.await.is_err());
        drop(held);
        assert!(!locks.0.lock().unwrap().contains_key(&key(3)));
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
