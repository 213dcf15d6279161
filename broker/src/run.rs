//! The broker, from its configuration to its drain.

use crate::admin::{self, About, Admin, SocketError};
use crate::audit::{AuditError, AuditKey, AuditLog, Opening};
use crate::clock::{Clock, SteadyClock, SystemClock};
use crate::config::Config;
use crate::door::{self, Door, Parts};
use crate::engine::connections::Connections;
use crate::engine::{
    Engine, EngineError, Engines, jwt, kv, mysql, postgres, rabbitmq, redis, ssh, x509,
};
use crate::leases;
use crate::nodes::Nodes;
use crate::nodes::embedded::Embedded;
use crate::nodes::link;
use crate::oidc;
use crate::pki::{Pki, PkiError};
use crate::seal::SealError;
use crate::sessions::Hub;
use crate::store::{Store, sqlite};
use crate::trial::{Fault, Trial, WrongClock};
use crate::unseal::KeyFile;
use mayfly_wire::EngineKind;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// How often signing keys are looked at, and the store is told the last audit record.
const MAINTAIN: Duration = Duration::from_secs(60);
/// How long open work may take once the broker is told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the broker does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store.
    #[error(transparent)]
    Store(#[from] sqlite::OpenError),
    /// The seal.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The kernel does not tell how time passes.
    #[error("the clock: {0}")]
    Clock(std::io::Error),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// An engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What the store holds.
    #[error(transparent)]
    Open(#[from] door::OpenError),
    /// The admin socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The embedded node.
    #[error("the embedded node: {0}")]
    Node(#[from] mayfly_node::NodeError),
    /// The broker's authority.
    #[error("the broker's authority: {0}")]
    Pki(#[from] PkiError),
    /// The authority's certificate cannot be written for others to trust.
    #[error("{directory}: ca.pem cannot be written: {error}")]
    Authority {
        /// Where.
        directory: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// A TCP port.
    #[error("{key}: cannot listen on {address}: {error}")]
    Listen {
        /// The key of the configuration.
        key: &'static str,
        /// What it says.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
}

/// Options of one start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Go on, on record, when audit records are missing.
    pub accept_audit_loss: bool,
}

/// The parts that live as long as the broker, without sockets.
pub struct Broker {
    /// The door.
    pub door: Arc<Door>,
    /// The sessions.
    pub hub: Arc<Hub>,
    /// The nodes.
    pub nodes: Arc<Nodes>,
    /// What certifies nodes and servers.
    pub pki: Arc<Pki>,
    jwt: Arc<jwt::Jwt>,
}

impl Broker {
    /// Opens store, seal, audit log and engines.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn open(config: &Config, options: Options) -> Result<Self, RunError> {
        if config.test != Trial::default() {
            tracing::warn!(
                "the configuration has a [test] table: this broker can end at a step or go by a \
                 wrong clock on purpose, and must not serve anybody"
            );
        }
        let wall: Arc<dyn Clock> = match &config.test.clock_offset_file {
            None => Arc::new(SystemClock),
            Some(file) => Arc::new(WrongClock(file.clone())),
        };
        let clock = SteadyClock::start(Arc::clone(&wall)).map_err(RunError::Clock)?;
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let store = sqlite::SqliteStore::open(&config.state_dir, &KeyFile::new(config.key_file()))?;
        let keys = store.keys();
        let store: Arc<dyn Store> = Arc::new(store);
        let audit = AuditLog::open(
            Opening {
                path: config.audit_file(),
                key: AuditKey::derive(&keys)?,
                known: store.opened_with_head(),
                accept_loss: options.accept_audit_loss,
            },
            wall,
        )?;
        store.keep_head(audit.head());
        let jwt = jwt::Jwt::open(
            Arc::clone(&store),
            Arc::clone(&keys),
            config.oidc.issuer.clone(),
            config.oidc.schedule(),
            clock.now_ms(),
        );
        let jwt = Arc::new(jwt.await?);
        let both = || (Arc::clone(&store), Arc::clone(&keys));
        let (of_store, of_keys) = both();
        let schedule = config.x509.or(x509::X509::schedule());
        let x509 = x509::X509::open(of_store, of_keys, schedule).await?;
        let (of_store, of_keys) = both();
        let schedule = config.ssh.or(ssh::Ssh::schedule());
        let ssh = ssh::Ssh::open(of_store, of_keys, schedule).await?;
        let connections = Arc::new(Connections::new(Arc::clone(&store), Arc::clone(&keys)));
        let postgres = postgres::Postgres::new(
            Arc::clone(&store),
            Arc::clone(&keys),
            Arc::clone(&connections),
            Arc::clone(&clock),
        )?;
        let parts = || {
            let (store, keys) = both();
            (store, keys, Arc::clone(&connections), Arc::clone(&clock))
        };
        let (of_store, of_keys, at, time) = parts();
        let mysql = mysql::Mysql::new(of_store, of_keys, at, time);
        let (of_store, of_keys, at, time) = parts();
        let redis = redis::Redis::new(of_store, of_keys, at, time);
        let (of_store, of_keys, at, time) = parts();
        let rabbitmq = rabbitmq::Rabbitmq::new(of_store, of_keys, at, time);
        let others: [(EngineKind, Arc<dyn Engine>); 7] = [
            (EngineKind::Jwt, Arc::clone(&jwt) as _),
            (EngineKind::Mysql, Arc::new(mysql)),
            (EngineKind::Postgres, Arc::new(postgres)),
            (EngineKind::Rabbitmq, Arc::new(rabbitmq)),
            (EngineKind::Redis, Arc::new(redis)),
            (EngineKind::X509, Arc::new(x509)),
            (EngineKind::Ssh, Arc::new(ssh)),
        ];
        let pki = Pki::open(store.as_ref(), &keys, Arc::clone(&clock)).await?;
        let kv = Arc::new(kv::Kv::new(Arc::clone(&store), keys, Arc::clone(&clock)));
        let parts = Parts {
            store,
            engines: Engines {
                kv,
                others: BTreeMap::from(others),
            },
            connections,
            audit,
            clock,
            fault: Fault::new(&config.test),
        };
        let door = Arc::new(Door::open(parts).await?);
        let hub = Hub::new(Arc::clone(&door));
        let nodes = Nodes::new(Arc::clone(&door), Arc::clone(&hub));
        Ok(Self {
            door,
            hub,
            nodes,
            pki: Arc::new(pki),
            jwt,
        })
    }

    /// Starts what runs beside the sockets: renewals, pushes, signing keys.
    pub fn start(&self, tasks: &mut JoinSet<()>, stop: &watch::Receiver<bool>) {
        let (door, hub, nodes) = (
            Arc::clone(&self.door),
            Arc::clone(&self.hub),
            Arc::clone(&self.nodes),
        );
        tasks.spawn(leases::run(door, hub, nodes, stop.clone()));
        tasks.spawn(Arc::clone(&self.hub).push_changes(stop.clone()));
        tasks.spawn(Arc::clone(&self.hub).follow_changes(stop.clone()));
        tasks.spawn(maintain(
            Arc::clone(&self.jwt),
            Arc::clone(&self.door),
            stop.clone(),
        ));
        tasks.spawn(leases::rotate(Arc::clone(&self.door), stop.clone()));
        tasks.spawn(maintain_authorities(Arc::clone(&self.door), stop.clone()));
    }

    /// Starts the servers that listen on TCP: OpenID and the node link.
    async fn listen(
        &self,
        config: &Config,
        tasks: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) -> Result<(), RunError> {
        if let Some(address) = config.oidc.listen {
            let listener = bind("oidc.listen", address).await?;
            let tls = self
                .pki
                .oidc_server_config(vec![config.oidc.host().to_owned()])?;
            let (jwt, mut stop) = (Arc::clone(&self.jwt), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = oidc::serve(listener, tls, jwt) => {}
                    () = stopped(&mut stop) => {}
                }
            });
        }
        if let Some(link) = &config.node_link {
            let listener = bind("node_link.listen", link.listen).await?;
            let tls = self.pki.node_link_server_config(link.names.clone())?;
            tasks.spawn(link::serve(
                Arc::clone(&self.nodes),
                listener,
                tls,
                stop.clone(),
            ));
        }
        let exported = self.pki.export_ca(&config.state_dir);
        exported.map(|_| ()).map_err(|error| RunError::Authority {
            directory: config.state_dir.clone(),
            error,
        })
    }
}

/// Completes when the broker is told to stop.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which is a stop too.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    let listening = TcpListener::bind(address).await;
    listening.map_err(|error| RunError::Listen {
        key,
        address,
        error,
    })
}

async fn maintain(jwt: Arc<jwt::Jwt>, door: Arc<Door>, mut stop: watch::Receiver<bool>) {
    let mut kept = 0;
    let mut was_set = false;
    let often = jwt.cacheable().min(MAINTAIN);
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return,
            () = tokio::time::sleep(often) => {}
        }
        let set_by = door.clock_set_by();
        if let Some(apart) = set_by.filter(|_| !was_set) {
            tracing::warn!(
                apart_seconds = apart / 1000,
                "the clock was set: the broker goes by what has passed since it started; start it \
                 anew if the clock was wrong before, because certificates and tokens carry its time"
            );
        }
        was_set = set_by.is_some();
        let seq = door.audit_seq();
        if seq != kept {
            match door.keep_head().await {
                Ok(()) => kept = seq,
                Err(error) => tracing::error!(%error, "the store does not know the last record"),
            }
        }
        match jwt.maintain(door.now_ms()).await {
            Ok(true) => tracing::info!("the signing keys changed"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the signing keys stay as they are"),
        }
    }
}

async fn maintain_authorities(door: Arc<Door>, mut stop: watch::Receiver<bool>) {
    loop {
        door.maintain_authorities().await;
        tokio::select! {
            () = stopped(&mut stop) => return,
            () = tokio::time::sleep(MAINTAIN) => {}
        }
    }
}

type Node = JoinHandle<Result<(), mayfly_node::NodeError>>;

/// Starts the embedded node, and waits until its socket listens.
async fn start_node(
    nodes: &Arc<Nodes>,
    settings: mayfly_node::NodeConfig,
    mut stop: watch::Receiver<bool>,
) -> Result<Node, RunError> {
    let (ready, when_ready) = oneshot::channel();
    let upstream = Arc::new(Embedded::new(Arc::clone(nodes), settings.name.clone()));
    let mut node = tokio::spawn(async move {
        let say_ready = move || {
            let _ = ready.send(());
        };
        let ended = mayfly_node::run(settings, upstream, say_ready, stopped(&mut stop)).await;
        if let Err(error) = &ended {
            tracing::error!(%error, "the embedded node ended");
        }
        ended
    });
    if when_ready.await.is_err()
        && let Ok(Err(error)) = (&mut node).await
    {
        return Err(error.into());
    }
    Ok(node)
}

/// Completes when the embedded node ends by itself, which it must not; never without one.
async fn ended(node: &mut Option<Node>) -> Result<(), RunError> {
    let Some(running) = node else {
        return std::future::pending().await;
    };
    let ended = running.await;
    *node = None;
    match ended {
        Ok(result) => Ok(result?),
        Err(_) => Ok(()),
    }
}

/// Runs the broker until `shutdown` completes, then closes the sessions. Leases stay.
///
/// # Errors
/// [`RunError`], at the start only.
pub async fn run(
    config: Config,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let started = Instant::now();
    let broker = Broker::open(&config, options).await?;
    let (stopper, stop) = watch::channel(false);
    let mut tasks = JoinSet::new();
    broker.start(&mut tasks, &stop);

    let listener = admin::listen(&config.admin.socket)?;
    let admin = Arc::new(Admin {
        door: Arc::clone(&broker.door),
        hub: Arc::clone(&broker.hub),
        nodes: Arc::clone(&broker.nodes),
        pki: Arc::clone(&broker.pki),
        about: About {
            started,
            embedded_node: config.node.settings.as_ref().map(|node| node.name.clone()),
            state_dir: config.state_dir.display().to_string(),
            workload_socket: (config.node.settings.as_ref())
                .map(|node| node.workload_socket.display().to_string()),
            issuer: config.oidc.issuer.clone(),
        },
    });
    tasks.spawn(admin.serve(listener, stop.clone()));

    broker.listen(&config, &mut tasks, &stop).await?;

    let mut node = match config.node.settings {
        Some(settings) => Some(start_node(&broker.nodes, settings, stop.clone()).await?),
        None => None,
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        admin_socket = %config.admin.socket.display(),
        "ready"
    );
    let ended = tokio::select! {
        () = shutdown => Ok(()),
        ended = ended(&mut node) => ended,
    };
    tracing::info!("stopping: sessions close, leases stay");
    let _ = stopper.send(true);
    broker.hub.close_all();
    let drained = tokio::time::timeout(DRAIN, async {
        while tasks.join_next().await.is_some() {}
        if let Some(node) = node {
            let _ = node.await;
        }
    });
    if drained.await.is_err() {
        tracing::warn!("some work did not end in time");
    }
    if let Err(error) = broker.door.keep_head().await {
        tracing::error!(%error, "the store does not know the last record");
    }
    let _ = std::fs::remove_file(&config.admin.socket);
    ended
}
