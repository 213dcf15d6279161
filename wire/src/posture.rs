//! The security settings of one process, as the host sees them.

use serde::{Deserialize, Serialize};

/// Every field is `None` when the node could not establish it, or could not trust what it read. An
/// unknown never satisfies a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posture {
    /// Effective user id, in the host's user namespace.
    pub uid: Option<u32>,
    /// Effective group id, in the host's user namespace.
    pub gid: Option<u32>,
    /// Whether the process is in the host's user namespace.
    pub host_user_namespace: Option<bool>,
    /// Whether the process is in the host's pid namespace.
    pub host_pid_namespace: Option<bool>,
    /// Whether the process is in the host's network namespace.
    pub host_network_namespace: Option<bool>,
    /// Whether the process is in the host's ipc namespace.
    pub host_ipc_namespace: Option<bool>,
    /// Whether the process is in the host's mount namespace.
    pub host_mount_namespace: Option<bool>,
    /// Whether the process is in the host's uts namespace.
    pub host_uts_namespace: Option<bool>,
    /// Whether the process is in the host's cgroup namespace.
    pub host_cgroup_namespace: Option<bool>,
    /// Effective capabilities, by name without `CAP_`, lower case, sorted: `net_bind_service`.
    pub effective_capabilities: Option<Vec<String>>,
    /// Permitted capabilities, likewise.
    pub permitted_capabilities: Option<Vec<String>>,
    /// The bounding set, likewise: what it could ever gain in its user namespace.
    pub bounding_capabilities: Option<Vec<String>>,
    /// Whether no_new_privs is set (prctl(2), PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: Option<bool>,
    /// Seccomp mode of proc(5): 0 off, 1 strict, 2 filter.
    pub seccomp_mode: Option<u8>,
    /// How many seccomp filters are installed.
    pub seccomp_filters: Option<u32>,
    /// The LSM label (`/proc/PID/attr/current`), or `None` where no LSM gives one.
    pub lsm_label: Option<String>,
    /// Whether `/` is mounted read-only.
    pub read_only_root: Option<bool>,
    /// The container engines' sockets that are mounted inside: the mountinfo roots.
    pub engine_sockets: Option<Vec<String>>,
    /// Filesystem type at `/run/secrets`, if something is mounted there.
    pub secrets_filesystem: Option<String>,
    /// Memory limit in bytes; `Some(u64::MAX)` says that there is none.
    pub memory_limit: Option<u64>,
    /// Limit of processes; `Some(u64::MAX)` says that there is none.
    pub pids_limit: Option<u64>,
}

/// A limit that is not set.
pub const UNLIMITED: u64 = u64::MAX;
