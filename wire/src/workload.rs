//! What names a workload and a lease.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// One generation of one container. A restarted container has another key, because the kernel never
/// uses a cgroup id twice within a boot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkloadKey {
    /// `/proc/sys/kernel/random/boot_id`: cgroup and namespace ids mean nothing beyond one boot.
    pub boot_id: String,
    /// Id of the container's cgroup: the v2 id, or the v1 directory's inode where v2 is not in use.
    pub cgroup_id: u64,
    /// Id of the container's pid namespace: NS_GET_ID, or its inode where the kernel lacks that.
    pub pidns_id: u64,
}

impl WorkloadKey {
    /// The short name that people type: 12 hexadecimal digits of the key's SHA-256.
    #[must_use]
    pub fn id(&self) -> String {
        let digest = Sha256::digest(self.to_string());
        digest
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.boot_id, self.cgroup_id, self.pidns_id)
    }
}

/// The id of one lease: `lease-` and 32 hexadecimal digits, made by the broker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(String);

impl LeaseId {
    /// An id from 16 random bytes.
    #[must_use]
    pub fn from_random(random: [u8; 16]) -> Self {
        Self(format!("lease-{:032x}", u128::from_be_bytes(random)))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// From a store that holds what [`LeaseId::from_random`] made.
impl From<String> for LeaseId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
