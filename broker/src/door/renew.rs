//! Renewal: at two thirds of its life a lease goes on, if its node lives, its workload is not known to
//! be dead, and policy still grants it. The decision is a pure function.

use super::create::Order;
use super::due::{AGAIN, Renewal};
use super::known::Turn;
use super::{Door, store_failed};
use crate::engine::Engines;
use crate::store::{Lease, Op, Source};
use crate::trial::Step as Trial;
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::audit::Event;
use mayfly_wire::{Refusal, WorkloadKey};
use std::sync::Arc;

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
    /// The lease as it is now, if nobody has changed it since it was claimed. That another claims it,
    /// because this takes long, does not make it another lease.
    pub(super) async fn still(&self, claimed: &Lease) -> Result<Option<Lease>, Refusal> {
        let found = self.store.lease(claimed.id.clone()).await;
        let found = found.map_err(store_failed)?;
        let is_it =
            |lease: &Lease| lease.state == claimed.state && lease.expires_at == claimed.expires_at;
        Ok(found.filter(is_it))
    }

    pub(super) async fn renew(
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
        let Some(pass) = self.place_soon(lease).await? else {
            return Ok(());
        };
        let extended = pass.call(engine.extend(config, lease)).await;
        extended.map_err(|error| error.to_string())
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
