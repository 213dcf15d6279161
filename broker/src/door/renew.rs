//! Renewal: at two thirds of its life a lease goes on, if its node lives, its workload is not known to
//! be dead, and policy still grants it. The decision is a pure function.

use super::issue::new_lease_id;
use super::{Door, ended, store_failed, who};
use crate::engine::{Engines, IssueRequest};
use crate::store::{Lease, LeaseState, Op, Source};
use mayfly_wire::audit::Event;
use mayfly_wire::{LeaseId, Refusal, WorkloadKey};

/// How long a lease waits before it is looked at again: its node is silent, or the store was. In
/// milliseconds.
const AGAIN: u64 = 2000;

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
    /// Its content belongs to it alone, so that it cannot be extended.
    own_content: bool,
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
    match (facts.own_content, facts.in_session) {
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
    /// Looks at a lease that is due. `node_lives` says whether a node was heard of lately, `in_session`
    /// whether a session of the workload is open.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`]; the lease is looked at again.
    pub async fn renew(
        &self,
        id: &LeaseId,
        node_lives: impl Fn(&str) -> bool,
        in_session: impl Fn(&WorkloadKey) -> bool,
    ) -> Result<Renewal, Refusal> {
        let result = self.look_at(id, node_lives, in_session).await;
        if result.is_err() {
            self.timer.add(self.now_ms() + AGAIN, id.clone());
        }
        result
    }

    async fn look_at(
        &self,
        id: &LeaseId,
        node_lives: impl Fn(&str) -> bool,
        in_session: impl Fn(&WorkloadKey) -> bool,
    ) -> Result<Renewal, Refusal> {
        let found = self.store.lease(id.clone()).await.map_err(store_failed)?;
        let Some(lease) = found else {
            return Ok(Renewal::Nothing);
        };
        let _turn = self.locks.turn(&lease.workload).await;
        // It may have ended while this waited for its turn.
        let found = self.store.lease(id.clone()).await.map_err(store_failed)?;
        let Some(lease) = found else {
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
        let facts = Facts {
            now,
            expires_at: lease.expires_at,
            dead: self.is_dead(&lease.workload),
            granted: granted.is_some(),
            fits: config.is_some_and(|config| Engines::fits(&config.engine, &lease)),
            node_lives: node_lives(&lease.node),
            own_content: matches!(lease.source, Source::Sealed(_)),
            in_session: in_session(&lease.workload),
        };
        match (step(&facts), config, known, granted) {
            (Step::End(reason), ..) => {
                self.end(&lease, reason).await?;
                Ok(Renewal::Ended(lease.workload))
            }
            (Step::Wait(until), ..) => {
                self.timer.add(until, lease.id);
                Ok(Renewal::Nothing)
            }
            (Step::Extend, Some(config), ..) => {
                let expires_at = now + config.ttl_seconds.saturating_mul(1000);
                let event = Event::Renewed {
                    workload: lease.workload.clone(),
                    credential: lease.credential.clone(),
                    lease: lease.id.clone(),
                    expires_at,
                };
                let op = Op::LeaseUpdate(Lease {
                    expires_at,
                    due_at: due(now, expires_at),
                    ..lease.clone()
                });
                self.both(vec![event], vec![op]).await?;
                self.schedule(&lease.id, now, expires_at);
                Ok(Renewal::Renewed(lease.workload))
            }
            (Step::Replace, Some(config), Some(known), Some(decision)) => {
                let id = new_lease_id().map_err(|(code, _)| Refusal::from(code))?;
                let engine = self
                    .engines
                    .of(config.engine.kind())
                    .map_err(super::inside)?;
                let issued = engine.issue(IssueRequest {
                    credential: config,
                    evidence: &known.evidence,
                    lease: &id,
                    now,
                });
                let issued = issued.await.map_err(|error| {
                    tracing::error!(lease = %lease.id, %error, "a lease cannot be renewed yet");
                    Refusal::from(error.code())
                })?;
                let expires_at = issued.expires_at;
                let events = vec![
                    Event::Issued {
                        who: who(&known.evidence),
                        credential: lease.credential.clone(),
                        lease: id.clone(),
                        expires_at,
                        policies: decision.policies,
                        again: false,
                    },
                    ended(&lease, "replaced"),
                ];
                let insert = Op::LeaseInsert(Lease {
                    id: id.clone(),
                    state: LeaseState::Active,
                    issued_at: now,
                    expires_at,
                    due_at: due(now, expires_at),
                    source: issued.source,
                    ..lease.clone()
                });
                self.both(events, vec![Op::LeaseEnd(lease.id.clone()), insert])
                    .await?;
                self.schedule(&id, now, expires_at);
                Ok(Renewal::Renewed(lease.workload))
            }
            // `step` asks for neither without these.
            (Step::Extend | Step::Replace, ..) => Ok(Renewal::Nothing),
        }
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
        own_content: false,
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
            own_content: true,
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
