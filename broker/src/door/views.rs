//! What operators can look at: workloads, leases, decisions, the audit log. Each look goes through
//! policy and onto the record like any other act.

use super::which::is_stuck;
use super::{Door, Operator, lock, store_failed};
use crate::store::{Lease, LeaseState, Source};
use mayfly_wire::admin::{AuditReport, ExplainedPolicy, Explanation, LeaseFilter, LeaseInfo};
use mayfly_wire::{Code, CredentialName, Evidence, PublishFailure, Refusal, WorkloadKey};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::broadcast;

/// Workloads read in one go.
const PAGE: u32 = 1000;
/// Most audit lines that one request gives.
const MAX_LINES: usize = 100_000;

/// A workload, as an operator sees it.
pub struct Known {
    /// Its latest evidence.
    pub evidence: Arc<Evidence>,
    /// How many leases it has.
    pub leases: u64,
    /// Why its sidecar cannot publish, if it said so and has published nothing since.
    pub failure: Option<PublishFailure>,
}

impl Door {
    /// Every workload of [`Door::workload_pages`] at once.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unavailable`].
    pub async fn workloads(self: &Arc<Self>, operator: &Operator) -> Result<Vec<Known>, Refusal> {
        self.workload_pages(operator).await?.all().await
    }

    /// What is known of the workloads that are meant.
    async fn known(
        &self,
        meant: impl Fn(&Evidence) -> bool,
    ) -> Result<Vec<Arc<Evidence>>, Refusal> {
        let mut known = Vec::new();
        self.each_workload(None, |evidence| {
            if meant(&evidence) {
                known.push(Arc::new(evidence));
            }
        })
        .await?;
        let refused = lock(&self.refused).all();
        let unpublished = lock(&self.unpublished).all();
        let unpublished = unpublished.into_iter().map(|(evidence, _)| evidence);
        let more = refused.into_iter().chain(unpublished);
        for evidence in more.filter(|evidence| meant(evidence)) {
            let mut others = known.iter();
            if others.all(|known| known.workload != evidence.workload) {
                known.push(evidence);
            }
        }
        Ok(known)
    }

    /// Why a workload, given by id or name, gets a credential, or does not.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::NotFound`], [`Code::Conflict`] if several workloads have that name,
    /// [`Code::Unavailable`].
    pub async fn explain(
        &self,
        operator: &Operator,
        workload: &str,
        credential: &CredentialName,
    ) -> Result<Explanation, Refusal> {
        self.allow_broker(operator, "explain").await?;
        // Ids may be shortened, as everywhere.
        let meant = |one: &Evidence| {
            let is_id = !workload.is_empty() && one.workload.id().starts_with(workload);
            is_id || one.display_name() == workload
        };
        let known = self.known(meant).await?;
        let evidence = match known.as_slice() {
            [only] => only,
            [] => {
                let message = format!(
                    "no workload {workload:?} holds a lease or was refused lately; see `mayfly \
                     workloads`"
                );
                return Err(Refusal::because(Code::NotFound, message));
            }
            several => {
                let ids: Vec<_> = several.iter().map(|one| one.workload.id()).collect();
                let message = format!("{workload:?} names several: {}", ids.join(", "));
                return Err(Refusal::because(Code::Conflict, message));
            }
        };
        let applied = self.applied();
        let subject = applied.judge().subject(evidence).map_err(super::inside)?;
        let decision = applied.judge().issue(&subject, credential);
        let find = |id: &String| applied.judge().explain(id).cloned();
        let decided_by: Vec<ExplainedPolicy> = decision.policies.iter().filter_map(find).collect();
        let name = evidence.display_name();
        let by = decision.policies.join(", ");
        let summary = if applied.credential(credential).is_none() {
            format!("{credential} is not configured, so nobody gets it.")
        } else if decision.allowed {
            format!("{name} gets {credential}, by {by}.")
        } else if decided_by.is_empty() {
            format!("{name} does not get {credential}: no policy permits it.")
        } else {
            let reasons = decided_by
                .iter()
                .filter_map(|policy| policy.reason.as_deref());
            let reasons = reasons.collect::<Vec<_>>().join("; ");
            let colon = if reasons.is_empty() { "" } else { ": " };
            format!("{name} does not get {credential}, by {by}{colon}{reasons}.")
        };
        Ok(Explanation {
            workload: evidence.workload.id(),
            name,
            credential: credential.clone(),
            allowed: decision.allowed,
            decided_by,
            summary,
        })
    }

    /// Every lease of [`Door::lease_pages`] at once.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unavailable`].
    pub async fn leases(
        self: &Arc<Self>,
        operator: &Operator,
        filter: &LeaseFilter,
    ) -> Result<Vec<LeaseInfo>, Refusal> {
        self.lease_pages(operator, filter.clone())
            .await?
            .all()
            .await
    }

    /// The evidence of every workload, or of those of one node.
    pub(super) async fn each_workload(
        &self,
        node: Option<&str>,
        mut f: impl FnMut(Evidence),
    ) -> Result<(), Refusal> {
        let mut after: Option<WorkloadKey> = None;
        loop {
            let node = node.map(str::to_owned);
            let page = self.store.workloads(node, after.take(), PAGE).await;
            let page = page.map_err(store_failed)?;
            let full = page.len() >= PAGE as usize;
            after = page.last().map(|last| last.evidence.workload.clone());
            page.into_iter().for_each(|workload| f(workload.evidence));
            if !full {
                return Ok(());
            }
        }
    }

    /// How many leases live.
    ///
    /// # Errors
    /// [`Code::Unavailable`].
    pub async fn lease_count(&self) -> Result<u64, Refusal> {
        Ok(self
            .store
            .lease_counts()
            .await
            .map_err(store_failed)?
            .values()
            .sum())
    }

    /// How many leases should have ended, and could not be.
    ///
    /// # Errors
    /// [`Code::Unavailable`].
    pub async fn stuck_count(&self) -> Result<u64, Refusal> {
        let ending = self.store.leases_in(LeaseState::Revoking).await;
        let stuck = ending.map_err(store_failed)?.into_iter().filter(is_stuck);
        Ok(stuck.count() as u64)
    }

    /// How many workloads of each node hold leases.
    ///
    /// # Errors
    /// [`Code::Unavailable`].
    pub async fn workloads_by_node(&self) -> Result<BTreeMap<String, u64>, Refusal> {
        self.store.workload_counts().await.map_err(store_failed)
    }

    /// Number of the last audit record.
    #[must_use]
    pub fn audit_seq(&self) -> u64 {
        self.audit.head().get().seq
    }

    /// The last lines of the audit log, and each new one from then on.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unavailable`].
    pub async fn audit_tail(
        &self,
        operator: &Operator,
        count: usize,
    ) -> Result<(Vec<String>, broadcast::Receiver<Arc<str>>), Refusal> {
        self.allow_broker(operator, "audit_read").await?;
        // Subscribed first, so that none is lost between; one that comes twice has a sequence number.
        let lines = self.audit.subscribe();
        let last = self.audit.tail(count.min(MAX_LINES)).await;
        let last = last.map_err(|error| Refusal::because(Code::Unavailable, error.to_string()))?;
        Ok((last, lines))
    }

    /// Checks the whole audit log.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unavailable`].
    pub async fn audit_verify(&self, operator: &Operator) -> Result<AuditReport, Refusal> {
        self.allow_broker(operator, "audit_verify").await?;
        let report = self.audit.verify().await;
        report.map_err(|error| Refusal::because(Code::Unavailable, error.to_string()))
    }
}

pub(super) fn told(lease: Lease) -> LeaseInfo {
    let (version, account) = match lease.source {
        Source::Kv { version, .. } | Source::Shared { version } => (Some(version), None),
        Source::Account { account, .. } => (None, Some(account)),
        Source::Sealed(_) => (None, None),
    };
    LeaseInfo {
        lease: lease.id,
        workload: lease.workload,
        name: lease.name,
        node: lease.node,
        credential: lease.credential,
        engine: lease.engine,
        state: lease.state.as_str().to_owned(),
        issued_at: lease.issued_at,
        expires_at: lease.expires_at,
        version,
        account,
        attempts: lease.attempts,
        problem: Some(lease.problem).filter(|problem| !problem.is_empty()),
        due_at: lease.due_at,
    }
}
