//! How leases end: their workload dies, they expire, or policy takes them away.

use super::lanes::Pass;
use super::{Door, ended, lock, store_failed};
use crate::store::{Lease, LeaseState, Op, StoreError};
use crate::trial::Step;
use mayfly_wire::admin::GRACE_SECONDS;
use mayfly_wire::audit::Event;
use mayfly_wire::link::{MAX_OVERDUE, NodeRefusal, Overdue, Watched};
use mayfly_wire::{Refusal, WorkloadKey};
use std::sync::Arc;
use tokio::sync::watch;

/// How long a lease is left to who ends it now, in milliseconds: longer than a target has.
pub(super) const CLAIM: u64 = 30_000;

/// How one lease ends: what is to be stored, and recorded if that is its end already.
pub(super) struct End {
    pub op: Op,
    pub event: Option<Event>,
}

/// What has nothing at a target ends; its certificate, if it is one, is on the list from `listed_at` on.
/// Anything else must be taken back first: it is looked at at `due_at`.
pub(super) fn end_of(lease: &Lease, reason: &str, listed_at: u64, due_at: u64) -> End {
    if lease.source.has_target() {
        End {
            op: Op::LeaseUpdate(lease.clone().must_end(reason, due_at)),
            event: None,
        }
    } else {
        End {
            op: Op::LeaseEnd(lease.id.clone(), listed_at),
            event: Some(ended(lease, reason)),
        }
    }
}

/// What ends a lease in the store, and forgets its workload if it holds nothing else.
pub(super) fn ending(lease: &Lease, op: Op) -> Vec<Op> {
    vec![op, Op::WorkloadRemove(lease.workload.clone())]
}

impl Door {
    /// A workload died: its leases end now. Says whether anything was known of it. What they hold at
    /// targets is on its way out when this returns, and must end on disk.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`] when this cannot be made durable: say it again. The workload
    /// gets nothing more even so.
    pub async fn died(self: &Arc<Self>, workload: &WorkloadKey) -> Result<bool, Refusal> {
        lock(&self.dead).add(workload.clone());
        lock(&self.refused).remove(workload);
        lock(&self.unpublished).remove(workload);
        self.barred.forget(workload);
        self.creations.cancel_all(workload).await;
        let _turn = self.locks.turn(workload).await;
        self.retiring.forget(workload);
        let leases = self.leases_that_live(workload).await?;
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
        let (committed, is_committed) = watch::channel(false);
        let now = self.now_ms();
        let claimed = now + CLAIM;
        for lease in &leases {
            // The target need not wait for the disk: what is taken back too early is taken back.
            let due_at = match self.place_for(lease) {
                Ok(Some(pass)) => {
                    let ending = lease.clone().must_end("died", claimed);
                    let (door, stored) = (Arc::clone(self), is_committed.clone());
                    self.spawn(async move { door.bury(ending, pass, stored).await });
                    claimed
                }
                // Others have come to that target before.
                Ok(None) | Err(_) => 0,
            };
            let End { op, event } = end_of(lease, "died", now, due_at);
            ops.push(op);
            events.extend(event);
        }
        ops.push(Op::WorkloadRemove(workload.clone()));
        // In this order, so that a crash leaves no lease that is gone and did not end on record. But a
        // full disk must not keep a credential alive.
        let recorded = self.record_all(events).await;
        self.store.commit(ops).await.map_err(store_failed)?;
        self.fault.reached(Step::Revoking);
        committed.send_replace(true);
        self.hint(0);
        recorded.map(|()| true)
    }

    /// Takes back what a dead workload's lease holds, while that it must end goes to disk.
    async fn bury(&self, ending: Lease, pass: Pass, mut stored: watch::Receiver<bool>) {
        let asked = self.ask_back(&ending, Some(&pass)).await;
        drop(pass);
        // Else the node says it again.
        if stored.wait_for(|stored| *stored).await.is_ok() {
            self.put_down(&ending, asked).await;
        }
    }

    /// The leases of a workload that are not on their way out.
    pub(super) async fn leases_that_live(
        &self,
        workload: &WorkloadKey,
    ) -> Result<Vec<Lease>, Refusal> {
        let leases = self.store.leases_of(workload.clone()).await;
        let mut leases = leases.map_err(store_failed)?;
        leases.retain(|lease| lease.state != LeaseState::Revoking);
        Ok(leases)
    }

    /// From when on the certificate of a lease that ends `now` is on its authority's list. What another
    /// takes the place of is in use until its holder has the new one, for the grace period at most.
    pub(super) fn listed_at(&self, lease: &Lease, reason: &str, now: u64) -> u64 {
        if reason != "replaced" {
            return now;
        }
        let applied = self.applied();
        let config = applied.credential(&lease.credential);
        let grace = config.and_then(|config| config.grace_seconds);
        now.saturating_add(grace.unwrap_or(GRACE_SECONDS).saturating_mul(1000))
    }

    /// Ends one lease for a reason of the broker's own; the caller has its workload's turn. One that has
    /// ended already is not there.
    pub(super) async fn end(&self, lease: &Lease, reason: &str) -> Result<(), Refusal> {
        if lease.state == LeaseState::Planned {
            self.creations
                .cancel(&lease.workload, &lease.credential)
                .await;
        }
        if lease.state == LeaseState::Retiring {
            self.retiring.remove(&lease.workload, &lease.id);
        }
        let now = self.now_ms();
        let End { op, event } = end_of(lease, reason, self.listed_at(lease, reason, now), now);
        // Its end does not wait for the record either.
        let recorded = self.record_all(event.into_iter().collect()).await;
        match self.store.commit(ending(lease, op)).await {
            Ok(()) => self.fault.reached(Step::Revoking),
            Err(StoreError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(store_failed(error)),
        }
        self.hint(0);
        recorded
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
        let (mut watched, mut gone) = (Vec::new(), Vec::new());
        self.each_workload(Some(node), |evidence| {
            if evidence.workload.boot_id == boot_id {
                watched.push(Watched {
                    workload: evidence.workload,
                    init_pid: evidence.init_pid,
                    init_start_time: evidence.init_start_time,
                });
            } else {
                gone.push(evidence.workload);
            }
        })
        .await?;
        Ok((watched, gone))
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

    /// Puts what a node did in one of its volumes on record.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn overdue(&self, node: &str, mut report: Overdue) -> Result<(), Refusal> {
        report.items.truncate(MAX_OVERDUE);
        report.workloads.truncate(MAX_OVERDUE);
        self.record(Event::Overdue {
            node: node.to_owned(),
            report: Box::new(report),
        })
        .await
    }
}
