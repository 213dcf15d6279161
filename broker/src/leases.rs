//! When leases are due, and who looks at them then.

use crate::door::{Door, Renewal};
use crate::nodes::Nodes;
use crate::run::stopped;
use crate::sessions::Hub;
use mayfly_wire::LeaseId;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Leases looked at at once: enough that their commits share an fsync.
const AT_ONCE: usize = 64;
/// Longest sleep, so that a clock that is set does not matter for long.
const LONGEST: Duration = Duration::from_secs(5);

/// The leases by the time at which each is due. One entry a lease.
#[derive(Default)]
pub struct Timer {
    entries: Mutex<Entries>,
    earlier: Notify,
}

#[derive(Default)]
struct Entries {
    due: BTreeSet<(u64, LeaseId)>,
    at: HashMap<LeaseId, u64>,
}

impl Timer {
    /// Sets when a lease is due: milliseconds since the Unix epoch.
    pub fn add(&self, due: u64, lease: LeaseId) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = entries.at.insert(lease.clone(), due) {
            entries.due.remove(&(before, lease.clone()));
        }
        entries.due.insert((due, lease.clone()));
        let first = entries
            .due
            .first()
            .is_some_and(|(_, first)| *first == lease);
        drop(entries);
        if first {
            self.earlier.notify_one();
        }
    }

    /// Takes at most `most` leases that are due at `now`, the earliest first.
    #[must_use]
    pub fn take(&self, now: u64, most: usize) -> Vec<LeaseId> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        while taken.len() < most && entries.due.first().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, lease)) = entries.due.pop_first() {
                entries.at.remove(&lease);
                taken.push(lease);
            }
        }
        taken
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.due.first().map(|(due, _)| *due)
    }
}

/// Renews and ends leases as they come due, until `stop`.
pub async fn run(
    door: Arc<Door>,
    hub: Arc<Hub>,
    nodes: Arc<Nodes>,
    mut stop: watch::Receiver<bool>,
) {
    let mut work = JoinSet::new();
    loop {
        let due = door
            .timer()
            .take(door.now_ms(), AT_ONCE - work.len().min(AT_ONCE));
        for lease in due {
            let (door, hub, nodes) = (Arc::clone(&door), Arc::clone(&hub), Arc::clone(&nodes));
            work.spawn(async move {
                let renewed = door.renew(&lease, |node| nodes.lives(node), |key| hub.has(key));
                match renewed.await {
                    Ok(Renewal::Renewed(workload) | Renewal::Ended(workload)) => {
                        hub.wake(&workload);
                    }
                    Ok(Renewal::Nothing) => {}
                    Err(refusal) => tracing::warn!(%lease, %refusal, "a lease waits"),
                }
            });
        }
        let wait = match door.timer().next() {
            Some(due) => Duration::from_millis(due.saturating_sub(door.now_ms())).min(LONGEST),
            None => LONGEST,
        };
        let full = work.len() >= AT_ONCE;
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = work.join_next(), if !work.is_empty() => {}
            () = tokio::time::sleep(wait), if !full => {}
            () = door.timer().earlier.notified(), if !full => {}
        }
    }
    while work.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(number: u8) -> LeaseId {
        LeaseId::from_random([number; 16])
    }

    #[test]
    fn the_earliest_comes_first_and_each_once() {
        let timer = Timer::default();
        timer.add(30, lease(1));
        timer.add(10, lease(2));
        timer.add(20, lease(3));
        timer.add(40, lease(2));
        assert_eq!(timer.next(), Some(20));
        assert!(timer.take(19, 10).is_empty());
        assert_eq!(timer.take(30, 1), [lease(3)]);
        assert_eq!(timer.take(30, 10), [lease(1)]);
        assert_eq!(timer.take(100, 10), [lease(2)]);
        assert_eq!(timer.next(), None);
    }
}
