//! What a node is told: its name, its socket, its engines, its limits.

use crate::volumes;
pub use crate::volumes::VolumeConfig;
use mayfly_wire::Facility;
use mayfly_wire::session::PING_SECONDS;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The `[node]` table of `mayfly-node`'s file, and of the broker's for its embedded node. Every key
/// can be left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name in evidence, records and policies. A remote node's certificate must carry the
    /// same. The default is the host's name.
    pub name: String,
    /// Where the workload socket is made. Its directory is what containers bind-mount (read-only, at
    /// `/run/mayfly`), so it must hold nothing else.
    pub workload_socket: PathBuf,
    /// Docker-compatible API sockets to ask about containers. One that is not there is asked again
    /// later; without any, containers are attested by kernel facts alone. While one is there and
    /// does not answer, containers that no other knows are refused.
    pub engine_sockets: Vec<PathBuf>,
    /// Kernel facilities to do without, as if the kernel lacked them. For tests: it only ever lowers
    /// what the evidence is worth.
    pub forbid: Vec<Facility>,
    /// Where the volumes are made, each in a directory of its name.
    pub volumes_dir: PathBuf,
    /// Each a tmpfs for secrets that the node makes and watches over. It stays mounted when the node
    /// ends, with what is in it.
    pub volume: Vec<VolumeConfig>,
    /// Limits on the workload socket.
    pub limits: Limits,
}

/// Where the workload socket is made unless the configuration says otherwise.
pub const WORKLOAD_SOCKET: &str = "/run/mayfly/workload/workload.sock";
/// Where the volumes are made unless the configuration says otherwise.
pub const VOLUMES_DIR: &str = "/run/mayfly/volumes";

impl Default for NodeConfig {
    fn default() -> Self {
        let host = nix::unistd::gethostname().ok();
        Self {
            name: host
                .and_then(|name| name.into_string().ok())
                .unwrap_or_default(),
            workload_socket: PathBuf::from(WORKLOAD_SOCKET),
            engine_sockets: vec![
                PathBuf::from("/run/docker.sock"),
                PathBuf::from("/run/podman/podman.sock"),
            ],
            forbid: Vec::new(),
            volumes_dir: PathBuf::from(VOLUMES_DIR),
            volume: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// Limits on the workload socket. The sizes of requests are fixed by the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most connections at once, of all containers. Each takes up to twelve descriptors, with the
    /// handles on its process and its container. No container ever holds more than an eighth of what
    /// is still free.
    pub connections: usize,
    /// Most connections at once of one container.
    pub connections_per_container: usize,
    /// Most requests and new sessions of one container in a second, as long as it asks all the time.
    /// Each one that is granted is an audit record. Beyond, it is answered 429 with `Retry-After`.
    pub requests_per_second_per_container: u32,
    /// How many of them it may make at once after a rest.
    pub request_burst_per_container: u32,
    /// Most requests on one connection.
    pub requests_per_connection: usize,
    /// How long the header of a request may take, in seconds.
    pub header_seconds: u64,
    /// How long the body of a request may take, in seconds.
    pub body_seconds: u64,
    /// How long a connection may last, in seconds, unless a session is opened on it.
    pub request_seconds: u64,
    /// How long the other side of a session may take to read one message, in seconds.
    pub write_seconds: u64,
    /// How often a session is pinged, in seconds: at most [`PING_SECONDS`], because clients give up
    /// after three times that. It ends after three silent intervals.
    pub ping_seconds: u64,
    /// How often an open session's process and container are looked at again, in seconds: what has
    /// changed, such as privileges or limits, is told to the broker, which decides anew.
    pub reattest_seconds: u64,
    /// Least time between two reports of like refusals of one container, in seconds.
    pub refusal_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_container: 64,
            requests_per_second_per_container: 20,
            request_burst_per_container: 100,
            requests_per_connection: 100,
            header_seconds: 5,
            body_seconds: 5,
            request_seconds: 60,
            write_seconds: 10,
            ping_seconds: PING_SECONDS,
            reattest_seconds: 30,
            refusal_seconds: 10,
        }
    }
}

/// A key that holds something else than it should.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{key}`: expected {expected}, found {found}")]
pub struct BadConfig {
    /// The key, from the root of the file.
    pub key: &'static str,
    /// What it should hold.
    pub expected: String,
    /// What it holds.
    pub found: String,
}

impl NodeConfig {
    /// Checks what the types alone do not hold.
    ///
    /// # Errors
    /// [`BadConfig`], which names the key.
    pub fn check(&self) -> Result<(), BadConfig> {
        let name_fits = (1..=253).contains(&self.name.len())
            && self
                .name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if !name_fits {
            return Err(BadConfig {
                key: "node.name",
                expected: "1 to 253 of a-z, A-Z, 0-9, '-', '_' and '.'".to_owned(),
                found: format!("{:?}", self.name),
            });
        }
        let path = &self.workload_socket;
        // sun_path holds 108 bytes with the final zero (unix(7)); the new socket is made under a name
        // that is 5 bytes longer.
        let path_fits = path.is_absolute()
            && path.file_name().is_some()
            && path.as_os_str().len() <= 102
            && path
                .parent()
                .is_some_and(|parent| parent.parent().is_some());
        if !path_fits {
            return Err(BadConfig {
                key: "node.workload_socket",
                expected: "an absolute path of at most 102 bytes, in a directory of its own"
                    .to_owned(),
                found: format!("{}", path.display()),
            });
        }
        let directory = &self.volumes_dir;
        if !directory.is_absolute() || directory.parent().is_none() {
            return Err(BadConfig {
                key: "node.volumes_dir",
                expected: "an absolute path".to_owned(),
                found: format!("{}", directory.display()),
            });
        }
        volumes::check(&self.volume)?;
        self.limits.check()
    }
}

impl Limits {
    fn check(&self) -> Result<(), BadConfig> {
        let most = 1_000_000;
        let hour = 3600;
        let checks = [
            ("node.limits.connections", self.connections as u64, most),
            (
                "node.limits.connections_per_container",
                self.connections_per_container as u64,
                most,
            ),
            (
                "node.limits.requests_per_second_per_container",
                self.requests_per_second_per_container.into(),
                most,
            ),
            (
                "node.limits.request_burst_per_container",
                self.request_burst_per_container.into(),
                most,
            ),
            (
                "node.limits.requests_per_connection",
                self.requests_per_connection as u64,
                most,
            ),
            ("node.limits.header_seconds", self.header_seconds, hour),
            ("node.limits.body_seconds", self.body_seconds, hour),
            ("node.limits.request_seconds", self.request_seconds, hour),
            ("node.limits.write_seconds", self.write_seconds, hour),
            ("node.limits.ping_seconds", self.ping_seconds, PING_SECONDS),
            ("node.limits.reattest_seconds", self.reattest_seconds, hour),
            ("node.limits.refusal_seconds", self.refusal_seconds, hour),
        ];
        for (key, found, most) in checks {
            if found == 0 || found > most {
                return Err(BadConfig {
                    key,
                    expected: format!("a whole number from 1 to {most}"),
                    found: found.to_string(),
                });
            }
        }
        Ok(())
    }

    pub(crate) fn header(&self) -> Duration {
        Duration::from_secs(self.header_seconds)
    }
    pub(crate) fn body(&self) -> Duration {
        Duration::from_secs(self.body_seconds)
    }
    pub(crate) fn request(&self) -> Duration {
        Duration::from_secs(self.request_seconds)
    }
    pub(crate) fn write(&self) -> Duration {
        Duration::from_secs(self.write_seconds)
    }
    pub(crate) fn ping(&self) -> Duration {
        Duration::from_secs(self.ping_seconds)
    }
    pub(crate) fn reattest(&self) -> Duration {
        Duration::from_secs(self.reattest_seconds)
    }
    pub(crate) fn refusal(&self) -> Duration {
        Duration::from_secs(self.refusal_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_can_be_left_out() {
        let config: NodeConfig = toml::from_str("").unwrap();
        assert_eq!(config, NodeConfig::default());
        config.check().unwrap();
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        assert!(toml::from_str::<NodeConfig>("workload_sock = '/a/b'").is_err());
        assert!(toml::from_str::<NodeConfig>("[limits]\nconnection = 1").is_err());
        assert!(toml::from_str::<NodeConfig>("forbid = ['so_peerpidfe']").is_err());
    }

    #[test]
    fn bad_values_name_their_key() {
        let check = |text: &str| {
            let config: NodeConfig = toml::from_str(text).unwrap();
            config.check().unwrap_err().key
        };
        assert_eq!(check("name = ''"), "node.name");
        assert_eq!(check("name = 'a b'"), "node.name");
        assert_eq!(check("workload_socket = 'a/b'"), "node.workload_socket");
        assert_eq!(check("workload_socket = '/b'"), "node.workload_socket");
        assert_eq!(check("volumes_dir = 'a'"), "node.volumes_dir");
        assert_eq!(check("[[volume]]\nname = '..'"), "node.volume.name");
        assert_eq!(
            check("[limits]\nping_seconds = 0"),
            "node.limits.ping_seconds"
        );
    }

    /// A sidecar ends a session that was silent for three times [`PING_SECONDS`].
    #[test]
    fn no_session_is_pinged_more_seldom_than_its_client_bears() {
        let check = |seconds: u64| {
            let text = format!("[limits]\nping_seconds = {seconds}");
            toml::from_str::<NodeConfig>(&text).unwrap().check()
        };
        check(PING_SECONDS).unwrap();
        let error = check(PING_SECONDS + 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`node.limits.ping_seconds`: expected a whole number from 1 to 20, found 21"
        );
    }
}
