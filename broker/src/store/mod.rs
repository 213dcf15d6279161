//! The store: values, leases, workloads and configuration, behind one trait.
//!
//! A caller hands over a *unit*: a list of [`Op`]s that happen together or not at all. Units that arrive
//! at the same time share one commit, so that durability costs one fsync for many of them, and a unit
//! that fails fails alone.

mod check;
mod claims;
#[cfg(test)]
mod conformance;
mod files;
mod integrity;
mod revoked;
mod rows;
mod schema;
pub mod sqlite;
mod states;
#[cfg(test)]
mod tests;
mod writer;

use crate::audit::{Head, HeadCell};
use mayfly_wire::{
    ConnectionName, CredentialName, EngineKind, Evidence, FieldName, KvPath, LeaseId, WorkloadKey,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

pub use files::OpenError;
pub use revoked::Revoked;
pub use sqlite::SqliteStore;

/// What can go wrong.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// What the unit was based on has changed: another version, or an active lease exists already.
    #[error("{0}")]
    Conflict(String),
    /// What the unit changes is not there.
    #[error("{0} is not in the store")]
    NotFound(String),
    /// A row was changed by something other than the broker, or the file is damaged.
    #[error(
        "the store is not as the broker left it: {0}; restore it from a backup, together with its \
         audit file"
    )]
    Damaged(String),
    /// It is not a store of ours.
    #[error("{0}")]
    Foreign(String),
    /// The disk, or the file, does not do what it should.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
}

/// What the methods of [`Store`] return.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// One version of a value in the kv engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvRow {
    /// Where it stands.
    pub path: KvPath,
    /// Counts up from 1.
    pub version: u64,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// Names of the fields, sorted.
    pub fields: Vec<FieldName>,
    /// The sealed fields; `None` is a deletion mark.
    pub sealed: Option<Vec<u8>>,
}

/// How far a lease is. No state can be skipped: what has a target goes through all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Intended: what it will hold at the target may exist already, or not yet. Nothing left under it.
    Planned,
    /// Its credential may have left.
    Active,
    /// Another lease took its place. It is good until its holders use that one, or its grace ends.
    Retiring,
    /// It must end: what it holds at the target may still exist.
    Revoking,
}

impl LeaseState {
    /// Its name for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Revoking => "revoking",
        }
    }
}

/// What a lease gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The value at a path of the kv engine, of the version that was given last.
    Kv {
        /// Where it stands.
        path: KvPath,
        /// The version.
        version: u64,
    },
    /// Content that belongs to this lease alone (a token, a certificate), sealed for
    /// [`lease_record`](crate::engine::lease_record). There is nothing to take back.
    Sealed(Vec<u8>),
    /// An account that belongs to this lease alone, and exists at a target.
    Account {
        /// The target.
        connection: ConnectionName,
        /// The account's name there, decided before it is made.
        account: String,
        /// What the engine must know to give it again and to remove it, sealed as above.
        sealed: Vec<u8>,
    },
    /// An account at a target that all holders of the credential share, of the version that was given
    /// last.
    Shared {
        /// Counts up with each rotation.
        version: u64,
    },
}

impl Source {
    /// Whether something at a target exists for this lease alone.
    #[must_use]
    pub fn has_target(&self) -> bool {
        matches!(self, Self::Account { .. })
    }
}

/// One credential issued to one workload. A lease that ended is not in the store: the audit record has
/// its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// Whose.
    pub workload: WorkloadKey,
    /// Which credential. There is at most one active lease for (workload, credential), and at most one
    /// planned beside it, which is to take its place.
    pub credential: CredentialName,
    /// What made it.
    pub engine: EngineKind,
    /// The node that attested the workload.
    pub node: String,
    /// What people call the workload.
    pub name: String,
    /// How far it is.
    pub state: LeaseState,
    /// Milliseconds since the Unix epoch.
    pub issued_at: u64,
    /// Milliseconds since the Unix epoch.
    pub expires_at: u64,
    /// When it is to be looked at next: milliseconds since the Unix epoch.
    pub due_at: u64,
    /// Why it must end; empty while it need not.
    pub reason: String,
    /// How often its engine failed to end it.
    pub attempts: u64,
    /// Why, the last time; empty if it never did.
    pub problem: String,
    /// What it gives.
    pub source: Source,
}

/// A workload and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its latest evidence, which names it and its node.
    pub evidence: Evidence,
    /// When that evidence came: milliseconds since the Unix epoch.
    pub seen_at: u64,
}

/// The configuration that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Counts up from 1.
    pub number: u64,
    /// The configuration, as its owner wrote it.
    pub json: String,
}

/// One change.
#[derive(Clone, Debug)]
pub enum Op {
    /// Adds a version of a value. Conflict unless it is the current version + 1 (1 for a new path).
    KvPut(KvRow),
    /// Adds a lease in the first state of its kind ([`Lease::first_state`]). Conflict if one of the same
    /// (workload, credential) is in that state.
    LeaseInsert(Lease),
    /// Replaces all but id, workload, credential and engine of the lease of this id. Not found if it has
    /// ended; conflict as above, and if its state cannot follow the one that it has.
    LeaseUpdate(Lease),
    /// Sets when a lease is to be looked at, and nothing else. It may have ended.
    LeaseDue(LeaseId, u64),
    /// Ends a lease. Not found if it has ended already; conflict if it is not in the last state of its
    /// kind. One whose certificate is good for longer than until this time, in milliseconds since the Unix
    /// epoch, is [`Revoked`] from then on.
    LeaseEnd(LeaseId, u64),
    /// Forgets that a lease's certificate was revoked. It need not be known.
    RevokedRemove(LeaseId),
    /// Adds or replaces what is known of a workload.
    WorkloadPut(Box<Workload>),
    /// Forgets a workload, unless one of its leases need not end. It need not be known.
    WorkloadRemove(WorkloadKey),
    /// Replaces the configuration. Conflict unless it is the current number + 1 (1 for the first).
    ConfigPut(Configuration),
    /// Adds or replaces one sealed entry of the broker's own: signing keys, authorities, accounts at
    /// targets.
    MetaPut(String, Vec<u8>),
    /// Removes one. It need not be there.
    MetaRemove(String),
    /// Replaces the wrapped root keys.
    RootKeysPut(Vec<u8>),
}

/// Which due work is claimed.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What is due at or before this: milliseconds since the Unix epoch.
    pub now: u64,
    /// When what was claimed is due again, unless that is too late: see [`Claim::again`].
    pub until: u64,
    /// How many leases.
    pub most: u32,
    /// Nothing that is at these targets.
    pub except: Vec<ConnectionName>,
}

impl Claim {
    /// When one of what was claimed is due again. A broker that dies with a claim must neither let a lease
    /// outlive its end for long nor keep another from renewing it in time: what must end at a target has
    /// all of `until`, anything else half of what is left of its life.
    #[must_use]
    pub fn again(&self, lease: &Lease) -> u64 {
        /// Enough for what needs no target, in milliseconds.
        const SHORT: u64 = 500;
        let left = match lease.state {
            LeaseState::Planned | LeaseState::Revoking => return self.until,
            LeaseState::Active => lease.expires_at.saturating_sub(self.now),
            LeaseState::Retiring => 0,
        };
        let soon = self.now.saturating_add((left / 2).max(SHORT));
        self.until.min(soon)
    }
}

/// The store.
pub trait Store: Send + Sync + 'static {
    /// Makes all of `unit` so, durably, or nothing of it. An empty unit stores the audit head.
    fn commit(&self, unit: Vec<Op>) -> Answer<'_, ()>;

    /// The store keeps the last durable audit record that this names, with each commit.
    fn keep_head(&self, head: HeadCell);
    /// The audit head that the store held when it was opened.
    fn opened_with_head(&self) -> Option<Head>;

    /// A version of a value, or its current version, which may be a deletion mark.
    fn kv(&self, path: KvPath, version: Option<u64>) -> Answer<'_, Option<KvRow>>;
    /// Every version of a value, without the sealed content of each, oldest first. The flag says whether
    /// it is a deletion mark.
    fn kv_history(&self, path: KvPath) -> Answer<'_, Vec<KvSummary>>;
    /// The current version of every path, sorted by path.
    fn kv_list(&self) -> Answer<'_, Vec<KvSummary>>;

    /// One lease.
    fn lease(&self, id: LeaseId) -> Answer<'_, Option<Lease>>;
    /// The active lease of a workload on a credential.
    fn lease_of(
        &self,
        workload: WorkloadKey,
        credential: CredentialName,
    ) -> Answer<'_, Option<Lease>>;
    /// Every lease of a workload, sorted by credential.
    fn leases_of(&self, workload: WorkloadKey) -> Answer<'_, Vec<Lease>>;
    /// Every lease on a credential.
    fn leases_on(&self, credential: CredentialName) -> Answer<'_, Vec<Lease>>;
    /// Claims due work: gives at most [`Claim::most`] leases, the earliest first, and has them due again
    /// at [`Claim::until`], so that no other claim gets them before. Who claimed them and lived sets the
    /// time that is right.
    fn claim_due(&self, claim: Claim) -> Answer<'_, Vec<Lease>>;
    /// When the next lease is due that is at none of the targets `except`.
    fn next_due(&self, except: Vec<ConnectionName>) -> Answer<'_, Option<u64>>;
    /// Every lease in this state, which must be one that few are in: all but active.
    fn leases_in(&self, state: LeaseState) -> Answer<'_, Vec<Lease>>;
    /// At most `most` leases after the id `after`, sorted by id: a page of them all.
    fn leases(&self, after: Option<LeaseId>, most: u32) -> Answer<'_, Vec<Lease>>;
    /// How many leases there are, for each credential that has any.
    fn lease_counts(&self) -> Answer<'_, BTreeMap<CredentialName, u64>>;

    /// At most `most` certificates of an engine that were revoked and expire after `at` (milliseconds
    /// since the Unix epoch), the last to expire first.
    fn revoked(&self, engine: EngineKind, at: u64, most: u32) -> Answer<'_, Vec<Revoked>>;
    /// At most `most` of those that need not be known any more, the first to expire first: they expired
    /// by then, or there are more than `keep` that expire later.
    fn revoked_over(
        &self,
        engine: EngineKind,
        at: u64,
        keep: u32,
        most: u32,
    ) -> Answer<'_, Vec<Revoked>>;

    /// What is known of a workload.
    fn workload(&self, key: WorkloadKey) -> Answer<'_, Option<Workload>>;
    /// At most `most` workloads after the key `after`, sorted by key's text: a page of them all, or of
    /// those of one node. Evidence is large: who goes through all keeps a page at a time.
    fn workloads(
        &self,
        node: Option<String>,
        after: Option<WorkloadKey>,
        most: u32,
    ) -> Answer<'_, Vec<Workload>>;
    /// How many workloads there are, for each node that has any.
    fn workload_counts(&self) -> Answer<'_, BTreeMap<String, u64>>;

    /// The configuration, if there is one yet.
    fn configuration(&self) -> Answer<'_, Option<Configuration>>;
    /// A sealed entry of the broker's own.
    fn meta(&self, key: String) -> Answer<'_, Option<Vec<u8>>>;
    /// The keys of all such entries that begin with `prefix`, sorted.
    fn meta_keys(&self, prefix: String) -> Answer<'_, Vec<String>>;
}

/// One version of a value, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvSummary {
    /// Where it stands.
    pub path: KvPath,
    /// Its version.
    pub version: u64,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// Whether it is a deletion mark.
    pub deleted: bool,
    /// Names of its fields.
    pub fields: Vec<FieldName>,
}
