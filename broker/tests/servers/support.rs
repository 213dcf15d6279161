//! Real servers, and engines over a real store.

use crate::server::Server;
use mayfly_broker::clock::{Clock, SystemClock};
use mayfly_broker::engine::connections::Connections;
use mayfly_broker::engine::{Engine, IssueRequest, Issued};
use mayfly_broker::seal::RootKeys;
use mayfly_broker::store::{Lease, LeaseState, SqliteStore, Store};
use mayfly_broker::unseal::KeyFile;
use mayfly_wire::admin::{CredentialConfig, EngineConfig};
use mayfly_wire::connection::Tls;
use mayfly_wire::{
    Assurance, ConnectionConfig, EngineKind, Evidence, LeaseId, Posture, Secret, WorkloadKey,
};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

pub fn random() -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    format!("{:016x}", u64::from_be_bytes(bytes))
}

/// A directory that goes when it is dropped.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("mayfly-servers-{}", random()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What every engine with a server is made of.
type Parts = (
    Arc<dyn Store>,
    Arc<RootKeys>,
    Arc<Connections>,
    Arc<dyn Clock>,
);

/// A store, and connections in it.
pub struct Place {
    pub connections: Arc<Connections>,
    pub store: Arc<dyn Store>,
    pub keys: Arc<RootKeys>,
    _dir: Dir,
}

impl Place {
    /// With one connection, `shop`.
    pub async fn new(config: ConnectionConfig) -> Self {
        let dir = Dir::new();
        let key = KeyFile::new(dir.0.join("root.key"));
        let store = SqliteStore::open(&dir.0.join("state"), &key).unwrap();
        let keys = store.keys();
        let store: Arc<dyn Store> = Arc::new(store);
        let connections = Arc::new(Connections::new(Arc::clone(&store), Arc::clone(&keys)));
        let name = config.name.clone();
        connections.configure(&[config]);
        let password = Secret::from(Server::PASSWORD.to_owned());
        connections
            .set_password(&name, &password, now())
            .await
            .unwrap();
        Self {
            connections,
            store,
            keys,
            _dir: dir,
        }
    }

    /// What an engine is made of.
    pub fn parts(&self) -> Parts {
        let (store, keys) = (Arc::clone(&self.store), Arc::clone(&self.keys));
        (
            store,
            keys,
            Arc::clone(&self.connections),
            Arc::new(SystemClock),
        )
    }
}

pub fn connection(engine: EngineKind, port: u16) -> ConnectionConfig {
    ConnectionConfig {
        name: "shop".parse().unwrap(),
        engine,
        host: "127.0.0.1".to_owned(),
        port: Some(port),
        username: Server::ROOT.to_owned(),
        database: None,
        tls: Tls::Off,
        ca_pem: None,
        public_host: None,
        max_connections: None,
        scram_iterations: None,
    }
}

/// The same with TLS, checked against the server's own authority.
pub fn with_tls(mut config: ConnectionConfig, server: &Server) -> ConnectionConfig {
    config.tls = Tls::Verify;
    config.ca_pem = Some(std::fs::read_to_string(server.dir().join("ca.pem")).unwrap());
    config
}

pub fn credential(engine: EngineConfig) -> CredentialConfig {
    CredentialConfig {
        name: "orders-db".parse().unwrap(),
        ttl_seconds: 600,
        max_ttl_seconds: None,
        grace_seconds: None,
        engine,
    }
}

/// A container whose every name is an attack.
pub fn evidence() -> Evidence {
    let hostile = "x'); DROP DATABASE shop; -- \"`\\\r\n*1\r\n$8\r\nFLUSHALL\r\n/../%2F{{name}}";
    let mut evidence = Evidence {
        workload: WorkloadKey {
            boot_id: "boot".into(),
            cgroup_id: 7,
            pidns_id: 8,
        },
        node: hostile.to_owned(),
        assurance: Assurance::Inspected,
        lacking: BTreeSet::new(),
        cgroup_path: None,
        container: None,
        companion: None,
        own_namespaces: Some(true),
        peer: Posture::default(),
        init: Posture::default(),
        init_pid: 42,
        init_start_time: 7,
    };
    evidence.container = Some(mayfly_wire::evidence::Container {
        engine: "docker".into(),
        id: "c0ffee".into(),
        name: hostile.to_owned(),
        compose_service: Some(hostile.to_owned()),
        labels: [(hostile.to_owned(), hostile.to_owned())].into(),
        ..Default::default()
    });
    evidence
}

/// One lease, as the door has it.
pub struct Held {
    pub lease: Lease,
    pub issued: Issued,
}

impl Held {
    pub fn field(&self, name: &str) -> &str {
        let value = self.issued.fields.get(&name.parse().unwrap());
        let value = value.unwrap_or_else(|| panic!("there is no field {name}"));
        std::str::from_utf8(value.expose()).unwrap()
    }
}

/// Decides a credential, as the door does.
pub async fn issue(engine: &dyn Engine, credential: &CredentialConfig) -> Held {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    let id = LeaseId::from_random(bytes);
    let (evidence, now) = (evidence(), now());
    let request = IssueRequest {
        credential,
        evidence: &evidence,
        lease: &id,
        now,
    };
    let issued = engine.issue(request).await.unwrap();
    let lease = Lease {
        id,
        workload: evidence.workload.clone(),
        credential: credential.name.clone(),
        engine: credential.engine.kind(),
        node: evidence.node.clone(),
        name: evidence.display_name(),
        state: LeaseState::Planned,
        issued_at: now,
        expires_at: issued.expires_at,
        due_at: now,
        reason: String::new(),
        attempts: 0,
        problem: String::new(),
        source: issued.source.clone(),
    };
    Held { lease, issued }
}

/// Decides it and makes it.
pub async fn give(engine: &dyn Engine, credential: &CredentialConfig) -> Held {
    let held = issue(engine, credential).await;
    engine.create(credential, &held.lease).await.unwrap();
    held
}

/// Takes it back, trying again as the door does.
pub async fn revoke(engine: &dyn Engine, lease: &Lease) {
    let limit = Instant::now() + Duration::from_secs(60);
    while let Err(error) = engine.revoke(lease).await {
        assert!(Instant::now() < limit, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A server that accepts and never answers.
pub fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}
