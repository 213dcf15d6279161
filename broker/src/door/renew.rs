//! Renewal: at two thirds of its life a lease goes on, if its node lives, its workload is not known to
//! be dead, and policy still grants it. The decision is a pure function.

use super::create::Order;
use super::ends::CLAIM;
use super::issue::new_lease_id;
use super::known::Turn;
use super::which::is_stuck;
use super::{Change, Door, ended, lock, store_failed, who};
use crate::engine::{Engines, IssueRequest};
use crate::leases::Hint;
use crate::store::{Claim, Lease, LeaseState, Op, Source, StoreError};
use crate::trial::Step as Trial;
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::audit::Event;
use mayfly_wire::{ConnectionName, LeaseId, Refusal, WorkloadKey};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// How long a lease waits before it is looked at again: its node is silent, or the store was. In
/// milliseconds.
const AGAIN: u64 = 2000;
/// And how long at least.
const SOON: u64 = 200;

/// Leases that are made due in one commit.
const TOGETHER: usize = 512;

/// Leases that are being renewed by this process.
#[derive(Default)]
pub struct Renewing(Mutex<HashSet<LeaseId>>);

struct Only<'a>(&'a Renewing, LeaseId);

impl Renewing {
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

/// What to do with a lease that is due.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    End(&'static str),
    /// Look again at this time.
    Wait(u64),
    Extend,
    Replace,
}

/// What is known of a lease that is due.
struct Facts {
    now: u64,
    expires_at: u64,
    /// Its workload died, and the death could not end it, or came before it.
    dead: bool,
    granted: bool,
    /// It is of the engine that its credential has now.
    fits: bool,
    node_lives: bool,
    /// It cannot be extended: its content is its own, or it has lived for as long as it may.
    at_its_end: bool,
    /// A session holds it.
    in_session: bool,
}

fn step(facts: &Facts) -> Step {
    if facts.dead {
        return Step::End("died");
    }
    if facts.expires_at <= facts.now {
        return Step::End("expired");
    }
    if !facts.granted {
        return Step::End("withdrawn");
    }
    if !facts.fits {
        return Step::End("replaced");
    }
    if !facts.node_lives {
        return Step::Wait(facts.expires_at.min(facts.now + AGAIN));
    }
    match (facts.at_its_end, facts.in_session) {
        (false, _) => Step::Extend,
        (true, true) => Step::Replace,
        // Nobody would get the new one.
        (true, false) => Step::Wait(facts.expires_at),
    }
}

/// When a lease is due that ends at `expires_at`: two thirds from `from` on.
pub fn due(from: u64, expires_at: u64) -> u64 {
    expires_at - expires_at.saturating_sub(from) / 3
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
                self.revoke_again(&lease).await;
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

    /// The lease as it is now, if nobody has changed it since it was claimed. That another claims it,
    /// because this takes long, does not make it another lease.
    async fn still(&self, claimed: &Lease) -> Result<Option<Lease>, Refusal> {
        let found = self.store.lease(claimed.id.clone()).await;
        let found = found.map_err(store_failed)?;
        let is_it =
            |lease: &Lease| lease.state == claimed.state && lease.expires_at == claimed.expires_at;
        Ok(found.filter(is_it))
    }

    async fn renew(
        self: &Arc<Self>,
        claimed: &Lease,
        node_lives: impl Fn(&str) -> bool,
        in_session: impl Fn(&WorkloadKey) -> bool,
    ) -> Result<Renewal, Refusal> {
        let turn = self.locks.turn(&claimed.workload).await;
        // It may have ended while this waited for its turn.
        let Some(lease) = self.still(claimed).await? else {
            return Ok(Renewal::Nothing);
        };
        let now = self.now_ms();
        let known = self
            .store
            .workload(lease.workload.clone())
            .await
            .map_err(store_failed)?;
        let applied = self.applied();
        let config = applied.credential(&lease.credential);
        let granted = match (&known, config) {
            (Some(known), Some(_)) => {
                let subject = applied
                    .judge()
                    .subject(&known.evidence)
                    .map_err(super::inside)?;
                Some(applied.judge().issue(&subject, &lease.credential)).filter(|d| d.allowed)
            }
            _ => None,
        };
        let cap = config
            .and_then(|config| config.max_ttl_seconds)
            .map_or(u64::MAX, |most| {
                lease.issued_at.saturating_add(most.saturating_mul(1000))
            });
        let facts = Facts {
            now,
            expires_at: lease.expires_at,
            dead: self.is_dead(&lease.workload),
            granted: granted.is_some(),
            fits: config.is_some_and(|config| Engines::fits(&config.engine, &lease)),
            node_lives: node_lives(&lease.node),
            at_its_end: matches!(lease.source, Source::Sealed(_)) || lease.expires_at >= cap,
            in_session: in_session(&lease.workload)
                && !config.is_some_and(|config| config.engine.by_request()),
        };
        match (step(&facts), config, known, granted) {
            (Step::End(reason), ..) => {
                self.end(&lease, reason).await?;
                Ok(Renewal::Ended(lease.workload))
            }
            (Step::Wait(until), ..) => {
                self.postpone(&lease, until.saturating_sub(now)).await;
                Ok(Renewal::Nothing)
            }
            (Step::Extend, Some(config), ..) => {
                let ttl = config.ttl_seconds.saturating_mul(1000);
                let longer = Lease {
                    expires_at: now.saturating_add(ttl).min(cap),
                    ..lease
                };
                self.extend(config, claimed, longer, turn).await
            }
            (Step::Replace, Some(config), Some(known), Some(decision)) => {
                let order = Order {
                    evidence: known.evidence,
                    config: config.clone(),
                    policies: decision.policies,
                };
                self.replace(lease, order, now).await
            }
            // `step` asks for neither without these.
            (Step::Extend | Step::Replace, ..) => Ok(Renewal::Nothing),
        }
    }

    /// Makes a lease longer: first at its target, then on record, then in the store. So after a crash at
    /// any point the target does not end it before its holder expects that, and the broker does not hold
    /// it for longer than is on record.
    async fn extend(
        &self,
        config: &CredentialConfig,
        claimed: &Lease,
        lease: Lease,
        turn: Turn<'_>,
    ) -> Result<Renewal, Refusal> {
        let mut turn = turn;
        if lease.source.has_target() {
            // Nobody's death waits for a target.
            drop(turn);
            if let Err(problem) = self.extend_at_target(config, &lease).await {
                tracing::warn!(lease = %lease.id, %problem, "a lease cannot be extended yet");
                return Err(mayfly_wire::Code::Unavailable.into());
            }
            self.fault.reached(Trial::Extended);
            turn = self.locks.turn(&lease.workload).await;
            if self.still(claimed).await?.is_none() || self.is_dead(&lease.workload) {
                return Ok(Renewal::Nothing);
            }
        }
        let _turn = turn;
        let now = self.now_ms();
        let due_at = due(now, lease.expires_at);
        let event = Event::Renewed {
            workload: lease.workload.clone(),
            credential: lease.credential.clone(),
            lease: lease.id.clone(),
            expires_at: lease.expires_at,
        };
        let workload = lease.workload.clone();
        let op = Op::LeaseUpdate(Lease { due_at, ..lease });
        self.record_all(vec![event]).await?;
        self.fault.reached(Trial::RenewalRecorded);
        self.store.commit(vec![op]).await.map_err(store_failed)?;
        self.fault.reached(Trial::Renewed);
        self.hint(due_at);
        Ok(Renewal::Renewed(workload))
    }

    async fn extend_at_target(
        &self,
        config: &CredentialConfig,
        lease: &Lease,
    ) -> Result<(), String> {
        let engine = self.engines.of(lease.engine);
        let engine = engine.map_err(|error| error.to_string())?;
        let Some(pass) = self.place_for(lease)? else {
            return Ok(());
        };
        let extended = pass.call(engine.extend(config, lease)).await;
        extended.map_err(|error| error.to_string())
    }

    /// Has another lease take the place of this one; the caller has its workload's turn. Where that
    /// needs a server it is done in a task of its own, and this one is looked at again when it must end.
    async fn replace(
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
        let end = Op::LeaseEnd(lease.id.clone());
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

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        now: 1_000_000,
        expires_at: 1_020_000,
        dead: false,
        granted: true,
        fits: true,
        node_lives: true,
        at_its_end: false,
        in_session: false,
    };

    #[test]
    fn due_at_two_thirds() {
        assert_eq!(due(0, 60_000), 40_000);
        assert_eq!(due(5, 5), 5);
        assert_eq!(due(9, 5), 5);
    }

    #[test]
    fn steps() {
        assert_eq!(step(&FACTS), Step::Extend);
        let expired = Facts {
            expires_at: FACTS.now,
            ..FACTS
        };
        assert_eq!(step(&expired), Step::End("expired"));
        assert_eq!(
            step(&Facts {
                granted: false,
                ..FACTS
            }),
            Step::End("withdrawn")
        );
        let dead = Facts {
            dead: true,
            ..FACTS
        };
        assert_eq!(step(&dead), Step::End("died"));
        let other_engine = Facts {
            fits: false,
            ..FACTS
        };
        assert_eq!(step(&other_engine), Step::End("replaced"));
        let silent = Facts {
            node_lives: false,
            ..FACTS
        };
        assert_eq!(step(&silent), Step::Wait(1_002_000));
        let last = Facts {
            node_lives: false,
            expires_at: 1_000_500,
            ..FACTS
        };
        assert_eq!(step(&last), Step::Wait(1_000_500));
        let token = Facts {
            at_its_end: true,
            ..FACTS
        };
        assert_eq!(step(&token), Step::Wait(1_020_000));
        assert_eq!(
            step(&Facts {
                in_session: true,
                ..token
            }),
            Step::Replace
        );
    }
}
