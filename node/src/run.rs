//! One node, from its first heartbeat to its last request. The broker's embedded node and
//! `mayfly-node` both call this.

use crate::attest::{AttestConfig, Attestor};
use crate::config::{BadConfig, NodeConfig};
use crate::refusals::Refusals;
use crate::served::Served;
use crate::socket::{self, PlaceError, Server};
use crate::upstream::Upstream;
use mayfly_wire::link::{HEARTBEAT_SECONDS, Heartbeat};
use std::future::Future;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// The workload socket cannot be made.
    #[error(transparent)]
    Socket(#[from] PlaceError),
    /// This host's kernel cannot attest, or not for this user.
    #[error("attestation: {0}")]
    Attestation(String),
    /// Waiting for connections or deaths failed.
    #[error("the node cannot go on: {0}")]
    Io(#[from] io::Error),
}

/// Runs a node until `shutdown` completes, then lets open requests end.
///
/// Calls `ready` once, when the workload socket listens: before that, nobody finds it. Does not wait
/// for the broker; until it answers, callers get `unavailable`.
///
/// # Errors
/// [`NodeError`], at the start only.
pub async fn run(
    config: NodeConfig,
    upstream: Arc<dyn Upstream>,
    ready: impl FnOnce() + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), NodeError> {
    config.check()?;
    let attestor = Attestor::new(AttestConfig {
        node: config.name.clone(),
        engine_sockets: config.engine_sockets.clone(),
        forbid: config.forbid.clone(),
    })
    .map_err(|error| NodeError::Attestation(error.to_string()))?;
    let attestor = Arc::new(attestor);
    let (served, deaths) = Served::new();
    let refusals = Refusals::new(config.limits.refusal());

    let options = |listener: &UnixListener| attestor.listener_options(listener);
    let listener = socket::listen(&config.workload_socket, options)?;

    // They end when this returns.
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&served).mourn(deaths, Arc::clone(&upstream)));
    tasks.spawn({
        let (refusals, upstream) = (Arc::clone(&refusals), Arc::clone(&upstream));
        async move { refusals.send_all(&*upstream).await }
    });
    let heartbeat = Heartbeat {
        node: config.name.clone(),
        boot_id: attestor.boot_id().to_owned(),
        starting: true,
    };
    let beat = Beat {
        heartbeat,
        upstream: Arc::clone(&upstream),
        served: Arc::clone(&served),
        attestor: Arc::clone(&attestor),
    };
    tasks.spawn(beat.run());

    let lacking = attestor.facilities_lacking();
    tracing::info!(
        node = config.name,
        socket = %config.workload_socket.display(),
        ?lacking,
        "the workload socket listens"
    );
    ready();
    let (stop, stopping) = watch::channel(false);
    let server = Server {
        attestor,
        upstream,
        served,
        refusals,
        limits: config.limits,
    };
    let serving = server.serve(listener, stopping);
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => served?,
        () = shutdown => {
            stop.send_replace(true);
            serving.await?;
        }
    }
    Ok(())
}

/// Proves at each interval that this node lives, and takes over what it must watch.
struct Beat {
    heartbeat: Heartbeat,
    upstream: Arc<dyn Upstream>,
    served: Arc<Served>,
    attestor: Arc<Attestor>,
}

impl Beat {
    /// Never ends.
    async fn run(mut self) {
        let mut ticks = interval(Duration::from_secs(HEARTBEAT_SECONDS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.upstream.heartbeat(self.heartbeat.clone()).await {
                Ok(watch) => {
                    self.heartbeat.starting = false;
                    self.served.resume(&self.attestor, &watch.workloads);
                }
                Err(error) => tracing::warn!(%error, "the broker did not take the heartbeat"),
            }
        }
    }
}
