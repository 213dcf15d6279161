//! The `rabbitmq` engine: users with permissions in virtual hosts, made through the management API.
//!
//! The server gets a salted SHA-256 of each password, never the password. It knows no expiry of users:
//! they end when the broker removes them.

mod api;
mod pending;

use super::account::{self, Account, Login};
use super::connections::Connections;
use super::fixed::SetPassword;
use super::pool::{Failure, Limits, Pool, limited};
use super::root::Roots;
use super::{Answer, Engine, EngineError, IssueRequest, Issued};
use crate::clock::Clock;
use crate::seal::{RootKeys, random};
use crate::store::{Lease, Source, Store};
use api::{Api, Link, segment};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use mayfly_wire::admin::{CredentialConfig, EngineConfig};
use mayfly_wire::connection::Tls;
use mayfly_wire::engine::RabbitmqSettings;
use mayfly_wire::{ConnectionName, Secret};
use pending::Pending;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::Duration;

const PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;
/// How long a server that answers others may still take over a request that was cut off.
const SETTLE: Duration = Duration::from_secs(2);
/// Most virtual hosts, and most tags, of one credential.
const MOST: usize = 32;
/// Most characters of a virtual host's name, a tag or a permission.
const MAX_TEXT: usize = 256;

/// The engine.
pub struct Rabbitmq {
    connections: Arc<Connections>,
    keys: Arc<RootKeys>,
    roots: Arc<Roots>,
    pool: Arc<Pool<Api>>,
    pending: Arc<Pending>,
}

impl Rabbitmq {
    /// The engine, with nothing open yet.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<RootKeys>,
        connections: Arc<Connections>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (own_keys, own) = (Arc::clone(&keys), Arc::clone(&connections));
        let roots = Arc::new(Roots::new(store, own_keys, own, clock));
        let api = Api::new(Arc::clone(&connections), Arc::clone(&roots));
        let limits = Limits::default();
        Self {
            pool: Arc::new(Pool::new(Arc::new(api), Arc::clone(&connections), limits)),
            connections,
            keys,
            roots,
            pending: Arc::default(),
        }
    }

    fn told(
        &self,
        settings: &RabbitmqSettings,
        account: &Account,
        source: Source,
        expires_at: u64,
    ) -> Result<Issued, EngineError> {
        let Source::Account {
            connection,
            account: name,
            ..
        } = &source
        else {
            return Err(EngineError::Unfit("an account without a server".to_owned()));
        };
        let config = self.connections.target(connection)?.config;
        let (scheme, port) = match config.tls {
            Tls::Verify => ("amqps", TLS_PORT),
            Tls::Off => ("amqp", PORT),
        };
        let login = Login {
            kind: "rabbitmq",
            scheme,
            port: settings.amqp_port.unwrap_or(port),
            path: match settings.permissions.keys().collect::<Vec<_>>()[..] {
                [one] => Some(("vhost", one.as_str())),
                _ => None,
            },
        };
        let (name, password) = (name.clone(), account.password());
        account::told(&config, &login, &name, &password, expires_at, source)
    }

    /// In a task of its own, so that what was begun is brought to an end that is known, whoever waits.
    async fn make(&self, settings: &RabbitmqSettings, lease: &Lease) -> Result<(), EngineError> {
        let (connection, name) = account::at(lease)?;
        let hash = password_hash(&Account::of(&self.keys, lease)?.password())?;
        let (pool, settings) = (Arc::clone(&self.pool), settings.clone());
        let (connection, name) = (connection.clone(), name.to_owned());
        let begun = self.pending.begin(&name);
        let made = tokio::spawn(async move {
            let mut lent = match pool.lend(&connection).await {
                Ok(lent) => lent,
                Err(error) => {
                    begun.ended();
                    return Err(error);
                }
            };
            let user = user(&hash, &settings.tags.join(","));
            let link = lent.connection()?;
            let outcome = limited(put(link, &name, &user, &settings)).await;
            if !matches!(outcome, Err(Failure::Broken(_))) {
                begun.ended();
            }
            lent.done(outcome)
        });
        made.await.unwrap_or_else(|error| {
            Err(EngineError::Unavailable(format!(
                "making a user failed: {error}"
            )))
        })
    }

    async fn remove(&self, lease: &Lease) -> Result<(), EngineError> {
        let (connection, name) = account::at(lease)?;
        // What was begun ends within the time of one operation.
        let unknown = self.pending.settled(name).await;
        let was_there = self.delete(connection, name).await?;
        let young = self.pool.connector().is_new(connection);
        if !was_there && (unknown || young) {
            // One that a request makes which was cut off, here or in an earlier process, may still come:
            // it is looked for again when a server that answers had time to finish that.
            tokio::time::sleep(SETTLE).await;
            self.delete(connection, name).await?;
        }
        self.pending.forget(name);
        Ok(())
    }

    /// Removes a user with its connections. Says whether there was one.
    async fn delete(&self, connection: &ConnectionName, name: &str) -> Result<bool, EngineError> {
        let mut lent = self.pool.lend(connection).await?;
        let link = lent.connection()?;
        let name = segment(name);
        let outcome = limited(async {
            let user = format!("/api/users/{name}");
            let connections = format!("/api/connections/username/{name}");
            let removed = link.ask(Method::DELETE, &user, None).await?;
            // The server ends them itself, a little later.
            link.ask(Method::DELETE, &connections, None).await?;
            if link.ask(Method::GET, &user, None).await?.is_some() {
                let still = "the user is still there after it was removed";
                return Err(Failure::Refused(still.to_owned()));
            }
            Ok(removed.is_some())
        });
        let outcome = outcome.await;
        lent.done(outcome)
    }
}

/// The user first, which can do nothing yet, and then what it may do, which only a user that exists can
/// get: a request that comes too late makes at most a user that can open nothing.
async fn put(
    link: &mut Link,
    name: &str,
    user: &Value,
    settings: &RabbitmqSettings,
) -> Result<(), Failure> {
    let name = segment(name);
    let path = format!("/api/users/{name}");
    link.ask(Method::PUT, &path, Some(user)).await?;
    for (vhost, permission) in &settings.permissions {
        let path = format!("/api/permissions/{}/{name}", segment(vhost));
        let body = json!({
            "configure": permission.configure,
            "write": permission.write,
            "read": permission.read,
        });
        if link.ask(Method::PUT, &path, Some(&body)).await?.is_none() {
            return Err(Failure::Refused(format!(
                "there is no virtual host {vhost:?}"
            )));
        }
    }
    Ok(())
}

fn user(hash: &str, tags: &str) -> Value {
    json!({
        "password_hash": hash,
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
    })
}

/// Four bytes of salt, and the SHA-256 of those and the password
/// (<https://www.rabbitmq.com/docs/passwords>).
fn password_hash(password: &Secret) -> Result<String, EngineError> {
    let salt = random::<4>()?;
    let mut digest = Sha256::new();
    digest.update(salt);
    digest.update(password.expose());
    Ok(STANDARD.encode([&salt[..], &digest.finalize()].concat()))
}

fn settings(credential: &CredentialConfig) -> Result<&RabbitmqSettings, String> {
    match &credential.engine {
        EngineConfig::Rabbitmq(settings) => Ok(settings),
        _ => Err(format!("{} is not a rabbitmq credential", credential.name)),
    }
}

fn check(settings: &RabbitmqSettings) -> Result<(), String> {
    let RabbitmqSettings {
        permissions, tags, ..
    } = settings;
    let plain =
        |text: &str| text.chars().count() <= MAX_TEXT && !text.chars().any(char::is_control);
    if permissions.is_empty() || permissions.len() > MOST {
        return Err(format!("permissions: expected 1 to {MOST} virtual hosts"));
    }
    for (vhost, permission) in permissions {
        let texts = [
            vhost,
            &permission.configure,
            &permission.write,
            &permission.read,
        ];
        if vhost.is_empty() || !texts.iter().all(|text| plain(text)) {
            return Err(format!(
                "permissions: expected names and expressions of at most {MAX_TEXT} characters, found \
                 another at {vhost:?}"
            ));
        }
    }
    let tag = |tag: &String| {
        !tag.is_empty()
            && tag.len() <= MAX_TEXT
            && tag
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if tags.len() > MOST || !tags.iter().all(tag) {
        return Err(format!(
            "tags: expected at most {MOST} of letters, digits, '-' and '_'"
        ));
    }
    if tags.iter().any(|tag| tag == "administrator") {
        return Err(
            "tags: an administrator can make users that outlive its lease; expected another tag"
                .to_owned(),
        );
    }
    Ok(())
}

/// The tags that a user has: a list, or text with commas before version 3.9.
fn tags(shown: &[u8]) -> Option<String> {
    match &serde_json::from_slice::<Value>(shown).ok()?["tags"] {
        Value::String(tags) => Some(tags.clone()),
        Value::Array(tags) => {
            let tags: Option<Vec<_>> = tags.iter().map(Value::as_str).collect();
            Some(tags?.join(","))
        }
        _ => None,
    }
}

/// For the rotation of the broker's own password.
impl SetPassword for Rabbitmq {
    fn set_password<'a>(
        &'a self,
        connection: &'a ConnectionName,
        user: &'a str,
        password: &'a Secret,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let hash = password_hash(password)?;
            let mut lent = self.pool.lend(connection).await?;
            let link = lent.connection()?;
            let outcome = limited(async {
                let path = format!("/api/users/{}", segment(user));
                let shown = link.ask(Method::GET, &path, None).await?;
                let tags = shown.and_then(|shown| tags(&shown)).ok_or_else(|| {
                    Failure::Refused(format!("there is no user {user}, or no tags of it"))
                })?;
                let body = self::user(&hash, &tags);
                link.ask(Method::PUT, &path, Some(&body)).await.map(|_| ())
            });
            let outcome = outcome.await;
            lent.done(outcome)
        })
    }
}

impl Engine for Rabbitmq {
    fn check(&self, credential: &CredentialConfig) -> Result<(), String> {
        check(settings(credential)?)
    }

    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued> {
        Box::pin(async move {
            let settings = settings(request.credential).map_err(EngineError::Unfit)?;
            let account = Account::new(None, Vec::new())?;
            let name = account::name(&request);
            let source = account.source(&self.keys, &settings.connection, &name, request.lease)?;
            self.told(settings, &account, source, request.expires_at())
        })
    }

    fn create<'a>(&'a self, credential: &'a CredentialConfig, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(async move {
            let settings = settings(credential).map_err(EngineError::Conflict)?;
            check(settings).map_err(EngineError::Unfit)?;
            self.make(settings, lease).await
        })
    }

    fn reissue<'a>(
        &'a self,
        credential: &'a CredentialConfig,
        lease: &'a Lease,
    ) -> Answer<'a, Issued> {
        Box::pin(async move {
            let settings = settings(credential).map_err(EngineError::Conflict)?;
            let account = Account::of(&self.keys, lease)?;
            self.told(settings, &account, lease.source.clone(), lease.expires_at)
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.remove(lease))
    }

    fn rotate_root<'a>(&'a self, connection: &'a ConnectionName, _now: u64) -> Answer<'a, ()> {
        Box::pin(self.roots.rotate(connection, self))
    }
}
