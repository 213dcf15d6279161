//! A broker without sockets, over a target that a test rules.

use super::fuse::{At, Fuse};
use super::target::{Target, account};
use crate::audit::{AuditKey, AuditLog, Opening};
use crate::clock::{Clock, SystemClock};
use crate::door::{Door, Operator, Parts};
use crate::engine::connections::Connections;
use crate::engine::{Engine, Engines, kv};
use crate::nodes::Nodes;
use crate::sessions::Hub;
use crate::store::{Lease, LeaseState, SqliteStore, Store};
use crate::testing::TempDir;
use crate::trial::Fault;
use crate::unseal::KeyFile;
use mayfly_node::upstream::Session;
use mayfly_wire::admin::{
    Apply, CredentialConfig, Desired, EngineConfig, KvPut, PolicyFile, Progress, SecretText,
};
use mayfly_wire::audit::{Chain, Event};
use mayfly_wire::connection::Tls;
use mayfly_wire::engine::SqlSettings;
use mayfly_wire::evidence::{Container, Settings};
use mayfly_wire::link::{Heartbeat, SessionRequest, SessionUpdate};
use mayfly_wire::session::{Bundle, Hello, PROTOCOL, ServerMessage};
use mayfly_wire::{
    Code, ConnectionConfig, CredentialName, EngineKind, Evidence, Posture, Refusal, WorkloadKey,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

pub const ROOT: Operator = Operator {
    uid: 0,
    owner: true,
};

pub struct World {
    pub door: Arc<Door>,
    pub hub: Arc<Hub>,
    pub nodes: Arc<Nodes>,
    pub store: Arc<dyn Store>,
    pub target: Arc<Target>,
    pub fuse: Option<Arc<Fuse>>,
    _tasks: JoinSet<()>,
    _stopper: watch::Sender<bool>,
    dir: Arc<TempDir>,
}

impl World {
    pub async fn new() -> Self {
        let target = Target::new();
        let dir = Arc::new(TempDir::new());
        Self::open(dir, target, Arc::new(SystemClock), None).await
    }

    pub async fn open(
        dir: Arc<TempDir>,
        target: Arc<Target>,
        clock: Arc<dyn Clock>,
        at: Option<At>,
    ) -> Self {
        let key = KeyFile::new(dir.path().join("root.key"));
        let state = dir.path().join("state");
        let mut sqlite = SqliteStore::open(&state, &key);
        while matches!(sqlite, Err(crate::store::OpenError::InUse(_))) {
            // The one before is on its way out.
            tokio::time::sleep(Duration::from_millis(2)).await;
            sqlite = SqliteStore::open(&state, &key);
        }
        let sqlite = sqlite.unwrap();
        let keys = sqlite.keys();
        let mut store: Arc<dyn Store> = Arc::new(sqlite);
        let fuse = at.map(|at| Arc::new(Fuse::new(Arc::clone(&store), at)));
        if let Some(fuse) = &fuse {
            store = Arc::clone(fuse) as Arc<dyn Store>;
        }
        let opening = Opening {
            path: dir.path().join("audit.jsonl"),
            key: AuditKey::derive(&keys).unwrap(),
            known: store.opened_with_head(),
            accept_loss: false,
        };
        let audit = AuditLog::open(opening, Arc::clone(&clock)).unwrap();
        store.keep_head(audit.head());
        let engine = Arc::clone(&target) as Arc<dyn Engine>;
        let parts = Parts {
            store: Arc::clone(&store),
            engines: Engines {
                kv: Arc::new(kv::Kv::new(
                    Arc::clone(&store),
                    Arc::clone(&keys),
                    Arc::clone(&clock),
                )),
                others: BTreeMap::from([(EngineKind::Postgres, engine)]),
            },
            connections: Arc::new(Connections::new(Arc::clone(&store), keys)),
            audit,
            clock,
            fault: Fault::default(),
        };
        let door = Arc::new(Door::open(parts).await.unwrap());
        let hub = Hub::new(Arc::clone(&door));
        let nodes = Nodes::new(Arc::clone(&door), Arc::clone(&hub));
        let (stopper, stop) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let parts = (Arc::clone(&door), Arc::clone(&hub), Arc::clone(&nodes));
        tasks.spawn(crate::leases::run(parts.0, parts.1, parts.2, stop.clone()));
        tasks.spawn(Arc::clone(&hub).push_changes(stop.clone()));
        tasks.spawn(Arc::clone(&hub).follow_changes(stop));
        let world = Self {
            door,
            hub,
            nodes,
            store,
            target,
            fuse,
            _tasks: tasks,
            _stopper: stopper,
            dir,
        };
        world.heartbeat().await;
        world
    }

    pub async fn heartbeat(&self) {
        let heartbeat = Heartbeat {
            node: "node-1".into(),
            boot_id: "boot".into(),
            starting: false,
        };
        self.nodes.heartbeat("node-1", heartbeat).await.unwrap();
    }

    pub async fn apply(&self, credentials: Vec<CredentialConfig>) {
        self.try_apply(desired(credentials)).await.unwrap();
        self.hub.wake_all();
    }

    pub async fn try_apply(&self, desired: Desired) -> Result<(), Refusal> {
        let apply = Apply {
            desired,
            base: None,
        };
        self.door.apply(&ROOT, apply).await.map(|_| ())
    }

    pub async fn put(&self, path: &str) {
        let value = SecretText::encode(&mayfly_wire::Secret::from("sesame".to_owned()));
        let put = KvPut {
            fields: BTreeMap::from([("value".parse().unwrap(), value)]),
            if_version: None,
        };
        let path = path.parse().unwrap();
        self.door.kv_put(&ROOT, &path, put).await.unwrap();
    }

    pub async fn connect(&self, number: u64) -> Result<Client, Refusal> {
        self.session(number, None, false).await
    }

    pub async fn session(
        &self,
        number: u64,
        want: Option<Vec<CredentialName>>,
        once: bool,
    ) -> Result<Client, Refusal> {
        let (_private, public_key) = mayfly_wire::sealed::generate();
        let request = SessionRequest {
            evidence: evidence(number),
            hello: Hello {
                protocol: PROTOCOL,
                public_key,
                want,
            },
            once,
            csr: None,
        };
        let session = self.hub.open(request).await?;
        Ok(Client { session })
    }

    pub async fn died(&self, number: u64) -> Result<bool, Refusal> {
        let key = evidence(number).workload;
        let died = self.door.died(&key).await;
        self.hub.close(&key);
        died
    }

    pub async fn leases(&self) -> Vec<Lease> {
        self.store.leases(None, 100_000).await.unwrap()
    }

    pub fn records(&self) -> Vec<Event> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.jsonl")).unwrap();
        let mut chain = Chain::default();
        text.lines()
            .map(|line| chain.follow(line).unwrap().event)
            .collect()
    }

    /// Why leases ended, in order.
    pub fn ends(&self) -> Vec<String> {
        let ends = self.records().into_iter().filter_map(|event| match event {
            Event::Ended { reason, .. } => Some(reason),
            _ => None,
        });
        ends.collect()
    }

    /// Waits until nothing is on its way, and checks that target, store and record say the same.
    pub async fn settled(&self) {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            let leases = self.leases().await;
            let on_its_way =
                |lease: &Lease| matches!(lease.state, LeaseState::Planned | LeaseState::Revoking);
            if !leases.iter().any(on_its_way) {
                break;
            }
            assert!(Instant::now() < limit, "not settled: {leases:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let leases = self.leases().await;
        let with_target = leases.iter().filter(|lease| lease.source.has_target());
        let expected: BTreeSet<String> = with_target.map(|lease| account(&lease.id)).collect();
        let there: BTreeSet<String> = self.target.accounts().into_keys().collect();
        assert_eq!(there, expected, "target and store");
        let (mut issued, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for event in self.records() {
            match event {
                // Others may be on record and never have been: their record comes first.
                Event::Issued {
                    lease, credential, ..
                } if credential.as_str().starts_with("db") => {
                    issued.insert(lease);
                }
                Event::Ended { lease, .. } => {
                    ended.insert(lease);
                }
                _ => {}
            }
        }
        for lease in leases.iter().filter(|lease| lease.source.has_target()) {
            assert!(issued.contains(&lease.id), "no record of {lease:?}");
            assert!(!ended.contains(&lease.id), "on record as ended: {lease:?}");
        }
        let live: BTreeSet<_> = leases.iter().map(|lease| lease.id.clone()).collect();
        for id in issued.difference(&live) {
            assert!(ended.contains(id), "no end of {id} on record");
        }
    }
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub struct Client {
    pub session: Session,
}

impl Client {
    pub async fn next(&mut self) -> Option<ServerMessage> {
        let next = timeout(Duration::from_secs(30), self.session.down.recv()).await;
        next.expect("expected a message within 30 seconds")
    }

    pub async fn bundle(&mut self) -> Bundle {
        loop {
            match self.next().await {
                Some(ServerMessage::Bundle(bundle)) => return bundle,
                Some(ServerMessage::Hello { .. } | ServerMessage::Withdraw { .. }) => {}
                other => panic!("expected a bundle, found {other:?}"),
            }
        }
    }

    pub async fn ack(&self, generation: u64) {
        let ack = SessionUpdate::Ack { generation };
        self.session.up.send(ack).await.unwrap();
    }

    /// Nothing comes for a while.
    pub async fn is_quiet(&mut self, span: Duration) {
        let next = timeout(span, self.session.down.recv()).await;
        assert!(next.is_err(), "found {next:?}");
    }
}

pub fn names(bundle: &Bundle) -> Vec<&str> {
    let names = bundle.credentials.iter();
    names.map(|credential| credential.name.as_str()).collect()
}

pub fn missing(bundle: &Bundle) -> Vec<(&str, Code)> {
    let missing = bundle.missing.iter();
    missing
        .map(|one| (one.name.as_str(), one.refusal.code))
        .collect()
}

/// The last line of progress.
pub async fn end(mut lines: mpsc::Receiver<Progress>) -> Progress {
    let mut last = Progress::default();
    while let Some(line) = lines.recv().await {
        last = line;
    }
    assert!(last.end);
    last
}

pub fn key(number: u64) -> WorkloadKey {
    evidence(number).workload
}

pub fn evidence(number: u64) -> Evidence {
    let none = Some(Vec::new());
    let posture = Posture {
        uid: Some(1000),
        host_pid_namespace: Some(false),
        effective_capabilities: none.clone(),
        permitted_capabilities: none.clone(),
        bounding_capabilities: none.clone(),
        seccomp_mode: Some(2),
        engine_sockets: none,
        ..Posture::default()
    };
    let container = Container {
        engine: "docker".into(),
        id: format!("{number:064x}"),
        name: format!("shop-{number}"),
        settings: Settings {
            privileged: Some(false),
            granted_capabilities: Some(Vec::new()),
            seccomp: Some("default".into()),
            ..Settings::default()
        },
        ..Container::default()
    };
    Evidence {
        container: Some(container),
        peer: posture.clone(),
        init: posture,
        ..crate::testing::evidence(number)
    }
}

/// A dynamic credential at the server `shop`; a shared one if its name begins with `static`.
pub fn db(name: &str, ttl_seconds: u64) -> CredentialConfig {
    db_at(name, "shop", ttl_seconds)
}

pub fn db_at(name: &str, connection: &str, ttl_seconds: u64) -> CredentialConfig {
    let fixed = match name.starts_with("static") {
        true => vec!["user".to_owned()],
        false => Vec::new(),
    };
    CredentialConfig {
        name: name.parse().unwrap(),
        ttl_seconds,
        max_ttl_seconds: None,
        grace_seconds: None,
        engine: EngineConfig::Postgres(SqlSettings {
            connection: connection.parse().unwrap(),
            create: Vec::new(),
            renew: Vec::new(),
            revoke: Vec::new(),
            heir: None,
            fixed,
            rotate_every: None,
            password: None,
        }),
    }
}

pub fn kv(name: &str, ttl_seconds: u64) -> CredentialConfig {
    CredentialConfig {
        engine: EngineConfig::Kv {
            path: name.parse().unwrap(),
        },
        ..db(name, ttl_seconds)
    }
}

/// Everybody gets everything.
pub fn desired(credentials: Vec<CredentialConfig>) -> Desired {
    let connection = |name: &str| ConnectionConfig {
        name: name.parse().unwrap(),
        engine: EngineKind::Postgres,
        host: "localhost".into(),
        port: None,
        username: "broker".into(),
        database: None,
        tls: Tls::Off,
        ca_pem: None,
        public_host: None,
        max_connections: None,
        scram_iterations: None,
    };
    let text = "@id(\"all\") permit (principal is Mayfly::Workload, action == \
                Mayfly::Action::\"issue\", resource);";
    Desired {
        connections: vec![connection("shop"), connection("other")],
        credentials,
        policies: vec![PolicyFile {
            file: "all.cedar".into(),
            text: text.into(),
        }],
        hardened: false,
    }
}
