//! A server, a store, and the engine between them.

use crate::server::PostgresServer;
use mayfly_broker::clock::{Clock, SystemClock};
use mayfly_broker::engine::connections::Connections;
use mayfly_broker::engine::postgres::Postgres;
use mayfly_broker::engine::{Engine as _, EngineError, IssueRequest, Issued};
use mayfly_broker::store::{Lease, LeaseState, SqliteStore};
use mayfly_broker::unseal::KeyFile;
use mayfly_wire::admin::{CredentialConfig, EngineConfig};
use mayfly_wire::connection::Tls;
use mayfly_wire::engine::SqlSettings;
use mayfly_wire::evidence::{Assurance, Container};
use mayfly_wire::{
    ConnectionConfig, ConnectionName, EngineKind, Evidence, LeaseId, Posture, Secret, WorkloadKey,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;

pub const CREATE: &str =
    "CREATE ROLE {{name}} LOGIN PASSWORD {{password}} VALID UNTIL {{expiration}}";

pub struct Place {
    pub engine: Arc<Postgres>,
    pub connections: Arc<Connections>,
    store: Arc<SqliteStore>,
    dir: PathBuf,
}

impl Place {
    pub async fn new(config: ConnectionConfig, password: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mayfly-engine-{}", lease().as_str()));
        std::fs::create_dir(&dir).unwrap();
        let store = SqliteStore::open(&dir.join("state"), &KeyFile::new(dir.join("key"))).unwrap();
        let place = Self::over(Arc::new(store), dir, config);
        let password = Secret::from(password.to_owned());
        let name = connection();
        let given = place.connections.set_password(&name, &password, 1);
        given.await.unwrap();
        place
    }

    pub async fn at(server: &PostgresServer) -> Self {
        Self::new(config(server.port()), PostgresServer::PASSWORD).await
    }

    fn over(store: Arc<SqliteStore>, dir: PathBuf, config: ConnectionConfig) -> Self {
        let connections = Arc::new(Connections::new(store.clone(), store.keys()));
        connections.configure(&[config]);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let engine = Postgres::new(store.clone(), store.keys(), connections.clone(), clock);
        Self {
            engine: Arc::new(engine.unwrap()),
            connections,
            store,
            dir,
        }
    }

    /// As another process would find it, while the first may still run.
    pub fn next_process(&self, config: ConnectionConfig) -> Self {
        let dir = self.dir.join("next");
        std::fs::create_dir_all(&dir).unwrap();
        Self::over(self.store.clone(), dir, config)
    }

    pub async fn issue(
        &self,
        credential: &CredentialConfig,
        evidence: &Evidence,
    ) -> Result<(Issued, Lease), EngineError> {
        let id = lease();
        let now = SystemClock.now_ms();
        let request = IssueRequest {
            credential,
            evidence,
            lease: &id,
            now,
        };
        let issued = self.engine.issue(request).await?;
        let lease = Lease {
            id,
            workload: evidence.workload.clone(),
            credential: credential.name.clone(),
            engine: EngineKind::Postgres,
            node: evidence.node.clone(),
            name: evidence.display_name(),
            state: LeaseState::Planned,
            issued_at: now,
            expires_at: issued.expires_at,
            due_at: issued.expires_at,
            reason: String::new(),
            attempts: 0,
            problem: String::new(),
            source: issued.source.clone(),
        };
        Ok((issued, lease))
    }

    /// Issues and makes one.
    pub async fn made(&self, credential: &CredentialConfig) -> (Holder, Lease) {
        let (issued, lease) = self
            .issue(credential, &evidence("shop-orders-1"))
            .await
            .unwrap();
        self.engine.create(credential, &lease).await.unwrap();
        (Holder::of(&issued), lease)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// What a holder is told.
pub struct Holder(pub BTreeMap<String, String>);

impl Holder {
    pub fn of(issued: &Issued) -> Self {
        let fields = issued.fields.iter().map(|(name, value)| {
            let value = String::from_utf8(value.expose().to_vec()).unwrap();
            (name.to_string(), value)
        });
        Self(fields.collect())
    }

    pub fn user(&self) -> &str {
        &self.0["username"]
    }

    pub fn password(&self) -> &str {
        &self.0["password"]
    }

    pub fn gets_in(&self, server: &PostgresServer) -> bool {
        let asked = server.psql_as(self.user(), self.password(), "SELECT current_user");
        asked.is_ok_and(|user| user == self.user())
    }
}

/// A session that somebody types into.
pub struct Input {
    psql: Child,
    output: BufReader<ChildStdout>,
}

impl Input {
    pub fn of(server: &PostgresServer, user: &str, password: &str) -> Self {
        let mut psql = server
            .client(user, password)
            .unwrap()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(psql.stdout.take().unwrap());
        Self { psql, output }
    }

    /// Says something, and waits until it is done.
    pub fn say(&mut self, sql: &str) {
        writeln!(self.psql.stdin.as_mut().unwrap(), "{sql} SELECT 'done';").unwrap();
        let mut line = String::new();
        while line != "done\n" {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "{sql}");
        }
    }

    /// Whether the server has ended it: what is said now fails.
    pub fn was_ended(mut self) -> bool {
        let mut stdin = self.psql.stdin.take().unwrap();
        let _ = writeln!(stdin, "SELECT 1;");
        drop(stdin);
        !self.psql.wait().unwrap().success()
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

pub fn connection() -> ConnectionName {
    "shop".parse().unwrap()
}

pub fn config(port: u16) -> ConnectionConfig {
    ConnectionConfig {
        name: connection(),
        engine: EngineKind::Postgres,
        host: "127.0.0.1".to_owned(),
        port: Some(port),
        username: PostgresServer::ROOT.to_owned(),
        database: None,
        tls: Tls::Off,
        ca_pem: None,
        public_host: None,
        max_connections: None,
        scram_iterations: None,
    }
}

pub fn settings(create: &[&str]) -> SqlSettings {
    SqlSettings {
        connection: connection(),
        create: create.iter().map(|text| (*text).to_owned()).collect(),
        renew: Vec::new(),
        revoke: Vec::new(),
        heir: None,
        fixed: Vec::new(),
        rotate_every: None,
        password: None,
    }
}

pub fn credential(settings: SqlSettings) -> CredentialConfig {
    CredentialConfig {
        name: "orders-db".parse().unwrap(),
        ttl_seconds: 300,
        max_ttl_seconds: None,
        grace_seconds: None,
        engine: EngineConfig::Postgres(settings),
    }
}

pub fn lease() -> LeaseId {
    let mut random = [0; 16];
    getrandom::fill(&mut random).unwrap();
    LeaseId::from_random(random)
}

pub fn evidence(name: &str) -> Evidence {
    Evidence {
        workload: WorkloadKey {
            boot_id: "6d0ea4ad-9a1c-4b53-8a4e-7d8f5a1d6f10".to_owned(),
            cgroup_id: 1,
            pidns_id: 2,
        },
        node: "n1".to_owned(),
        assurance: Assurance::Inspected,
        lacking: BTreeSet::new(),
        cgroup_path: None,
        container: Some(Container {
            engine: "docker".to_owned(),
            id: name.to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::from([("team".to_owned(), name.to_owned())]),
            compose_service: Some(name.to_owned()),
            ..Container::default()
        }),
        companion: None,
        own_namespaces: Some(true),
        peer: Posture::default(),
        init: Posture::default(),
        init_pid: 1,
        init_start_time: 1,
    }
}
