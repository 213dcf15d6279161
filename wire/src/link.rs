//! The node link: what a node tells its broker, and asks it. The embedded node passes these same types
//! in memory; a remote node speaks them as JSON over HTTP/2 and mutual TLS.
//!
//! - `POST /v1/node/session`: request body and answer are streams, one JSON message a line. Up: one
//!   [`SessionRequest`], then [`SessionUpdate`]s. Down:
//!   [`ServerMessage`](crate::session::ServerMessage)s.
//! - `POST /v1/node/granted`: [`Evidence`] → [`Granted`](crate::session::Granted).
//! - `POST /v1/node/heartbeat`: [`Heartbeat`] → [`Watch`]. The node's certificate names the node; a
//!   message that names another is refused.
//! - `POST /v1/node/event`: [`NodeEvent`] → empty. Answered once it is on disk.

use crate::evidence::Evidence;
use crate::publish::{Detail, PublishFailure};
use crate::session::Hello;
use crate::workload::WorkloadKey;
use serde::{Deserialize, Serialize};

/// Path of the session stream.
pub const SESSION_PATH: &str = "/v1/node/session";
/// Path of the question what is granted.
pub const GRANTED_PATH: &str = "/v1/node/granted";
/// Path of the heartbeat.
pub const HEARTBEAT_PATH: &str = "/v1/node/heartbeat";
/// Path of events.
pub const EVENT_PATH: &str = "/v1/node/event";
/// How often a node proves that its workloads live, in seconds.
pub const HEARTBEAT_SECONDS: u64 = 5;

/// A workload asks, through its node, for a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionRequest {
    /// Who asks, by what the node established.
    pub evidence: Evidence,
    /// What the sidecar said.
    pub hello: Hello,
    /// Whether it ends after its first bundle: the one-shot form, whose values the node opens.
    pub once: bool,
    /// With the one-shot form, the workload's certificate request for the one credential that it wants:
    /// PEM, as it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csr: Option<String>,
}

/// What follows the [`SessionRequest`] up a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionUpdate {
    /// The client has published the bundle of this generation.
    Ack {
        /// The bundle's generation.
        generation: u64,
    },
    /// The workload, or the process that asks for it, is no longer what it was. What is granted is to be
    /// decided anew.
    Changed(Box<Evidence>),
}

/// A node lives, and with it every workload whose death it has not reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The node's name.
    pub node: String,
    /// The boot that it runs in.
    pub boot_id: String,
    /// Whether the node has just started, and so wants the whole list of what it must watch.
    pub starting: bool,
}

/// What the node must watch: workloads that hold leases. The node reports at once the death of those
/// that are not there any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The workloads, each with the init process to find again.
    pub workloads: Vec<Watched>,
}

/// One workload to watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Which.
    pub workload: WorkloadKey,
    /// See [`Evidence::init_pid`].
    pub init_pid: u32,
    /// See [`Evidence::init_start_time`].
    pub init_start_time: u64,
}

/// Something happened on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NodeEvent {
    /// A workload is dead: its init, and with it all its processes.
    Died {
        /// Which.
        workload: WorkloadKey,
    },
    /// The node refused someone, before policy was asked.
    Refused(Box<NodeRefusal>),
    /// A workload reports that its sidecar cannot publish.
    PublishFailed(Box<Unpublished>),
    /// Files in a volume of the node's outlived what they hold, or the workload.
    Overdue(Box<Overdue>),
}

/// Most items, and most workloads, that an [`Overdue`] names.
pub const MAX_OVERDUE: usize = 32;

/// What a node did in one of its volumes because no sidecar did it in time, or what it saw there. The
/// kernel's facts are the node's; the names of the items are the container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overdue {
    /// The volume's name in the node's configuration.
    pub volume: String,
    /// What was done.
    pub act: OverdueAct,
    /// Paths in the volume, at most [`MAX_OVERDUE`].
    pub items: Vec<Detail>,
    /// How many there were.
    pub count: u64,
    /// The workloads that had the volume then, at most [`MAX_OVERDUE`].
    pub workloads: Vec<WorkloadKey>,
}

/// What was done. A word is never renamed or given another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverdueAct {
    /// What had expired was overwritten and removed.
    ExpiredRemoved,
    /// What had expired could not be overwritten or removed.
    NotRemoved,
    /// What has expired is kept, as its sidecar was told, and the sidecar does not renew it.
    KeptStale,
    /// The workload was told to end, because it was not to run without what had expired.
    StoppedStale,
    /// The last workload that had the volume is dead, and what it left was overwritten and removed.
    Cleared,
}

impl OverdueAct {
    /// In words.
    #[must_use]
    pub fn phrase(self) -> &'static str {
        match self {
            Self::ExpiredRemoved => "expired, and removed by the node",
            Self::NotRemoved => "expired, and the node could not remove it",
            Self::KeptStale => "expired, and kept stale",
            Self::StoppedStale => "expired, and its workload stopped by the node",
            Self::Cleared => "left by dead workloads, and removed by the node",
        }
    }
}

/// A workload's report that its sidecar cannot publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpublished {
    /// Who reports it, by what the node established.
    pub evidence: Evidence,
    /// What it reports. Nobody but the workload vouches for it.
    pub failure: PublishFailure,
}

/// What the node knows about someone it refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRefusal {
    /// Why, in a word that does not change: `sender_in_other_container`, `peer_exited`,
    /// `not_a_container`, `descriptors_passed`, `too_slow`, …
    pub reason: String,
    /// The cause in full, for the operator.
    pub detail: String,
    /// The peer's pid when it connected, in the host's pid namespace.
    pub pid: Option<u32>,
    /// The peer's user id when it connected.
    pub uid: Option<u32>,
    /// The peer's cgroup path, where it could be read.
    pub cgroup_path: Option<String>,
    /// The workload, where it could be told.
    pub workload: Option<WorkloadKey>,
    /// How many like refusals of the same origin this record stands for: a flood makes one record an
    /// interval, not one a try.
    pub count: u64,
}
