//! From made to active, by way of the record. Leases of one workload that are ready at the same time go
//! together: its turn is taken once for all of them, and they share a write of the log and a commit.

use super::create::Stop;
use super::{Door, all, ended, lock};
use crate::store::{Lease, LeaseState, Op, StoreError};
use crate::trial::Step;
use mayfly_wire::WorkloadKey;
use mayfly_wire::audit::Event;
use std::collections::HashMap;
use std::sync::Mutex;
use tokio::sync::{oneshot, watch};

/// What is ready, by whose it is.
#[derive(Default)]
pub struct Activations(Mutex<HashMap<WorkloadKey, Vec<Waiting>>>);

/// A lease that is made.
pub struct Ready {
    /// As it shall be.
    pub active: Lease,
    /// What must be on record first.
    pub issued: Event,
    /// How long what it takes the place of is still good, in milliseconds.
    pub grace: u64,
    /// What stores it, and its workload where that is not stored already.
    pub ops: Vec<Op>,
    /// Whether it was given up.
    pub cancelled: watch::Receiver<bool>,
}

struct Waiting {
    ready: Ready,
    done: oneshot::Sender<Result<(), Stop>>,
}

/// What makes one active.
struct Prepared {
    waiting: Waiting,
    ops: Vec<Op>,
    /// What it takes the place of, if that has an account, and until when that is good.
    retired: Option<Lease>,
    events: Vec<Event>,
}

impl Door {
    /// Makes a lease active, unless it was given up meanwhile.
    pub(super) async fn activate(&self, ready: Ready) -> Result<(), Stop> {
        let workload = ready.active.workload.clone();
        let (done, mut answer) = oneshot::channel();
        let gone = |_| Stop::Cancelled;
        lock(&self.activations.0)
            .entry(workload.clone())
            .or_default()
            .push(Waiting { ready, done });
        let _turn = tokio::select! {
            biased;
            // Another has taken it with its own.
            done = &mut answer => return done.map_err(gone)?,
            turn = self.locks.turn(&workload) => turn,
        };
        let ready = lock(&self.activations.0).remove(&workload);
        self.activate_all(ready.unwrap_or_default()).await;
        answer.await.map_err(gone)?
    }

    /// Makes leases of one workload active, whose turn the caller has.
    async fn activate_all(&self, ready: Vec<Waiting>) {
        let mut prepared = Vec::with_capacity(ready.len());
        for waiting in ready {
            match self.prepare(&waiting.ready).await {
                Ok((ops, retired, events)) => prepared.push(Prepared {
                    waiting,
                    ops,
                    retired,
                    events,
                }),
                Err(stop) => tell(waiting, Err(stop)),
            }
        }
        let events = prepared
            .iter_mut()
            .map(|one| std::mem::take(&mut one.events));
        let records = all(events.map(|events| self.record_all(events)).collect()).await;
        let mut recorded = Vec::with_capacity(prepared.len());
        for (one, record) in prepared.into_iter().zip(records) {
            match record {
                Ok(()) => recorded.push(one),
                Err(refusal) => {
                    let stop = Stop::Failed(refusal.code, refusal.to_string());
                    tell(one.waiting, Err(stop));
                }
            }
        }
        if recorded.is_empty() {
            return;
        }
        self.fault.reached(Step::Recorded);
        let together = recorded.iter().flat_map(|one| one.ops.clone()).collect();
        let committed = self.store.commit(together).await;
        // One that cannot be must not keep the others from it.
        let apart = recorded.len() > 1
            && matches!(
                committed,
                Err(StoreError::Conflict(_) | StoreError::NotFound(_))
            );
        for one in recorded {
            let stored = if apart {
                self.store.commit(one.ops).await
            } else {
                committed.clone()
            };
            if stored.is_ok() {
                self.is_active(&one.waiting.ready.active, one.retired);
            }
            tell(one.waiting, stored.map_err(Stop::from));
        }
    }

    /// What makes one active, what it takes the place of, and the records of both.
    async fn prepare(&self, ready: &Ready) -> Result<(Vec<Op>, Option<Lease>, Vec<Event>), Stop> {
        let Ready { active, grace, .. } = ready;
        // Whoever gave it up has seen its plan, or its own task sees to it.
        if *ready.cancelled.borrow() || self.is_dead(&active.workload) {
            return Err(Stop::Cancelled);
        }
        let place = (active.workload.clone(), active.credential.clone());
        let old = self.store.lease_of(place.0, place.1).await?;
        let (mut ops, mut retired) = (Vec::new(), None);
        let mut events = vec![ready.issued.clone()];
        if let Some(old) = old {
            if old.source.has_target() {
                let until = self.now_ms().saturating_add(*grace).min(old.expires_at);
                let old = Lease {
                    state: LeaseState::Retiring,
                    due_at: until,
                    reason: "replaced".to_owned(),
                    ..old
                };
                ops.push(Op::LeaseUpdate(old.clone()));
                retired = Some(old);
            } else {
                events.push(ended(&old, "replaced"));
                let listed_at = self.listed_at(&old, "replaced", self.now_ms());
                ops.push(Op::LeaseEnd(old.id, listed_at));
            }
        }
        ops.extend(ready.ops.iter().cloned());
        Ok((ops, retired, events))
    }

    /// It is, on disk.
    fn is_active(&self, active: &Lease, retired: Option<Lease>) {
        self.fault.reached(Step::Active);
        self.hint(active.due_at);
        if let Some(old) = retired {
            self.hint(old.due_at);
            self.retiring.add(old.workload, old.id);
        }
    }
}

/// Who waits may have gone.
fn tell(waiting: Waiting, result: Result<(), Stop>) {
    let _ = waiting.done.send(result);
}
