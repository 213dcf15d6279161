//! Leases that are due: claimed, and looked at by what state they are in.

use super::ends::CLAIM;
use super::which::is_stuck;
use super::{Change, Door, lock, store_failed};
use crate::leases::Hint;
use crate::store::{Claim, Lease, LeaseState, Op, Source, StoreError};
use mayfly_wire::{ConnectionName, LeaseId, Refusal, WorkloadKey};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// How long a lease waits before it is looked at again: its node is silent, or the store was. In
/// milliseconds.
pub(super) const AGAIN: u64 = 2000;
/// And how long at least.
const SOON: u64 = 200;

/// Leases that are made due in one commit.
const TOGETHER: usize = 512;

/// Leases that this process does something with, one task at a time.
#[derive(Default)]
pub struct Busy(Mutex<HashSet<LeaseId>>);

struct Only<'a>(&'a Busy, LeaseId);

impl Busy {
    fn begin(&self, lease: &LeaseId) -> Option<Only<'_>> {
        let is_first = lock(&self.0).insert(lease.clone());
        is_first.then(|| Only(self, lease.clone()))
    }
}

impl Drop for Only<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).remove(&self.1);
    }
}

/// What became of a lease that was due.
#[derive(Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It goes on, or another took its place: whoever holds it needs a new bundle.
    Renewed(WorkloadKey),
    /// It ended: whoever holds it must let go.
    Ended(WorkloadKey),
    /// Nothing changes for anybody.
    Nothing,
}

impl Door {
    /// When leases are due, for who looks at them.
    #[must_use]
    pub fn due(&self) -> &Hint {
        &self.hint
    }

    /// Claims leases that are due, for [`Self::look_at`]. Who takes them and stops leaves them due again
    /// a moment later.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn claim(&self, most: usize) -> Result<Vec<Lease>, Refusal> {
        let now = self.now_ms();
        let claim = Claim {
            now,
            until: now + CLAIM,
            most: u32::try_from(most).unwrap_or(u32::MAX),
            except: self.lanes.busy(),
        };
        // Asked first, because that takes no commit.
        match self.next_due().await? {
            Some(next) if next <= now => self.store.claim_due(claim).await.map_err(store_failed),
            _ => Ok(Vec::new()),
        }
    }

    /// When the next lease is due that something can be done about.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn next_due(&self) -> Result<Option<u64>, Refusal> {
        let next = self.store.next_due(self.lanes.busy()).await;
        next.map_err(store_failed)
    }

    /// Completes when a target can be asked more than before.
    pub async fn freed(&self) {
        self.lanes.freed().await;
    }

    /// Has sessions ask again for what could not be made at targets that are up again.
    pub async fn retry_recovered(&self) {
        for connection in self.lanes.recovered() {
            for workload in self.creations.retry(&connection) {
                self.say(Change::Workload(workload));
            }
            if let Err(error) = self.retry_ends(&connection).await {
                tracing::warn!(%connection, %error, "what could not be ended is tried again later");
            }
        }
    }

    /// What could not be ended at a target is tried again now, not when its wait is over.
    async fn retry_ends(&self, connection: &ConnectionName) -> Result<(), StoreError> {
        let now = self.now_ms();
        let mut stuck = self.store.leases_in(LeaseState::Revoking).await?;
        stuck.retain(|lease| {
            let is_there = matches!(
                &lease.source, Source::Account { connection: at, .. } if at == connection
            );
            is_there && is_stuck(lease) && lease.due_at > now
        });
        for some in stuck.chunks(TOGETHER) {
            let due = some.iter();
            let ops = due.map(|lease| Op::LeaseDue(lease.id.clone(), now));
            self.store.commit(ops.collect()).await?;
        }
        Ok(())
    }

    /// The settings of a target changed, or its password: it may be well now.
    pub fn connection_changed(&self, name: &ConnectionName) {
        self.lanes.of(name).forgive();
    }

    /// Looks at a lease that was claimed. `node_lives` says whether a node was heard of lately,
    /// `in_session` whether a session of the workload is open.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`]; the lease is looked at again.
    pub async fn look_at(
        self: &Arc<Self>,
        lease: Lease,
        node_lives: impl Fn(&str) -> bool,
        in_session: impl Fn(&WorkloadKey) -> bool,
    ) -> Result<Renewal, Refusal> {
        let result = match lease.state {
            LeaseState::Revoking => {
                // Its target recovers with the answer to it, and then it is due once more, before its
                // end is on record. Who only renews it, or has just found that it must end, does not
                // count: it would be left to them for as long as it is claimed.
                match self.ending.begin(&lease.id) {
                    Some(_only) if matches!(self.still(&lease).await, Ok(None)) => {}
                    Some(_only) => self.revoke_again(&lease).await,
                    None => self.postpone(&lease, AGAIN).await,
                }
                return Ok(Renewal::Nothing);
            }
            LeaseState::Planned if self.creations.runs(&lease.workload, &lease.credential) => {
                self.postpone(&lease, AGAIN).await;
                return Ok(Renewal::Nothing);
            }
            LeaseState::Planned => {
                self.abandon(&lease).await;
                return Ok(Renewal::Nothing);
            }
            LeaseState::Retiring => self.retired(&lease).await,
            LeaseState::Active => {
                // Its claim ran out while its target took its time.
                let Some(_only) = self.renewing.begin(&lease.id) else {
                    return Ok(Renewal::Nothing);
                };
                self.renew(&lease, node_lives, in_session).await
            }
        };
        if result.is_err() {
            // More than once before it expires.
            let left = lease.expires_at.saturating_sub(self.now_ms());
            self.postpone(&lease, (left / 4).clamp(SOON, AGAIN)).await;
        }
        result
    }

    async fn revoke_again(&self, lease: &Lease) {
        let pass = match self.place_soon(lease).await {
            Ok(pass) => pass,
            // The target is down. Nothing was tried, so nothing is counted.
            Err(_) => return self.postpone(lease, AGAIN).await,
        };
        let asked = self.ask_back(lease, pass.as_ref()).await;
        // The next one need not wait for the disk.
        drop(pass);
        self.put_down(lease, asked).await;
    }

    /// A lease that another took the place of has had its time.
    async fn retired(&self, lease: &Lease) -> Result<Renewal, Refusal> {
        let _turn = self.locks.turn(&lease.workload).await;
        if self.still(lease).await?.is_some() {
            self.end(lease, "replaced").await?;
        }
        Ok(Renewal::Nothing)
    }
}
