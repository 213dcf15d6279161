//! Where a node's questions go: to the broker in the same process, or over the node link.

use mayfly_wire::link::{Heartbeat, NodeEvent, SessionRequest, SessionUpdate, Watch};
use mayfly_wire::session::{Granted, ServerMessage};
use mayfly_wire::{Evidence, Refusal};
use std::future::Future;
use std::pin::Pin;
use tokio::sync::mpsc;

/// What the methods of [`Upstream`] return.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Refusal>> + Send + 'a>>;

/// The broker, as a node sees it. It judges; the node only gathers.
pub trait Upstream: Send + Sync + 'static {
    /// Opens a session for the workload that the evidence is about.
    fn session(&self, request: SessionRequest) -> Answer<'_, Session>;

    /// Which credentials policy grants.
    fn granted(&self, evidence: Evidence) -> Answer<'_, Granted>;

    /// Proves that the node and its workloads live, and learns what to watch.
    fn heartbeat(&self, heartbeat: Heartbeat) -> Answer<'_, Watch>;

    /// Reports an event. Answers once the broker has it on disk.
    fn event(&self, event: NodeEvent) -> Answer<'_, ()>;
}

/// One open session. Dropping it closes it at the broker.
#[derive(Debug)]
pub struct Session {
    /// To the broker.
    pub up: mpsc::Sender<SessionUpdate>,
    /// From the broker. It ends when the broker closes the session.
    pub down: mpsc::Receiver<ServerMessage>,
}
