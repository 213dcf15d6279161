//! The configuration that stands, and how another takes its place: validated whole, compared with what
//! the operator saw, on record, durable, then swapped in at once.

use super::follow::remade;
use super::plan::{self, Side};
use super::{Door, OpenError, Operator, store_failed};
use crate::engine::connections;
use crate::policy::{Judge, entity};
use crate::store::{Configuration, Lease, LeaseState, Op, Source, Store, StoreError};
use mayfly_wire::admin::{
    Apply, CredentialConfig, Desired, Plan, PolicyCheck, PolicyFile, PolicyProblem,
};
use mayfly_wire::{Code, ConnectionConfig, ConnectionName, CredentialName, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError};

/// Most credentials of one configuration.
const MAX_CREDENTIALS: usize = 10_000;
/// How long a lease may last, in seconds.
const TTL: RangeInclusive<u64> = 5..=30 * 86_400;
/// Holders that a plan names of one credential.
const NAMED: usize = 5;
/// Leases of one credential beyond which a plan names nobody: all of them would have to be read.
const FEW: u64 = 1000;

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

    /// Makes `desired` so. The caller then has sessions look again, and [`Door::judge_anew`] looks at the
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
        // What is not on disk yet could otherwise be made at the old server, and looked for at the new.
        let going = gone(&applied, &next).map(|name| self.lanes.of(name).shut());
        let _going: Vec<_> = going.collect();
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
        ops.extend(self.intends(number, &remade).await.map_err(store_failed)?);
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
        let names = remade.iter().map(|config| config.name.clone());
        self.make_anew(number, names.collect(), remade);
        Ok(plan)
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
            if self.lanes.of(connection).is_making() {
                let message = format!(
                    "connection {connection}: accounts are being made there now; try again in a moment"
                );
                return Err(Refusal::because(Code::Conflict, message));
            }
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
        let mut changes = plan::changes(applied.side(), next.side(), &leases);
        for change in &mut changes {
            if change.kind == "credential" && (1..=FEW).contains(&change.leases) {
                change.holders = self.holders(&change.name).await?;
            }
        }
        Ok(Plan {
            base: applied.number,
            changes,
        })
    }

    /// The first few who hold leases on a credential, by the names that people know them by.
    async fn holders(&self, credential: &str) -> Result<Vec<String>, Refusal> {
        let name = credential.parse().map_err(super::inside)?;
        let leases = self.store.leases_on(name).await.map_err(store_failed)?;
        let names: BTreeSet<String> = leases.into_iter().map(|lease| lease.name).collect();
        Ok(names.into_iter().take(NAMED).collect())
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
