//! The judge: one configuration's policies, compiled once, and the decisions that follow from them.
//! Pure: evidence in, decision out.
//!
//! Three sets of policies decide whether a credential is issued:
//!
//! 1. **Rules**, the `baseline-…` and `hardened-…` forbids. They look at the workload alone, so they
//!    are evaluated once for each workload.
//! 2. **Lifts**, permits with `@lifts("baseline-…")`. One that is satisfied for (workload,
//!    credential) takes exactly that rule out of that one decision. It grants nothing.
//! 3. **The operators' policies**: without a permit there is nothing; a forbid wins over all permits.
//!
//! An error while evaluating any of them is a denial.

use super::entity::{self, NoEntity};
use super::parse::{self, builtin};
use cedar_policy::{
    ActionConstraint, Authorizer, Context, Entities, Entity, EntityUid, Policy, PolicyId,
    PolicySet, Request, ResourceConstraint, Response,
};
use mayfly_wire::admin::{CredentialConfig, Desired, ExplainedPolicy, PolicyProblem};
use mayfly_wire::{CredentialName, Evidence};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A decision, and what made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Ids, sorted: the permits (and lifts) that allowed it, or the forbids (or policies in error)
    /// that denied it. Empty when nothing permits it.
    pub policies: Vec<String>,
}

impl Decision {
    fn deny(policies: impl IntoIterator<Item = String>) -> Self {
        Self {
            allowed: false,
            policies: sorted(policies),
        }
    }
}

fn sorted(policies: impl IntoIterator<Item = String>) -> Vec<String> {
    policies
        .into_iter()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// What concerns one credential.
struct Resource {
    uid: EntityUid,
    entity: Entity,
    /// The operators' policies that can apply to it.
    policies: PolicySet,
}

/// One configuration's policies.
pub struct Judge {
    authorizer: Authorizer,
    rules: PolicySet,
    lifts: PolicySet,
    admin: PolicySet,
    resources: BTreeMap<CredentialName, Resource>,
    issue: EntityUid,
    anything: EntityUid,
    texts: HashMap<String, ExplainedPolicy>,
    given: BTreeMap<String, Given>,
}

/// A policy that operators applied, for comparison with another configuration's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its text.
    pub text: String,
    /// The credential that its scope names, if it names one.
    pub credential: Option<String>,
}

/// One workload before the judge: its facts, and which rules it breaks.
pub struct Subject {
    uid: EntityUid,
    entity: Entity,
    broken: BTreeSet<String>,
    errors: BTreeSet<String>,
}

fn inside(error: impl std::fmt::Display) -> Vec<PolicyProblem> {
    vec![PolicyProblem {
        file: String::new(),
        line: None,
        message: error.to_string(),
    }]
}

/// Whether a policy can apply to `resource`, by its scope alone.
fn concerns(policy: &Policy, action: &EntityUid, resource: &EntityUid) -> bool {
    let action_fits = match policy.action_constraint() {
        ActionConstraint::Eq(only) => only == *action,
        ActionConstraint::Any | ActionConstraint::In(_) => true,
    };
    let resource_fits = match policy.resource_constraint() {
        ResourceConstraint::Eq(only) => only == *resource,
        _ => true,
    };
    action_fits && resource_fits
}

impl Judge {
    /// Compiles a configuration.
    ///
    /// # Errors
    /// Everything that is wrong with its policies.
    pub fn new(desired: &Desired) -> Result<Self, Vec<PolicyProblem>> {
        let builtin = builtin().map_err(inside)?;
        let given = parse::read_files(&desired.policies)?;
        let problems = unknown_credentials(&given, desired);
        if !problems.is_empty() {
            return Err(problems);
        }
        let compared = given.iter().map(comparable).collect();
        let hardened: &[Policy] = if desired.hardened {
            &builtin.hardened
        } else {
            &[]
        };
        let rules: Vec<Policy> = builtin.baseline.iter().chain(hardened).cloned().collect();
        let (lifts, ordinary): (Vec<Policy>, Vec<Policy>) = (given.into_iter())
            .chain(builtin.operators.iter().cloned())
            .partition(|policy| policy.annotation("lifts").is_some());

        let texts = (rules.iter().chain(&lifts).chain(&ordinary)).map(explained);
        let issue = entity::action("issue").map_err(inside)?;
        let mut resources = BTreeMap::new();
        for credential in &desired.credentials {
            let uid = entity::credential_uid(credential.name.as_str()).map_err(inside)?;
            let own = ordinary
                .iter()
                .filter(|policy| concerns(policy, &issue, &uid));
            let resource = Resource {
                entity: entity::credential(credential).map_err(inside)?,
                policies: PolicySet::from_policies(own.cloned()).map_err(inside)?,
                uid,
            };
            resources.insert(credential.name.clone(), resource);
        }
        Ok(Self {
            authorizer: Authorizer::new(),
            texts: texts.collect(),
            rules: PolicySet::from_policies(rules).map_err(inside)?,
            lifts: PolicySet::from_policies(lifts).map_err(inside)?,
            admin: PolicySet::from_policies(ordinary).map_err(inside)?,
            resources,
            issue,
            anything: entity::credential_uid("*").map_err(inside)?,
            given: compared,
        })
    }

    /// The policies that operators applied, by id.
    #[must_use]
    pub fn given(&self) -> &BTreeMap<String, Given> {
        &self.given
    }

    /// A policy by its id, for people.
    #[must_use]
    pub fn explain(&self, id: &str) -> Option<&ExplainedPolicy> {
        self.texts.get(id)
    }

    /// Brings a workload before the judge.
    ///
    /// # Errors
    /// [`NoEntity`], which no evidence can cause.
    pub fn subject(&self, evidence: &Evidence) -> Result<Subject, NoEntity> {
        let uid = entity::workload_uid(evidence)?;
        let entity = entity::workload(evidence)?;
        let mut subject = Subject {
            uid,
            entity,
            broken: BTreeSet::new(),
            errors: BTreeSet::new(),
        };
        match self.ask(
            &subject.uid,
            &self.issue,
            &self.anything,
            &self.rules,
            [subject.entity.clone()],
        ) {
            Ok(response) => {
                subject.broken = reasons(&response).collect();
                subject.errors = errors(&response).collect();
            }
            Err(error) => {
                subject.errors.insert(error);
            }
        }
        Ok(subject)
    }

    /// Whether a workload gets a credential. What is not configured is denied.
    #[must_use]
    pub fn issue(&self, subject: &Subject, credential: &CredentialName) -> Decision {
        if !subject.errors.is_empty() {
            return Decision::deny(subject.errors.iter().cloned());
        }
        let Some(resource) = self.resources.get(credential) else {
            return Decision::deny(subject.broken.iter().cloned());
        };
        let lifts = if subject.broken.is_empty() {
            Vec::new()
        } else {
            match self.lifted(subject, resource) {
                Ok(lifts) => lifts,
                Err(decision) => return decision,
            }
        };
        let lifted = |rule: &&String| lifts.iter().any(|(lifted, _)| lifted == *rule);
        let standing: Vec<String> = (subject.broken.iter().filter(|rule| !lifted(rule)))
            .cloned()
            .collect();
        if !standing.is_empty() {
            return Decision::deny(standing);
        }
        let decision = self.decide(
            &subject.uid,
            &self.issue,
            &resource.uid,
            &resource.policies,
            [subject.entity.clone(), resource.entity.clone()],
        );
        if !decision.allowed {
            return decision;
        }
        let used = lifts
            .into_iter()
            .filter(|(rule, _)| subject.broken.contains(rule));
        Decision {
            allowed: true,
            policies: sorted(
                decision
                    .policies
                    .into_iter()
                    .chain(used.map(|(_, lift)| lift)),
            ),
        }
    }

    /// The rules that are lifted for this pair, each with the policy that lifts it.
    fn lifted(
        &self,
        subject: &Subject,
        resource: &Resource,
    ) -> Result<Vec<(String, String)>, Decision> {
        let response = self
            .ask(
                &subject.uid,
                &self.issue,
                &resource.uid,
                &self.lifts,
                [subject.entity.clone(), resource.entity.clone()],
            )
            .map_err(|error| Decision::deny([error]))?;
        let mut failed = errors(&response).peekable();
        if failed.peek().is_some() {
            return Err(Decision::deny(failed));
        }
        let pairs = reasons(&response).filter_map(|id| {
            let rule = self.lifts.annotation(&PolicyId::new(&id), "lifts")?;
            Some((rule.to_owned(), id.clone()))
        });
        Ok(pairs.collect())
    }

    /// Whether an operator may do something to a resource.
    #[must_use]
    pub fn operator(&self, operator: &Entity, action: &str, resource: Entity) -> Decision {
        let action = match entity::action(action) {
            Ok(action) => action,
            Err(error) => return Decision::deny([error.to_string()]),
        };
        let uid = resource.uid();
        self.decide(
            &operator.uid(),
            &action,
            &uid,
            &self.admin,
            [operator.clone(), resource],
        )
    }

    fn decide<const N: usize>(
        &self,
        principal: &EntityUid,
        action: &EntityUid,
        resource: &EntityUid,
        policies: &PolicySet,
        entities: [Entity; N],
    ) -> Decision {
        let response = match self.ask(principal, action, resource, policies, entities) {
            Ok(response) => response,
            Err(error) => return Decision::deny([error]),
        };
        let mut failed = errors(&response).peekable();
        if failed.peek().is_some() {
            return Decision::deny(failed);
        }
        Decision {
            allowed: response.decision() == cedar_policy::Decision::Allow,
            policies: sorted(reasons(&response)),
        }
    }

    fn ask<const N: usize>(
        &self,
        principal: &EntityUid,
        action: &EntityUid,
        resource: &EntityUid,
        policies: &PolicySet,
        entities: [Entity; N],
    ) -> Result<Response, String> {
        let entities =
            Entities::from_entities(entities, None).map_err(|error| error.to_string())?;
        let request = Request::new(
            principal.clone(),
            action.clone(),
            resource.clone(),
            Context::empty(),
            None,
        )
        .map_err(|error| error.to_string())?;
        Ok(self.authorizer.is_authorized(&request, policies, &entities))
    }
}

fn reasons(response: &Response) -> impl Iterator<Item = String> + '_ {
    response.diagnostics().reason().map(ToString::to_string)
}

fn errors(response: &Response) -> impl Iterator<Item = String> + '_ {
    let errors = response.diagnostics().errors();
    errors.map(|error| match error {
        cedar_policy::AuthorizationError::PolicyEvaluationError(error) => {
            error.policy_id().to_string()
        }
    })
}

fn explained(policy: &Policy) -> (String, ExplainedPolicy) {
    let id = policy.id().to_string();
    let explained = ExplainedPolicy {
        id: id.clone(),
        effect: policy.effect().to_string(),
        reason: policy.annotation("reason").map(str::to_owned),
        text: policy.to_cedar().unwrap_or_default(),
    };
    (id, explained)
}

fn comparable(policy: &Policy) -> (String, Given) {
    let credential = match policy.resource_constraint() {
        ResourceConstraint::Eq(only) => Some(only.id().unescaped().to_owned()),
        _ => None,
    };
    let text = policy.to_cedar().unwrap_or_default();
    (policy.id().to_string(), Given { text, credential })
}

/// A policy that names a credential which is not configured is a misspelling.
fn unknown_credentials(policies: &[Policy], desired: &Desired) -> Vec<PolicyProblem> {
    let known = |name: &str| {
        let credentials = desired.credentials.iter();
        credentials.map(credential_name).any(|known| known == name)
    };
    let mut problems = Vec::new();
    for policy in policies {
        for literal in policy.entity_literals() {
            if literal.type_name().to_string() == "Mayfly::Credential"
                && !known(literal.id().unescaped())
            {
                let (file, line) = place_of(policy, desired);
                problems.push(PolicyProblem {
                    file,
                    line,
                    message: format!(
                        "policy {:?} names the credential {:?}, which is not configured",
                        policy.id().to_string(),
                        literal.id().unescaped()
                    ),
                });
            }
        }
    }
    problems
}

fn credential_name(config: &CredentialConfig) -> &str {
    config.name.as_str()
}

/// The file of a policy, and its line there.
fn place_of(policy: &Policy, desired: &Desired) -> (String, Option<u64>) {
    let text = policy.to_cedar().unwrap_or_default();
    let mut places = desired.policies.iter().filter_map(|file| {
        let at = file.text.find(&text)?;
        Some((file.file.clone(), Some(parse::line_at(&file.text, at))))
    });
    places.next().unwrap_or_default()
}
