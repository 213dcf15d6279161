//! One node, from its first heartbeat to its last request. The broker's embedded node and
//! `mayfly-node` both call this.

use crate::attest::{AttestConfig, Attestor};
use crate::config::{BadConfig, NodeConfig};
use crate::refusals::Refusals;
use crate::served::Served;
use crate::socket::{self, PlaceError, Server, Spot};
use crate::upstream::Upstream;
use crate::volumes::{self, Keeper, Outbox, VolumeError};
use mayfly_wire::link::{HEARTBEAT_SECONDS, Heartbeat, NodeRefusal};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::future::Future;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long the last reports may take when the node stops.
const LAST_REPORTS: Duration = Duration::from_secs(2);

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
    /// A volume cannot be had.
    #[error(transparent)]
    Volume(#[from] VolumeError),
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
    let volumes = volumes::prepare(&config)?;
    if !volumes.is_empty() && !attestor.sees_all() {
        return Err(VolumeError::Blind.into());
    }

    let options = |listener: &UnixListener| attestor.listener_options(listener);
    let listener = socket::listen(&config.workload_socket, options)?;
    let spot = Spot::remember(&config.workload_socket)?;
    allow_descriptors(config.limits.connections);

    // They end when this returns.
    let mut tasks = JoinSet::new();
    let mut reports = JoinSet::new();
    let (finish, finishing) = watch::channel(false);
    tasks.spawn(Arc::clone(&served).mourn(deaths, Arc::clone(&upstream)));
    reports.spawn({
        let (refusals, upstream) = (Arc::clone(&refusals), Arc::clone(&upstream));
        let finishing = finishing.clone();
        async move { refusals.send_all(&*upstream, finishing).await }
    });
    if !volumes.is_empty() {
        let outbox = Arc::new(Outbox::default());
        let keeper = Keeper {
            volumes,
            attestor: Arc::clone(&attestor),
            served: Arc::clone(&served),
            outbox: Arc::clone(&outbox),
        };
        tasks.spawn(keeper.run());
        let upstream = Arc::clone(&upstream);
        reports.spawn(async move { outbox.send_all(&*upstream, finishing).await });
    }
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
        refusals: Arc::clone(&refusals),
        spot,
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
    finish.send_replace(true);
    let sent = async { while reports.join_next().await.is_some() {} };
    if timeout(LAST_REPORTS, sent).await.is_err() {
        tracing::warn!("the broker did not take the last reports in time");
    }
    Ok(())
}

/// Proves at each interval that this node lives, and takes over what it must watch.
struct Beat {
    heartbeat: Heartbeat,
    upstream: Arc<dyn Upstream>,
    served: Arc<Served>,
    attestor: Arc<Attestor>,
    refusals: Arc<Refusals>,
    spot: Spot,
}

impl Beat {
    /// Never ends.
    async fn run(mut self) {
        let mut ticks = interval(Duration::from_secs(HEARTBEAT_SECONDS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.check_socket();
            self.attestor.let_go_of_the_dead();
            match self.upstream.heartbeat(self.heartbeat.clone()).await {
                Ok(watch) => {
                    self.heartbeat.starting = false;
                    self.served.resume(&self.attestor, &watch.workloads);
                }
                Err(error) => tracing::warn!(%error, "the broker did not take the heartbeat"),
            }
        }
    }

    /// Someone who took the socket's place is not among those that are attested, so all that can be
    /// done is to say so.
    fn check_socket(&self) {
        if self.spot.is_held() {
            return;
        }
        tracing::error!(
            "the workload socket was replaced or removed: mount its directory read-only into \
             containers, and restart the node"
        );
        let refusal = NodeRefusal {
            reason: "socket_replaced".to_owned(),
            detail: "the workload socket's path does not lead to this node any more".to_owned(),
            pid: None,
            uid: None,
            cgroup_path: None,
            workload: None,
            count: 1,
        };
        self.refusals.report(None, refusal);
    }
}

/// Most descriptors that one connection takes: itself, three handles on its process, and for the first
/// of a container seven that stay until its death: six on the container, one for its death. And one
/// while an engine is asked.
const DESCRIPTORS_EACH: u64 = 12;
/// What the rest of the process takes.
const DESCRIPTORS_ELSE: u64 = 256;

/// Raises the process's soft limit of descriptors (RLIMIT_NOFILE), which is usually 1024, to what all
/// connections may take, or to the hard one.
fn allow_descriptors(connections: usize) {
    let wanted = descriptors_for(connections);
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) => {
            let raised = wanted.min(hard).max(soft);
            if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, raised, hard) {
                tracing::warn!(%error, "cannot raise RLIMIT_NOFILE");
            } else if raised < wanted {
                tracing::warn!(
                    hard,
                    wanted,
                    "the hard limit of RLIMIT_NOFILE is too low for `node.limits.connections`: raise \
                     it (in a unit, LimitNOFILE={wanted}), or lower that to {}",
                    connections_within(hard)
                );
            }
        }
        Err(error) => tracing::warn!(%error, "cannot read RLIMIT_NOFILE"),
    }
}

fn descriptors_for(connections: usize) -> u64 {
    (connections as u64)
        .saturating_mul(DESCRIPTORS_EACH)
        .saturating_add(DESCRIPTORS_ELSE)
}

fn connections_within(descriptors: u64) -> u64 {
    (descriptors.saturating_sub(DESCRIPTORS_ELSE) / DESCRIPTORS_EACH).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_warning_names_as_many_connections_as_fit() {
        for connections in [1, 320, 4096] {
            let wanted = descriptors_for(connections);
            assert_eq!(connections_within(wanted), connections as u64);
            assert_eq!(
                connections_within(wanted - 1),
                (connections as u64 - 1).max(1)
            );
        }
        assert_eq!(descriptors_for(4096), 49_408);
        assert_eq!(connections_within(20_000), 1645);
        assert_eq!(descriptors_for(usize::MAX), u64::MAX);
    }
}
