//! Why someone was not attested.

use mayfly_kernel::socket::Credentials;
use mayfly_wire::link::NodeRefusal;
use mayfly_wire::{Code, WorkloadKey};

/// Attestation cannot begin on this host, or not from where the node runs in it.
#[derive(Debug, thiserror::Error)]
pub enum AttestSetupError {
    /// Something that has no other way is lacking.
    #[error("{what} does not work ({cause}): {remedy}")]
    Lacking {
        /// What.
        what: &'static str,
        /// How the kernel said so.
        cause: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The node itself is in a namespace from which it does not see the host as it is.
    #[error("the node runs in a {kind} namespace of its own, not the host's: {remedy}")]
    NotOnHost {
        /// The kind of namespace.
        kind: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// No hierarchy of cgroups can name a container.
    #[error(
        "found no cgroup hierarchy to tell containers by: expected cgroup2, or the v1 pids or \
         memory controller, mounted whole in the node's mount namespace; mount one (read-only is \
         enough), as with `-v /sys/fs/cgroup:/sys/fs/cgroup:ro`"
    )]
    NoCgroups,
}

/// Someone was not attested. The client hears only the code; this is for the log and the audit.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct AttestError {
    /// A word that does not change: see [`NodeRefusal::reason`].
    pub reason: &'static str,
    /// The cause in full, for the operator.
    pub detail: String,
    /// The peer's pid when it connected, in the node's pid namespace.
    pub pid: Option<u32>,
    /// The peer's user id when it connected.
    pub uid: Option<u32>,
    /// The peer's cgroup path, where it could be read.
    pub cgroup_path: Option<String>,
    /// The workload, where it could be told.
    pub workload: Option<WorkloadKey>,
}

/// The peer, or the sender of a message, has exited.
pub(crate) const PEER_EXITED: &str = "peer_exited";
/// The peer is not seen from the node's pid namespace.
pub(crate) const PEER_UNSEEN: &str = "peer_unseen";
/// The peer did not echo its nonce yet, or not itself.
pub(crate) const PEER_UNPROVEN: &str = "peer_unproven";
/// The sender of a message is in another container than the connector.
pub(crate) const SENDER_IN_OTHER_CONTAINER: &str = "sender_in_other_container";
/// The kernel does not say who sent a message.
pub(crate) const SENDER_UNKNOWN: &str = "sender_unknown";
/// A message carried descriptors.
pub(crate) const DESCRIPTORS_PASSED: &str = "descriptors_passed";
/// The peer is in no container.
pub(crate) const NOT_A_CONTAINER: &str = "not_a_container";
/// The peer is in a container's pid namespace, but which container cannot be told.
pub(crate) const AMBIGUOUS: &str = "ambiguous_container";
/// A container engine is there and does not answer.
pub(crate) const ENGINE_UNAVAILABLE: &str = "engine_unavailable";
/// The kernel did not answer as expected.
pub(crate) const UNREADABLE: &str = "unreadable";

impl AttestError {
    pub(crate) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            pid: None,
            uid: None,
            cgroup_path: None,
            workload: None,
        }
    }

    /// A failed read of a process's facts: a process that is gone is told apart.
    pub(crate) fn reading(what: &str, error: &std::io::Error) -> Self {
        if error.raw_os_error() == Some(nix::libc::ESRCH) {
            return Self::new(
                PEER_EXITED,
                format!("the process exited before {what} was read"),
            );
        }
        Self::new(UNREADABLE, format!("cannot read {what}: {error}"))
    }

    pub(crate) fn with_credentials(mut self, credentials: &Credentials) -> Self {
        self.pid = Some(credentials.pid);
        self.uid = Some(credentials.uid);
        self
    }

    /// What the client is told.
    #[must_use]
    pub fn code(&self) -> Code {
        match self.reason {
            PEER_UNPROVEN => Code::NonceRequired,
            ENGINE_UNAVAILABLE => Code::Unavailable,
            _ => Code::NotAttested,
        }
    }
}

impl From<AttestError> for NodeRefusal {
    fn from(error: AttestError) -> Self {
        Self {
            reason: error.reason.to_owned(),
            detail: error.detail,
            pid: error.pid,
            uid: error.uid,
            cgroup_path: error.cgroup_path,
            workload: error.workload,
            count: 1,
        }
    }
}
