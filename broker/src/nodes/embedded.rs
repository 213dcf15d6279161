//! The node in the broker's own process: plain calls.

use super::Nodes;
use mayfly_node::upstream::{Answer, Session, Upstream};
use mayfly_wire::Evidence;
use mayfly_wire::link::{Heartbeat, NodeEvent, SessionRequest, Watch};
use mayfly_wire::session::Granted;
use std::sync::Arc;

/// The broker, as its embedded node sees it.
pub struct Embedded {
    nodes: Arc<Nodes>,
    name: String,
}

impl Embedded {
    /// For the node of this name.
    #[must_use]
    pub fn new(nodes: Arc<Nodes>, name: String) -> Self {
        Self { nodes, name }
    }
}

impl Upstream for Embedded {
    fn session(&self, request: SessionRequest) -> Answer<'_, Session> {
        Box::pin(self.nodes.session(&self.name, request))
    }

    fn granted(&self, evidence: Evidence) -> Answer<'_, Granted> {
        Box::pin(async move { self.nodes.granted(&self.name, &evidence).await })
    }

    fn heartbeat(&self, heartbeat: Heartbeat) -> Answer<'_, Watch> {
        Box::pin(self.nodes.heartbeat(&self.name, heartbeat))
    }

    fn event(&self, event: NodeEvent) -> Answer<'_, ()> {
        Box::pin(self.nodes.event(&self.name, event))
    }
}
