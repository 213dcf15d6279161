//! The `redis` engine: ACL users of Redis and Valkey.
//!
//! The server gets the SHA-256 of each password, never the password. It knows no expiry of users: they
//! end when the broker removes them.

mod connector;
mod resp;
mod rules;

use super::account::{self, Account, Login};
use super::connections::Connections;
use super::fixed::SetPassword;
use super::pool::{Failure, Limits, Pool, limited};
use super::root::Roots;
use super::{Answer, Engine, EngineError, IssueRequest, Issued};
use crate::clock::Clock;
use crate::seal::RootKeys;
use crate::store::{Lease, Source, Store};
use connector::Link;
use mayfly_wire::admin::{CredentialConfig, EngineConfig};
use mayfly_wire::connection::Tls;
use mayfly_wire::engine::RedisSettings;
use mayfly_wire::{ConnectionName, Secret};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

const PORT: u16 = 6379;

/// The engine.
pub struct Redis {
    connections: Arc<Connections>,
    keys: Arc<RootKeys>,
    roots: Arc<Roots>,
    pool: Pool<connector::Redis>,
}

impl Redis {
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
        let connector = connector::Redis::new(Arc::clone(&connections), Arc::clone(&roots));
        let limits = Limits::default();
        Self {
            pool: Pool::new(Arc::new(connector), Arc::clone(&connections), limits),
            connections,
            keys,
            roots,
        }
    }

    fn told(
        &self,
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
        let login = Login {
            kind: "redis",
            scheme: match config.tls {
                Tls::Verify => "rediss",
                Tls::Off => "redis",
            },
            port: config.port.unwrap_or(PORT),
            path: config.database.as_deref().map(|path| ("database", path)),
        };
        let (name, password) = (name.clone(), account.password());
        account::told(&config, &login, &name, &password, expires_at, source)
    }

    async fn make(&self, rules: &[String], lease: &Lease) -> Result<(), EngineError> {
        let (connection, name) = account::at(lease)?;
        let hash = hash(&Account::of(&self.keys, lease)?.password());
        let mut lent = self.pool.lend(connection).await?;
        let client = &mut lent.connection()?.client;
        let outcome = limited(set(client, rules, name, &hash)).await;
        lent.done(outcome)
    }

    async fn remove(&self, lease: &Lease) -> Result<(), EngineError> {
        let (connection, name) = account::at(lease)?;
        let mut lent = self.pool.lend(connection).await?;
        let username = lent.target().config.username.clone();
        let connector = self.pool.connector();
        let link = lent.connection()?;
        let outcome = limited(async {
            // Before the user goes, so that nothing makes it again.
            connector.settle(connection, &username, link).await?;
            delete(link, name).await
        });
        let outcome = outcome.await;
        lent.done(outcome)
    }
}

/// All in one command, which the server does as a whole or not at all.
async fn set(
    client: &mut resp::Client,
    rules: &[String],
    name: &str,
    hash: &str,
) -> Result<(), Failure> {
    let name = name.as_bytes();
    let mut command: Vec<&[u8]> = vec![b"ACL", b"SETUSER", name, b"reset"];
    command.extend(rules::of_holder(rules).map(str::as_bytes));
    command.extend([hash.as_bytes(), b"on"]);
    let show: &[&[u8]] = &[b"ACL", b"GETUSER", name];
    let answers = client
        .ask_all(&[&command, show, &[b"ACL", b"SAVE"]])
        .await?;
    let [made, shown, saved] = answers.as_slice() else {
        return Err(Failure::Broken("an answer is missing".to_owned()));
    };
    if let resp::Answer::No(cause) = made {
        return Err(Failure::Refused(format!("ACL SETUSER: {cause}")));
    }
    let has = |text: &str| contains(shown, text);
    if !has("on") || !has(&hash[1..]) || has("nopass") {
        return Err(Failure::Refused(
            "ACL GETUSER does not show the user that ACL SETUSER made".to_owned(),
        ));
    }
    kept(saved)
}

/// Its connections end with it.
async fn delete(link: &mut Link, name: &str) -> Result<(), Failure> {
    let name = name.as_bytes();
    let answers = link
        .client
        .ask_all(&[
            &[b"ACL", b"DELUSER", name],
            &[b"ACL", b"GETUSER", name],
            &[b"ACL", b"SAVE"],
        ])
        .await?;
    match answers.as_slice() {
        [resp::Answer::No(cause), ..] => Err(Failure::Refused(format!("ACL DELUSER: {cause}"))),
        [_, resp::Answer::Nothing, saved] => kept(saved),
        _ => Err(Failure::Refused(
            "the user is still there after ACL DELUSER".to_owned(),
        )),
    }
}

/// Where users are kept in a file, what a restarted server reads there must be what was just said.
fn kept(saved: &resp::Answer) -> Result<(), Failure> {
    match saved {
        resp::Answer::No(cause) if !cause.contains("not configured to use an ACL file") => {
            Err(Failure::Refused(format!("ACL SAVE: {cause}")))
        }
        _ => Ok(()),
    }
}

fn contains(answer: &resp::Answer, text: &str) -> bool {
    match answer {
        resp::Answer::Text(found) => found == text,
        resp::Answer::List(items) => items.iter().any(|item| contains(item, text)),
        _ => false,
    }
}

/// The rule that lets in who knows the password.
fn hash(password: &Secret) -> String {
    let digest = Sha256::digest(password.expose());
    let digits = digest.iter().map(|byte| format!("{byte:02x}"));
    std::iter::once("#".to_owned()).chain(digits).collect()
}

fn settings(credential: &CredentialConfig) -> Result<&RedisSettings, String> {
    match &credential.engine {
        EngineConfig::Redis(settings) => Ok(settings),
        _ => Err(format!("{} is not a redis credential", credential.name)),
    }
}

/// For the rotation of the broker's own password.
impl SetPassword for Redis {
    fn set_password<'a>(
        &'a self,
        connection: &'a ConnectionName,
        user: &'a str,
        password: &'a Secret,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut lent = self.pool.lend(connection).await?;
            let connector = self.pool.connector();
            let link = lent.connection()?;
            let outcome = limited(async {
                connector.settle(connection, user, link).await?;
                // First of all, for otherwise the old password comes back when the server is started anew,
                // and nobody but its operator gets in any more.
                if let resp::Answer::No(cause) = link.client.ask(&[b"ACL", b"SAVE"]).await? {
                    return Err(Failure::Refused(format!(
                        "ACL SAVE: {cause}; expected a server with an aclfile that it can write, \
                         where it keeps the new password: nothing was changed"
                    )));
                }
                let (user, hash) = (user.as_bytes(), hash(password));
                let set: &[&[u8]] = &[b"ACL", b"SETUSER", user, b"resetpass", hash.as_bytes()];
                let answers = link.client.ask_all(&[set, &[b"ACL", b"SAVE"]]).await?;
                match answers.as_slice() {
                    // If it is not kept now, the broker gets in with either until it is.
                    [resp::Answer::Text(_), resp::Answer::No(cause)] => {
                        Err(Failure::Refused(format!("ACL SAVE: {cause}")))
                    }
                    [resp::Answer::Text(_), _] => Ok(()),
                    [resp::Answer::No(cause), ..] => {
                        Err(Failure::Refused(format!("ACL SETUSER: {cause}")))
                    }
                    _ => Err(Failure::Broken("an answer is missing".to_owned())),
                }
            });
            let outcome = outcome.await;
            lent.done(outcome)
        })
    }
}

impl Engine for Redis {
    fn check(&self, credential: &CredentialConfig) -> Result<(), String> {
        rules::check(&settings(credential)?.rules)
    }

    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued> {
        Box::pin(async move {
            let settings = settings(request.credential).map_err(EngineError::Unfit)?;
            let account = Account::new(None, Vec::new())?;
            let name = account::name(&request);
            let source = account.source(&self.keys, &settings.connection, &name, request.lease)?;
            self.told(&account, source, request.expires_at())
        })
    }

    fn create<'a>(&'a self, credential: &'a CredentialConfig, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(async move {
            let settings = settings(credential).map_err(EngineError::Conflict)?;
            rules::check(&settings.rules).map_err(EngineError::Unfit)?;
            self.make(&settings.rules, lease).await
        })
    }

    fn reissue<'a>(
        &'a self,
        _credential: &'a CredentialConfig,
        lease: &'a Lease,
    ) -> Answer<'a, Issued> {
        Box::pin(async move {
            let account = Account::of(&self.keys, lease)?;
            self.told(&account, lease.source.clone(), lease.expires_at)
        })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.remove(lease))
    }

    fn rotate_root<'a>(&'a self, connection: &'a ConnectionName, _now: u64) -> Answer<'a, ()> {
        Box::pin(self.roots.rotate(connection, self))
    }
}
