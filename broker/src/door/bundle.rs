//! One whole answer: everything that a workload holds from now on, decided, recorded, durable, sealed.

use super::create::{Making, Order};
use super::creations::Done;
use super::issue::{Work, Written, over};
use super::lanes::{LIMIT, Lane};
use super::{Applied, Door, lock, store_failed, who};
use crate::policy::{Decision, Subject};
use crate::store::{Lease, LeaseState};
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::audit::Event;
use mayfly_wire::link::NodeRefusal;
use mayfly_wire::sealed::Sealer;
use mayfly_wire::session::{Bundle, Granted, Hello, MAX_WANTED, Missing};
use mayfly_wire::{Code, CredentialName, Evidence, KvPath, LeaseId, Refusal, WorkloadKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A session asks for its next bundle.
pub struct Ask<'a> {
    /// Who, by what the node established.
    pub evidence: &'a Evidence,
    /// The key to seal to, and what is wanted.
    pub hello: &'a Hello,
    /// Whether the evidence came since the session's last bundle.
    pub fresh: bool,
    /// The bundle's generation, from 1.
    pub generation: u64,
    /// What the session holds already, by its last bundle.
    pub held: &'a BTreeMap<CredentialName, Held>,
    /// What it was told that it does not get, so that the same is not recorded again.
    pub missed: &'a BTreeMap<CredentialName, Code>,
    /// Whether it can wait for what is being made: then it may be told to.
    pub can_wait: bool,
    /// A certificate request for the one credential that is wanted, as the workload sent it.
    pub csr: Option<&'a str>,
    /// Whether this is the only bundle that it asks for.
    pub once: bool,
}

/// What a session gets when it asks.
pub enum Answer {
    /// Its bundle.
    Served(Box<Served>),
    /// Something is being made that it can wait for, and then ask again.
    Wait(Waiting),
}

/// What is being made for a bundle.
pub struct Waiting {
    all: Vec<(Arc<Lane>, Done, bool)>,
}

/// How long a bundle waits for a target that does well.
const PATIENCE: Duration = Duration::from_secs(1);

impl Waiting {
    /// Waits until all is made or failed, but for targets that do not do well not at all, and for the
    /// others only a moment. A request that is made only `once` waits as long as targets have.
    pub async fn wait(self, once: bool) {
        let patience = if once { 2 * LIMIT } else { PATIENCE };
        let until = tokio::time::Instant::now() + patience;
        for (lane, done, prompt) in self.all {
            if !prompt && !once {
                continue;
            }
            if tokio::time::timeout_at(until, done.wait()).await.is_err() {
                lane.keeps_waiting();
            }
        }
    }
}

/// What a session holds of one credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The lease.
    pub lease: LeaseId,
    /// Milliseconds since the Unix epoch.
    pub expires_at: u64,
    /// Where a stored value came from; none for anything else.
    pub path: Option<KvPath>,
    /// The version of what others hold too: a stored value, a secret that is shared, authorities.
    pub version: Option<u64>,
}

/// The answer.
pub struct Served {
    /// To be sent.
    pub bundle: Bundle,
    /// What the session held and holds no longer: to be sent before the bundle.
    pub withdrawn: Vec<CredentialName>,
    /// What it holds now.
    pub held: BTreeMap<CredentialName, Held>,
    /// What it does not get, and why.
    pub missed: BTreeMap<CredentialName, Code>,
    /// What policy grants, whether an engine could make it or not: changes of these concern it.
    pub granted: BTreeSet<CredentialName>,
    /// When it was made: it holds nothing that another lease took the place of until then.
    pub epoch: u64,
}

/// What policy says to one session.
struct Verdict<'a> {
    granted: Vec<(&'a CredentialConfig, Vec<String>)>,
    denied: BTreeMap<CredentialName, Vec<String>>,
}

fn judge<'a>(
    applied: &'a Applied,
    subject: &Subject,
    want: Option<&[CredentialName]>,
) -> Verdict<'a> {
    let mut verdict = Verdict {
        granted: Vec::new(),
        denied: BTreeMap::new(),
    };
    let mut decide = |name: &CredentialName, config: Option<&'a CredentialConfig>| {
        let Decision { allowed, policies } = applied.judge().issue(subject, name);
        match config {
            Some(config) if allowed => verdict.granted.push((config, policies)),
            _ => {
                verdict.denied.insert(name.clone(), policies);
            }
        }
    };
    match want {
        None => {
            for (name, config) in applied.credentials() {
                decide(name, Some(config));
            }
        }
        Some(names) => {
            for name in names.iter().collect::<BTreeSet<_>>() {
                decide(name, applied.credential(name));
            }
        }
    }
    verdict
}

impl Door {
    /// Decides, makes, records and seals everything that a session shall hold. The caller may send what
    /// this returns: its records and leases are on disk.
    ///
    /// # Errors
    /// [`Code::Denied`] when nothing is granted, [`Code::NotAttested`] for a workload that died,
    /// [`Code::BadRequest`] for a hello that makes no sense, [`Code::Unavailable`] when record or lease
    /// cannot be made durable.
    pub async fn bundle(self: &Arc<Self>, ask: Ask<'_>) -> Result<Answer, Refusal> {
        let (evidence, hello) = (ask.evidence, ask.hello);
        let want = hello.want.as_deref();
        let is_one = want.is_some_and(|want| want.len() == 1);
        if want.is_some_and(|want| want.len() > MAX_WANTED) || (ask.csr.is_some() && !is_one) {
            return Err(Code::BadRequest.into());
        }
        let (sealer, encapsulated) =
            Sealer::new(&hello.public_key, &evidence.workload, ask.generation)
                .map_err(|_| Refusal::from(Code::BadRequest))?;
        let _turn = self.locks.turn(&evidence.workload).await;
        if self.is_dead(&evidence.workload) {
            return Err(Code::NotAttested.into());
        }

        if ask.generation == 1 && !ask.once {
            self.barred.forget(&evidence.workload);
        }
        let epoch = self.retiring.epoch();
        let applied = self.applied();
        let subject = applied.judge().subject(evidence).map_err(super::inside)?;
        let mut verdict = judge(&applied, &subject, want);
        let leases = self.leases_that_live(&evidence.workload).await?;
        let of_another = |lease: &Lease| lease.node != evidence.node;
        if leases
            .iter()
            .any(|lease| of_another(lease) && self.heard.lately(&lease.node))
        {
            return Err(self.other_nodes(evidence).await);
        }
        let mut work = Work::new(self, evidence, sealer);
        // What is denied or configured no longer goes, however far it is.
        let mut kept = Vec::new();
        for lease in leases {
            let name = &lease.credential;
            let gone = if verdict.denied.contains_key(name) {
                !self.peer_alone(&applied, evidence, name).await?
            } else {
                want.is_none() && applied.credential(name).is_none()
            };
            if gone {
                work.end(&lease, "withdrawn").await;
            } else if !verdict.denied.contains_key(name) {
                kept.push(lease);
            }
        }
        let now = self.now_ms();
        let mut leases: BTreeMap<CredentialName, Lease> = BTreeMap::new();
        for lease in kept {
            let config = applied.credential(&lease.credential);
            if lease.state != LeaseState::Active {
                continue;
            }
            match config.and_then(|config| over(config, &lease, &evidence.node, now)) {
                Some(reason) => work.end(&lease, reason).await,
                None => {
                    let was_left = lease.due_at >= lease.expires_at;
                    if was_left && ask.generation == 1 && !ask.once {
                        work.look_at(&lease);
                    }
                    leases.insert(lease.credential.clone(), lease);
                }
            }
        }
        if verdict.granted.is_empty() {
            return Err(self.deny(&ask, verdict.denied, work).await);
        }

        // Who asks once is as new as the next session.
        let barred = match ask.once {
            true => BTreeSet::new(),
            false => self.barred.of(&evidence.workload),
        };
        let mut making = self.make_missing(&verdict, &leases, &barred, evidence);
        if ask.can_wait
            && making
                .values()
                .any(|one| matches!(one, Making::Running { .. }))
        {
            // What ends, ends now: what is to take its place may have to wait for it.
            self.write(work.finish(false)).await?;
            return Ok(Answer::Wait(self.waiting(making, &verdict)));
        }

        let mut served = Served {
            bundle: Bundle {
                generation: ask.generation,
                // Set when it is done.
                now: 0,
                encapsulated,
                credentials: Vec::new(),
                missing: Vec::new(),
            },
            withdrawn: Vec::new(),
            held: BTreeMap::new(),
            missed: BTreeMap::new(),
            granted: BTreeSet::new(),
            epoch,
        };
        let mut refused = Vec::new();
        let mut miss = |served: &mut Served, name: &CredentialName, code, event| {
            if ask.missed.get(name) != Some(&code) {
                refused.extend(event);
            }
            served.missed.insert(name.clone(), code);
            served.bundle.missing.push(Missing {
                name: name.clone(),
                refusal: code.into(),
            });
        };
        if want.is_some() {
            for (name, policies) in std::mem::take(&mut verdict.denied) {
                let event = Event::Denied {
                    who: who(evidence),
                    credential: Some(name.clone()),
                    policies,
                };
                miss(&mut served, &name, Code::Denied, Some(event));
            }
        }
        for (number, (config, policies)) in verdict.granted.into_iter().enumerate() {
            let name = &config.name;
            if want.is_none() && config.engine.by_request() {
                continue;
            }
            served.granted.insert(name.clone());
            let made = if barred.contains(name) {
                Err((Code::Denied, None))
            } else if number >= MAX_WANTED {
                let reason = format!("policy grants more than the {MAX_WANTED} that fit a bundle");
                Err((Code::TooMany, Some(reason)))
            } else if let Some(making) = making.remove(name) {
                // Its own task puts on record why, once it is known.
                let code = match making {
                    Making::Running { .. } => Code::Unavailable,
                    Making::Failed(code) => code,
                };
                Err((code, None))
            } else {
                let lease = leases.remove(name);
                let held = ask.held.get(name);
                let made = work.give(config, policies, lease, held, ask.csr).await;
                made.map_err(|(code, reason)| (code, Some(reason)))
            };
            match made {
                Ok((sealed, held)) => {
                    served.held.insert(name.clone(), held);
                    served.bundle.credentials.push(sealed);
                }
                Err((code, reason)) => {
                    let event = reason.map(|reason| Event::Failed {
                        who: who(evidence),
                        credential: name.clone(),
                        reason,
                    });
                    miss(&mut served, name, code, event);
                }
            }
        }
        if !refused.is_empty() {
            let may = lock(&self.refused).add(evidence, refused.len(), self.now_ms());
            refused.truncate(may);
            refused.into_iter().for_each(|event| work.record(event));
        }
        let gone = ask
            .held
            .keys()
            .filter(|name| !served.held.contains_key(*name));
        served.withdrawn = gone.cloned().collect();
        // Of a session on old leases too, its evidence is the latest.
        let keep = ask.fresh && !work.has_new() && self.is_new(evidence).await?;
        self.write(work.finish(keep)).await?;
        served.bundle.now = self.now_ms();
        Ok(Answer::Served(Box::new(served)))
    }

    /// Has everything made that is granted, needs a server, and has no lease.
    fn make_missing(
        self: &Arc<Self>,
        verdict: &Verdict<'_>,
        leases: &BTreeMap<CredentialName, Lease>,
        barred: &BTreeSet<CredentialName>,
        evidence: &Evidence,
    ) -> BTreeMap<CredentialName, Making> {
        let mut making = BTreeMap::new();
        for (config, policies) in verdict.granted.iter().take(MAX_WANTED) {
            let Some(connection) = config.engine.connection() else {
                continue;
            };
            if leases.contains_key(&config.name) || barred.contains(&config.name) {
                continue;
            }
            let order = || Order {
                evidence: evidence.clone(),
                config: (*config).clone(),
                policies: policies.clone(),
            };
            let made = self.make(connection, order, &evidence.workload, &config.name);
            making.insert(config.name.clone(), made);
        }
        making
    }

    fn waiting(&self, making: BTreeMap<CredentialName, Making>, verdict: &Verdict<'_>) -> Waiting {
        let connection = |name: &CredentialName| {
            let granted = verdict
                .granted
                .iter()
                .find(|(config, _)| config.name == *name);
            granted.and_then(|(config, _)| config.engine.connection())
        };
        let running = making
            .into_iter()
            .filter_map(|(name, making)| match making {
                Making::Running { done, prompt } => {
                    connection(&name).map(|at| (self.lanes.of(at), done, prompt))
                }
                Making::Failed(_) => None,
            });
        Waiting {
            all: running.collect(),
        }
    }

    /// Whether a credential is denied only because of the process that asks, while its container is as
    /// good as ever: then what another process of it holds stays.
    async fn peer_alone(
        &self,
        applied: &Applied,
        evidence: &Evidence,
        name: &CredentialName,
    ) -> Result<bool, Refusal> {
        let known = self.store.workload(evidence.workload.clone()).await;
        let Some(known) = known.map_err(store_failed)? else {
            return Ok(false);
        };
        let other = Evidence {
            peer: known.evidence.peer,
            own_namespaces: known.evidence.own_namespaces,
            companion: known.evidence.companion,
            ..evidence.clone()
        };
        let subject = applied.judge().subject(&other).map_err(super::inside)?;
        Ok(applied.judge().issue(&subject, name).allowed)
    }

    /// A node speaks of a workload that holds leases through another node, and that one lives: it could have read the
    /// workload's key anywhere; it gets nothing of what is held under it.
    async fn other_nodes(&self, evidence: &Evidence) -> Refusal {
        let detail = "evidence of a workload that holds leases through another node";
        let node = &evidence.node;
        match self.another_node(node, &evidence.workload, detail).await {
            Ok(()) => Code::NotAttested.into(),
            Err(refusal) => refusal,
        }
    }

    /// A node speaks of what is not its own: on record.
    ///
    /// # Errors
    /// [`Code::Unavailable`].
    pub async fn another_node(
        &self,
        node: &str,
        workload: &WorkloadKey,
        detail: &str,
    ) -> Result<(), Refusal> {
        tracing::error!(node, "{detail}");
        let refusal = NodeRefusal {
            reason: "another_node".to_owned(),
            detail: detail.to_owned(),
            pid: None,
            uid: None,
            cgroup_path: None,
            workload: Some(workload.clone()),
            count: 1,
        };
        self.node_refused(node, refusal).await
    }

    async fn is_new(&self, evidence: &Evidence) -> Result<bool, Refusal> {
        let known = self.store.workload(evidence.workload.clone()).await;
        Ok(known
            .map_err(store_failed)?
            .is_none_or(|known| known.evidence != *evidence))
    }

    /// Nothing is granted: one record that names what forbade it, and what was held ends.
    async fn deny(
        &self,
        ask: &Ask<'_>,
        denied: BTreeMap<CredentialName, Vec<String>>,
        mut work: Work<'_>,
    ) -> Refusal {
        let mut names = denied.keys();
        let only = match (&ask.hello.want, names.next(), names.next()) {
            (Some(_), Some(only), None) => Some(only.clone()),
            _ => None,
        };
        let policies: BTreeSet<String> = denied.into_values().flatten().collect();
        if lock(&self.refused).add(ask.evidence, 1, self.now_ms()) > 0 {
            work.record(Event::Denied {
                who: who(ask.evidence),
                credential: only,
                policies: policies.into_iter().collect(),
            });
        }
        match self.write(work.finish(false)).await {
            Ok(()) => Code::Denied.into(),
            Err(refusal) => refusal,
        }
    }

    /// Makes records and then leases durable, both before anything leaves. In this order a crash can
    /// leave a record of a lease that never was, and never a lease without its record.
    async fn write(&self, written: Written) -> Result<(), Refusal> {
        self.record_all(written.events).await?;
        if !written.ops.is_empty() {
            let committed = self.store.commit(written.ops).await;
            committed.map_err(store_failed)?;
        }
        if let Some(due_at) = written.due_at {
            self.hint(due_at);
        }
        Ok(())
    }

    /// Which credentials policy grants, without issuing any.
    ///
    /// # Errors
    /// [`Code::Internal`].
    pub fn granted(&self, evidence: &Evidence) -> Result<Granted, Refusal> {
        let applied = self.applied();
        let subject = applied.judge().subject(evidence).map_err(super::inside)?;
        let granted = judge(&applied, &subject, None).granted.into_iter();
        let credentials = granted.map(|(config, _)| config.name.clone()).collect();
        Ok(Granted { credentials })
    }
}
