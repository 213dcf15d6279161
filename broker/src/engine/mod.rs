//! Engines: what makes credentials of one kind. To add a kind, implement [`Engine`], add its settings to
//! `EngineConfig`, and give it to [`Engines`] in `run`.

mod account;
mod authority;
pub mod connections;
mod entries;
pub mod fixed;
pub mod jwt;
pub mod kv;
pub mod mysql;
mod names;
mod pair;
pub mod password;
pub mod pool;
pub mod postgres;
pub mod rabbitmq;
pub mod redis;
mod revocation;
mod ring;
pub mod root;
pub mod ssh;
pub mod statements;
mod stream;
mod template;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod x509;

use crate::seal::{RecordId, SealError};
use crate::store::{Lease, Source, StoreError};
use mayfly_wire::admin::{AuthorityInfo, CredentialConfig, EngineConfig, RevocationList};
use mayfly_wire::session::Layout;
use mayfly_wire::{Code, ConnectionName, EngineKind, Evidence, FieldName, LeaseId, Secret};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// Why an engine does not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is nothing to give.
    #[error("{0}")]
    NotFound(String),
    /// What the credential is based on has changed, or its settings are another engine's.
    #[error("{0}")]
    Conflict(String),
    /// The credential's settings do not fit this workload's evidence, or are wrong in themselves.
    #[error("{0}")]
    Unfit(String),
    /// The target does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The seal.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl EngineError {
    /// The stable code for the client.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::Store(StoreError::NotFound(_)) => Code::NotFound,
            Self::Conflict(_) | Self::Store(StoreError::Conflict(_)) => Code::Conflict,
            Self::Unfit(_) => Code::BadRequest,
            Self::Unavailable(_) | Self::Store(StoreError::Unavailable(_)) => Code::Unavailable,
            Self::Store(_) | Self::Seal(_) => Code::Internal,
        }
    }
}

/// What an [`Engine`] returns.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send + 'a>>;

/// One credential to be made for one workload.
#[derive(Clone, Copy)]
pub struct IssueRequest<'a> {
    /// The credential, as configured.
    pub credential: &'a CredentialConfig,
    /// For whom.
    pub evidence: &'a Evidence,
    /// The lease that it is issued under. Its id is decided before the engine is asked.
    pub lease: &'a LeaseId,
    /// Milliseconds since the Unix epoch. It ends at `now` + the credential's `ttl_seconds`.
    pub now: u64,
}

impl IssueRequest<'_> {
    /// When it ends: milliseconds since the Unix epoch.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        self.now
            .saturating_add(self.credential.ttl_seconds.saturating_mul(1000))
    }
}

/// What an engine made.
pub struct Issued {
    /// The fields.
    pub fields: BTreeMap<FieldName, Secret>,
    /// The shape of its files.
    pub layout: Layout,
    /// When it ends: milliseconds since the Unix epoch.
    pub expires_at: u64,
    /// What the lease must hold, so that the same can be given again.
    pub source: Source,
}

/// What makes credentials of one kind.
///
/// An engine decides what a credential is ([`issue`](Self::issue)) before anything exists at a target,
/// so that the door can make the decision durable first. Only then does the door have it made
/// ([`create`](Self::create)), put it on record, and give it away. Whatever is interrupted, a lease that
/// may have something at a target is in the store, and [`revoke`](Self::revoke) is called for it until
/// it succeeds.
///
/// The door gives every call a limited time, and calls again what did not end in time: each method must
/// leave things right when its future is dropped at any point.
pub trait Engine: Send + Sync {
    /// Whether the settings can be right for any workload at all. Called when they are applied.
    ///
    /// # Errors
    /// What was expected and what was found, for the operator.
    fn check(&self, credential: &CredentialConfig) -> Result<(), String>;

    /// Decides a credential: its fields, and with an account at a target its name. Changes nothing at
    /// any target. Also renews one whose content is its own: with the id of a lease that exists, it
    /// makes new content under it.
    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued>;

    /// Decides a credential for a key that the workload keeps: `csr` is its request (PKCS#10, PEM), as
    /// hostile as anything that a workload says. Only for a credential that is made
    /// [by request](EngineConfig::by_request).
    fn certify<'a>(&'a self, request: IssueRequest<'a>, _csr: &'a str) -> Answer<'a, Issued> {
        let name = &request.credential.name;
        let problem = format!("{name} takes no certificate request");
        Box::pin(async { Err(EngineError::Unfit(problem)) })
    }

    /// Makes at the target what `lease` says, good until the lease expires. Called once for a lease,
    /// and only for one with a [`Source::Account`].
    fn create<'a>(
        &'a self,
        _credential: &'a CredentialConfig,
        _lease: &'a Lease,
    ) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Makes what `lease` holds at the target good until the lease's `expires_at`, which is later than
    /// it was. Called only for one with a [`Source::Account`].
    fn extend<'a>(
        &'a self,
        _credential: &'a CredentialConfig,
        _lease: &'a Lease,
    ) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Gives the credential of an existing lease again. The expiry is that of the lease.
    fn reissue<'a>(
        &'a self,
        credential: &'a CredentialConfig,
        lease: &'a Lease,
    ) -> Answer<'a, Issued>;

    /// Takes the credential back at its source, with everything that lives by it (open connections).
    /// Succeeds when nothing is there: it is called again after a crash, and for a lease whose
    /// `create` was never called or did not finish. A `create` of the same lease that was given up,
    /// by this process or an earlier one, must not take effect afterwards.
    fn revoke<'a>(&'a self, lease: &'a Lease) -> Answer<'a, ()>;

    /// Changes the secret that all holders of a credential share, if it is of that kind: a `static`
    /// user's password. Says whether it was. Its holders are then given it anew.
    fn rotate<'a>(&'a self, _credential: &'a CredentialConfig, _now: u64) -> Answer<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    /// Changes the password of the broker's own account at a server, after which nobody but the broker
    /// knows it. Whatever is interrupted, the broker still gets in.
    fn rotate_root<'a>(&'a self, connection: &'a ConnectionName, _now: u64) -> Answer<'a, ()> {
        let problem = format!("{connection}: this engine has no account of its own to rotate");
        Box::pin(async { Err(EngineError::Unfit(problem)) })
    }

    /// When [`rotate`](Self::rotate) is due by itself for this credential: milliseconds since the Unix
    /// epoch.
    fn rotates_at<'a>(&'a self, _credential: &'a CredentialConfig) -> Answer<'a, Option<u64>> {
        Box::pin(async { Ok(None) })
    }

    /// What certifies, in an engine whose credentials are certificates.
    fn certifier(&self) -> Option<&dyn Certifier> {
        None
    }
}

/// Authorities that follow each other. One is published before it signs, and for as long as what it
/// signed is good. All times are milliseconds since the Unix epoch.
pub trait Certifier: Send + Sync {
    /// Changes with what is published: who holds a certificate is then given it with what is published
    /// now.
    fn edition(&self) -> u64;

    /// Those that are published.
    fn published(&self, now: u64) -> AuthorityInfo;

    /// Makes a list of what was revoked and has not expired, for all that are published.
    ///
    /// # Errors
    /// [`EngineError::NotFound`]: there is no authority yet.
    fn revocations(&self, now: u64) -> Answer<'_, RevocationList>;

    /// Makes, publishes and removes authorities as their time comes. To be called every minute or so;
    /// says whether anything changed. What fails leaves all as it is.
    fn maintain(&self, now: u64) -> Answer<'_, bool>;

    /// Publishes the next authority now, unless one is published already that does not sign yet. Gives
    /// the time from which the newest signs: by then every holder of a certificate has been given it.
    /// What fails leaves all as it is.
    fn rotate(&self, now: u64) -> Answer<'_, u64>;
}

/// The engines that there are.
pub struct Engines {
    /// Stored, versioned values: the door also writes them, for operators.
    pub kv: Arc<kv::Kv>,
    /// The others, by what they make.
    pub others: BTreeMap<EngineKind, Arc<dyn Engine>>,
}

impl Engines {
    /// The engine of a kind.
    ///
    /// # Errors
    /// [`EngineError::Unfit`]: this broker was built without it.
    pub fn of(&self, kind: EngineKind) -> Result<&dyn Engine, EngineError> {
        if kind == EngineKind::Kv {
            return Ok(self.kv.as_ref());
        }
        let engine = self.others.get(&kind).map(AsRef::as_ref);
        engine.ok_or_else(|| EngineError::Unfit(format!("this broker has no engine {kind}")))
    }

    /// Whether a lease is of the engine that its credential has now. After another configuration was
    /// applied, it may not be.
    #[must_use]
    pub fn fits(config: &EngineConfig, lease: &Lease) -> bool {
        config.kind() == lease.engine
    }
}

/// The place that the sealed content of a lease is bound to. Its version is the lease's expiry, so that
/// older content of the same lease does not open in place of newer.
#[must_use]
pub fn lease_record(lease: &LeaseId) -> RecordId<'_> {
    RecordId {
        kind: "lease",
        path: lease.as_str(),
    }
}

/// A lease of a kind that the asked engine did not make.
fn other_engine(lease: &Lease) -> EngineError {
    EngineError::Conflict(format!(
        "{} was made by another engine than {} has now; it must end first",
        lease.id, lease.credential
    ))
}
