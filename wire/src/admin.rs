//! The admin API: what `mayfly` says on the admin socket. HTTP/1.1 with JSON over a unix socket that
//! only root may connect to.
//!
//! | request | body → answer |
//! |---|---|
//! | `GET /v1/status` | → [`Status`] |
//! | `POST /v1/plan` | [`Desired`] → [`Plan`] |
//! | `POST /v1/apply` | [`Apply`] → [`Plan`] (what was done) |
//! | `POST /v1/policy/check` | [`Vec`]<[`PolicyFile`]> → [`PolicyCheck`] |
//! | `PUT /v1/kv/PATH` | [`KvPut`] → [`KvVersion`] |
//! | `GET /v1/kv/PATH?version=N` | → [`KvValue`] |
//! | `DELETE /v1/kv/PATH` | → [`KvVersion`] (of the deletion mark) |
//! | `GET /v1/kv-history/PATH` | → [`Vec`]<[`KvVersion`]> |
//! | `GET /v1/kv` | → [`Vec`]<[`KvEntry`]> |
//! | `GET /v1/workloads` | → [`Vec`]<[`WorkloadInfo`]> |
//! | `GET /v1/explain?workload=W&credential=C` | → [`Explanation`] |
//! | `GET /v1/leases?`[`LeaseFilter`] | → [`Vec`]<[`LeaseInfo`]> |
//! | `POST /v1/revoke` | [`Revoke`] → lines of [`Progress`] |
//! | `POST /v1/rotate` | [`Rotate`] → lines of [`Progress`] |
//! | `GET /v1/connections` | → [`Vec`]<[`ConnectionInfo`]> |
//! | `PUT /v1/connections/NAME` | [`ConnectionSecret`] → [`ConnectionInfo`] |
//! | `POST /v1/connections/NAME/rotate` | → [`ConnectionInfo`] |
//! | `GET /v1/authorities` | → [`Vec`]<[`AuthorityInfo`]> |
//! | `GET /v1/authorities/ENGINE/crl` | → [`RevocationList`] |
//! | `POST /v1/authorities/ENGINE/rotate` | → [`AuthorityInfo`] |
//! | `GET /v1/audit?last=N` | → lines of the audit file |
//! | `GET /v1/audit?last=N&follow=true` | → the same, and then each new line as it is written |
//! | `POST /v1/audit/verify` | → [`AuditReport`] |
//! | `POST /v1/nodes/NAME` | → [`NodeCertificate`] |
//!
//! A refusal is a [`Refusal`](crate::Refusal) whose message tells the cause.

use crate::bytes::Base64;
use crate::connection::ConnectionConfig;
use crate::evidence::Evidence;
use crate::name::{CredentialName, FieldName, KvPath};
use crate::publish::PublishFailure;
use crate::workload::{LeaseId, WorkloadKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub use crate::engine::{
    EngineConfig, EngineKind, JwtAlgorithm, SshExtension, SshKind, SshSettings, X509Key,
    X509Settings, X509Usage,
};

/// Where the admin socket is.
pub const SOCKET: &str = "/run/mayfly/admin.sock";
/// Most bytes of one admin request.
pub const MAX_BODY: usize = 8 * 1024 * 1024;

/// How the broker is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its pid, in its own pid namespace.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Whether it is sealed.
    pub sealed: bool,
    /// Where its state is.
    pub state_dir: String,
    /// The workload socket of its embedded node, if it has one.
    pub workload_socket: Option<String>,
    /// Base of its OpenID discovery document.
    pub issuer: String,
    /// The nodes that it hears from.
    pub nodes: Vec<NodeInfo>,
    /// Counts.
    pub credentials: u64,
    /// Policies that operators applied.
    pub policies: u64,
    /// Live leases.
    pub leases: u64,
    /// Those of them that should have ended and could not be.
    #[serde(default)]
    pub stuck: u64,
    /// Open sessions.
    pub sessions: u64,
    /// The last audit record.
    pub audit_seq: u64,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Seconds since its last heartbeat.
    pub last_heartbeat_seconds: u64,
    /// Live workloads on it that hold leases or sessions.
    pub workloads: u64,
}

/// One credential, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialConfig {
    /// Its name.
    pub name: CredentialName,
    /// How long a lease lasts unless it is renewed, in seconds.
    pub ttl_seconds: u64,
    /// How long it is renewed at most, in seconds: then a new one takes its place. Absent: for as long
    /// as its workload lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl_seconds: Option<u64>,
    /// How long a lease that another took the place of is still good while its holders have not said
    /// that they use the new one, in seconds: [`GRACE_SECONDS`] unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u64>,
    /// What makes it.
    pub engine: EngineConfig,
}

/// One `.cedar` file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// Its name, for messages: `orders.cedar`.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// See [`CredentialConfig::grace_seconds`].
pub const GRACE_SECONDS: u64 = 30;

/// Everything that a configuration directory says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// Every server that engines may use.
    #[serde(default)]
    pub connections: Vec<ConnectionConfig>,
    /// Every credential that shall exist.
    pub credentials: Vec<CredentialConfig>,
    /// Every policy that shall stand, beside the baseline.
    pub policies: Vec<PolicyFile>,
    /// Whether the `hardened` rules stand too: `[policy] hardened = true` in one of the TOML files.
    #[serde(default)]
    pub hardened: bool,
}

/// Makes a plan so.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// What shall be.
    pub desired: Desired,
    /// [`Plan::base`] of the plan that the operator saw: a configuration that has changed since is
    /// refused. Absent means "whatever stands now".
    pub base: Option<u64>,
}

/// What would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Number of the configuration that this was compared with.
    pub base: u64,
    /// What changes, in the order in which it is shown.
    pub changes: Vec<Change>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Create, update or delete.
    pub action: ChangeAction,
    /// `connection`, `credential` or `policy`.
    pub kind: String,
    /// Name of the connection or the credential, or the policy's id.
    pub name: String,
    /// What changes in it: `ttl: 15m → 5m`.
    pub details: Vec<String>,
    /// How many live leases it touches.
    pub leases: u64,
    /// What people call the workloads that hold these: the first few, for a credential.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<String>,
}

/// What happens to a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// It is new.
    Create,
    /// It changes.
    Update,
    /// It goes.
    Delete,
}

/// What is wrong with some policies, if anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCheck {
    /// How many policies were read.
    pub policies: u64,
    /// Empty when all is well.
    pub problems: Vec<PolicyProblem>,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyProblem {
    /// The file.
    pub file: String,
    /// Counts from 1, where it is known.
    pub line: Option<u64>,
    /// What was expected, what was found.
    pub message: String,
}

/// A new version of a value. The fields' values are base64 ([`crate::bytes`]); whoever holds this
/// answers for zeroing it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvPut {
    /// One field called `value` makes a credential of one value; anything else makes a directory.
    pub fields: BTreeMap<FieldName, SecretText>,
    /// Refuse unless this is the current version; 0 means that there must be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_version: Option<u64>,
}

/// One version of a value, as an operator reads it.
#[derive(Serialize, Deserialize)]
pub struct KvValue {
    /// Where it stands.
    pub path: KvPath,
    /// Its version.
    pub version: u64,
    /// Its fields.
    pub fields: BTreeMap<FieldName, SecretText>,
}

/// A secret value as base64 text inside JSON, on its way between an operator and the broker. It can be
/// serialized, on purpose and only here; it cannot be printed or cloned, and is zeroed when dropped.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(zeroize::Zeroizing<String>);

impl SecretText {
    /// Encodes a secret for the admin socket.
    #[must_use]
    pub fn encode(secret: &crate::Secret) -> Self {
        Self(zeroize::Zeroizing::new(crate::bytes::encode(
            secret.expose(),
        )))
    }

    /// Decodes it.
    ///
    /// # Errors
    /// A fixed phrase that does not repeat the text.
    pub fn decode(&self) -> Result<crate::Secret, &'static str> {
        crate::bytes::decode(&self.0).map(crate::Secret::from)
    }
}

/// One version, without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvVersion {
    /// Where it stands.
    pub path: KvPath,
    /// Counts up from 1.
    pub version: u64,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// Whether this version is a deletion mark.
    pub deleted: bool,
    /// Names of its fields.
    pub fields: Vec<FieldName>,
}

/// One path of the kv engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEntry {
    /// The path.
    pub path: KvPath,
    /// Its current version.
    pub version: u64,
    /// When that was made: milliseconds since the Unix epoch.
    pub created_at: u64,
    /// Whether the current version is a deletion mark.
    pub deleted: bool,
}

/// One workload that the broker knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkloadInfo {
    /// The short id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Its latest evidence.
    pub evidence: Evidence,
    /// Open sessions.
    pub sessions: u64,
    /// Live leases.
    pub leases: u64,
    /// The generation that its sidecar acknowledged last, in its present session.
    pub acknowledged: Option<u64>,
    /// What its sidecar reported last, if it has published nothing since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_failure: Option<PublishFailure>,
}

/// Why a workload gets a credential, or does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The workload's short id.
    pub workload: String,
    /// What people call it.
    pub name: String,
    /// The credential.
    pub credential: CredentialName,
    /// The decision now, on the latest evidence.
    pub allowed: bool,
    /// The policies that made it: those that permitted, or those that forbade.
    pub decided_by: Vec<ExplainedPolicy>,
    /// One sentence for people.
    pub summary: String,
}

/// A policy that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedPolicy {
    /// Its id.
    pub id: String,
    /// `permit` or `forbid`.
    pub effect: String,
    /// Its own explanation (annotation `@reason`), if it has one.
    pub reason: Option<String>,
    /// Its text.
    pub text: String,
}

/// One lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Its id.
    pub lease: LeaseId,
    /// Whose.
    pub workload: WorkloadKey,
    /// What people call the workload.
    pub name: String,
    /// The node that attested it.
    pub node: String,
    /// Which credential.
    pub credential: CredentialName,
    /// What made it.
    pub engine: EngineKind,
    /// How far it is: `planned`, `active`, `retiring` or `revoking`.
    pub state: String,
    /// Milliseconds since the Unix epoch.
    pub issued_at: u64,
    /// Milliseconds since the Unix epoch.
    pub expires_at: u64,
    /// The version of the stored value that it gives, where it gives one.
    pub version: Option<u64>,
    /// The account at a target that exists for it, where there is one.
    pub account: Option<String>,
    /// How often its engine failed to end it.
    pub attempts: u64,
    /// Why, the last time.
    pub problem: Option<String>,
    /// When it is tried again: milliseconds since the Unix epoch.
    pub due_at: u64,
}

/// Which leases: those that fit everything that is given. In a query, each by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseFilter {
    /// The one of this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// Those of the workload with this short id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Those on this credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<CredentialName>,
    /// Those that this node attested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Those that could not be ended when they were to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stuck: bool,
}

/// Ends leases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// Which. One that fits every lease needs `all`.
    pub which: LeaseFilter,
    /// Every lease is meant.
    #[serde(default)]
    pub all: bool,
    /// Forget those whose engine cannot end them: what they hold at the target stays there.
    #[serde(default)]
    pub forget: bool,
}

/// Makes credentials anew, for all who hold them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// Which; none with `all`.
    pub credentials: Vec<CredentialName>,
    /// Every credential is meant.
    #[serde(default)]
    pub all: bool,
}

/// How far a long act is. The last line has `end`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Leases, or static accounts, that are done.
    pub done: u64,
    /// Those that failed, and are tried again.
    pub failed: u64,
    /// All of them.
    pub total: u64,
    /// The first few failures, at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Whether this is the last line.
    #[serde(default)]
    pub end: bool,
}

/// The password of the broker's own account at a server. Whoever holds this answers for zeroing it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionSecret {
    /// The password.
    pub password: SecretText,
}

/// A server at which engines make accounts, as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// Its settings.
    pub config: ConnectionConfig,
    /// Whether the broker has a password for it.
    pub has_password: bool,
}

/// What certifies for an engine whose credentials are certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityInfo {
    /// The engine. Each has one.
    pub engine: EngineKind,
    /// Those that are published, the oldest first; none before the first certificate.
    pub published: Vec<PublishedAuthority>,
    /// What verifies certificates of all of them, by the names that these files have for holders.
    pub files: BTreeMap<String, String>,
}

/// One authority of several that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedAuthority {
    /// How far it is.
    pub state: AuthorityState,
    /// It signs from then on: milliseconds since the Unix epoch.
    pub signs_from: u64,
    /// SHA-256 of what verifies it, as `openssl x509 -fingerprint` or `ssh-keygen -l` tell it.
    pub fingerprints: Vec<String>,
}

/// How far an authority is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityState {
    /// What it signed may still be good.
    Past,
    /// It signs.
    Signing,
    /// It is published, and does not sign yet.
    Next,
}

/// What was revoked before it expires, signed where the format has that: a list for those who verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationList {
    /// The engine.
    pub engine: EngineKind,
    /// Counts up with each list that is made.
    pub number: u64,
    /// How many certificates are on it.
    pub entries: u64,
    /// The list as a file: of `x509` PEM with a list (RFC 5280) of each authority, of `ssh` a key
    /// revocation list (`PROTOCOL.krl` of OpenSSH).
    pub file: Base64,
}

/// What a check of the audit file found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Records read.
    pub records: u64,
    /// Hash of the last one.
    pub head: String,
    /// What is wrong, or nothing.
    pub problem: Option<String>,
}

/// What a new node needs. Its key is a secret: whoever holds this answers for zeroing it.
#[derive(Serialize, Deserialize)]
pub struct NodeCertificate {
    /// The node's certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM, base64.
    pub key: SecretText,
    /// The authority that the broker's own certificate comes from, PEM.
    pub ca: String,
}
