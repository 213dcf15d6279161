//! The `postgres` engine: roles of a PostgreSQL server.
//!
//! The server never hears a password. It is given a verifier that the broker computed, from which nobody
//! can log in, so its statements and logs hold nothing that is of use to anybody.

mod account;
mod connect;
mod farewell;
mod metered;
mod removal;
mod roles;
mod scram;
mod session;
mod sql;
mod tls;

use super::account::Account;
use super::connections::Connections;
use super::fixed::{FixedUsers, SetPassword};
use super::pool::{Lent, Limits, Pool, limited};
use super::root::Roots;
use super::statements::{self, Dialect, Placeholder, Statement};
use super::{Answer, Engine, EngineError, IssueRequest, Issued, other_engine, password};
use crate::clock::Clock;
use crate::seal::{RootKeys, SealError, random};
use crate::store::{Lease, Source, Store};
use connect::Login;
use mayfly_wire::admin::{CredentialConfig, EngineConfig};
use mayfly_wire::connection::SCRAM_ITERATIONS;
use mayfly_wire::engine::SqlSettings;
use mayfly_wire::{ConnectionName, Secret};
use removal::Removals;
use std::sync::Arc;
use zeroize::Zeroizing;

/// More iterations than these are not done beside other work.
const FEW: u32 = 128;
const ALL: [Placeholder; 3] = [
    Placeholder::Name,
    Placeholder::Password,
    Placeholder::Expiration,
];

/// The engine.
pub struct Postgres {
    keys: Arc<RootKeys>,
    clock: Arc<dyn Clock>,
    connections: Arc<Connections>,
    pool: Arc<Pool<Login>>,
    fixed: FixedUsers,
    roots: Arc<Roots>,
    removals: Removals,
}

/// The statements of a credential, understood.
struct Understood {
    create: Vec<Statement>,
    renew: Vec<Statement>,
}

impl Postgres {
    /// The engine, with nothing open yet.
    ///
    /// # Errors
    /// The seal's.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<RootKeys>,
        connections: Arc<Connections>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SealError> {
        let roots = Arc::new(Roots::new(
            Arc::clone(&store),
            Arc::clone(&keys),
            Arc::clone(&connections),
            Arc::clone(&clock),
        ));
        let login = Login::new(Arc::clone(&connections), Arc::clone(&roots), &keys)?;
        let pool = Pool::new(Arc::new(login), Arc::clone(&connections), Limits::default());
        let pool = Arc::new(pool);
        Ok(Self {
            fixed: FixedUsers::new(store, Arc::clone(&keys), "static/postgres"),
            keys,
            clock,
            connections,
            removals: Removals::new(Arc::clone(&pool)),
            pool,
            roots,
        })
    }

    /// A session on which nothing can come between any more that was given up before.
    async fn lend(&self, connection: &ConnectionName) -> Result<Lent<Login>, EngineError> {
        removal::lend(&self.pool, connection).await
    }

    async fn make(&self, request: IssueRequest<'_>) -> Result<Issued, EngineError> {
        let credential = request.credential;
        let settings = settings(credential)?;
        let target = self.connections.target(&settings.connection)?;
        let (fields, layout, source);
        if settings.fixed.is_empty() {
            let workload = request.evidence.display_name();
            let name = account::name(&credential.name, &workload, request.lease);
            let mut kept = Account::new(settings.password.as_ref(), settings.revoke.clone())?;
            kept.heir.clone_from(&settings.heir);
            (fields, layout) = account::fields(&target.config, &name, &kept.password())?;
            source = kept.source(&self.keys, &settings.connection, &name, request.lease)?;
        } else {
            let name = &credential.name;
            let holder = self
                .fixed
                .current(name, settings, self, request.now)
                .await?;
            (fields, layout) = account::fields(&target.config, &holder.user, &holder.password)?;
            source = Source::Shared {
                version: holder.version,
            };
        }
        Ok(Issued {
            fields,
            layout,
            expires_at: request.expires_at(),
            source,
        })
    }

    async fn again(
        &self,
        credential: &CredentialConfig,
        lease: &Lease,
    ) -> Result<Issued, EngineError> {
        let settings = settings(credential)?;
        let (fields, layout, source);
        match &lease.source {
            Source::Account {
                connection,
                account,
                ..
            } => {
                let target = self.connections.target(connection)?;
                let password = Account::of(&self.keys, lease)?.password();
                (fields, layout) = account::fields(&target.config, account, &password)?;
                source = lease.source.clone();
            }
            Source::Shared { .. } if !settings.fixed.is_empty() => {
                let target = self.connections.target(&settings.connection)?;
                let holder = self.fixed.known(&credential.name, settings).await?;
                (fields, layout) = account::fields(&target.config, &holder.user, &holder.password)?;
                source = Source::Shared {
                    version: holder.version,
                };
            }
            _ => return Err(other_engine(lease)),
        }
        Ok(Issued {
            fields,
            layout,
            expires_at: lease.expires_at,
            source,
        })
    }

    async fn verifier(
        &self,
        connection: &ConnectionName,
        password: &[u8],
    ) -> Result<String, EngineError> {
        let target = self.connections.target(connection)?;
        let iterations = target.config.scram_iterations.unwrap_or(SCRAM_ITERATIONS);
        let salt = random()?;
        if iterations <= FEW {
            return Ok(scram::verifier(password, salt, iterations)?);
        }
        let password = Zeroizing::new(password.to_vec());
        let task = move || scram::verifier(&password, salt, iterations);
        let made = tokio::task::spawn_blocking(task).await;
        Ok(made.map_err(|error| EngineError::Unavailable(error.to_string()))??)
    }
}

fn settings(credential: &CredentialConfig) -> Result<&SqlSettings, EngineError> {
    match &credential.engine {
        EngineConfig::Postgres(settings) => Ok(settings),
        _ => Err(EngineError::Unfit(format!(
            "{} is not a postgres credential",
            credential.name
        ))),
    }
}

fn understand(settings: &SqlSettings) -> Result<Understood, String> {
    let known = [Placeholder::Name, Placeholder::Expiration];
    Ok(Understood {
        create: statements::parse(Dialect::Postgres, "create", &settings.create, &ALL, &ALL)?,
        renew: if settings.renew.is_empty() {
            Vec::new()
        } else {
            statements::parse(Dialect::Postgres, "renew", &settings.renew, &known, &known)?
        },
    })
}

fn understand_revoke(texts: &[String]) -> Result<Vec<Statement>, String> {
    let known = [Placeholder::Name];
    let needed: &[Placeholder] = if texts.is_empty() { &[] } else { &known };
    statements::parse(Dialect::Postgres, "revoke", texts, &known, needed)
}

fn check_heir(settings: &SqlSettings) -> Result<(), String> {
    let Some(heir) = &settings.heir else {
        return Ok(());
    };
    if !settings.revoke.is_empty() {
        return Err(
            "heir: expected none beside revoke, whose statements say what becomes of what a role owns"
                .to_owned(),
        );
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if !(1..=63).contains(&heir.len()) || !heir.bytes().all(plain) {
        return Err(
            "heir: expected a role's name, of 1 to 63 letters, digits, and any of _ - .".to_owned(),
        );
    }
    Ok(())
}

impl SetPassword for Postgres {
    fn set_password<'a>(
        &'a self,
        connection: &'a ConnectionName,
        user: &'a str,
        password: &'a Secret,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let verifier = self.verifier(connection, password.expose()).await?;
            let mut lent = self.lend(connection).await?;
            let session = lent.connection()?;
            let text = sql::set_password(user, &verifier);
            let outcome = limited(session.transaction(&text)).await;
            lent.done(outcome)
        })
    }
}

impl Engine for Postgres {
    fn check(&self, credential: &CredentialConfig) -> Result<(), String> {
        let settings = settings(credential).map_err(|error| error.to_string())?;
        if let Some(policy) = &settings.password {
            password::check(policy)?;
        }
        if settings.fixed.is_empty() {
            if settings.create.is_empty() {
                return Err("expected statements in create, or users in static".to_owned());
            }
            if settings.rotate_every.is_some() {
                return Err("rotate_every: only users in static are rotated".to_owned());
            }
            understand(settings)?;
            check_heir(settings)?;
            return understand_revoke(&settings.revoke).map(|_| ());
        }
        let made = [&settings.create, &settings.renew, &settings.revoke];
        if settings.heir.is_some() || !made.iter().all(|list| list.is_empty()) {
            return Err(
                "expected either static, or create with renew, revoke and heir: static users stand there \
                 already, and nothing is made or removed"
                    .to_owned(),
            );
        }
        let users = &settings.fixed;
        if users.len() > 2 || matches!(&users[..], [one, other] if one == other) {
            return Err("static: expected one user, or two different ones".to_owned());
        }
        let bad = |user: &&String| user.is_empty() || user.len() > 63 || user.contains('\0');
        match users.iter().find(bad) {
            Some(_) => Err("static: expected names of 1 to 63 bytes".to_owned()),
            None => Ok(()),
        }
    }

    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued> {
        Box::pin(self.make(request))
    }

    fn create<'a>(&'a self, credential: &'a CredentialConfig, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.create_role(credential, lease))
    }

    fn extend<'a>(&'a self, credential: &'a CredentialConfig, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.extend_role(credential, lease))
    }

    fn reissue<'a>(
        &'a self,
        credential: &'a CredentialConfig,
        lease: &'a Lease,
    ) -> Answer<'a, Issued> {
        Box::pin(self.again(credential, lease))
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.revoke_role(lease))
    }

    fn rotate<'a>(&'a self, credential: &'a CredentialConfig, now: u64) -> Answer<'a, bool> {
        Box::pin(async move {
            let settings = settings(credential)?;
            if settings.fixed.is_empty() {
                return Ok(false);
            }
            self.fixed
                .rotate(&credential.name, settings, self, now)
                .await?;
            Ok(true)
        })
    }

    fn rotates_at<'a>(&'a self, credential: &'a CredentialConfig) -> Answer<'a, Option<u64>> {
        Box::pin(async move {
            self.fixed
                .rotates_at(&credential.name, settings(credential)?)
                .await
        })
    }

    fn rotate_root<'a>(&'a self, connection: &'a ConnectionName, _now: u64) -> Answer<'a, ()> {
        Box::pin(self.roots.rotate(connection, self))
    }
}
