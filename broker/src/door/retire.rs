//! Leases that another took the place of: when nobody uses them any more.
//!
//! An *epoch* counts up with each lease that retires. A bundle made in an epoch holds nothing that
//! retired in it or before. So a lease is out of use once every session of its workload has published a
//! bundle of its epoch or a later one.

use super::{Door, lock};
use crate::store::Op;
use mayfly_wire::{LeaseId, WorkloadKey};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long a lease is still good after the last session stopped using it: whoever has read the old
/// files a moment ago, which sidecars leave readable for a second, connects with what they say. In
/// milliseconds.
const LAST_READERS: u64 = 2000;

/// What waits for its holders, in memory alone: after a restart a lease has its grace.
#[derive(Default)]
pub struct Retiring {
    epoch: AtomicU64,
    leases: Mutex<HashMap<WorkloadKey, Vec<(LeaseId, u64)>>>,
}

impl Retiring {
    /// The epoch now. To be asked before the leases for a bundle are read.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// A lease retired: that is on disk.
    pub fn add(&self, workload: WorkloadKey, lease: LeaseId) {
        let mut leases = lock(&self.leases);
        let epoch = self.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        leases.entry(workload).or_default().push((lease, epoch));
    }

    /// It ended.
    pub fn remove(&self, workload: &WorkloadKey, lease: &LeaseId) {
        let mut leases = lock(&self.leases);
        if let Some(of) = leases.get_mut(workload) {
            of.retain(|(id, _)| id != lease);
            if of.is_empty() {
                leases.remove(workload);
            }
        }
    }

    /// Its workload died.
    pub fn forget(&self, workload: &WorkloadKey) {
        lock(&self.leases).remove(workload);
    }

    fn waits(&self, workload: &WorkloadKey) -> bool {
        lock(&self.leases).contains_key(workload)
    }

    /// Takes those that retired in this epoch or before.
    fn take(&self, workload: &WorkloadKey, epoch: u64) -> Vec<LeaseId> {
        let mut leases = lock(&self.leases);
        let Some(of) = leases.get_mut(workload) else {
            return Vec::new();
        };
        let taken = of.extract_if(.., |(_, at)| *at <= epoch);
        let taken = taken.map(|(id, _)| id).collect();
        if of.is_empty() {
            leases.remove(workload);
        }
        taken
    }
}

impl Door {
    /// Whether a lease of this workload waits until nobody uses it.
    #[must_use]
    pub fn has_retiring(&self, workload: &WorkloadKey) -> bool {
        self.retiring.waits(workload)
    }

    /// Every session of a workload has published a bundle of this epoch or a later one.
    pub async fn out_of_use(&self, workload: &WorkloadKey, epoch: u64) {
        let due_at = self.now_ms() + LAST_READERS;
        let leases = self.retiring.take(workload, epoch).into_iter();
        let mut ops = Vec::new();
        for id in leases {
            match self.store.lease(id).await {
                // Its grace may be shorter still.
                Ok(Some(lease)) if lease.due_at > due_at => {
                    ops.push(Op::LeaseDue(lease.id, due_at));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a lease has its whole grace"),
            }
        }
        if ops.is_empty() {
            return;
        }
        match self.store.commit(ops).await {
            Ok(()) => self.hint(due_at),
            Err(error) => tracing::warn!(%error, "a lease has its whole grace"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_out_of_use_in_its_own_epoch_and_later() {
        let retiring = Retiring::default();
        let key = crate::testing::evidence(1).workload;
        let id = |number| LeaseId::from_random([number; 16]);
        let before = retiring.epoch();
        retiring.add(key.clone(), id(1));
        let between = retiring.epoch();
        retiring.add(key.clone(), id(2));
        assert!(retiring.waits(&key));
        assert_eq!(retiring.take(&key, before), []);
        assert_eq!(retiring.take(&key, between), [id(1)]);
        assert_eq!(retiring.take(&key, between), []);
        retiring.remove(&key, &id(2));
        assert!(!retiring.waits(&key));
        assert_eq!(retiring.take(&key, retiring.epoch()), []);
    }
}
