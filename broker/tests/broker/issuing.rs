//! The engines that certify, over a store of their own, with times that a test chooses.

use crate::harness::{Dir, evidence};
use mayfly_broker::engine::ssh::Ssh;
use mayfly_broker::engine::x509::{Schedule, X509};
use mayfly_broker::engine::{Certifier, Engine, EngineError, IssueRequest, Issued};
use mayfly_broker::store::{OpenError, SqliteStore};
use mayfly_broker::unseal::KeyFile;
use mayfly_wire::LeaseId;
use mayfly_wire::admin::{CredentialConfig, EngineConfig};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Rotated on demand only; the next is published for as long as the longest certificate lives.
pub const SCHEDULE: Schedule = Schedule {
    rotate_every: 400 * 24 * 60 * 60 * 1000,
    publish_ahead: 1000,
};

/// Milliseconds since the Unix epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

pub fn config(ttl_seconds: u64, engine: EngineConfig) -> CredentialConfig {
    CredentialConfig {
        name: "orders-id".parse().unwrap(),
        ttl_seconds,
        max_ttl_seconds: None,
        grace_seconds: None,
        engine,
    }
}

/// What certifies in an engine that does.
pub fn certifier(engine: &dyn Engine) -> &dyn Certifier {
    engine.certifier().unwrap()
}

/// A file by which others verify what an engine issued.
pub fn published(engine: &dyn Engine, file: &str) -> String {
    let info = certifier(engine).published(now());
    info.files[file].clone()
}

/// A store, and directories for what is issued.
pub struct Place {
    pub store: Arc<SqliteStore>,
    pub dir: Dir,
}

impl Place {
    pub fn new() -> Self {
        Self::over(Dir::new())
    }

    fn over(dir: Dir) -> Self {
        let key = KeyFile::new(dir.0.join("root.key"));
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            match SqliteStore::open(&dir.0.join("state"), &key) {
                Ok(store) => {
                    let store = Arc::new(store);
                    return Self { store, dir };
                }
                // A program that another test starts right now holds the lock until it is itself.
                Err(OpenError::InUse(_)) if Instant::now() < limit => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// As after a restart.
    pub fn again(self) -> Self {
        let dir = self.dir;
        drop(self.store);
        Self::over(dir)
    }

    pub async fn x509(&self) -> X509 {
        let opened = X509::open(self.store.clone(), self.store.keys(), SCHEDULE);
        opened.await.unwrap()
    }

    pub async fn ssh(&self) -> Ssh {
        let opened = Ssh::open(self.store.clone(), self.store.keys(), SCHEDULE);
        opened.await.unwrap()
    }

    /// Writes what was issued as a sidecar would, into a directory of that name.
    pub fn publish(&self, name: &str, issued: &Issued) -> PathBuf {
        let dir = self.dir.0.join(name);
        std::fs::create_dir(&dir).unwrap();
        for (field, value) in &issued.fields {
            let path = dir.join(field.as_str());
            let mut options = std::fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(path)
                .unwrap();
            std::io::Write::write_all(&mut file, value.expose()).unwrap();
        }
        dir
    }
}

pub async fn issue(
    engine: &dyn Engine,
    credential: &CredentialConfig,
    now: u64,
) -> Result<Issued, EngineError> {
    let (evidence, lease) = (evidence("orders", 1), LeaseId::from_random([5; 16]));
    let request = IssueRequest {
        credential,
        evidence: &evidence,
        lease: &lease,
        now,
    };
    engine.issue(request).await
}

pub fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_owned();
    let output = command.output();
    output.unwrap_or_else(|error| panic!("{program:?}: {error}; tests/setup installs it"))
}

/// What a command that must succeed printed.
pub fn told(command: &mut Command) -> String {
    let output = run(command);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that a command that must fail printed.
pub fn refused(command: &mut Command) -> String {
    let output = run(command);
    let all = [output.stdout, output.stderr].concat();
    let all = String::from_utf8_lossy(&all).into_owned();
    assert!(!output.status.success(), "{command:?} succeeds: {all}");
    all
}

pub fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
