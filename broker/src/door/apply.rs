//! The configuration that stands, and how another takes its place: validated whole, compared with what
//! the operator saw, on record, durable, then swapped in at once.

use super::plan::{self, Side};
use super::withdraw::{Teller, each};
use super::{Door, OpenError, Operator, store_failed};
use crate::engine::connections;
use crate::policy::{Judge, entity};
use crate::store::{Configuration, Lease, LeaseState, Op, Source, Store, StoreError};
use mayfly_wire::admin::{
    Apply, CredentialConfig, Desired, Plan, PolicyCheck, PolicyFile, PolicyProblem,
};
use mayfly_wire::{Code, CredentialName, Refusal, WorkloadKey};
use mayfly_wire::{ConnectionConfig, ConnectionName};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError};

/// Most credentials of one configuration.
const MAX_CREDENTIALS: usize = 10_000;
/// How long a lease may last, in seconds.
const TTL: RangeInclusive<u64> = 5..=30 * 86_400;
/// The entry that names the credentials whose leases must be made anew.
const ANEW: &str = "anew";
/// Leases that are looked at in one go.
const PAGE: u32 = 500;

/// A configuration, ready to judge by. Compiled once.
pub struct Applied {
    number: u64,
    desired: Desired,
    judge: Judge,
    credentials: BTreeMap<CredentialName, CredentialConfig>,
}

impl Applied {
    fn new(number: u64, desired: Desired) -> Result<Self, Vec<PolicyProblem>> {
        let judge = Judge::new(&desired)?;
        let named = desired
            .credentials
            .iter()
            .map(|config| (config.name.clone(), config.clone()));
        Ok(Self {
            number,
            credentials: named.collect(),
            judge,
            desired,
        })
    }

    /// Counts up with each configuration; 0 before the first.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its policies.
    #[must_use]
    pub fn judge(&self) -> &Judge {
        &self.judge
    }

    /// A credential by its name.
    #[must_use]
    pub fn credential(&self, name: &CredentialName) -> Option<&CredentialConfig> {
        self.credentials.get(name)
    }

    /// Every credential, sorted by name.
    #[must_use]
    pub fn credentials(&self) -> &BTreeMap<CredentialName, CredentialConfig> {
        &self.credentials
    }

    /// Every server that engines may use.
    #[must_use]
    pub fn connections(&self) -> &[ConnectionConfig] {
        &self.desired.connections
    }

    fn side(&self) -> Side<'_> {
        Side {
            desired: &self.desired,
            judge: &self.judge,
        }
    }
}

/// The configuration that the store holds, or an empty one.
pub async fn load(store: &dyn Store) -> Result<Applied, OpenError> {
    let Some(stored) = store.configuration().await? else {
        return Applied::new(0, Desired::default()).map_err(|problems| OpenError::Configuration {
            number: 0,
            problem: told(&problems),
        });
    };
    let number = stored.number;
    let bad = |problem| OpenError::Configuration { number, problem };
    let desired = serde_json::from_str(&stored.json).map_err(|error| bad(error.to_string()))?;
    Applied::new(number, desired).map_err(|problems| bad(told(&problems)))
}

/// All problems as one message.
fn told(problems: &[PolicyProblem]) -> String {
    let lines = problems
        .iter()
        .map(|problem| match (problem.file.as_str(), problem.line) {
            ("", _) => problem.message.clone(),
            (file, Some(line)) => format!("{file}:{line}: {}", problem.message),
            (file, None) => format!("{file}: {}", problem.message),
        });
    lines.collect::<Vec<_>>().join("\n")
}

fn refuse(message: impl Into<String>) -> Refusal {
    Refusal::because(Code::BadRequest, message)
}

impl Door {
    /// What `desired` would change.
    ///
    /// # Errors
    /// [`Code::Denied`]; [`Code::BadRequest`] with everything that is wrong with it;
    /// [`Code::Unavailable`].
    pub async fn plan(&self, operator: &Operator, desired: Desired) -> Result<Plan, Refusal> {
        self.allow_broker(operator, "plan").await?;
        let applied = self.applied();
        let next = self.compile(applied.number + 1, desired)?;
        self.compare(&applied, &next).await
    }

    /// Makes `desired` so. The caller then has sessions look again, with [`Door::recheck`] for the
    /// leases that no session holds.
    ///
    /// # Errors
    /// As [`Door::plan`], and [`Code::Conflict`] if the configuration is not the one that the operator
    /// saw.
    pub async fn apply(
        self: &Arc<Self>,
        operator: &Operator,
        apply: Apply,
    ) -> Result<Plan, Refusal> {
        let _one = self.applying.lock().await;
        let applied = self.applied();
        self.allow_broker(operator, "apply").await?;
        if apply.base.is_some_and(|base| base != applied.number) {
            return Err(Refusal::because(
                Code::Conflict,
                format!(
                    "the configuration is number {} now, and the plan was made for number {}: plan \
                     again",
                    applied.number,
                    apply.base.unwrap_or_default()
                ),
            ));
        }
        let next = self.compile(applied.number + 1, apply.desired)?;
        let plan = self.compare(&applied, &next).await?;
        if plan.changes.is_empty() {
            return Ok(plan);
        }
        let broker = entity::broker().map_err(super::inside)?;
        let entity = operator.entity()?;
        let after = next.judge.operator(&entity, "apply", broker);
        if !after.allowed {
            let policies = after.policies.join(", ");
            return Err(refuse(format!(
                "with this configuration you could not apply another one ({policies}): expected \
                 policies that leave {} the action apply",
                operator.label()
            )));
        }
        let json = serde_json::to_string(&next.desired).map_err(super::inside)?;
        let number = next.number;
        let mut ops = vec![Op::ConfigPut(Configuration { number, json })];
        // Another server must not be told the password of this one.
        ops.extend(gone(&applied, &next).flat_map(connections::forgotten));
        let remade = remade(&applied, &next);
        if !remade.is_empty() {
            ops.push(self.intends_anew(&remade).await?);
        }
        match self.store.commit(ops).await {
            Ok(()) => {}
            Err(StoreError::Conflict(cause)) => {
                return Err(Refusal::because(Code::Conflict, cause));
            }
            Err(error) => return Err(store_failed(error)),
        }
        tracing::info!(
            number,
            changes = plan.changes.len(),
            "a configuration was applied"
        );
        self.connections.configure(next.connections());
        *self.applied.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        if !remade.is_empty() {
            let door = Arc::clone(self);
            self.spawn(async move { door.make_anew(remade).await });
        }
        Ok(plan)
    }

    /// What keeps it on disk that the leases of these credentials must be made anew, with those that a
    /// configuration before this one left.
    async fn intends_anew(&self, configs: &[CredentialConfig]) -> Result<Op, Refusal> {
        let mut names = self.intended().await.map_err(store_failed)?;
        names.extend(configs.iter().map(|config| config.name.clone()));
        let json = serde_json::to_vec(&names).map_err(super::inside)?;
        Ok(Op::MetaPut(ANEW.to_owned(), json))
    }

    async fn intended(&self) -> Result<BTreeSet<CredentialName>, StoreError> {
        let Some(json) = self.store.meta(ANEW.to_owned()).await? else {
            return Ok(BTreeSet::new());
        };
        serde_json::from_slice(&json)
            .map_err(|error| StoreError::Damaged(format!("what an apply left to be done: {error}")))
    }

    /// Goes on with what an apply had begun when the broker ended: leases by settings that stand no more
    /// are made anew.
    ///
    /// # Errors
    /// The store's.
    pub async fn resume(self: &Arc<Self>) -> Result<(), StoreError> {
        let applied = self.applied();
        let names = self.intended().await?;
        let configs = names.iter().filter_map(|name| applied.credential(name));
        let configs: Vec<_> = configs.cloned().collect();
        if !names.is_empty() {
            let door = Arc::clone(self);
            self.spawn(async move { door.make_anew(configs).await });
        }
        Ok(())
    }

    /// Has new leases take the place of all on these credentials, by their new settings.
    async fn make_anew(self: Arc<Self>, configs: Vec<CredentialConfig>) {
        let number = self.applied().number();
        if let Err(error) = self.make_all_anew(configs).await {
            tracing::error!(%error, "leases by old settings are replaced at the next start");
            return;
        }
        let _one = self.applying.lock().await;
        // Another configuration has seen to the rest with its own.
        if self.applied().number() == number {
            let done = self
                .store
                .commit(vec![Op::MetaRemove(ANEW.to_owned())])
                .await;
            if let Err(error) = done {
                tracing::warn!(%error, "leases are made anew once more at the next start");
            }
        }
    }

    async fn make_all_anew(
        self: &Arc<Self>,
        configs: Vec<CredentialConfig>,
    ) -> Result<(), StoreError> {
        let mut all = Vec::new();
        for config in configs {
            let leases = self.store.leases_on(config.name.clone()).await?;
            all.extend(leases.into_iter().map(|lease| (config.clone(), lease)));
        }
        let (teller, _) = Teller::new(all.len());
        each(all, teller, |(config, lease)| {
            let door = Arc::clone(self);
            async move { door.make_one_anew(&config, lease).await }
        })
        .await;
        Ok(())
    }

    async fn make_one_anew(
        self: Arc<Self>,
        config: &CredentialConfig,
        lease: Lease,
    ) -> Result<(), String> {
        let made = match lease.state {
            LeaseState::Active => self.anew(config, lease.id.clone(), lease.workload.clone()),
            // What is on its way in has the old settings, and what is on its way out goes on.
            LeaseState::Planned => {
                let problem = format!("{} was being made by the old settings", lease.id);
                return self.end_old(&lease, problem).await;
            }
            LeaseState::Retiring | LeaseState::Revoking => return Ok(()),
        };
        match made.await {
            Ok(()) => Ok(()),
            Err(problem) => self.end_old(&lease, problem).await,
        }
    }

    /// What the old settings gave must not stay because the new ones give nothing now.
    async fn end_old(&self, lease: &Lease, problem: String) -> Result<(), String> {
        tracing::warn!(lease = %lease.id, %problem, "a lease by old settings ends");
        let _turn = self.locks.turn(&lease.workload).await;
        let found = self.store.lease(lease.id.clone()).await;
        let found = found.map_err(|error| error.to_string())?;
        let Some(lease) = found.filter(|lease| lease.state != LeaseState::Revoking) else {
            return Ok(());
        };
        let ended = self.end(&lease, "replaced").await;
        self.say(super::Change::Workload(lease.workload));
        ended.map_err(|refusal| refusal.to_string())
    }

    /// Whether policies are good by themselves.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unavailable`].
    pub async fn policy_check(
        &self,
        operator: &Operator,
        files: &[PolicyFile],
    ) -> Result<PolicyCheck, Refusal> {
        self.allow_broker(operator, "policy_check").await?;
        Ok(match crate::policy::parse::read_files(files) {
            Ok(policies) => PolicyCheck {
                policies: policies.len() as u64,
                problems: Vec::new(),
            },
            Err(problems) => PolicyCheck {
                policies: 0,
                problems,
            },
        })
    }

    /// Ends the leases that policy does not grant any more, whether a session holds them or not, and
    /// gives the workloads that lost one.
    ///
    /// # Errors
    /// [`Code::Unavailable`].
    pub async fn recheck(&self) -> Result<BTreeSet<WorkloadKey>, Refusal> {
        let applied = self.applied();
        let mut lost = BTreeSet::new();
        let mut after = None;
        loop {
            let page = self
                .store
                .leases(after.take(), PAGE)
                .await
                .map_err(store_failed)?;
            for lease in &page {
                if !self.still_granted(&applied, lease).await? {
                    let _turn = self.locks.turn(&lease.workload).await;
                    self.end(lease, "withdrawn").await?;
                    lost.insert(lease.workload.clone());
                }
            }
            let full = page.len() >= PAGE as usize;
            match page.last() {
                Some(last) if full => after = Some(last.id.clone()),
                _ => return Ok(lost),
            }
        }
    }

    async fn still_granted(&self, applied: &Applied, lease: &Lease) -> Result<bool, Refusal> {
        let known = self
            .store
            .workload(lease.workload.clone())
            .await
            .map_err(store_failed)?;
        let Some(known) = known else {
            return Ok(false);
        };
        let subject = applied
            .judge
            .subject(&known.evidence)
            .map_err(super::inside)?;
        Ok(applied.judge.issue(&subject, &lease.credential).allowed)
    }

    fn compile(&self, number: u64, desired: Desired) -> Result<Applied, Refusal> {
        let mut problems = connections::problems(&desired);
        let mut names = BTreeSet::new();
        for config in &desired.credentials {
            let name = &config.name;
            if !names.insert(name) {
                problems.push(format!("credential {name}: it is configured twice"));
            }
            if !TTL.contains(&config.ttl_seconds) {
                problems.push(format!(
                    "credential {name}: ttl: expected {} seconds to {} days, found {} seconds",
                    TTL.start(),
                    TTL.end() / 86_400,
                    config.ttl_seconds
                ));
            }
            let checked = match self.engines.of(config.engine.kind()) {
                Ok(engine) => engine.check(config),
                Err(error) => Err(error.to_string()),
            };
            if let Err(problem) = checked {
                problems.push(format!("credential {name}: {problem}"));
            }
            let (ttl, most) = (config.ttl_seconds, config.max_ttl_seconds);
            if let Some(most) = most.filter(|most| *most < ttl) {
                problems.push(format!(
                    "credential {name}: max_ttl: expected no less than its ttl of {ttl} seconds, \
                     found {most} seconds"
                ));
            }
            let grace = config.grace_seconds;
            if let Some(grace) = grace.filter(|grace| grace > TTL.end()) {
                problems.push(format!(
                    "credential {name}: grace: expected at most {} days, found {grace} seconds",
                    TTL.end() / 86_400,
                ));
            }
        }
        if desired.credentials.len() > MAX_CREDENTIALS {
            let found = desired.credentials.len();
            problems.push(format!(
                "expected at most {MAX_CREDENTIALS} credentials, found {found}"
            ));
        }
        let applied = Applied::new(number, desired).map_err(|more| {
            problems.push(told(&more));
            refuse(problems.join("\n"))
        })?;
        if problems.is_empty() {
            Ok(applied)
        } else {
            Err(refuse(problems.join("\n")))
        }
    }

    /// A server whose accounts must still be removed cannot go, nor give its name to another.
    async fn still_used(&self, applied: &Applied, next: &Applied) -> Result<(), Refusal> {
        for connection in gone(applied, next) {
            let mut accounts = BTreeSet::new();
            let mut count = |leases: Vec<Lease>| {
                let there = leases.into_iter().filter(|lease| {
                    matches!(&lease.source, Source::Account { connection: at, .. } if at == connection)
                });
                accounts.extend(there.map(|lease| lease.id));
            };
            for config in applied.credentials().values() {
                if config.engine.connection() == Some(connection) {
                    let leases = self.store.leases_on(config.name.clone()).await;
                    count(leases.map_err(store_failed)?);
                }
            }
            for state in [
                LeaseState::Planned,
                LeaseState::Retiring,
                LeaseState::Revoking,
            ] {
                count(self.store.leases_in(state).await.map_err(store_failed)?);
            }
            if !accounts.is_empty() {
                return Err(Refusal::because(
                    Code::Conflict,
                    format!(
                        "connection {connection}: {} of its accounts belong to leases, and would stay \
                         at the server for ever: remove the credentials that use it, apply that, \
                         see with `mayfly leases` that they are gone, and then remove the \
                         connection, or have it lead to another server",
                        accounts.len()
                    ),
                ));
            }
        }
        Ok(())
    }

    async fn compare(&self, applied: &Applied, next: &Applied) -> Result<Plan, Refusal> {
        self.still_used(applied, next).await?;
        let leases = self.store.lease_counts().await.map_err(store_failed)?;
        Ok(Plan {
            base: applied.number,
            changes: plan::changes(applied.side(), next.side(), &leases),
        })
    }
}

/// The servers that are used no more: their connections go, or lead elsewhere.
fn gone<'a>(old: &'a Applied, new: &'a Applied) -> impl Iterator<Item = &'a ConnectionName> {
    let gone = old.connections().iter().filter(|was| {
        let mut now = new.connections().iter();
        let now = now.find(|now| now.name == was.name);
        now.is_none_or(|now| connections::is_elsewhere(was, now))
    });
    gone.map(|config| &config.name)
}

/// The credentials whose leases must be made anew, as they are now.
fn remade(old: &Applied, new: &Applied) -> Vec<CredentialConfig> {
    let changed = new.credentials.values().filter(|now| {
        let was = old.credentials.get(&now.name);
        was.is_some_and(|was| plan::is_remade(was, now))
    });
    changed.cloned().collect()
}
