//! Credentials that are made anew for all who hold them: because an operator says so, or it is time.

use super::create::{Making, Order};
use super::creations::Standing;
use super::lanes::Task;
use super::operator::Act;
use super::withdraw::{Teller, each};
use super::{Change, Door, Operator, backoff, lock, store_failed};
use crate::engine::EngineError;
use crate::policy::entity;
use crate::store::{Lease, LeaseState};
use mayfly_wire::admin::{CredentialConfig, EngineConfig, LeaseFilter, Progress, Rotate};
use mayfly_wire::{Code, CredentialName, LeaseId, Refusal, WorkloadKey};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Longest wait after a rotation that failed, in milliseconds.
const LONGEST: u64 = 60_000;

/// Rotations that failed: how often in a row, and when each is tried again.
pub type Failing = BTreeMap<CredentialName, (u64, u64)>;

/// One thing to be done.
enum Part {
    /// The secret that all holders of a credential share, or all of its leases.
    Credential(CredentialConfig),
    Lease(Arc<CredentialConfig>, LeaseId, WorkloadKey),
}

impl Door {
    /// Makes credentials anew for an operator, and tells how far it is until the last line, which has
    /// `end`. What a lease held before is good until its holders use the new, or its grace ends.
    ///
    /// # Errors
    /// [`Code::Denied`]; [`Code::NotFound`] for a credential that is not configured; [`Code::BadRequest`]
    /// for one whose value is an operator's; [`Code::Unavailable`].
    pub async fn rotate(
        self: &Arc<Self>,
        operator: &Operator,
        rotate: Rotate,
    ) -> Result<mpsc::Receiver<Progress>, Refusal> {
        let applied = self.applied();
        let is_theirs = |config: &CredentialConfig| {
            matches!(config.engine, EngineConfig::Kv { .. }) || config.engine.by_request()
        };
        let mut configs = Vec::new();
        if rotate.all {
            let all = applied.credentials().values();
            configs.extend(all.filter(|config| !is_theirs(config)));
        }
        for name in &rotate.credentials {
            let Some(config) = applied.credential(name) else {
                let message = format!("{name} is not configured");
                return Err(Refusal::because(Code::NotFound, message));
            };
            if let EngineConfig::Kv { path } = &config.engine {
                let message =
                    format!("{name} is a stored value: put a new one with `mayfly kv put {path}`");
                return Err(Refusal::because(Code::BadRequest, message));
            }
            if config.engine.by_request() {
                let message = format!(
                    "{name} is made for the certificate requests of its workloads, which keep their keys: \
                     end what they have with `mayfly revoke --credential {name}`, and they request another"
                );
                return Err(Refusal::because(Code::BadRequest, message));
            }
            configs.push(config);
        }
        let mut parts = Vec::new();
        for config in configs {
            let on = entity::credential(config).map_err(super::inside)?;
            self.allow(operator, Act::on("rotate", "rotate", &config.name), on)
                .await?;
            self.barred.lift(&config.name);
            parts.extend(self.parts(config).await?);
        }
        let (teller, progress) = Teller::new(parts.len());
        let door = Arc::clone(self);
        self.spawn(async move {
            each(parts, teller, |part| Arc::clone(&door).rotate_part(part)).await;
        });
        Ok(progress)
    }

    /// What there is to do: one thing for a secret that is shared, else one for each lease.
    async fn parts(&self, config: &CredentialConfig) -> Result<Vec<Part>, Refusal> {
        if is_shared(config) {
            return Ok(vec![Part::Credential(config.clone())]);
        }
        let filter = LeaseFilter {
            credential: Some(config.name.clone()),
            ..LeaseFilter::default()
        };
        let leases = self.meant(&filter).await?.into_iter();
        let config = Arc::new(config.clone());
        Ok(leases
            .map(|(id, workload)| Part::Lease(Arc::clone(&config), id, workload))
            .collect())
    }

    async fn rotate_part(self: Arc<Self>, part: Part) -> Result<(), String> {
        match part {
            Part::Credential(config) => self.rotate_shared(&config).await,
            Part::Lease(config, id, workload) => self.anew(&config, id, workload).await,
        }
    }

    /// Rotates a secret that all holders share, and has them given the new one.
    pub(super) async fn rotate_shared(&self, config: &CredentialConfig) -> Result<(), String> {
        let name = &config.name;
        let failed = |problem: &dyn std::fmt::Display| format!("{name}: {problem}");
        let engine = self.engines.of(config.engine.kind());
        let engine = engine.map_err(|error| failed(&error))?;
        let rotating = engine.rotate(config, self.now_ms());
        let rotated = match config.engine.connection() {
            Some(connection) => {
                let pass = self.lanes.of(connection).enter(Task::Create);
                let pass = pass.map_err(|problem| failed(&problem))?;
                pass.call(rotating).await
            }
            None => rotating.await,
        };
        if !rotated.map_err(|error| failed(&error))? {
            return Err(failed(&"its engine has nothing to rotate"));
        }
        tracing::info!(credential = %name, "a shared secret was rotated");
        self.say(Change::Credential(name.clone()));
        Ok(())
    }

    /// Rotates what is due by itself, and says when something is next: milliseconds since the Unix
    /// epoch. What fails is tried again.
    pub async fn rotate_due(&self) -> u64 {
        let applied = self.applied();
        let mut by_target: BTreeMap<_, Vec<&CredentialConfig>> = BTreeMap::new();
        for config in applied.credentials().values() {
            if is_shared(config) {
                let there = by_target.entry(config.engine.connection()).or_default();
                there.push(config);
            }
        }
        // Each target by itself: one that hangs delays none of the others.
        let all = by_target.into_values();
        let next = super::all(all.map(|some| self.rotate_due_of(some)).collect()).await;
        next.into_iter().min().unwrap_or(u64::MAX)
    }

    /// The same, of one target.
    async fn rotate_due_of(&self, shared: Vec<&CredentialConfig>) -> u64 {
        let mut next = u64::MAX;
        for config in shared {
            let now = self.now_ms();
            let failing = lock(&self.rotations).get(&config.name).copied();
            let due_at = match self.rotates_at(config).await {
                Ok(Some(due_at)) => due_at.max(failing.map_or(0, |(_, again)| again)),
                Ok(None) => continue,
                Err(problem) => {
                    tracing::warn!(credential = %config.name, %problem, "nobody knows when it rotates");
                    continue;
                }
            };
            if due_at > now {
                next = next.min(due_at);
                continue;
            }
            let Err(problem) = self.rotate_shared(config).await else {
                lock(&self.rotations).remove(&config.name);
                continue;
            };
            tracing::warn!(%problem, "a rotation failed");
            let failed = failing.map_or(0, |(failed, _)| failed) + 1;
            let again = self.now_ms() + backoff::after(failed, LONGEST);
            next = next.min(again);
            lock(&self.rotations).insert(config.name.clone(), (failed, again));
            let target = config.engine.connection();
            if target.is_some_and(|target| self.lanes.of(target).is_down()) {
                // The others there are due still, and would only wait in turn.
                break;
            }
        }
        next
    }

    async fn rotates_at(&self, config: &CredentialConfig) -> Result<Option<u64>, EngineError> {
        let engine = self.engines.of(config.engine.kind())?;
        engine.rotates_at(config).await
    }

    /// Has a new lease take the place of one.
    pub(super) async fn anew(
        self: &Arc<Self>,
        config: &CredentialConfig,
        id: LeaseId,
        workload: WorkloadKey,
    ) -> Result<(), String> {
        let turn = self.locks.turn(&workload).await;
        let found = self.store.lease(id.clone()).await;
        let found = found.map_err(|error| error.to_string())?;
        let Some(lease) = found.filter(|lease| lease.state == LeaseState::Active) else {
            return Ok(());
        };
        let name = format!("{} of {}", lease.credential, lease.name);
        let failed = |problem: &dyn std::fmt::Display| format!("{name}: {problem}");
        let order = self.order(config, &lease).await;
        let order = order.map_err(|refusal| failed(&refusal))?;
        let Some(order) = order else {
            // Policy takes it away, which is not for this to do.
            return Err(failed(&"policy does not grant it any more"));
        };
        let Some(connection) = config.engine.connection() else {
            let replaced = self.replace_here(lease, order).await;
            replaced.map_err(|refusal| failed(&refusal))?;
            self.say(Change::Workload(workload));
            return Ok(());
        };
        // One that failed a moment ago is tried again: somebody asks for it.
        self.creations.retry(connection);
        let making = self.make(connection, || order, &workload, &config.name);
        drop(turn);
        if let Making::Running { done, .. } = making {
            done.wait().await;
        }
        match self
            .creations
            .standing(&workload, &config.name, self.now_ms())
        {
            Standing::Failed(failure) => Err(failed(&failure.cause)),
            Standing::Running(_) | Standing::Idle { .. } => {
                let place = (workload.clone(), config.name.clone());
                let now = self.store.lease_of(place.0, place.1).await;
                let now = now.map_err(|error| failed(&error))?;
                match now {
                    Some(now) if now.id == id => Err(failed(&"it was given up")),
                    _ => Ok(()),
                }
            }
        }
    }

    /// What is to be made in the place of a lease, if policy still grants it.
    async fn order(
        &self,
        config: &CredentialConfig,
        lease: &Lease,
    ) -> Result<Option<Order>, Refusal> {
        let known = self.store.workload(lease.workload.clone()).await;
        let Some(known) = known.map_err(store_failed)? else {
            return Ok(None);
        };
        let applied = self.applied();
        let subject = applied.judge().subject(&known.evidence);
        let subject = subject.map_err(super::inside)?;
        let decision = applied.judge().issue(&subject, &lease.credential);
        Ok(decision.allowed.then(|| Order {
            evidence: known.evidence,
            config: config.clone(),
            policies: decision.policies,
        }))
    }
}

/// Whether all holders of a credential share one secret at a server.
pub(super) fn is_shared(config: &CredentialConfig) -> bool {
    match &config.engine {
        EngineConfig::Postgres(settings) | EngineConfig::Mysql(settings) => {
            !settings.fixed.is_empty()
        }
        _ => false,
    }
}
