//! Taking back what a lease holds at a target, as often as it takes.

use super::lanes::{Pass, Task};
use super::{Door, backoff, ended};
use crate::store::{Lease, Op, Source, StoreError};
use crate::trial::Step;
use mayfly_wire::audit::Event;

/// Longest wait between two attempts, in milliseconds.
const LONGEST: u64 = 60_000;
/// How long to wait when it is the broker's own disk that fails, in milliseconds.
const SOON: u64 = 2000;

impl Door {
    /// A place at a lease's target; none for a lease without one.
    pub(super) fn place_for(&self, lease: &Lease) -> Result<Option<Pass>, String> {
        match &lease.source {
            Source::Account { connection, .. } => {
                self.lanes.of(connection).enter(Task::Upkeep).map(Some)
            }
            Source::Kv { .. } | Source::Sealed(_) | Source::Shared { .. } => Ok(None),
        }
    }

    /// The same, after those that came before it to a target that does well.
    pub(super) async fn place_soon(&self, lease: &Lease) -> Result<Option<Pass>, String> {
        match &lease.source {
            Source::Account { connection, .. } => {
                let lane = self.lanes.of(connection);
                lane.enter_soon().await.map(Some)
            }
            Source::Kv { .. } | Source::Sealed(_) | Source::Shared { .. } => Ok(None),
        }
    }

    /// Asks the engine once to end a lease, and gives what is wrong if it does not.
    pub(super) async fn ask_back(&self, lease: &Lease, pass: Option<&Pass>) -> Result<(), String> {
        let engine = self.engines.of(lease.engine);
        let engine = engine.map_err(|error| error.to_string())?;
        let revoked = match pass {
            Some(pass) => pass.call(engine.revoke(lease)).await,
            None => engine.revoke(lease).await,
        };
        revoked.map_err(|error| error.to_string())?;
        self.fault.reached(Step::Revoked);
        Ok(())
    }

    /// Puts down what came of [`Self::ask_back`]: the end of a lease that must end, or when it is tried
    /// again. `lease` is as it stands in the store.
    pub(super) async fn put_down(&self, lease: &Lease, asked: Result<(), String>) -> bool {
        let problem = match asked {
            Ok(()) => match self.gone(lease).await {
                Ok(()) => return true,
                Err(problem) => {
                    tracing::error!(lease = %lease.id, %problem, "an end is not on disk yet");
                    self.postpone(lease, SOON).await;
                    return false;
                }
            },
            Err(problem) => problem,
        };
        tracing::warn!(lease = %lease.id, %problem, "a lease cannot be ended yet");
        let attempts = lease.attempts + 1;
        if attempts == 1 {
            let event = Event::NotEnded {
                workload: lease.workload.clone(),
                credential: lease.credential.clone(),
                lease: lease.id.clone(),
                reason: lease.reason.clone(),
                problem: problem.clone(),
            };
            // It is tried again whether that is on record or not.
            let _ = self.record(event).await;
        }
        let due_at = self.now_ms() + backoff::after(attempts, LONGEST);
        let tried = Lease {
            attempts,
            problem,
            due_at,
            ..lease.clone()
        };
        match self.store.commit(vec![Op::LeaseUpdate(tried)]).await {
            Ok(()) | Err(StoreError::NotFound(_)) => self.hint(due_at),
            // Its claim runs out by itself.
            Err(error) => tracing::error!(lease = %lease.id, %error, "an attempt is not counted"),
        }
        false
    }

    /// It is gone from its target: on record, and then out of the store.
    async fn gone(&self, lease: &Lease) -> Result<(), String> {
        let recorded = self.record(ended(lease, &lease.reason)).await;
        recorded.map_err(|refusal| refusal.to_string())?;
        self.fault.reached(Step::EndRecorded);
        let end = vec![Op::LeaseEnd(lease.id.clone(), self.now_ms())];
        match self.store.commit(end).await {
            Ok(()) | Err(StoreError::NotFound(_)) => {
                self.fault.reached(Step::Gone);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Has a lease looked at after so many milliseconds.
    pub(super) async fn postpone(&self, lease: &Lease, after: u64) {
        let due_at = self.now_ms() + after;
        let op = Op::LeaseDue(lease.id.clone(), due_at);
        match self.store.commit(vec![op]).await {
            Ok(()) => self.hint(due_at),
            // Its claim runs out by itself.
            Err(error) => tracing::error!(lease = %lease.id, %error, "a lease waits"),
        }
    }
}
