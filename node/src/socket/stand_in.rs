//! For tests: a server that nobody stands behind, but one who takes reports.

use super::Server;
use super::service::Shared;
use crate::attest::{AttestConfig, Attestor};
use crate::config::Limits;
use crate::refusals::Refusals;
use crate::served::Served;
use crate::upstream::{Answer, Session, Upstream};
use mayfly_wire::link::{Heartbeat, NodeEvent, SessionRequest, Watch};
use mayfly_wire::session::Granted;
use mayfly_wire::{Code, Evidence};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

#[derive(Default)]
pub(crate) struct Nobody {
    pub(crate) taken: Mutex<Vec<NodeEvent>>,
}

fn unavailable<'a, T: Send + 'a>() -> Answer<'a, T> {
    Box::pin(async { Err(Code::Unavailable.into()) })
}

impl Upstream for Nobody {
    fn session(&self, _: SessionRequest) -> Answer<'_, Session> {
        unavailable()
    }
    fn granted(&self, _: Evidence) -> Answer<'_, Granted> {
        unavailable()
    }
    fn heartbeat(&self, _: Heartbeat) -> Answer<'_, Watch> {
        unavailable()
    }
    fn event(&self, event: NodeEvent) -> Answer<'_, ()> {
        self.taken.lock().unwrap().push(event);
        Box::pin(async { Ok(()) })
    }
}

/// Needs root, as attesting does.
pub(super) fn server() -> (Server, Arc<Shared>) {
    let server = Server {
        attestor: Arc::new(Attestor::new(AttestConfig::default()).unwrap()),
        upstream: Arc::new(Nobody::default()),
        served: Served::new().0,
        refusals: Refusals::new(Duration::from_secs(1)),
        limits: Limits::default(),
    };
    let (_, stopping) = watch::channel(false);
    let (open, _) = mpsc::channel(1);
    let shared = server.shared(stopping, open);
    (server, shared)
}
