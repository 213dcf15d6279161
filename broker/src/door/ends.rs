//! How leases end: their workload dies, they expire, or policy takes them away.

use super::{Door, ended, lock, store_failed};
use crate::store::{Lease, Op, StoreError};
use mayfly_wire::audit::Event;
use mayfly_wire::link::{NodeRefusal, Watched};
use mayfly_wire::{Refusal, WorkloadKey};

impl Door {
    /// A workload died: its leases end now. Says whether anything was known of it.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`] when this cannot be made durable: say it again. The workload
    /// gets nothing more even so.
    pub async fn died(&self, workload: &WorkloadKey) -> Result<bool, Refusal> {
        lock(&self.dead).add(workload.clone());
        lock(&self.refused).remove(workload);
        lock(&self.unpublished).remove(workload);
        let _turn = self.locks.turn(workload).await;
        let leases = self
            .store
            .leases_of(workload.clone())
            .await
            .map_err(store_failed)?;
        let known = self
            .store
            .workload(workload.clone())
            .await
            .map_err(store_failed)?;
        if leases.is_empty() && known.is_none() {
            return Ok(false);
        }
        let mut events = vec![Event::Died {
            workload: workload.clone(),
        }];
        let mut ops = Vec::with_capacity(leases.len() + 1);
        let mut failed = None;
        for lease in &leases {
            match self.revoke(lease).await {
                Ok(()) => {
                    ops.push(Op::LeaseEnd(lease.id.clone()));
                    events.push(ended(lease, "died"));
                }
                Err(error) => {
                    tracing::error!(lease = %lease.id, %error, "a lease cannot be revoked yet");
                    failed = Some(mayfly_wire::Code::Unavailable);
                }
            }
        }
        if known.is_some() && failed.is_none() {
            ops.push(Op::WorkloadRemove(workload.clone()));
        }
        // Revocation does not wait for the record: a full disk must not keep a credential alive.
        let commit = async { self.store.commit(ops).await.map_err(store_failed) };
        let (recorded, committed) = tokio::join!(self.record_all(events), commit);
        committed.and(recorded)?;
        failed.map_or(Ok(true), |code| Err(code.into()))
    }

    /// Ends one lease for a reason of the broker's own. One that has ended already is not there.
    pub(super) async fn end(&self, lease: &Lease, reason: &str) -> Result<(), Refusal> {
        if let Err(error) = self.revoke(lease).await {
            tracing::error!(lease = %lease.id, %error, "a lease cannot be revoked yet");
            return Err(error.code().into());
        }
        match self
            .store
            .commit(vec![Op::LeaseEnd(lease.id.clone())])
            .await
        {
            Ok(()) => self.record(ended(lease, reason)).await?,
            Err(StoreError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(store_failed(error)),
        }
        self.forget_if_idle(&lease.workload).await
    }

    /// A workload without leases need not be watched or remembered.
    async fn forget_if_idle(&self, workload: &WorkloadKey) -> Result<(), Refusal> {
        let leases = self
            .store
            .leases_of(workload.clone())
            .await
            .map_err(store_failed)?;
        if !leases.is_empty() {
            return Ok(());
        }
        match self
            .store
            .commit(vec![Op::WorkloadRemove(workload.clone())])
            .await
        {
            Ok(()) | Err(StoreError::NotFound(_)) => Ok(()),
            Err(error) => Err(store_failed(error)),
        }
    }

    /// What a node that has just started must watch. Workloads of an earlier boot of it are dead, and
    /// are given apart.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn watch(
        &self,
        node: &str,
        boot_id: &str,
    ) -> Result<(Vec<Watched>, Vec<WorkloadKey>), Refusal> {
        let workloads = self
            .store
            .workloads(Some(node.to_owned()))
            .await
            .map_err(store_failed)?;
        let (here, gone): (Vec<_>, Vec<_>) = (workloads.into_iter())
            .map(|workload| workload.evidence)
            .partition(|evidence| evidence.workload.boot_id == boot_id);
        let watched = here.into_iter().map(|evidence| Watched {
            workload: evidence.workload,
            init_pid: evidence.init_pid,
            init_start_time: evidence.init_start_time,
        });
        let gone = gone.into_iter().map(|evidence| evidence.workload);
        Ok((watched.collect(), gone.collect()))
    }

    /// The node that attested a workload, if the workload is known.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn node_of(&self, workload: &WorkloadKey) -> Result<Option<String>, Refusal> {
        let known = self
            .store
            .workload(workload.clone())
            .await
            .map_err(store_failed)?;
        Ok(known.map(|workload| workload.evidence.node))
    }

    /// A node refused someone before policy was asked: on record.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn node_refused(&self, node: &str, refusal: NodeRefusal) -> Result<(), Refusal> {
        self.record(Event::NodeRefused {
            node: node.to_owned(),
            refusal: Box::new(refusal),
        })
        .await
    }
}
