//! Engines and the settings of each: what stands in a configuration file under `[credential.NAME]`.

use crate::name::{ConnectionName, KvPath};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What makes credentials of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Stored, versioned values.
    Kv,
    /// Signed tokens.
    Jwt,
    /// PostgreSQL roles.
    Postgres,
    /// MariaDB and MySQL users.
    Mysql,
    /// Redis ACL users.
    Redis,
    /// RabbitMQ users.
    Rabbitmq,
    /// X.509 certificates.
    X509,
    /// OpenSSH certificates.
    Ssh,
}

impl EngineKind {
    /// Every engine, in the order in which they are listed.
    pub const ALL: [Self; 8] = [
        Self::Kv,
        Self::Jwt,
        Self::Postgres,
        Self::Mysql,
        Self::Redis,
        Self::Rabbitmq,
        Self::X509,
        Self::Ssh,
    ];

    /// Its name in configuration files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::Jwt => "jwt",
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Redis => "redis",
            Self::Rabbitmq => "rabbitmq",
            Self::X509 => "x509",
            Self::Ssh => "ssh",
        }
    }

    /// The engine of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl std::str::FromStr for EngineKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::named(name).ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            format!("expected one of {all}, found {name:?}")
        })
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What makes a credential, with that engine's own settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EngineConfig {
    /// A stored, versioned value.
    Kv {
        /// Where it stands.
        path: KvPath,
    },
    /// A signed token (RFC 7519).
    Jwt {
        /// How it is signed.
        algorithm: JwtAlgorithm,
        /// `aud`.
        audience: Vec<String>,
        /// `sub`: a template over the evidence.
        subject: String,
        /// More claims, each a template over the evidence.
        #[serde(default)]
        claims: BTreeMap<String, String>,
    },
    /// A PostgreSQL role.
    Postgres(SqlSettings),
    /// A MariaDB or MySQL user.
    Mysql(SqlSettings),
    /// An X.509 certificate and its key.
    X509(X509Settings),
    /// An OpenSSH certificate and its key.
    Ssh(SshSettings),
    /// A Redis ACL user.
    Redis(RedisSettings),
    /// A RabbitMQ user.
    Rabbitmq(RabbitmqSettings),
}

impl EngineConfig {
    /// Which engine.
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        match self {
            Self::Kv { .. } => EngineKind::Kv,
            Self::Jwt { .. } => EngineKind::Jwt,
            Self::Postgres(_) => EngineKind::Postgres,
            Self::Mysql(_) => EngineKind::Mysql,
            Self::X509(_) => EngineKind::X509,
            Self::Ssh(_) => EngineKind::Ssh,
            Self::Redis(_) => EngineKind::Redis,
            Self::Rabbitmq(_) => EngineKind::Rabbitmq,
        }
    }

    /// Whether each credential is made for a certificate request that the workload sends, and so neither
    /// by itself for a session nor renewed.
    #[must_use]
    pub fn by_request(&self) -> bool {
        matches!(self, Self::X509(settings) if settings.key == X509Key::Workload)
    }

    /// The connection that it needs, if it makes something at a target.
    #[must_use]
    pub fn connection(&self) -> Option<&ConnectionName> {
        match self {
            Self::Kv { .. } | Self::Jwt { .. } | Self::X509(_) | Self::Ssh(_) => None,
            Self::Postgres(settings) | Self::Mysql(settings) => Some(&settings.connection),
            Self::Redis(settings) => Some(&settings.connection),
            Self::Rabbitmq(settings) => Some(&settings.connection),
        }
    }

    /// The users that stand at a target already and are shared by all holders, and where.
    #[must_use]
    pub fn fixed_users(&self) -> Option<(&ConnectionName, &[String])> {
        match self {
            Self::Postgres(settings) | Self::Mysql(settings) => {
                Some((&settings.connection, &settings.fixed))
            }
            _ => None,
        }
    }
}

/// A signature algorithm (RFC 7518, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JwtAlgorithm {
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// ECDSA with P-256 and SHA-256.
    #[serde(rename = "ES256")]
    Es256,
}

/// Users of an SQL server: one for each lease (`create`), or one or two that stand there already and
/// are shared by all holders (`static`). Exactly one of the two is given.
///
/// Statements know three placeholders: `{{name}}`, `{{password}}` and `{{expiration}}`, each of which
/// becomes a quoted identifier or literal; inside quotes it becomes the bare text. Nothing else is ever
/// put into a statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqlSettings {
    /// The server.
    pub connection: ConnectionName,
    /// Statements that make a user, in one transaction where the server has those for users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub create: Vec<String>,
    /// Statements that extend it; the engine has its own when this is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renew: Vec<String>,
    /// Statements that remove it; the engine has its own when this is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoke: Vec<String>,
    /// PostgreSQL only: the role that what a holder's role owns is given to when that is removed. One
    /// that `create` grants to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heir: Option<String>,
    /// One user whose password is rotated, or two that take turns, so that a rotation never breaks a
    /// client that is connecting.
    #[serde(default, rename = "static", skip_serializing_if = "Vec::is_empty")]
    pub fixed: Vec<String>,
    /// How often the password of a `static` user is rotated by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate_every: Option<Span>,
    /// How passwords are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordPolicy>,
}

/// An X.509 certificate. It has at least one name. Names are templates over the evidence, and what the
/// evidence says never adds a label, a segment or a separator to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509Settings {
    /// Its SPIFFE ID: `spiffe://TRUST-DOMAIN/PATH`. The trust domain is plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<String>,
    /// Its DNS names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// The common name of its subject, for servers that take a user's name from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// What it may be used for.
    #[serde(default = "X509Usage::both")]
    pub usage: Vec<X509Usage>,
    /// The kind of its key.
    #[serde(default)]
    pub key: X509Key,
}

/// A side of a TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum X509Usage {
    /// The side that connects.
    Client,
    /// The side that is connected to.
    Server,
}

impl X509Usage {
    fn both() -> Vec<Self> {
        vec![Self::Client, Self::Server]
    }
}

/// The kind of a certificate's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum X509Key {
    /// ECDSA with P-256, which everybody takes.
    #[default]
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    /// Ed25519.
    #[serde(rename = "ed25519")]
    Ed25519,
    /// The workload's own, which never leaves it: it sends a certificate request for each certificate.
    #[serde(rename = "workload")]
    Workload,
}

/// An OpenSSH certificate, always with an Ed25519 key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshSettings {
    /// Whom it certifies.
    pub kind: SshKind,
    /// The names that it is good for, at least one: users to log in as, or names of the host. Templates
    /// over the evidence, and what the evidence says never adds a separator to them.
    pub principals: Vec<String>,
    /// What its holder may do besides running a command. Users only; none unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<SshExtension>,
    /// The one command that its holder may run, plain text. Users only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_command: Option<String>,
    /// The networks that it may be used from: addresses, or address/length. Users only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_address: Vec<String>,
}

/// Whom an OpenSSH certificate certifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SshKind {
    /// Somebody who logs in.
    User,
    /// A host that is logged in to.
    Host,
}

/// What a user's certificate allows (`PROTOCOL.certkeys` of OpenSSH, "Extensions").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SshExtension {
    /// X11 forwarding.
    #[serde(rename = "permit-X11-forwarding")]
    X11Forwarding,
    /// Forwarding of the user's agent.
    #[serde(rename = "permit-agent-forwarding")]
    AgentForwarding,
    /// Forwarding of ports.
    #[serde(rename = "permit-port-forwarding")]
    PortForwarding,
    /// A terminal.
    #[serde(rename = "permit-pty")]
    Pty,
    /// The user's `~/.ssh/rc`.
    #[serde(rename = "permit-user-rc")]
    UserRc,
}

impl SshExtension {
    /// Its name in a certificate.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X11Forwarding => "permit-X11-forwarding",
            Self::AgentForwarding => "permit-agent-forwarding",
            Self::PortForwarding => "permit-port-forwarding",
            Self::Pty => "permit-pty",
            Self::UserRc => "permit-user-rc",
        }
    }
}

/// How passwords are made. At least 128 bits of them are random.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordPolicy {
    /// How many characters.
    pub length: u8,
    /// Characters besides letters and digits that it may hold, for servers that demand one.
    #[serde(default)]
    pub symbols: String,
}

/// A Redis ACL user for each lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisSettings {
    /// The server.
    pub connection: ConnectionName,
    /// What the user may do, as ACL rules in their order: `~orders:*`, `+@read`, `&news`. Rules about
    /// passwords and about the user itself are the engine's.
    pub rules: Vec<String>,
}

/// A RabbitMQ user for each lease, made through the management API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RabbitmqSettings {
    /// The server: host and port of its management API.
    pub connection: ConnectionName,
    /// What the user may do in each virtual host.
    pub permissions: BTreeMap<String, RabbitmqPermission>,
    /// Tags of the user, such as `monitoring`; most need none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Where holders find AMQP on the connection's host: 5671 with TLS and 5672 without, unless it is
    /// said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amqp_port: Option<u16>,
}

/// What a RabbitMQ user may do in one virtual host: regular expressions over the names of queues and
/// exchanges. An empty one matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RabbitmqPermission {
    /// Which it may make and remove.
    pub configure: String,
    /// Which it may publish to.
    pub write: String,
    /// Which it may consume from.
    pub read: String,
}

/// A span of time in whole seconds, which people write as `90s`, `15m`, `1h30m` or `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub u64);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let total = seconds(text).filter(|total| *total > 0);
        total.map(Self).ok_or_else(|| {
            let found: String = text.chars().take(40).collect();
            format!(
                "expected a span such as \"90s\", \"15m\", \"1h30m\" or \"7d\", found {found:?}"
            )
        })
    }
}

fn seconds(text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    let mut count: Option<u64> = None;
    for letter in text.chars() {
        if let Some(digit) = letter.to_digit(10) {
            let before = count.unwrap_or(0).checked_mul(10)?;
            count = Some(before.checked_add(u64::from(digit))?);
            continue;
        }
        let size = match letter {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(count.take()?.checked_mul(size)?)?;
    }
    count.is_none().then_some(total)
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    /// In the units that it is a sum of: `1h30m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
            if rest >= size || (unit == "s" && self.0 == 0) {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, total) in [
            ("90s", 90),
            ("15m", 900),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("1d1s", 86_401),
        ] {
            assert_eq!(text.parse::<Span>(), Ok(Span(total)));
        }
        assert_eq!(Span(5400).to_string(), "1h30m");
        assert_eq!(Span(90).to_string(), "1m30s");
        for text in [
            "",
            "s",
            "5",
            "1m5",
            "0s",
            "1.5h",
            "-1s",
            "1 h",
            "99999999999999999999d",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_engine_is_found_by_its_name() {
        for kind in EngineKind::ALL {
            assert_eq!(EngineKind::named(kind.as_str()), Some(kind));
        }
        assert_eq!(EngineKind::named("vault"), None);
    }
}
