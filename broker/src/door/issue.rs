//! One credential for one session: made or given again, sealed at once, and what must be written about
//! it collected. Nothing here is durable yet, and nothing has left.

use super::ends::{End, end_of};
use super::renew::due;
use super::{Door, Held, who};
use crate::engine::{Certifier, Engines, IssueRequest, Issued};
use crate::store::{Lease, LeaseState, Op, Source, Workload};
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::audit::Event;
use mayfly_wire::sealed::Sealer;
use mayfly_wire::session::{MAX_BUNDLE, SealedCredential, SealedField};
use mayfly_wire::{Code, Evidence, LeaseId};

/// Why a credential is not in the bundle: the client's code, and the cause for the record.
type Missed = (Code, String);
/// A credential for the bundle, and what the session then holds.
type Made = (SealedCredential, Held);

/// The work on one bundle.
pub struct Work<'a> {
    door: &'a Door,
    evidence: &'a Evidence,
    sealer: Sealer,
    room: usize,
    written: Written,
}

/// What must be on disk before the bundle leaves.
#[derive(Default)]
pub struct Written {
    /// Records, in order.
    pub events: Vec<Event>,
    /// Changes of the store, one unit.
    pub ops: Vec<Op>,
    /// Whether a lease begins with this.
    pub begins: bool,
    /// When the first of what is stored is due.
    pub due_at: Option<u64>,
}

impl<'a> Work<'a> {
    pub fn new(door: &'a Door, evidence: &'a Evidence, sealer: Sealer) -> Self {
        Self {
            door,
            evidence,
            sealer,
            room: MAX_BUNDLE,
            written: Written::default(),
        }
    }

    pub fn record(&mut self, event: Event) {
        self.written.events.push(event);
    }

    /// Ends a lease with this bundle.
    pub async fn end(&mut self, lease: &Lease, reason: &str) {
        if lease.state == LeaseState::Planned {
            let creations = &self.door.creations;
            creations.cancel(&lease.workload, &lease.credential).await;
        }
        let now = self.door.now_ms();
        let listed_at = self.door.listed_at(lease, reason, now);
        let End { op, event } = end_of(lease, reason, listed_at, now);
        self.written.ops.push(op);
        self.written.events.extend(event);
        self.is_due(now);
    }

    /// Has a lease looked at that was left to end because nobody would have got another: somebody is
    /// there now.
    pub fn look_at(&mut self, lease: &Lease) {
        let now = self.door.now_ms();
        self.written.ops.push(Op::LeaseDue(lease.id.clone(), now));
        self.is_due(now);
    }

    fn is_due(&mut self, at: u64) {
        let first = self.written.due_at.map_or(at, |first| first.min(at));
        self.written.due_at = Some(first);
    }

    /// What must be written. `keep` says that the workload's evidence must be stored too; with a new
    /// lease it always is.
    pub fn finish(mut self, keep: bool) -> Written {
        if keep || self.written.begins {
            let workload = Workload {
                evidence: self.evidence.clone(),
                seen_at: self.door.now_ms(),
            };
            self.written.ops.push(Op::WorkloadPut(Box::new(workload)));
        }
        self.written
    }

    /// Whether a lease begins with this bundle.
    pub fn has_new(&self) -> bool {
        self.written.begins
    }

    /// Gives one credential: the one that the workload's lease stands for, or a new one, which must not
    /// be one that needs a server, and may be for a certificate request.
    pub async fn give(
        &mut self,
        config: &CredentialConfig,
        policies: Vec<String>,
        lease: Option<Lease>,
        held: Option<&Held>,
        csr: Option<&str>,
    ) -> Result<Made, Missed> {
        match (lease, csr) {
            (Some(lease), None) => self.again(config, policies, lease, held).await,
            (before, csr) => self.anew(config, policies, csr, before).await,
        }
    }

    async fn anew(
        &mut self,
        config: &CredentialConfig,
        policies: Vec<String>,
        csr: Option<&str>,
        before: Option<Lease>,
    ) -> Result<Made, Missed> {
        let now = self.door.now_ms();
        let id = new_lease_id()?;
        let engine = (self.door.engines.of(config.engine.kind()))
            .map_err(|error| (error.code(), error.to_string()))?;
        let request = IssueRequest {
            credential: config,
            evidence: self.evidence,
            lease: &id,
            now,
        };
        let edition = engine.certifier().map(Certifier::edition);
        let issued = match csr {
            Some(csr) => engine.certify(request, csr).await,
            None => engine.issue(request).await,
        };
        let issued = issued.map_err(|error| (error.code(), error.to_string()))?;
        let due_at = due(now, issued.expires_at);
        let sealed = self.seal(config, &id, &issued, (due_at, edition))?;
        if let Some(before) = before {
            self.end(&before, "replaced").await;
        }
        self.is_due(due_at);
        self.written.begins = true;
        self.written.ops.push(Op::LeaseInsert(Lease {
            id: id.clone(),
            workload: self.evidence.workload.clone(),
            credential: config.name.clone(),
            engine: config.engine.kind(),
            node: self.evidence.node.clone(),
            name: self.evidence.display_name(),
            state: LeaseState::Active,
            issued_at: now,
            expires_at: issued.expires_at,
            due_at,
            reason: String::new(),
            attempts: 0,
            problem: String::new(),
            source: issued.source,
        }));
        self.record(Event::Issued {
            who: who(self.evidence),
            credential: config.name.clone(),
            lease: id,
            expires_at: issued.expires_at,
            policies,
            again: false,
        });
        Ok(sealed)
    }

    async fn again(
        &mut self,
        config: &CredentialConfig,
        policies: Vec<String>,
        lease: Lease,
        held: Option<&Held>,
    ) -> Result<Made, Missed> {
        let engine = (self.door.engines.of(config.engine.kind()))
            .map_err(|error| (error.code(), error.to_string()))?;
        // Asked before: what is published meanwhile is given once more, rather than not at all.
        let edition = engine.certifier().map(Certifier::edition);
        let issued = engine.reissue(config, &lease).await;
        let issued = issued.map_err(|error| (error.code(), error.to_string()))?;
        let renews_at = lease.due_at.min(issued.expires_at);
        let sealed = self.seal(config, &lease.id, &issued, (renews_at, edition))?;
        if issued.source != lease.source || issued.expires_at != lease.expires_at {
            self.record(Event::Renewed {
                workload: lease.workload.clone(),
                credential: lease.credential.clone(),
                lease: lease.id.clone(),
                expires_at: issued.expires_at,
            });
            self.written.ops.push(Op::LeaseUpdate(Lease {
                expires_at: issued.expires_at,
                source: issued.source,
                ..lease.clone()
            }));
        }
        let creations = &self.door.creations;
        let recorded = creations.take_made(&lease.workload, &lease.credential, &lease.id);
        if !recorded && held.is_none_or(|held| held.lease != lease.id) {
            self.record(Event::Issued {
                who: who(self.evidence),
                credential: config.name.clone(),
                lease: lease.id,
                expires_at: issued.expires_at,
                policies,
                again: true,
            });
        }
        Ok(sealed)
    }

    /// Seals the fields and drops them. `edition` is of what others hold too: see
    /// [`Certifier::edition`].
    fn seal(
        &mut self,
        config: &CredentialConfig,
        lease: &LeaseId,
        issued: &Issued,
        (renews_at, edition): (u64, Option<u64>),
    ) -> Result<Made, Missed> {
        let size: usize = issued.fields.values().map(mayfly_wire::Secret::len).sum();
        self.room = self.room.checked_sub(size).ok_or_else(|| {
            let reason = format!("the bundle would be larger than {MAX_BUNDLE} bytes");
            (Code::TooMany, reason)
        })?;
        let mut fields = Vec::with_capacity(issued.fields.len());
        for (name, value) in &issued.fields {
            let sealed = self.sealer.seal(lease, name, value);
            let sealed = sealed.map_err(|error| (Code::Internal, error.to_string()))?;
            fields.push(SealedField {
                name: name.clone(),
                sealed,
            });
        }
        let sealed = SealedCredential {
            name: config.name.clone(),
            lease: lease.clone(),
            expires_at: issued.expires_at,
            renews_at,
            layout: issued.layout,
            fields,
        };
        let (path, version) = match &issued.source {
            Source::Kv { path, version } => (Some(path.clone()), Some(*version)),
            Source::Shared { version } => (None, Some(*version)),
            Source::Sealed(_) | Source::Account { .. } => (None, edition),
        };
        let held = Held {
            lease: lease.clone(),
            expires_at: issued.expires_at,
            path,
            version,
        };
        Ok((sealed, held))
    }
}

/// Why a lease must give way to a new one for `node`, if it must.
pub fn over(
    config: &CredentialConfig,
    lease: &Lease,
    node: &str,
    now: u64,
) -> Option<&'static str> {
    if lease.expires_at <= now {
        return Some("expired");
    }
    // Content of its own cannot be extended, and nobody came for it when it was due. What is made by
    // request stays until its workload requests another.
    let is_due = matches!(lease.source, Source::Sealed(_))
        && !config.engine.by_request()
        && due(lease.issued_at, lease.expires_at) <= now;
    // A node that was renamed makes its own; what another node's workload holds is not given again.
    let is_anothers = lease.node != node;
    (is_due || is_anothers || !Engines::fits(&config.engine, lease)).then_some("replaced")
}

pub fn new_lease_id() -> Result<LeaseId, Missed> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| (Code::Internal, error.to_string()))?;
    Ok(LeaseId::from_random(random))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::admin::{EngineConfig, EngineKind, JwtAlgorithm};

    #[test]
    fn a_lease_gives_way_when_it_expired_is_due_or_is_of_another_engine() {
        let config = |engine| CredentialConfig {
            name: "c".parse().unwrap(),
            ttl_seconds: 30,
            max_ttl_seconds: None,
            grace_seconds: None,
            engine,
        };
        let kv = config(EngineConfig::Kv {
            path: "a".parse().unwrap(),
        });
        let jwt = config(EngineConfig::Jwt {
            algorithm: JwtAlgorithm::EdDsa,
            audience: vec!["a".into()],
            subject: "s".into(),
            claims: std::collections::BTreeMap::new(),
        });
        let evidence = crate::testing::evidence(1);
        let lease = |source| Lease {
            id: LeaseId::from_random([1; 16]),
            workload: evidence.workload.clone(),
            credential: "c".parse().unwrap(),
            engine: match source {
                Source::Kv { .. } => EngineKind::Kv,
                _ => EngineKind::Jwt,
            },
            node: evidence.node.clone(),
            name: "n".into(),
            state: LeaseState::Active,
            issued_at: 0,
            expires_at: 30_000,
            due_at: 20_000,
            reason: String::new(),
            attempts: 0,
            problem: String::new(),
            source,
        };
        let value = lease(Source::Kv {
            path: "a".parse().unwrap(),
            version: 1,
        });
        let token = lease(Source::Sealed(vec![1]));
        assert_eq!(over(&kv, &value, "node-1", 29_999), None);
        assert_eq!(over(&kv, &value, "node-1", 30_000), Some("expired"));
        assert_eq!(over(&jwt, &token, "node-1", 19_999), None);
        assert_eq!(over(&jwt, &token, "node-1", 20_000), Some("replaced"));
        assert_eq!(over(&jwt, &token, "node-1", 30_000), Some("expired"));
        assert_eq!(over(&kv, &value, "node-2", 0), Some("replaced"));
        // As after a crash between a configuration and the end of what it replaces.
        assert_eq!(over(&jwt, &value, "node-1", 0), Some("replaced"));
        assert_eq!(over(&kv, &token, "node-1", 0), Some("replaced"));
    }
}
