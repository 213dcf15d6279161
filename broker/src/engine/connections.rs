//! The servers at which engines make accounts: their settings, as applied, and the password of the
//! broker's own account at each, sealed in the store.

use super::EngineError;
use super::root::KIND as ROOT;
use crate::seal::{RecordId, RootKeys};
use crate::store::{Op, Store, StoreError};
use mayfly_wire::admin::Desired;
use mayfly_wire::connection::Tls;
use mayfly_wire::{ConnectionConfig, ConnectionName, EngineKind, Secret};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Before a connection's name, in the keys of sealed entries.
const PREFIX: &str = "connection/";
const KIND: &str = "connection";

/// A server, and what gets the broker in.
#[derive(Clone)]
pub struct Target {
    /// Its settings.
    pub config: Arc<ConnectionConfig>,
    /// Changes whenever settings or password do: what was opened with another is not used any more.
    pub edition: u64,
}

/// The connections that are configured.
pub struct Connections {
    store: Arc<dyn Store>,
    keys: Arc<RootKeys>,
    targets: RwLock<BTreeMap<ConnectionName, Target>>,
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, keys: Arc<RootKeys>) -> Self {
        Self {
            store,
            keys,
            targets: RwLock::default(),
        }
    }

    /// Takes over the settings of a configuration that stands now.
    pub fn configure(&self, configs: &[ConnectionConfig]) {
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *targets);
        for config in configs {
            let target = match before.remove(&config.name) {
                Some(target) if *target.config == *config => target,
                old => Target {
                    config: Arc::new(config.clone()),
                    edition: old.map_or(0, |old| old.edition) + 1,
                },
            };
            targets.insert(config.name.clone(), target);
        }
    }

    /// One of them.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`]: it is not configured.
    pub fn target(&self, name: &ConnectionName) -> Result<Target, EngineError> {
        let targets = self.targets.read().unwrap_or_else(PoisonError::into_inner);
        targets.get(name).cloned().ok_or_else(|| {
            EngineError::Unavailable(format!(
                "there is no connection {name}: expected [connection.{name}] in the configuration"
            ))
        })
    }

    /// The password of the broker's account there.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`]: nobody has given it yet; the store's and the seal's.
    pub async fn password(&self, name: &ConnectionName) -> Result<Secret, EngineError> {
        let entry = self.store.meta(key(name)).await?.ok_or_else(|| {
            EngineError::Unavailable(format!(
                "connection {name} has no password yet: give it with `mayfly connection set {name}`"
            ))
        })?;
        let (version, sealed) = entry.split_first_chunk::<8>().ok_or_else(|| {
            StoreError::Damaged(format!("the password of connection {name} is cut short"))
        })?;
        Ok(self
            .keys
            .open(&record(name), u64::from_be_bytes(*version), sealed)?)
    }

    /// Whether somebody has given it.
    ///
    /// # Errors
    /// The store's.
    pub async fn has_password(&self, name: &ConnectionName) -> Result<bool, EngineError> {
        Ok(self.store.meta(key(name)).await?.is_some())
    }

    /// Replaces it, durably. `now` in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// The store's and the seal's.
    pub async fn set_password(
        &self,
        name: &ConnectionName,
        password: &Secret,
        now: u64,
    ) -> Result<(), EngineError> {
        let sealed = self.keys.seal(&record(name), now, password)?;
        let mut entry = now.to_be_bytes().to_vec();
        entry.extend_from_slice(&sealed);
        self.store
            .commit(vec![Op::MetaPut(key(name), entry)])
            .await?;
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = targets.get_mut(name) {
            target.edition += 1;
        }
        Ok(())
    }
}

/// What is wrong with the connections of a configuration, and with who uses them: what was expected,
/// what was found.
#[must_use]
pub fn problems(desired: &Desired) -> Vec<String> {
    let mut problems = Vec::new();
    let mut known = BTreeMap::new();
    for config in &desired.connections {
        let name = &config.name;
        if known.insert(name, config.engine).is_some() {
            problems.push(format!("connection {name}: it is configured twice"));
        }
        if let Err(problem) = check(config) {
            problems.push(format!("connection {name}: {problem}"));
        }
    }
    for credential in &desired.credentials {
        let (name, kind) = (&credential.name, credential.engine.kind());
        let Some(connection) = credential.engine.connection() else {
            continue;
        };
        let problem = match known.get(connection) {
            Some(found) if *found == kind => continue,
            Some(found) => format!(
                "connection: expected one of engine {kind}, found {connection}, which is of {found}"
            ),
            None => {
                format!("connection: expected one that is configured as [connection.{connection}]")
            }
        };
        problems.push(format!("credential {name}: {problem}"));
    }
    shared_users(desired, &mut problems);
    problems
}

/// The `static` users of credentials: none is the broker's own account, and none belongs to two, because
/// each rotation of one would break the holders of the other.
fn shared_users(desired: &Desired, problems: &mut Vec<String>) {
    let mut taken = BTreeMap::new();
    for credential in &desired.credentials {
        let name = &credential.name;
        let Some((connection, users)) = credential.engine.fixed_users() else {
            continue;
        };
        let own = (desired.connections.iter())
            .find(|config| config.name == *connection)
            .map(|config| config.username.as_str());
        for user in users {
            if own == Some(user) {
                problems.push(format!(
                    "credential {name}: static: expected users of workloads, found {user}, which is the \
                     broker's own account at {connection}"
                ));
            }
            if let Some(other) = taken.insert((connection, user), name) {
                problems.push(format!(
                    "credential {name}: static: expected a user of its own, found {user}, which \
                     credential {other} has at {connection} too"
                ));
            }
        }
    }
}

/// Whether `now` is another server than `was`, which knows neither its accounts nor its password.
#[must_use]
pub fn is_elsewhere(was: &ConnectionConfig, now: &ConnectionConfig) -> bool {
    (was.engine, &was.host, was.port) != (now.engine, &now.host, now.port)
}

/// What takes the passwords of the broker's own account at a server out of the store.
#[must_use]
pub fn forgotten(name: &ConnectionName) -> [Op; 2] {
    [
        Op::MetaRemove(key(name)),
        Op::MetaRemove(format!("{ROOT}/{name}")),
    ]
}

fn check(config: &ConnectionConfig) -> Result<(), String> {
    let with_servers = [
        EngineKind::Postgres,
        EngineKind::Mysql,
        EngineKind::Redis,
        EngineKind::Rabbitmq,
    ];
    if !with_servers.contains(&config.engine) {
        let names = with_servers.map(EngineKind::as_str).join(", ");
        return Err(format!(
            "engine: expected one of {names}, found {}",
            config.engine
        ));
    }
    let printable = |text: &str| {
        (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    for (setting, text) in [
        ("host", Some(&config.host)),
        ("username", Some(&config.username)),
        ("database", config.database.as_ref()),
        ("public_host", config.public_host.as_ref()),
    ] {
        if text.is_some_and(|text| !printable(text)) {
            return Err(format!(
                "{setting}: expected 1 to 255 printable characters without spaces"
            ));
        }
    }
    if config.tls == Tls::Off && !is_local(&config.host) {
        return Err(format!(
            "tls: expected tls = \"verify\" for a server that is not on this machine, found \
             tls = \"off\" for {}",
            config.host
        ));
    }
    if config
        .max_connections
        .is_some_and(|most| !(1..=256).contains(&most))
    {
        return Err("max_connections: expected 1 to 256".to_owned());
    }
    let rounds = config.scram_iterations;
    if rounds.is_some() && config.engine != EngineKind::Postgres {
        return Err("scram_iterations: only PostgreSQL has those".to_owned());
    }
    if rounds.is_some_and(|rounds| !(1..=1_000_000).contains(&rounds)) {
        return Err("scram_iterations: expected 1 to 1000000".to_owned());
    }
    Ok(())
}

/// Whether nobody can listen in between.
fn is_local(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host.starts_with('/') || host == "localhost" || address.is_ok_and(|ip| ip.is_loopback())
}

fn key(name: &ConnectionName) -> String {
    format!("{PREFIX}{name}")
}

fn record(name: &ConnectionName) -> RecordId<'_> {
    RecordId {
        kind: KIND,
        path: name.as_str(),
    }
}
