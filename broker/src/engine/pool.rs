//! Connections to a target: few, reused, each operation limited in time, and none used again whose
//! state is not known.
//!
//! ```text
//! let mut lent = pool.lend(name).await?;
//! let outcome = limited(lent.connection().query(…)).await;
//! lent.done(outcome)
//! ```
//!
//! An operation that is dropped in the middle, runs out of time, or fails without an answer takes its
//! connection with it: [`Connector::cut_off`] is told.

mod breaker;
#[cfg(test)]
mod tests;

use super::EngineError;
use super::connections::{Connections, Target};
use breaker::Breaker;
use mayfly_wire::ConnectionName;
use mayfly_wire::connection::MAX_CONNECTIONS;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// How long one operation may take.
pub const OPERATION: Duration = Duration::from_secs(10);
/// Most that wait for connections to one target. Whoever comes then is refused at once.
const MAX_WAITING: usize = 1024;
/// Most characters of what a server says about a failure.
const MAX_WORDS: usize = 1000;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Opening a connection.
    pub connect: Duration,
    /// Waiting for a connection while all are in use.
    pub wait: Duration,
    /// A connection that nobody uses stays open.
    pub idle: Duration,
    /// After a failed connect, nobody tries again: the first time, and growing from it up to the last.
    pub backoff: (Duration, Duration),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            wait: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            backoff: (Duration::from_secs(1), Duration::from_secs(5)),
        }
    }
}

/// What [`Connector::connect`] returns; the error says why not, for operators.
pub type Opening<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// How connections to targets of one kind are opened.
pub trait Connector: Send + Sync + 'static {
    /// An open connection. Dropping it closes it.
    type Connection: Send + 'static;

    /// Opens one, ready for operations. The pool limits the time it takes.
    fn connect<'a>(
        &'a self,
        name: &'a ConnectionName,
        target: &'a Target,
    ) -> Opening<'a, Self::Connection>;

    /// Whether it is known to be of no use any more.
    fn is_closed(&self, connection: &Self::Connection) -> bool;

    /// An operation was cut off in the middle: what it did, or may still do, nobody knows.
    fn cut_off(&self, _name: &ConnectionName, connection: Self::Connection) {
        drop(connection);
    }
}

/// Why an operation failed.
#[derive(Debug)]
pub enum Failure {
    /// The server answered, and said no to this one thing. The connection is as it was before.
    Refused(String),
    /// There is no answer, or it is that the server cannot do anything now: it may have been done.
    Broken(String),
}

/// Does `work` within [`OPERATION`].
///
/// # Errors
/// Its own, and [`Failure::Broken`] when the time is over.
pub async fn limited<T>(
    work: impl Future<Output = Result<T, Failure>> + Send,
) -> Result<T, Failure> {
    let late = || Failure::Broken(format!("no answer within {} s", OPERATION.as_secs()));
    timeout(OPERATION, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// The connections to all targets of one kind.
pub struct Pool<C: Connector> {
    connector: Arc<C>,
    connections: Arc<Connections>,
    limits: Limits,
    servers: Mutex<HashMap<ConnectionName, Arc<Server<C>>>>,
}

/// One target, in one edition.
struct Server<C: Connector> {
    connector: Arc<C>,
    name: ConnectionName,
    target: Target,
    limits: Limits,
    /// One for each connection that may be open; idle ones have none.
    permits: Arc<Semaphore>,
    most: usize,
    state: Mutex<State<C::Connection>>,
}

struct State<T> {
    /// Those that nobody uses, the one that was used last at the end.
    idle: Vec<(T, Instant)>,
    breaker: Breaker,
    waiting: usize,
    /// Whether a task looks after those that are idle for too long.
    swept: bool,
    /// Another edition took its place.
    retired: bool,
}

impl<C: Connector> Pool<C> {
    /// None open yet.
    #[must_use]
    pub fn new(connector: Arc<C>, connections: Arc<Connections>, limits: Limits) -> Self {
        Self {
            connector,
            connections,
            limits,
            servers: Mutex::default(),
        }
    }

    /// What opens its connections.
    #[must_use]
    pub fn connector(&self) -> &C {
        &self.connector
    }

    /// Lends a connection, if need be a new one, waiting for it if all are in use.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`], with the cause: no such target, it cannot be reached, it could not
    /// be reached a moment ago and is not to be asked again yet, or too many wait.
    pub async fn lend(&self, name: &ConnectionName) -> Result<Lent<C>, EngineError> {
        let server = self.server(name)?;
        let lent = Arc::clone(&server).lend().await;
        lent.map_err(|cause| server.unavailable(&cause))
    }

    fn server(&self, name: &ConnectionName) -> Result<Arc<Server<C>>, EngineError> {
        let target = self.connections.target(name)?;
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(name) {
            if server.is_of(&target) {
                return Ok(Arc::clone(server));
            }
            server.retire();
        }
        let most = usize::from(target.config.max_connections.unwrap_or(MAX_CONNECTIONS));
        let server = Arc::new(Server {
            connector: Arc::clone(&self.connector),
            name: name.clone(),
            target,
            limits: self.limits,
            permits: Arc::new(Semaphore::new(most)),
            most,
            state: Mutex::new(State {
                idle: Vec::new(),
                breaker: Breaker::new(self.limits.backoff),
                waiting: 0,
                swept: false,
                retired: false,
            }),
        });
        servers.insert(name.clone(), Arc::clone(&server));
        Ok(server)
    }
}

/// One of those that wait; gone when it is dropped.
struct Waiting<'a, C: Connector>(&'a Server<C>);

impl<C: Connector> Drop for Waiting<'_, C> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

impl<C: Connector> Server<C> {
    fn state(&self) -> MutexGuard<'_, State<C::Connection>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_of(&self, target: &Target) -> bool {
        // The same settings, given again after they were removed, may have the same edition.
        self.target.edition == target.edition && Arc::ptr_eq(&self.target.config, &target.config)
    }

    fn retire(&self) {
        let mut state = self.state();
        state.retired = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        drop(idle);
    }

    fn unavailable(&self, cause: &str) -> EngineError {
        EngineError::Unavailable(self.at_target(cause))
    }

    fn at_target(&self, cause: &str) -> String {
        let host = &self.target.config.host;
        format!("connection {} ({host}): {}", self.name, words(cause))
    }

    async fn lend(self: Arc<Self>) -> Result<Lent<C>, String> {
        let permit = self.permit().await?;
        loop {
            let idle = self.state().idle.pop();
            match idle {
                Some((connection, _)) if self.connector.is_closed(&connection) => {}
                Some((connection, _)) => return Ok(Lent::new(self, connection, permit)),
                None => break,
            }
        }
        self.state().breaker.ask(Instant::now())?;
        // In a task of its own, so that what becomes of it is known even if nobody waits any more.
        let began = Instant::now();
        let opened = tokio::spawn(Arc::clone(&self).open(permit)).await;
        opened.unwrap_or_else(|error| {
            let cause = format!("opening a connection failed: {error}");
            (self.state().breaker).failed(began, Instant::now(), &cause);
            Err(cause)
        })
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, String> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = {
            let mut state = self.state();
            if state.waiting >= MAX_WAITING {
                return Err(format!(
                    "all {} connections are in use, and {MAX_WAITING} wait for one",
                    self.most
                ));
            }
            state.waiting += 1;
            Waiting(self)
        };
        match timeout(self.limits.wait, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err("it is closed".to_owned()),
            Err(_) => Err(format!(
                "all {} connections were in use for {} s",
                self.most,
                self.limits.wait.as_secs_f64()
            )),
        }
    }

    async fn open(self: Arc<Self>, permit: OwnedSemaphorePermit) -> Result<Lent<C>, String> {
        let began = Instant::now();
        let opened = {
            let opening = self.connector.connect(&self.name, &self.target);
            timeout(self.limits.connect, opening).await
        };
        let opened = opened.unwrap_or_else(|_| {
            Err(format!(
                "no connection within {} s: it accepts and does not answer, or drops what is sent",
                self.limits.connect.as_secs_f64()
            ))
        });
        match opened {
            Ok(connection) => {
                self.state().breaker.succeeded();
                Ok(Lent::new(self, connection, permit))
            }
            Err(cause) => {
                let cause = words(&cause);
                let now = Instant::now();
                let wait = self.state().breaker.failed(began, now, &cause);
                if let Some(wait) = wait {
                    tracing::warn!(
                        connection = %self.name, %cause, next_try_ms = wait.as_millis(),
                        "no connection to a target"
                    );
                }
                Err(cause)
            }
        }
    }

    fn give_back(self: &Arc<Self>, connection: C::Connection) {
        if self.connector.is_closed(&connection) {
            return;
        }
        let mut state = self.state();
        if state.retired {
            drop(state);
            drop(connection);
            return;
        }
        state.idle.push((connection, Instant::now()));
        if !state.swept {
            state.swept = true;
            tokio::spawn(sweep(Arc::downgrade(self), self.limits.idle));
        }
    }

    /// Closes what was idle for too long. Says when to come again, if there is a reason to.
    fn close_idle(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state();
        let old = state
            .idle
            .partition_point(|(_, since)| *since + self.limits.idle <= now);
        let closed: Vec<_> = state.idle.drain(..old).collect();
        let next = state
            .idle
            .first()
            .map(|(_, since)| *since + self.limits.idle);
        state.swept = next.is_some();
        drop(state);
        drop(closed);
        next
    }
}

/// A server's own words as people are shown them, in logs, records and terminals: not too many, in one
/// line, and with nothing that a terminal obeys.
fn words(cause: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    cause.chars().take(MAX_WORDS).map(plain).collect()
}

async fn sweep<C: Connector>(server: Weak<Server<C>>, idle: Duration) {
    let mut next = Instant::now() + idle;
    loop {
        tokio::time::sleep_until(next).await;
        let Some(server) = server.upgrade() else {
            return;
        };
        match server.close_idle() {
            Some(again) => next = again,
            None => return,
        }
    }
}

/// A connection for one operation. Dropped before the operation is [`done`](Self::done), it is cut off.
pub struct Lent<C: Connector> {
    server: Arc<Server<C>>,
    connection: Option<C::Connection>,
    in_use: bool,
    _permit: OwnedSemaphorePermit,
}

impl<C: Connector> Lent<C> {
    fn new(
        server: Arc<Server<C>>,
        connection: C::Connection,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            server,
            connection: Some(connection),
            in_use: false,
            _permit: permit,
        }
    }

    /// The target that it is open to.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.server.target
    }

    /// The connection. From now on something may be under way on it.
    ///
    /// # Errors
    /// Never before [`done`](Self::done), which takes it away.
    pub fn connection(&mut self) -> Result<&mut C::Connection, EngineError> {
        self.in_use = true;
        let gone = || self.server.unavailable("the connection is gone");
        self.connection.as_mut().ok_or_else(gone)
    }

    /// The operation ended like this: the connection is kept for others, or cut off.
    ///
    /// # Errors
    /// The operation's: [`EngineError::Unfit`] if the server said no, else
    /// [`EngineError::Unavailable`].
    pub fn done<T>(mut self, outcome: Result<T, Failure>) -> Result<T, EngineError> {
        match outcome {
            Ok(answer) => {
                self.in_use = false;
                Ok(answer)
            }
            Err(Failure::Refused(cause)) => {
                self.in_use = false;
                Err(EngineError::Unfit(self.server.at_target(&cause)))
            }
            Err(Failure::Broken(cause)) => Err(self.server.unavailable(&cause)),
        }
    }
}

impl<C: Connector> Drop for Lent<C> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        if self.in_use {
            self.server.connector.cut_off(&self.server.name, connection);
        } else {
            self.server.give_back(connection);
        }
    }
}
