//! What a node established about a workload.

use crate::posture::Posture;
use crate::workload::WorkloadKey;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How strong the evidence is. Ordered: the later is the stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assurance {
    /// Kernel facts only.
    Kernel,
    /// Kernel facts, and engine metadata that was bound to the same live processes.
    Inspected,
    /// The engine's own create hook announced the container before it ran.
    Registered,
}

impl Assurance {
    /// The word in policies and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Inspected => "inspected",
            Self::Registered => "registered",
        }
    }

    /// 1, 2 or 3, so that a policy can demand "at least".
    #[must_use]
    pub fn rank(self) -> i64 {
        match self {
            Self::Kernel => 1,
            Self::Inspected => 2,
            Self::Registered => 3,
        }
    }
}

/// A kernel facility that attestation wants. One that is lacking is listed in
/// [`Evidence::lacking`], which lowers what the evidence is worth, and policy can demand it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Facility {
    /// SO_PEERPIDFD, Linux 6.5. Without it the peer must echo a nonce.
    SoPeerpidfd,
    /// SCM_PIDFD, Linux 6.5. Without it a sender is held by SCM_CREDENTIALS alone.
    ScmPidfd,
    /// PIDFD_GET_INFO, Linux 6.13. Without it the cgroup comes from /proc.
    PidfdGetInfo,
    /// PIDFD_GET_*_NAMESPACE, Linux 6.11. Without it namespaces come from /proc.
    PidfdGetNamespace,
    /// NS_GET_ID, Linux 6.18. Without it namespaces are compared by held inode.
    NsGetId,
    /// cgroup v2, as the source of the container's cgroup id.
    CgroupV2,
}

impl Facility {
    /// Every facility.
    pub const ALL: [Self; 6] = [
        Self::SoPeerpidfd,
        Self::ScmPidfd,
        Self::PidfdGetInfo,
        Self::PidfdGetNamespace,
        Self::NsGetId,
        Self::CgroupV2,
    ];

    /// The word in policies, records and options.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SoPeerpidfd => "so_peerpidfd",
            Self::ScmPidfd => "scm_pidfd",
            Self::PidfdGetInfo => "pidfd_get_info",
            Self::PidfdGetNamespace => "pidfd_get_namespace",
            Self::NsGetId => "ns_get_id",
            Self::CgroupV2 => "cgroup_v2",
        }
    }
}

impl fmt::Display for Facility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An image, by what cannot be retagged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of the image's configuration: `sha256:…`. This is the image's identity.
    pub config_digest: String,
    /// `name@sha256:…` for each registry that it came from; empty for a local image.
    pub repo_digests: BTreeSet<String>,
    /// The name that the container was started with. A retag changes what it means: never decide on it.
    pub reference: String,
}

/// How the engine was told to run a container. A process can take capabilities off itself, and put a
/// seccomp filter on; these it cannot change, and the container's next process begins with them.
///
/// Every field is `None` where the engine did not say. An unknown never satisfies a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whether it is privileged.
    pub privileged: Option<bool>,
    /// The capabilities that it was given beyond those that the engine gives to everyone, by name
    /// without `CAP_`, lower case, sorted. A privileged container was given every one.
    pub granted_capabilities: Option<Vec<String>>,
    /// `default` (the engine's own), `unconfined` (none, as for a privileged container), `custom`.
    pub seccomp: Option<String>,
    /// `default` (the engine's own), `unconfined` (none, as for a privileged container), or the
    /// name of a profile.
    pub apparmor: Option<String>,
    /// `default`, `host`, `container:…`, or another word of the engine's.
    pub pid_mode: Option<String>,
    /// Likewise.
    pub ipc_mode: Option<String>,
    /// Likewise.
    pub user_mode: Option<String>,
    /// Likewise.
    pub network_mode: Option<String>,
    /// Whether its root filesystem is read-only.
    pub read_only_root: Option<bool>,
    /// Paths of the host's devices that it was given, sorted. A privileged container has all of the
    /// host's, which are not listed here.
    pub devices: Option<Vec<String>>,
}

/// What the container engine says about a container, bound to the live processes that the kernel
/// attested.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// `docker` or `podman`.
    pub engine: String,
    /// The engine's id: 64 hexadecimal digits.
    pub id: String,
    /// The container's name, without a leading slash.
    pub name: String,
    /// The image it runs.
    pub image: Image,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The compose project (label `com.docker.compose.project`).
    pub compose_project: Option<String>,
    /// The compose service (label `com.docker.compose.service`).
    pub compose_service: Option<String>,
    /// How the engine was told to run it.
    #[serde(default)]
    pub settings: Settings,
}

/// The container that a companion sidecar stands in, when it serves another one whose pid namespace
/// it shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companion {
    /// Id of the companion's own cgroup.
    pub cgroup_id: u64,
    /// What the engine says about the companion, if an engine knows it.
    pub container: Option<Container>,
}

/// What a node established about a workload, from the kernel and the container engine. A statement of
/// facts; what follows from them is for policy to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Which workload this is about.
    pub workload: WorkloadKey,
    /// The node that says so.
    pub node: String,
    /// How strong it is.
    pub assurance: Assurance,
    /// What this node's kernel lacks (or was told not to use).
    pub lacking: BTreeSet<Facility>,
    /// Path of the container's cgroup from the root of its hierarchy, as the host sees it.
    pub cgroup_path: Option<String>,
    /// What the engine says; absent where no engine knows the container.
    pub container: Option<Container>,
    /// The companion that asks on behalf of this workload, in the joined case.
    pub companion: Option<Companion>,
    /// Whether the peer is still in the user and mount namespaces that its container began with.
    /// `None` when it could not be established.
    pub own_namespaces: Option<bool>,
    /// Posture of the process that asked.
    pub peer: Posture,
    /// Posture of the container's init.
    pub init: Posture,
    /// Pid of the container's init, in the host's pid namespace. With its start time it lets a node
    /// that restarted find the same process again; it is not an identity.
    pub init_pid: u32,
    /// Start time of that process, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub init_start_time: u64,
}

impl Evidence {
    /// The name that people know the workload by: the container's name, or the last part of its
    /// cgroup's path, or its id.
    #[must_use]
    pub fn display_name(&self) -> String {
        if let Some(container) = &self.container {
            return container.name.clone();
        }
        let last = self
            .cgroup_path
            .as_deref()
            .and_then(|path| path.rsplit('/').next());
        last.filter(|name| !name.is_empty())
            .map_or_else(|| self.workload.id(), str::to_owned)
    }
}
