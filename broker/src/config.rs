//! The broker's own file. Credentials and policies do not stand in it: they are applied, and kept in
//! the store.

use crate::engine::jwt::Schedule;
use crate::engine::ssh::Ssh;
use crate::engine::x509::X509;
use crate::trial::Trial;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// An example that is also the documentation, shown by `--help`.
pub const EXAMPLE: &str = r#"state_dir = "/var/lib/mayfly"            # store, audit log; made with mode 0700

[seal]
key_file = "/etc/mayfly/seal.key"        # made with the store; without it nothing can be read

[admin]
socket = "/run/mayfly/admin.sock"        # root only

[audit]
file = "/var/lib/mayfly/audit.jsonl"     # best on a disk of its own: a full one ends all issuing

[oidc]                                   # where others check the tokens of the jwt engine
listen = "127.0.0.1:8443"
issuer = "https://localhost:8443"
rotate_seconds = 604800                  # how long a signing key signs
publish_ahead_seconds = 86400            # how long it is published before

[x509]                                   # the authority of the x509 engine; [ssh] has the same
rotate_seconds = 157680000               # how long a root signs; 31536000 for the keys of ssh
publish_ahead_seconds = 86400            # how long it is published before, at least: a
                                         # certificate's life, if that is longer

[node]                                   # the embedded node; `enabled = false` for none
workload_socket = "/run/mayfly/workload/workload.sock"
engine_sockets = ["/run/docker.sock", "/run/podman/podman.sock"]

# [[node.volume]]                        # a tmpfs at /run/mayfly/volumes/orders, which the node
# name = "orders"                        # watches over; docs/sidecar.md has the other keys
# uid = 1000

# [node_link]                            # only where other hosts run mayfly-node
# listen = "0.0.0.0:7443"
# names = ["broker.example"]

[log]
format = "text"                          # or "json"
level = "info"
"#;

/// What is wrong with the file. It names the key, the file and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not as expected.
    #[error("{path}: {problem}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// The key, what was expected and what was found.
        problem: String,
    },
}

/// The whole file. Everything but `state_dir` can be left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where store and audit log are.
    pub state_dir: PathBuf,
    /// `[seal]`.
    #[serde(default)]
    pub seal: Seal,
    /// `[audit]`.
    #[serde(default)]
    pub audit: Audit,
    /// `[admin]`.
    #[serde(default)]
    pub admin: Admin,
    /// `[oidc]`.
    #[serde(default)]
    pub oidc: Oidc,
    /// `[x509]`.
    #[serde(default)]
    pub x509: Authority,
    /// `[ssh]`.
    #[serde(default)]
    pub ssh: Authority,
    /// `[node]`.
    #[serde(default)]
    pub node: Node,
    /// `[node_link]`: no remote nodes without it.
    pub node_link: Option<NodeLink>,
    /// `[log]`.
    #[serde(default)]
    pub log: Log,
    /// `[test]`: for tests alone.
    #[serde(default)]
    pub test: Trial,
}

/// How the root keys are unwrapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Seal {
    /// The key file; `seal.key` in the state directory unless it is named.
    pub key_file: Option<PathBuf>,
}

/// The audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// The file; `audit.jsonl` in the state directory unless it is named.
    pub file: Option<PathBuf>,
}

/// The admin socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where it is.
    pub socket: PathBuf,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            socket: PathBuf::from(mayfly_wire::admin::SOCKET),
        }
    }
}

/// The keys of the jwt engine, for those who check its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Oidc {
    /// Where the documents are served, over HTTPS; nowhere unless it is set.
    pub listen: Option<SocketAddr>,
    /// `iss` of every token: the URL under which others reach `listen`, without a trailing slash.
    pub issuer: String,
    /// How long a signing key signs, in seconds.
    pub rotate_seconds: u64,
    /// How long it is published before it signs, in seconds. Nobody is told to cache the keys longer than
    /// half of that.
    pub publish_ahead_seconds: u64,
}

impl Default for Oidc {
    fn default() -> Self {
        Self {
            listen: None,
            issuer: "https://localhost:8443".to_owned(),
            rotate_seconds: 7 * DAY,
            publish_ahead_seconds: DAY,
        }
    }
}

/// In seconds.
const DAY: u64 = 24 * 60 * 60;

impl Oidc {
    /// When signing keys change.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        Schedule {
            rotate_every: self.rotate_seconds.saturating_mul(1000),
            publish_ahead: self.publish_ahead_seconds.saturating_mul(1000),
        }
    }

    /// The host that the issuer names: its certificate carries it.
    #[must_use]
    pub fn host(&self) -> &str {
        let rest = self.issuer.strip_prefix("https://").unwrap_or(&self.issuer);
        let authority = rest.split('/').next().unwrap_or(rest);
        if let Some((address, _)) = authority
            .strip_prefix('[')
            .and_then(|v6| v6.split_once(']'))
        {
            return address;
        }
        authority.split(':').next().unwrap_or(authority)
    }
}

/// When the authority of an engine changes; by the engine's own schedule unless it is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authority {
    /// How long one signs, in seconds.
    pub rotate_seconds: Option<u64>,
    /// How long it is published before it signs, at least, in seconds.
    pub publish_ahead_seconds: Option<u64>,
}

impl Authority {
    /// What is said here, and otherwise `engines`.
    #[must_use]
    pub fn or(&self, engines: Schedule) -> Schedule {
        let or = |said: Option<u64>, else_: u64| said.map_or(else_, |s| s.saturating_mul(1000));
        Schedule {
            rotate_every: or(self.rotate_seconds, engines.rotate_every),
            publish_ahead: or(self.publish_ahead_seconds, engines.publish_ahead),
        }
    }
}

/// The embedded node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its settings, if there is one.
    pub settings: Option<mayfly_node::NodeConfig>,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            settings: Some(mayfly_node::NodeConfig::default()),
        }
    }
}

/// The node's own settings beside our switch.
impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let mut table = toml::Table::deserialize(deserializer)?;
        let enabled = match table.remove("enabled") {
            None => true,
            Some(toml::Value::Boolean(enabled)) => enabled,
            Some(other) => {
                let found = other.type_str();
                return Err(D::Error::custom(format!(
                    "enabled: expected true or false, found {found}"
                )));
            }
        };
        // Checked even where it is not used, so that switching it on later holds no surprise.
        let settings: mayfly_node::NodeConfig = table.try_into().map_err(D::Error::custom)?;
        settings.check().map_err(D::Error::custom)?;
        Ok(Self {
            settings: enabled.then_some(settings),
        })
    }
}

/// Where remote nodes connect.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeLink {
    /// Where.
    pub listen: SocketAddr,
    /// The names and addresses by which nodes call the broker: its certificate carries them.
    pub names: Vec<String>,
}

/// What is logged, on standard error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives of tracing's `EnvFilter`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            level: "info".to_owned(),
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        Self::parse(&text).map_err(|problem| ConfigError::Unfit {
            path: path.to_owned(),
            problem,
        })
    }

    /// Reads and checks the text of a file.
    ///
    /// # Errors
    /// The key, what was expected and what was found.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for (key, path) in [
            ("state_dir", &config.state_dir),
            ("admin.socket", &config.admin.socket),
        ] {
            if !path.is_absolute() {
                return Err(format!(
                    "{key}: expected an absolute path, found {}",
                    path.display()
                ));
            }
        }
        let issuer = &config.oidc.issuer;
        if !issuer.starts_with("https://") || issuer.ends_with('/') {
            return Err(format!(
                "oidc.issuer: expected an https:// URL without a trailing slash, found {issuer:?}"
            ));
        }
        for (table, schedule) in [
            ("oidc", config.oidc.schedule()),
            ("x509", config.x509.or(X509::schedule())),
            ("ssh", config.ssh.or(Ssh::schedule())),
        ] {
            let every = schedule.rotate_every / 1000;
            let ahead = schedule.publish_ahead / 1000;
            if ahead == 0 || ahead > every {
                return Err(format!(
                    "{table}.publish_ahead_seconds: expected 1 to {table}.rotate_seconds ({every}), \
                     found {ahead}"
                ));
            }
        }
        Ok(config)
    }

    /// The key file that wraps the root keys.
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.seal
            .key_file
            .clone()
            .unwrap_or_else(|| self.state_dir.join("seal.key"))
    }

    /// The audit log.
    #[must_use]
    pub fn audit_file(&self) -> PathBuf {
        let named = self.audit.file.clone();
        named.unwrap_or_else(|| self.state_dir.join("audit.jsonl"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_good() {
        let config = Config::parse(EXAMPLE).unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/mayfly"));
        assert!(config.node.settings.is_some());
        assert!(config.oidc.listen.is_some());
    }

    #[test]
    fn little_is_needed() {
        let config = Config::parse("state_dir = \"/x\"").unwrap();
        assert_eq!(config.key_file(), Path::new("/x/seal.key"));
        assert!(config.node.settings.is_some() && config.node_link.is_none());
        let none = Config::parse("state_dir = \"/x\"\n[node]\nenabled = false").unwrap();
        assert!(none.node.settings.is_none());
    }

    #[test]
    fn the_issuers_host() {
        let host = |issuer: &str| {
            let issuer = issuer.to_owned();
            Oidc {
                issuer,
                ..Oidc::default()
            }
            .host()
            .to_owned()
        };
        assert_eq!(host("https://localhost:8443"), "localhost");
        assert_eq!(host("https://id.example/mayfly"), "id.example");
        assert_eq!(host("https://[::1]:8443"), "::1");
    }

    #[test]
    fn errors_name_the_key_and_what_was_expected() {
        for (text, parts) in [
            ("", vec!["state_dir"]),
            ("state_dir = \"x\"", vec!["state_dir", "absolute"]),
            ("state_dir = \"/x\"\nsate = 1", vec!["sate", "expected"]),
            (
                "state_dir = \"/x\"\n[admin]\nsokcet = \"/y\"",
                vec!["sokcet", "socket"],
            ),
            (
                "state_dir = \"/x\"\n[node]\nenabled = 1",
                vec!["enabled", "true or false"],
            ),
            (
                "state_dir = \"/x\"\n[oidc]\nissuer = \"http://x\"",
                vec!["oidc.issuer", "https"],
            ),
            (
                "state_dir = \"/x\"\n[oidc]\nrotate_seconds = 5",
                vec!["oidc.publish_ahead_seconds", "5"],
            ),
            (
                "state_dir = \"/x\"\n[ssh]\npublish_ahead_seconds = 0",
                vec!["ssh.publish_ahead_seconds", "found 0"],
            ),
            (
                "state_dir = \"/x\"\n[log]\nformat = \"xml\"",
                vec!["xml", "text"],
            ),
        ] {
            let problem = Config::parse(text).unwrap_err();
            for part in parts {
                assert!(problem.contains(part), "{text}: {problem}");
            }
        }
    }
}
