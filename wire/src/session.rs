//! The workload API: what a sidecar, or `curl --unix-socket`, says on the workload socket.
//!
//! HTTP/1.1 (RFC 9112). Nobody says who they are; the node asks the kernel.
//!
//! - `POST /v1/session` with a [`Hello`] as its body and `Connection: upgrade`, `Upgrade:
//!   mayfly-session`. The answer is `101` and then, both ways, one JSON message a line:
//!   [`ServerMessage`] down, [`ClientMessage`] up.
//!   The node pings, the broker does not, and pings and pongs go no further than the node. A client
//!   only ever answers: it sends no more messages than it got.
//! - `GET /v1/whoami` answers with the workload's key, its short id, its display name, and the
//!   assurance: `{"workload", "id", "name", "assurance"}`.
//! - `GET /v1/credentials` answers with [`Granted`].
//! - `GET /v1/credentials/NAME` answers with `{"name", "lease", "expires_at", "fields": {NAME:
//!   base64}}`; `GET /v1/credentials/NAME/FIELD` with that field's bytes alone. These are the only
//!   answers in the clear.
//! - `POST /v1/credentials/NAME` and `/NAME/FIELD` with a certificate request (PKCS#10, PEM) answer
//!   likewise, for a credential whose key the workload keeps. Each is a new certificate; the one before
//!   it is replaced.
//! - `POST /v1/publish-failures` with a [`PublishFailure`](crate::PublishFailure) as its body: nothing
//!   could be published, or what was has ended. It needs no session, because the directory is looked at
//!   before one is opened.
//!   The answer is `204` once it is on record.
//!
//! A refusal is a [`Refusal`](crate::Refusal) in JSON with its code's HTTP status.

use crate::bytes::Base64;
use crate::error::Refusal;
use crate::name::{CredentialName, FieldName};
use crate::sealed::PublicKey;
use crate::workload::{LeaseId, WorkloadKey};
use serde::{Deserialize, Serialize};

/// Where the workload socket is mounted in every container.
pub const SOCKET: &str = "/run/mayfly/workload.sock";
/// Path of the session request.
pub const SESSION_PATH: &str = "/v1/session";
/// Path of the one-shot form.
pub const CREDENTIALS_PATH: &str = "/v1/credentials";
/// Path of the question "who am I".
pub const WHOAMI_PATH: &str = "/v1/whoami";
/// Path of the report that nothing could be published.
pub const PUBLISH_FAILURES_PATH: &str = "/v1/publish-failures";
/// The protocol named in `Upgrade`.
pub const UPGRADE: &str = "mayfly-session";
/// Header that carries the nonce of a kernel without SO_PEERPIDFD, both ways.
pub const NONCE_HEADER: &str = "Mayfly-Nonce";
/// Version of the session protocol.
pub const PROTOCOL: u32 = 1;

/// Most bytes of one line from a client.
pub const MAX_CLIENT_LINE: usize = 16 * 1024;
/// Most bytes of one line from the server: a whole bundle.
pub const MAX_SERVER_LINE: usize = 4 * 1024 * 1024;
/// Most bytes of a certificate request.
pub const MAX_REQUEST: usize = 16 * 1024;
/// Most bytes of one field's value.
pub const MAX_VALUE: usize = 256 * 1024;
/// Most bytes of all values in one bundle, before sealing and base64.
pub const MAX_BUNDLE: usize = 2 * 1024 * 1024;
/// Most credentials that one session can ask for.
pub const MAX_WANTED: usize = 256;
/// How often the node pings, in seconds. Either side gives up after three silent intervals.
pub const PING_SECONDS: u64 = 20;

/// How a sidecar opens a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The key that values are sealed to. Made for this session, never used for another.
    pub public_key: PublicKey,
    /// The credentials wanted; absent means all that policy grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub want: Option<Vec<CredentialName>>,
}

/// What the client says once the session stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientMessage {
    /// The bundle of this generation is published: its files are what readers see from now on.
    Ack {
        /// The bundle's generation.
        generation: u64,
    },
    /// The answer to a ping.
    Pong {},
}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// The first line.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// The workload that the caller was attested as. Sealed values are bound to it.
        workload: WorkloadKey,
    },
    /// Everything that the workload holds from now on.
    Bundle(Bundle),
    /// These credentials are withdrawn: their files must go now. A bundle without them follows.
    Withdraw {
        /// Which.
        names: Vec<CredentialName>,
    },
    /// Are you there?
    Ping {},
    /// The last line before the server closes.
    Refused(Refusal),
}

/// Everything that one workload holds, at one generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Counts up within one session, from 1.
    pub generation: u64,
    /// What time it is for whoever says when credentials end: milliseconds since the Unix epoch. Only
    /// what is left from then on counts, because clocks differ. 0 if it does not say.
    #[serde(default)]
    pub now: u64,
    /// The encapsulated key (see [`crate::sealed`]).
    pub encapsulated: Base64,
    /// The credentials, sorted by name.
    pub credentials: Vec<SealedCredential>,
    /// What was asked for and is not here, and why.
    #[serde(default)]
    pub missing: Vec<Missing>,
}

/// One credential in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedCredential {
    /// Its name.
    pub name: CredentialName,
    /// The lease that it is issued under.
    pub lease: LeaseId,
    /// When it ends unless it is renewed: milliseconds since the Unix epoch.
    pub expires_at: u64,
    /// When that is to be, or another is to take its place, likewise; 0 if nobody says.
    #[serde(default)]
    pub renews_at: u64,
    /// The shape of its files.
    pub layout: Layout,
    /// Its fields, sorted by name, sealed in this order.
    pub fields: Vec<SealedField>,
}

/// The shape of a credential's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One value: the file `NAME`. Its only field is called `value`.
    Value,
    /// Several fields: the directory `NAME/` with one file a field.
    Fields,
}

/// The field of a credential that has one value.
pub const VALUE_FIELD: &str = "value";

/// One sealed field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedField {
    /// Its name.
    pub name: FieldName,
    /// Its sealed value.
    pub sealed: Base64,
}

/// A credential that was asked for and is not in the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Its name.
    pub name: CredentialName,
    /// Why.
    pub refusal: Refusal,
}

/// The names that policy grants to the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Sorted.
    pub credentials: Vec<CredentialName>,
}
