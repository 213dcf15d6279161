//! A broker in a directory of its own, made evidence, and a sidecar's side of a session.

use mayfly_broker::audit::AuditError;
use mayfly_broker::config::Config;
use mayfly_broker::door::Operator;
use mayfly_broker::run::{Broker, Options, RunError};
use mayfly_broker::store::OpenError;
use mayfly_node::upstream::Session;
use mayfly_wire::admin::{
    Apply, CredentialConfig, Desired, EngineConfig, JwtAlgorithm, KvPut, LeaseFilter, Plan,
    PolicyFile, SecretText,
};
use mayfly_wire::audit::{Chain, Event};
use mayfly_wire::evidence::{Assurance, Container, Settings};
use mayfly_wire::link::{Heartbeat, SessionRequest, SessionUpdate};
use mayfly_wire::sealed::{Opener, PrivateKey, PublicKey, generate};
use mayfly_wire::session::{Bundle, Hello, PROTOCOL, ServerMessage};
use mayfly_wire::{Code, CredentialName, Evidence, Posture, Refusal, Secret, WorkloadKey};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub const NODE: &str = "n1";
/// Every lease.
pub const ALL: LeaseFilter = LeaseFilter {
    lease: None,
    workload: None,
    credential: None,
    node: None,
    stuck: false,
};
pub const ROOT: Operator = Operator {
    uid: 0,
    owner: true,
};

/// A directory that goes when it is dropped.
pub struct Dir(pub PathBuf);

impl Dir {
    pub fn new() -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).unwrap();
        let name = format!("mayfly-broker-{:016x}", u64::from_be_bytes(random));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Opens one as soon as nobody holds its locks: the one before may be on its way out, and a program that
/// another test starts right now has them until it is itself.
pub async fn open(config: &Config, options: Options) -> Result<Broker, RunError> {
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let opened = Broker::open(config, options).await;
        let is_held = match &opened {
            Err(RunError::Store(OpenError::InUse(_))) => true,
            Err(RunError::Audit(AuditError::File { error, .. })) => {
                error.kind() == std::io::ErrorKind::WouldBlock
            }
            _ => false,
        };
        if !is_held || tokio::time::Instant::now() > limit {
            return opened;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A running broker without sockets.
pub struct World {
    pub broker: Broker,
    audit: PathBuf,
    tasks: JoinSet<()>,
    stopper: watch::Sender<bool>,
}

impl World {
    pub async fn open(dir: &Path) -> Self {
        Self::with(dir, "").await
    }

    pub async fn with(dir: &Path, more: &str) -> Self {
        let state = dir.join("state");
        let text = format!("state_dir = {:?}\n{more}", state.display().to_string());
        let config = Config::parse(&text).unwrap();
        let broker = open(&config, Options::default()).await.unwrap();
        let (stopper, stop) = watch::channel(false);
        let mut tasks = JoinSet::new();
        broker.start(&mut tasks, &stop);
        Self {
            broker,
            audit: config.audit_file(),
            tasks,
            stopper,
        }
    }

    /// Stops as SIGTERM does.
    pub async fn stop(mut self) {
        self.broker.hub.close_all();
        self.stopper.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }

    pub async fn apply(&self, desired: Desired) -> Plan {
        let plan = self.try_apply(desired, None).await.unwrap();
        self.broker.hub.wake_all();
        plan
    }

    pub async fn try_apply(&self, desired: Desired, base: Option<u64>) -> Result<Plan, Refusal> {
        self.broker.door.apply(&ROOT, Apply { desired, base }).await
    }

    pub async fn put(&self, path: &str, value: &str) -> u64 {
        let value = SecretText::encode(&Secret::from(value.to_owned()));
        let fields = BTreeMap::from([("value".parse().unwrap(), value)]);
        let put = KvPut {
            fields,
            if_version: None,
        };
        self.broker
            .door
            .kv_put(&ROOT, &path.parse().unwrap(), put)
            .await
            .unwrap()
            .version
    }

    /// Opens a session as a sidecar would.
    pub async fn connect(&self, evidence: &Evidence) -> Result<Client, Refusal> {
        self.connect_for(evidence, None, false).await
    }

    pub async fn connect_for(
        &self,
        evidence: &Evidence,
        want: Option<Vec<CredentialName>>,
        once: bool,
    ) -> Result<Client, Refusal> {
        let (private, public_key) = generate();
        let request = request(evidence, want, once, public_key);
        let session = self.broker.nodes.session(NODE, request).await?;
        Ok(Client {
            session,
            private,
            workload: evidence.workload.clone(),
        })
    }

    pub async fn heartbeat(&self, starting: bool) -> Vec<WorkloadKey> {
        let heartbeat = Heartbeat {
            node: NODE.into(),
            boot_id: "boot".into(),
            starting,
        };
        let watch = self.broker.nodes.heartbeat(NODE, heartbeat).await.unwrap();
        watch
            .workloads
            .into_iter()
            .map(|watched| watched.workload)
            .collect()
    }

    /// Every record so far, with the chain checked.
    pub fn records(&self) -> Vec<Event> {
        let text = std::fs::read_to_string(&self.audit).unwrap();
        let mut chain = Chain::default();
        text.lines()
            .map(|line| chain.follow(line).unwrap().event)
            .collect()
    }

    /// Waits until a record satisfies `wanted`.
    pub async fn until(&self, wanted: impl Fn(&Event) -> bool) -> Event {
        let limit = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(event) = self.records().into_iter().find(&wanted) {
                return event;
            }
            let records = self.records();
            assert!(
                tokio::time::Instant::now() < limit,
                "no such record in {records:#?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub fn request(
    evidence: &Evidence,
    want: Option<Vec<CredentialName>>,
    once: bool,
    public_key: PublicKey,
) -> SessionRequest {
    let hello = Hello {
        protocol: PROTOCOL,
        public_key,
        want,
    };
    SessionRequest {
        evidence: evidence.clone(),
        hello,
        once,
        csr: None,
    }
}

/// A sidecar's side of a session.
pub struct Client {
    pub session: Session,
    private: PrivateKey,
    workload: WorkloadKey,
}

impl Client {
    pub fn of(session: Session, private: PrivateKey, workload: WorkloadKey) -> Self {
        Self {
            session,
            private,
            workload,
        }
    }

    /// The next message; `None` at the end.
    pub async fn next(&mut self) -> Option<ServerMessage> {
        let next = tokio::time::timeout(Duration::from_secs(30), self.session.down.recv());
        next.await.expect("expected a message within 30 seconds")
    }

    /// The next bundle, after at most a hello.
    pub async fn bundle(&mut self) -> Bundle {
        loop {
            match self.next().await {
                Some(ServerMessage::Bundle(bundle)) => return bundle,
                Some(ServerMessage::Hello { workload, .. }) => assert_eq!(workload, self.workload),
                other => panic!("expected a bundle, found {other:?}"),
            }
        }
    }

    /// Opens every value of a bundle: `NAME/FIELD` → value.
    pub fn open(&self, bundle: &Bundle) -> BTreeMap<String, String> {
        let (key, generation) = (&self.private, bundle.generation);
        let mut opener =
            Opener::new(key, &bundle.encapsulated, &self.workload, generation).unwrap();
        let mut values = BTreeMap::new();
        for credential in &bundle.credentials {
            for field in &credential.fields {
                let value = opener
                    .open(&credential.lease, &field.name, &field.sealed)
                    .unwrap();
                let value = String::from_utf8(value.expose().to_vec()).unwrap();
                values.insert(format!("{}/{}", credential.name, field.name), value);
            }
        }
        values
    }

    pub async fn ack(&self, generation: u64) {
        self.session
            .up
            .send(SessionUpdate::Ack { generation })
            .await
            .unwrap();
    }
}

fn posture() -> Posture {
    let none = Some(Vec::new());
    Posture {
        uid: Some(1000),
        host_pid_namespace: Some(false),
        effective_capabilities: none.clone(),
        permitted_capabilities: none.clone(),
        bounding_capabilities: none.clone(),
        seccomp_mode: Some(2),
        engine_sockets: none,
        ..Posture::default()
    }
}

/// A good container of this compose service.
pub fn evidence(service: &str, number: u64) -> Evidence {
    Evidence {
        workload: WorkloadKey {
            boot_id: "boot".into(),
            cgroup_id: number,
            pidns_id: number + 1000,
        },
        node: NODE.into(),
        assurance: Assurance::Inspected,
        lacking: BTreeSet::new(),
        cgroup_path: None,
        container: Some(Container {
            engine: "docker".into(),
            id: format!("{number:064x}"),
            name: format!("shop-{service}-{number}"),
            compose_service: Some(service.into()),
            settings: Settings {
                privileged: Some(false),
                granted_capabilities: Some(Vec::new()),
                seccomp: Some("default".into()),
                ..Settings::default()
            },
            ..Container::default()
        }),
        companion: None,
        own_namespaces: Some(true),
        peer: posture(),
        init: posture(),
        init_pid: 42,
        init_start_time: 7,
    }
}

pub fn kv(name: &str, path: &str, ttl_seconds: u64) -> CredentialConfig {
    let engine = EngineConfig::Kv {
        path: path.parse().unwrap(),
    };
    CredentialConfig {
        name: name.parse().unwrap(),
        ttl_seconds,
        max_ttl_seconds: None,
        grace_seconds: None,
        engine,
    }
}

pub fn jwt(name: &str, ttl_seconds: u64) -> CredentialConfig {
    let engine = EngineConfig::Jwt {
        algorithm: JwtAlgorithm::EdDsa,
        audience: vec!["api".into()],
        subject: "static".into(),
        claims: BTreeMap::new(),
    };
    CredentialConfig {
        name: name.parse().unwrap(),
        ttl_seconds,
        max_ttl_seconds: None,
        grace_seconds: None,
        engine,
    }
}

/// A permit of a credential for a compose service.
pub fn permit(credential: &str, service: &str) -> String {
    format!(
        "@id(\"{service}-{credential}\")\npermit (principal is Mayfly::Workload, action == \
         Mayfly::Action::\"issue\", resource == Mayfly::Credential::\"{credential}\")\nwhen {{ \
         principal has container.compose_service && principal.container.compose_service == \
         \"{service}\" }};\n"
    )
}

pub fn desired(credentials: Vec<CredentialConfig>, policies: &[String]) -> Desired {
    let file = PolicyFile {
        file: "all.cedar".into(),
        text: policies.concat(),
    };
    Desired {
        connections: Vec::new(),
        credentials,
        policies: vec![file],
        hardened: false,
    }
}

/// `orders` gets `orders-db`, `web` gets `web-key`.
pub fn two_services() -> Desired {
    desired(
        vec![
            kv("orders-db", "orders/db", 600),
            kv("web-key", "web/key", 600),
        ],
        &[permit("orders-db", "orders"), permit("web-key", "web")],
    )
}

pub fn code<T>(result: Result<T, Refusal>) -> Code {
    match result {
        Ok(_) => panic!("expected a refusal"),
        Err(refusal) => refusal.code,
    }
}
