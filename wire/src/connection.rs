//! Connections: the servers at which engines make accounts. What stands in a configuration file under
//! `[connection.NAME]`; the password never does: `mayfly connection set NAME` gives it.

use crate::engine::EngineKind;
use crate::name::ConnectionName;
use serde::{Deserialize, Serialize};

/// Connections at the same time, unless it is said otherwise.
pub const MAX_CONNECTIONS: u16 = 8;
/// Iterations of PBKDF2 in a SCRAM-SHA-256 verifier, unless it is said otherwise: what PostgreSQL itself
/// takes, and what some drivers insist on.
pub const SCRAM_ITERATIONS: u32 = 4096;

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionConfig {
    /// Its name.
    pub name: ConnectionName,
    /// The engine that uses it.
    pub engine: EngineKind,
    /// A host name, an address, or the absolute path of a unix socket.
    pub host: String,
    /// Its TCP port; the server's usual one unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The account that the broker uses there, which may make others.
    pub username: String,
    /// The database that it connects to, where the server has those, and that holders are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Whether and how TLS is spoken. Without TLS only the loopback interface and unix sockets are
    /// allowed.
    #[serde(default)]
    pub tls: Tls,
    /// Certificates that are trusted, PEM; those of the machine unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Where holders find the server, if not where the broker does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_host: Option<String>,
    /// [`MAX_CONNECTIONS`] unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u16>,
    /// PostgreSQL only: [`SCRAM_ITERATIONS`] unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scram_iterations: Option<u32>,
}

/// Whether and how TLS is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// The server's certificate is checked, its name too.
    #[default]
    Verify,
    /// No TLS.
    Off,
}
