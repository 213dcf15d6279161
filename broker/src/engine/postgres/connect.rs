//! How the broker gets in, and how it makes sure that what it gave up does not happen after all.
//!
//! The server goes on with a statement when its client is gone, and a statement that is still on its way
//! may arrive later. So each server process that had an operation which was cut off is remembered, and
//! ended, and waited for, before anything else is done at that target. Those of an earlier process of
//! this broker are known by their `application_name`, and are ended at the first connect.

use super::metered::{Metered, Room};
use super::session::Session;
use super::tls::ToServer;
use crate::engine::EngineError;
use crate::engine::connections::{Connections, Target};
use crate::engine::pool::{Connector, Failure, Opening};
use crate::engine::root::Roots;
use crate::engine::stream;
use crate::seal::{RootKeys, SealError, random};
use mayfly_wire::connection::Tls;
use mayfly_wire::{ConnectionConfig, ConnectionName, Secret};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

/// The server's usual port.
pub(super) const PORT: u16 = 5432;
/// The database that the broker connects to unless it is said otherwise. It is always there.
pub(super) const DATABASE: &str = "postgres";
/// Waits while server processes end: the first, and the longest.
const ENDING: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// For each session: the server gives up by itself, before the broker does, what others' locks hold up;
/// and a broker that is gone without a word does not leave its sessions there. A backslash in a text means
/// nothing: who owns the database could have said otherwise in it, and then end a text of ours too soon.
const OPTIONS: &str = "-c statement_timeout=8000 -c lock_timeout=3000 \
    -c idle_in_transaction_session_timeout=10000 -c client_min_messages=error \
    -c standard_conforming_strings=on";

/// Opens sessions.
pub(super) struct Login {
    connections: Arc<Connections>,
    roots: Arc<Roots>,
    /// What the `application_name` of every process of this broker begins with, and of this process.
    ours: String,
    this_process: String,
    count: AtomicU64,
    /// Servers at which nothing of an earlier process is left.
    settled: Mutex<HashSet<(String, u16, String)>>,
    /// Server processes that had an operation which was cut off.
    lost: Mutex<HashMap<ConnectionName, Vec<i32>>>,
    /// For each target, whose turn it is to try again.
    turns: Mutex<HashMap<ConnectionName, Turn>>,
}

type Turn = Arc<tokio::sync::Mutex<()>>;

/// Why somebody does not get in.
enum Denied {
    /// The password is wrong, or the user is.
    Password(String),
    Other(String),
}

impl Denied {
    fn cause(self) -> String {
        match self {
            Self::Password(cause) | Self::Other(cause) => cause,
        }
    }
}

impl Login {
    pub(super) fn new(
        connections: Arc<Connections>,
        roots: Arc<Roots>,
        keys: &RootKeys,
    ) -> Result<Self, SealError> {
        let [a, b, c, d, ..] = *keys.lasting_key("postgres application name")?;
        let ours = format!("mayfly/{:08x}/", u32::from_be_bytes([a, b, c, d]));
        let process = u64::from_be_bytes(random()?);
        Ok(Self {
            connections,
            roots,
            this_process: format!("{ours}{process:016x}/"),
            ours,
            count: AtomicU64::new(0),
            settled: Mutex::default(),
            lost: Mutex::default(),
            turns: Mutex::default(),
        })
    }

    /// Ends, and waits for, all that was cut off at this target.
    pub(super) async fn end_lost(
        &self,
        name: &ConnectionName,
        session: &Session,
    ) -> Result<(), Failure> {
        let pids = {
            let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.get(name).cloned().unwrap_or_default()
        };
        if pids.is_empty() {
            return Ok(());
        }
        let list: Vec<_> = pids.iter().map(ToString::to_string).collect();
        let which = format!("pid IN ({}) AND usename = session_user", list.join(","));
        gone(session, &which).await?;
        tracing::info!(connection = %name, sessions = pids.len(), "what was cut off is ended");
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = lost.get_mut(name) {
            now.retain(|pid| !pids.contains(pid));
        }
        Ok(())
    }

    async fn open(&self, name: &ConnectionName, target: &Target) -> Result<Session, String> {
        let known = self.connections.password(name).await;
        let known = match known {
            Ok(password) => Some(password),
            // On a socket the server can ask the kernel who we are.
            Err(EngineError::Unavailable(_)) if target.config.host.starts_with('/') => None,
            Err(error) => return Err(error.to_string()),
        };
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(name.clone()).or_default())
        };
        let denied = match self.log_in(target, known.as_ref(), &turn).await {
            Ok(session) => return Ok(session),
            Err(Denied::Other(cause)) => return Err(cause),
            Err(denied) => denied,
        };
        // Perhaps its rotation was interrupted after the server heard of it.
        let pending = self.roots.pending(name).await;
        let Some(pending) = pending.map_err(|error| error.to_string())? else {
            return Err(denied.cause());
        };
        let session = self.log_in(target, Some(&pending), &turn).await;
        let session = session.map_err(Denied::cause)?;
        let promoted = self.roots.promote(name, &pending).await;
        promoted.map_err(|error| error.to_string())?;
        tracing::info!(connection = %name, "the rotation of the broker's own password is finished");
        Ok(session)
    }

    async fn log_in(
        &self,
        target: &Target,
        password: Option<&Secret>,
        turn: &Turn,
    ) -> Result<Session, Denied> {
        let settings = &target.config;
        let mut config = config(settings);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        config.application_name(format!("{}{number}", self.this_process));
        if let Some(password) = password {
            config.password(password.expose());
        }
        let turn = Arc::clone(turn);
        let room = Room::new();
        let (host, port) = place(&settings.host, settings.port.unwrap_or(PORT));
        let stream = if host.starts_with('/') {
            stream::to(&format!("{host}/.s.PGSQL.{port}"), port).await
        } else {
            stream::to(host, port).await
        };
        let stream = Metered::new(stream.map_err(Denied::Other)?, room.clone());
        let opened = if speaks_tls(host, settings.tls) {
            let tls = ToServer::new(host, settings.ca_pem.as_deref()).map_err(Denied::Other)?;
            Session::over(config.connect_raw(stream, tls).await, turn, room)
        } else {
            Session::over(config.connect_raw(stream, NoTls).await, turn, room)
        };
        let session = opened.map_err(|error| {
            let cause = super::session::cause(&error);
            match error.code() {
                Some(code)
                    if *code == SqlState::INVALID_PASSWORD
                        || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION =>
                {
                    Denied::Password(cause)
                }
                _ => Denied::Other(cause),
            }
        })?;
        session.greeted().await.map_err(Denied::Other)
    }

    /// Ends what an earlier process of this broker may have left at a server.
    async fn settle(&self, config: &ConnectionConfig, session: &Session) -> Result<(), String> {
        let server = (
            config.host.clone(),
            config.port.unwrap_or(PORT),
            config.username.clone(),
        );
        let settled = || self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if settled().contains(&server) {
            return Ok(());
        }
        let which = format!(
            "usename = session_user AND pid <> pg_backend_pid() \
             AND application_name LIKE '{}%' AND application_name NOT LIKE '{}%'",
            self.ours, self.this_process
        );
        gone(session, &which)
            .await
            .map_err(|failure| match failure {
                Failure::Refused(cause) | Failure::Broken(cause) => cause,
            })?;
        settled().insert(server);
        Ok(())
    }
}

/// Ends the server's processes for which `which` is true, and waits until there are none.
async fn gone(session: &Session, which: &str) -> Result<(), Failure> {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity WHERE {which}"
    );
    let (mut wait, longest) = ENDING;
    while session.number(&sql).await? > 0 {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
    }
    Ok(())
}

/// The broker's settings, as the client understands them.
fn config(settings: &ConnectionConfig) -> Config {
    let mut config = Config::new();
    config
        .user(&settings.username)
        .dbname(settings.database.as_deref().unwrap_or(DATABASE))
        .options(OPTIONS)
        .ssl_mode(if speaks_tls(&settings.host, settings.tls) {
            SslMode::Require
        } else {
            SslMode::Disable
        });
    config
}

/// The server speaks no TLS on a unix socket.
pub(super) fn speaks_tls(host: &str, tls: Tls) -> bool {
    tls == Tls::Verify && !host.starts_with('/')
}

/// Host and port, for which the socket itself may stand: `/run/postgresql/.s.PGSQL.5432`.
pub(super) fn place(host: &str, port: u16) -> (&str, u16) {
    let socket = host.rsplit_once("/.s.PGSQL.");
    let named = socket.and_then(|(directory, port)| Some((directory, port.parse().ok()?)));
    named.unwrap_or((host, port))
}

impl Connector for Login {
    type Connection = Session;

    fn connect<'a>(&'a self, name: &'a ConnectionName, target: &'a Target) -> Opening<'a, Session> {
        Box::pin(async move {
            let session = self.open(name, target).await?;
            self.settle(&target.config, &session).await?;
            Ok(session)
        })
    }

    fn is_closed(&self, connection: &Session) -> bool {
        connection.is_closed()
    }

    fn cut_off(&self, name: &ConnectionName, connection: Session) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.entry(name.clone()).or_default().push(connection.pid());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_can_be_named_by_its_directory_or_itself() {
        assert_eq!(place("/run/pg/.s.PGSQL.5433", 5432), ("/run/pg", 5433));
        assert_eq!(place("/run/pg", 5432), ("/run/pg", 5432));
        assert_eq!(place("db.example", 5432), ("db.example", 5432));
    }
}
