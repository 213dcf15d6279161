//! One lease in the place of another.

use super::create::Order;
use super::due::{AGAIN, Renewal};
use super::issue::new_lease_id;
use super::renew::due;
use super::{Door, ended, store_failed, who};
use crate::engine::IssueRequest;
use crate::store::{Lease, LeaseState, Op};
use mayfly_wire::Refusal;
use mayfly_wire::audit::Event;
use std::sync::Arc;

impl Door {
    /// Has another lease take the place of this one; the caller has its workload's turn. Where that
    /// needs a server it is done in a task of its own, and this one is looked at again when it must end.
    pub(super) async fn replace(
        self: &Arc<Self>,
        lease: Lease,
        order: Order,
        now: u64,
    ) -> Result<Renewal, Refusal> {
        let workload = lease.workload.clone();
        if let Some(connection) = order.config.engine.connection().cloned() {
            let credential = lease.credential.clone();
            self.make(&connection, || order, &workload, &credential);
            let left = lease.expires_at.saturating_sub(now);
            self.postpone(&lease, AGAIN.min(left)).await;
            return Ok(Renewal::Nothing);
        }
        self.replace_here(lease, order).await?;
        Ok(Renewal::Renewed(workload))
    }

    /// Replaces a lease whose content the broker makes by itself; the caller has its workload's turn.
    pub(super) async fn replace_here(&self, lease: Lease, order: Order) -> Result<(), Refusal> {
        let now = self.now_ms();
        let id = new_lease_id().map_err(|(code, _)| Refusal::from(code))?;
        let config = &order.config;
        let engine = self
            .engines
            .of(config.engine.kind())
            .map_err(super::inside)?;
        let issued = engine.issue(IssueRequest {
            credential: config,
            evidence: &order.evidence,
            lease: &id,
            now,
        });
        let issued = issued.await.map_err(|error| {
            tracing::error!(lease = %lease.id, %error, "a lease cannot be renewed yet");
            Refusal::from(error.code())
        })?;
        let expires_at = issued.expires_at;
        let due_at = due(now, expires_at);
        let events = vec![
            Event::Issued {
                who: who(&order.evidence),
                credential: lease.credential.clone(),
                lease: id.clone(),
                expires_at,
                policies: order.policies,
                again: false,
            },
            ended(&lease, "replaced"),
        ];
        let end = Op::LeaseEnd(lease.id.clone(), self.listed_at(&lease, "replaced", now));
        let insert = Op::LeaseInsert(Lease {
            id,
            state: LeaseState::Active,
            issued_at: now,
            expires_at,
            due_at,
            source: issued.source,
            ..lease
        });
        self.both(events, vec![end, insert]).await?;
        self.hint(due_at);
        Ok(())
    }

    /// Records first, then the store: a lease is never longer than what is on record.
    async fn both(&self, events: Vec<Event>, ops: Vec<Op>) -> Result<(), Refusal> {
        self.record_all(events).await?;
        self.store.commit(ops).await.map_err(store_failed)
    }
}
