//! What nodes tell the broker, and ask it. Each caller's name is known before it comes here: the
//! embedded node's from the configuration, a remote node's from its certificate.

pub mod embedded;
mod lines;
pub mod link;

use crate::door::Door;
use crate::sessions::Hub;
use mayfly_node::upstream::Session;
use mayfly_wire::link::{Heartbeat, NodeEvent, NodeRefusal, SessionRequest, Watch};
use mayfly_wire::session::Granted;
use mayfly_wire::{Code, Evidence, Refusal, WorkloadKey};
use std::sync::Arc;
use std::time::Duration;

/// The nodes that the broker hears from.
pub struct Nodes {
    door: Arc<Door>,
    hub: Arc<Hub>,
}

impl Nodes {
    /// None yet.
    #[must_use]
    pub fn new(door: Arc<Door>, hub: Arc<Hub>) -> Arc<Self> {
        Arc::new(Self { door, hub })
    }

    /// Whether a node was heard of lately.
    #[must_use]
    pub fn lives(&self, node: &str) -> bool {
        self.door.heard().lately(node)
    }

    /// Every node that was ever heard of, with the time since then.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Duration)> {
        self.door.heard().all()
    }

    /// Opens a session.
    ///
    /// # Errors
    /// What [`Hub::open`] says; [`Code::NotAttested`] for evidence of another node.
    pub async fn session(&self, node: &str, request: SessionRequest) -> Result<Session, Refusal> {
        self.own(node, &request.evidence.node, "evidence").await?;
        self.hub.open(request).await
    }

    /// Which credentials policy grants.
    ///
    /// # Errors
    /// As [`Self::session`].
    pub async fn granted(&self, node: &str, evidence: &Evidence) -> Result<Granted, Refusal> {
        self.own(node, &evidence.node, "evidence").await?;
        self.door.granted(evidence)
    }

    /// Takes a heartbeat.
    ///
    /// # Errors
    /// [`Code::NotAttested`] for another node's, [`Code::Unavailable`].
    pub async fn heartbeat(&self, node: &str, heartbeat: Heartbeat) -> Result<Watch, Refusal> {
        self.own(node, &heartbeat.node, "a heartbeat").await?;
        let watch = if heartbeat.starting {
            let (workloads, gone) = self.door.watch(node, &heartbeat.boot_id).await?;
            tracing::info!(node, watched = workloads.len(), "a node started");
            for workload in gone {
                self.dead(&workload).await?;
            }
            Watch { workloads }
        } else {
            Watch::default()
        };
        self.door.heard().now(node);
        Ok(watch)
    }

    /// Takes an event. It is on disk when this returns.
    ///
    /// # Errors
    /// [`Code::NotAttested`] for a workload of another node, [`Code::Unavailable`].
    pub async fn event(&self, node: &str, event: NodeEvent) -> Result<(), Refusal> {
        match event {
            NodeEvent::Died { workload } => {
                if let Some(owner) = self.door.node_of(&workload).await? {
                    self.own(node, &owner, "the death of a workload").await?;
                }
                self.dead(&workload).await
            }
            NodeEvent::Refused(refusal) => self.door.node_refused(node, *refusal).await,
            NodeEvent::PublishFailed(report) => {
                let owner = &report.evidence.node;
                self.own(node, owner, "a report of a workload").await?;
                self.door.publish_failed(*report).await
            }
            NodeEvent::Overdue(report) => self.door.overdue(node, *report).await,
        }
    }

    async fn dead(&self, workload: &WorkloadKey) -> Result<(), Refusal> {
        let died = self.door.died(workload).await;
        self.hub.close(workload);
        died.map(|_| ())
    }

    /// A node speaks for itself alone. One that does not is refused, on record.
    async fn own(&self, node: &str, named: &str, what: &str) -> Result<(), Refusal> {
        if node == named {
            return Ok(());
        }
        let detail = format!("node {node:?} sent {what} of node {named:?}");
        tracing::error!("{detail}");
        let refusal = NodeRefusal {
            reason: "another_node".to_owned(),
            detail,
            pid: None,
            uid: None,
            cgroup_path: None,
            workload: None,
            count: 1,
        };
        self.door.node_refused(node, refusal).await?;
        Err(Code::NotAttested.into())
    }
}
