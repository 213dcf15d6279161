//! The `mysql` engine: users of MariaDB and MySQL.
//!
//! The server never hears a password, only what it keeps to check it with. It knows no expiry of users
//! to the second: they end when the broker removes them.

mod clause;
mod connector;
mod link;
mod packet;
mod proof;
mod session;
mod verifier;

use super::account::{self, Account, Login};
use super::connections::Connections;
use super::fixed::{FixedUsers, SetPassword};
use super::pool::{Failure, Limits, Pool, limited};
use super::root::Roots;
use super::statements::{self, Dialect, Placeholder, Statement, Values, is_plain};
use super::{Answer, Engine, EngineError, IssueRequest, Issued, other_engine, password};
use crate::clock::Clock;
use crate::seal::{RootKeys, hmac, random};
use crate::store::{Lease, Source, Store};
use link::Link;
use mayfly_wire::admin::{CredentialConfig, EngineConfig};
use mayfly_wire::engine::SqlSettings;
use mayfly_wire::{ConnectionName, Secret};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use verifier::Plugin;

const PORT: u16 = 3306;
/// A client that logs in while its user is dropped can come through. It is ended after this time.
const LATE: Duration = Duration::from_secs(1);
const ALL: [Placeholder; 3] = [
    Placeholder::Name,
    Placeholder::Password,
    Placeholder::Expiration,
];

/// The engine.
pub struct Mysql {
    keys: Arc<RootKeys>,
    clock: Arc<dyn Clock>,
    connections: Arc<Connections>,
    pool: Arc<Pool<connector::Login>>,
    fixed: FixedUsers,
    roots: Arc<Roots>,
    /// Where connections that came late will be ended.
    late: Arc<Mutex<HashSet<ConnectionName>>>,
}

impl Mysql {
    /// The engine, with nothing open yet.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<RootKeys>,
        connections: Arc<Connections>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let roots = Arc::new(Roots::new(
            Arc::clone(&store),
            Arc::clone(&keys),
            Arc::clone(&connections),
            Arc::clone(&clock),
        ));
        let login = connector::Login::new(Arc::clone(&connections), Arc::clone(&roots));
        let limits = Limits::default();
        Self {
            pool: Arc::new(Pool::new(Arc::new(login), Arc::clone(&connections), limits)),
            fixed: FixedUsers::new(store, Arc::clone(&keys), "static/mysql"),
            keys,
            clock,
            connections,
            roots,
            late: Arc::default(),
        }
    }

    fn told(
        &self,
        connection: &ConnectionName,
        user: &str,
        password: &Secret,
        expires_at: u64,
        source: Source,
    ) -> Result<Issued, EngineError> {
        let config = self.connections.target(connection)?.config;
        let login = Login {
            kind: "mysql",
            scheme: "mysql",
            port: config.port.unwrap_or(PORT),
            path: config.database.as_deref().map(|path| ("database", path)),
        };
        // Where it may come from is no part of its name.
        let user = user.rsplit_once('@').map_or(user, |(name, _)| name);
        account::told(&config, &login, user, password, expires_at, source)
    }

    async fn make(&self, request: IssueRequest<'_>) -> Result<Issued, EngineError> {
        let credential = request.credential;
        let settings = settings(credential).map_err(EngineError::Unfit)?;
        let (connection, ends) = (&settings.connection, request.expires_at());
        if settings.fixed.is_empty() {
            let account = Account::new(settings.password.as_ref(), settings.revoke.clone())?;
            let name = account::name(&request);
            let source = account.source(&self.keys, connection, &name, request.lease)?;
            return self.told(connection, &name, &account.password(), ends, source);
        }
        let name = &credential.name;
        let holder = self.fixed.current(name, settings, self, request.now);
        let holder = holder.await?;
        let version = holder.version;
        let source = Source::Shared { version };
        self.told(connection, &holder.user, &holder.password, ends, source)
    }

    async fn again(
        &self,
        credential: &CredentialConfig,
        lease: &Lease,
    ) -> Result<Issued, EngineError> {
        let settings = settings(credential).map_err(EngineError::Conflict)?;
        let ends = lease.expires_at;
        if let Source::Account {
            connection,
            account: name,
            ..
        } = &lease.source
        {
            let password = Account::of(&self.keys, lease)?.password();
            return self.told(connection, name, &password, ends, lease.source.clone());
        }
        if settings.fixed.is_empty() {
            return Err(other_engine(lease));
        }
        let holder = self.fixed.known(&credential.name, settings).await?;
        let version = holder.version;
        let source = Source::Shared { version };
        self.told(
            &settings.connection,
            &holder.user,
            &holder.password,
            ends,
            source,
        )
    }

    async fn create_user(
        &self,
        credential: &CredentialConfig,
        lease: &Lease,
    ) -> Result<(), EngineError> {
        let settings = settings(credential).map_err(EngineError::Conflict)?;
        let (connection, name) = account::at(lease)?;
        let password = Account::of(&self.keys, lease)?.password();
        let seconds = self.seconds_left(lease)?;
        let salt = random()?;
        let mut lent = self.pool.lend(connection).await?;
        let link = lent.connection()?;
        let statements = understand(&settings.create, link.mariadb).map_err(EngineError::Unfit)?;
        let lock = self.lock_name(name)?;
        let outcome = limited(async {
            session::lock(link, &lock).await?;
            let verifier = |plugin: Plugin| plugin.verifier(&password, salt);
            let outcome = create(link, &statements, name, seconds, &verifier).await;
            session::unlock(link, &lock, outcome).await
        });
        let outcome = outcome.await;
        lent.done(outcome)
    }

    /// What the lock of a user is called. The user's own name would not do: whoever knows it could take
    /// that lock, and nobody would remove the user.
    fn lock_name(&self, user: &str) -> Result<String, EngineError> {
        let key = self.keys.lasting_key("mysql locks")?;
        let tag = hmac(key.as_slice(), user.as_bytes())?;
        let digits = tag.iter().take(16).map(|byte| format!("{byte:02x}"));
        Ok(std::iter::once("mf ".to_owned()).chain(digits).collect())
    }

    fn seconds_left(&self, lease: &Lease) -> Result<u64, EngineError> {
        let left = lease.expires_at.saturating_sub(self.clock.now_ms());
        match left.div_ceil(1000) {
            0 => Err(EngineError::Conflict(format!(
                "{} has ended already",
                lease.id
            ))),
            seconds => Ok(seconds),
        }
    }

    async fn extend_user(
        &self,
        credential: &CredentialConfig,
        lease: &Lease,
    ) -> Result<(), EngineError> {
        let settings = settings(credential).map_err(EngineError::Conflict)?;
        let (connection, name) = account::at(lease)?;
        if settings.renew.is_empty() {
            return Ok(());
        }
        let seconds = self.seconds_left(lease)?;
        let statements = understand_renew(&settings.renew).map_err(EngineError::Unfit)?;
        let mut lent = self.pool.lend(connection).await?;
        let link = lent.connection()?;
        let outcome = limited(async {
            let expiration = session::time_in(link, seconds).await?;
            run(link, &statements, &values(name, "", &expiration)).await
        });
        let outcome = outcome.await;
        lent.done(outcome)
    }

    async fn revoke_user(&self, lease: &Lease) -> Result<(), EngineError> {
        if !lease.source.has_target() {
            // Nothing exists for this lease alone.
            return Ok(());
        }
        let (connection, name) = account::at(lease)?;
        let kept = Account::of(&self.keys, lease)?;
        let revoke = understand_revoke(&kept.revoke).map_err(EngineError::Unfit)?;
        let mut lent = self.pool.lend(connection).await?;
        let link = lent.connection()?;
        let lock = self.lock_name(name)?;
        let outcome = limited(async {
            session::lock_out(link, name).await?;
            session::lock(link, &lock).await?;
            let outcome = remove(link, &revoke, name).await;
            session::unlock(link, &lock, outcome).await
        });
        let outcome = outcome.await;
        lent.done(outcome)?;
        self.look_again(connection);
        Ok(())
    }

    /// A little later, once more ends connections whose user is gone.
    fn look_again(&self, connection: &ConnectionName) {
        let mut waiting = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.insert(connection.clone()) {
            return;
        }
        drop(waiting);
        let (late, pool) = (Arc::clone(&self.late), Arc::clone(&self.pool));
        let connection = connection.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LATE).await;
            late.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&connection);
            let ended = async {
                let mut lent = pool.lend(&connection).await?;
                let outcome = limited(session::end_orphans(lent.connection()?)).await;
                lent.done(outcome)
            };
            if let Err(error) = ended.await {
                tracing::debug!(%connection, %error, "late connections were not looked for");
            }
        });
    }
}

async fn create(
    link: &mut Link,
    statements: &[(Statement, Option<Plugin>)],
    name: &str,
    seconds: u64,
    verifier: &(dyn Fn(Plugin) -> String + Sync),
) -> Result<(), Failure> {
    let expiration = session::time_in(link, seconds).await?;
    for (statement, plugin) in statements {
        let verifier = plugin.map(verifier).unwrap_or_default();
        let statement = std::slice::from_ref(statement);
        run(link, statement, &values(name, &verifier, &expiration)).await?;
    }
    Ok(())
}

async fn remove(link: &mut Link, revoke: &[Statement], name: &str) -> Result<(), Failure> {
    let outcome = run(link, revoke, &values(name, "", "")).await;
    match outcome {
        Ok(()) if revoke.is_empty() => session::drop_user(link, name).await?,
        Err(Failure::Broken(cause)) => return Err(Failure::Broken(cause)),
        outcome => {
            // The operator's own statements may not bear that nothing is there, and they may leave it.
            if !session::hosts(link, name).await?.is_empty() {
                let still = "the user is still there after the statements that remove it";
                return outcome.and(Err(Failure::Refused(still.to_owned())));
            }
        }
    }
    session::end_connections(link, name).await
}

async fn run(
    link: &mut Link,
    statements: &[Statement],
    values: &Values<'_>,
) -> Result<(), Failure> {
    for statement in statements {
        let mut text = String::new();
        statement
            .render(values, &mut text)
            .map_err(Failure::Refused)?;
        link.run(&text).await?;
    }
    Ok(())
}

fn values<'a>(name: &'a str, password: &'a str, expiration: &'a str) -> Values<'a> {
    Values {
        name,
        password,
        expiration,
    }
}

fn settings(credential: &CredentialConfig) -> Result<&SqlSettings, String> {
    match &credential.engine {
        EngineConfig::Mysql(settings) => Ok(settings),
        _ => Err(format!("{} is not a mysql credential", credential.name)),
    }
}

/// Statements that make a user, each with what its password must become.
fn understand(
    create: &[String],
    mariadb: bool,
) -> Result<Vec<(Statement, Option<Plugin>)>, String> {
    let prepared = create.iter().enumerate().map(|(index, text)| {
        let prepared = clause::prepare(text, mariadb);
        prepared.map_err(|problem| format!("create, statement {}: {problem}", index + 1))
    });
    let prepared = prepared.collect::<Result<Vec<_>, _>>()?;
    let texts: Vec<String> = prepared.iter().map(|one| one.text.clone()).collect();
    let needed = [Placeholder::Name, Placeholder::Password];
    let statements = statements::parse(Dialect::Mysql, "create", &texts, &ALL, &needed)?;
    Ok(statements
        .into_iter()
        .zip(prepared.into_iter().map(|one| one.plugin))
        .collect())
}

fn understand_renew(texts: &[String]) -> Result<Vec<Statement>, String> {
    let known = [Placeholder::Name, Placeholder::Expiration];
    statements::parse(Dialect::Mysql, "renew", texts, &known, &[])
}

fn understand_revoke(texts: &[String]) -> Result<Vec<Statement>, String> {
    let known = [Placeholder::Name];
    let needed: &[Placeholder] = if texts.is_empty() { &[] } else { &known };
    statements::parse(Dialect::Mysql, "revoke", texts, &known, needed)
}

impl SetPassword for Mysql {
    fn set_password<'a>(
        &'a self,
        connection: &'a ConnectionName,
        user: &'a str,
        password: &'a Secret,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let salt = random()?;
            let mut lent = self.pool.lend(connection).await?;
            let own = lent.target().config.username == user;
            let link = lent.connection()?;
            let lock = self.lock_name(user)?;
            let verifier = |plugin: Plugin| plugin.verifier(password, salt);
            let outcome = limited(async {
                session::lock(link, &lock).await?;
                let outcome = session::set_password(link, user, own, &verifier).await;
                session::unlock(link, &lock, outcome).await
            });
            let outcome = outcome.await;
            lent.done(outcome)
        })
    }
}

impl Engine for Mysql {
    fn check(&self, credential: &CredentialConfig) -> Result<(), String> {
        let settings = settings(credential)?;
        if let Some(policy) = &settings.password {
            password::check(policy)?;
        }
        if settings.heir.is_some() {
            return Err("heir: expected none, for users of this server own nothing".to_owned());
        }
        if settings.fixed.is_empty() {
            if settings.create.is_empty() {
                return Err("expected statements in create, or users in static".to_owned());
            }
            if settings.rotate_every.is_some() {
                return Err("rotate_every: only users in static are rotated".to_owned());
            }
            // Which kind of server it is, only the server knows.
            understand(&settings.create, true)?;
            understand(&settings.create, false)?;
            understand_renew(&settings.renew)?;
            return understand_revoke(&settings.revoke).map(|_| ());
        }
        if !(settings.create.is_empty() && settings.renew.is_empty() && settings.revoke.is_empty())
        {
            return Err(
                "expected either static, or create with renew and revoke: static users stand there \
                 already, and nothing is made or removed"
                    .to_owned(),
            );
        }
        let users = &settings.fixed;
        if users.len() > 2 || matches!(&users[..], [one, other] if one == other) {
            return Err("static: expected one user, or two different ones".to_owned());
        }
        let good = |user: &String| (1..=128).contains(&user.len()) && user.bytes().all(is_plain);
        if users.iter().all(good) {
            return Ok(());
        }
        Err(
            "static: expected NAME or NAME@HOST, of 1 to 128 printable characters without quotes"
                .to_owned(),
        )
    }

    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued> {
        Box::pin(self.make(request))
    }

    fn create<'a>(&'a self, credential: &'a CredentialConfig, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.create_user(credential, lease))
    }

    fn extend<'a>(&'a self, credential: &'a CredentialConfig, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.extend_user(credential, lease))
    }

    fn reissue<'a>(
        &'a self,
        credential: &'a CredentialConfig,
        lease: &'a Lease,
    ) -> Answer<'a, Issued> {
        Box::pin(self.again(credential, lease))
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.revoke_user(lease))
    }

    fn rotate<'a>(&'a self, credential: &'a CredentialConfig, now: u64) -> Answer<'a, bool> {
        Box::pin(async move {
            let settings = settings(credential).map_err(EngineError::Unfit)?;
            if settings.fixed.is_empty() {
                return Ok(false);
            }
            let rotated = self.fixed.rotate(&credential.name, settings, self, now);
            rotated.await.map(|()| true)
        })
    }

    fn rotates_at<'a>(&'a self, credential: &'a CredentialConfig) -> Answer<'a, Option<u64>> {
        Box::pin(async move {
            let settings = settings(credential).map_err(EngineError::Unfit)?;
            self.fixed.rotates_at(&credential.name, settings).await
        })
    }

    fn rotate_root<'a>(&'a self, connection: &'a ConnectionName, _now: u64) -> Answer<'a, ()> {
        Box::pin(self.roots.rotate(connection, self))
    }
}
