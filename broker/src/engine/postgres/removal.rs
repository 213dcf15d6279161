//! Removing roles that need no more than `DROP ROLE`, and the sessions that they leave.
//!
//! Whoever wants one removed waits for a connection like everybody else; the first to get one takes as
//! many with it as wait at that time. So a role alone goes at once, and thousands go at the pace of the
//! server, which makes them durable together.

use super::connect::Login;
use super::farewell::until_none;
use super::session::Session;
use super::sql;
use crate::engine::EngineError;
use crate::engine::pool::{Failure, Lent, Pool, limited};
use mayfly_wire::ConnectionName;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Most roles of one transaction: each takes a subtransaction, of which the server keeps few at hand.
const TOGETHER: usize = 16;
/// A client that logs in while its role is dropped can come through. It is ended after this time.
const LATE: Duration = Duration::from_secs(1);

/// Removals at all targets.
pub(super) struct Removals {
    pool: Arc<Pool<Login>>,
    waiting: Mutex<HashMap<ConnectionName, VecDeque<Wanted>>>,
    /// Where sessions that came late will be ended.
    late: Arc<Mutex<HashSet<ConnectionName>>>,
}

/// One role that waits for its removal.
struct Wanted {
    role: String,
    done: oneshot::Sender<Outcome>,
}

/// Whether it is gone; the error says that the server is not there.
type Outcome = Result<bool, String>;

impl Removals {
    pub(super) fn new(pool: Arc<Pool<Login>>) -> Self {
        Self {
            pool,
            waiting: Mutex::default(),
            late: Arc::default(),
        }
    }

    /// Removes a role and ends its sessions, together with others. Says no if that takes more than
    /// `DROP ROLE`: then nothing was done.
    pub(super) async fn remove(
        &self,
        connection: &ConnectionName,
        role: &str,
    ) -> Result<bool, EngineError> {
        loop {
            let answer = self.queue(connection, role);
            // Else who had it among theirs was given up in the middle.
            if let Some(outcome) = self.outcome(connection, answer).await? {
                return outcome.map_err(EngineError::Unavailable);
            }
        }
    }

    /// What becomes of one that waits; nobody knows if that is nothing.
    async fn outcome(
        &self,
        connection: &ConnectionName,
        mut answer: oneshot::Receiver<Outcome>,
    ) -> Result<Option<Outcome>, EngineError> {
        loop {
            let lent = tokio::select! {
                biased;
                outcome = &mut answer => return Ok(outcome.ok()),
                lent = lend(&self.pool, connection) => lent?,
            };
            if !self.lead(connection, lent).await? {
                // Nothing waits any more: another has it among theirs.
                return Ok(answer.await.ok());
            }
        }
    }

    fn queue(&self, connection: &ConnectionName, role: &str) -> oneshot::Receiver<Outcome> {
        let (done, answer) = oneshot::channel();
        let wanted = Wanted {
            role: role.to_owned(),
            done,
        };
        let mut waiting = lock(&self.waiting);
        waiting
            .entry(connection.clone())
            .or_default()
            .push_back(wanted);
        answer
    }

    /// Takes what waits, without those that nobody waits for any more.
    fn take(&self, connection: &ConnectionName) -> Vec<Wanted> {
        let mut waiting = lock(&self.waiting);
        let Some(queue) = waiting.get_mut(connection) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        while taken.len() < TOGETHER
            && let Some(wanted) = queue.pop_front()
        {
            if !wanted.done.is_closed() {
                taken.push(wanted);
            }
        }
        if queue.is_empty() {
            waiting.remove(connection);
        }
        taken
    }

    /// Removes what waits over this connection, and tells each what became of it. Says whether anything
    /// waited.
    async fn lead(
        &self,
        connection: &ConnectionName,
        mut lent: Lent<Login>,
    ) -> Result<bool, EngineError> {
        let taken = self.take(connection);
        if taken.is_empty() {
            return lent.done(Ok(false));
        }
        let roles: Vec<&str> = taken.iter().map(|wanted| wanted.role.as_str()).collect();
        let outcome = limited(drop_all(lent.connection()?, &roles)).await;
        let (left, unavailable) = match outcome {
            Ok(left) => (left, lent.done(Ok(())).err()),
            // Nothing of it was done: each is tried by itself.
            Err(Failure::Refused(cause)) => {
                tracing::debug!(%connection, %cause, "roles are removed one by one");
                let all = roles.iter().map(|role| (*role).to_owned());
                (all.collect(), lent.done(Ok(())).err())
            }
            Err(broken) => (Vec::new(), lent.done::<()>(Err(broken)).err()),
        };
        let gone = left.len() < taken.len() && unavailable.is_none();
        for wanted in taken {
            let outcome = match &unavailable {
                Some(error) => Err(error.to_string()),
                None => Ok(!left.contains(&wanted.role)),
            };
            // Who gave up meanwhile finds nothing next time.
            let _ = wanted.done.send(outcome);
        }
        if gone {
            self.look_again(connection);
        }
        Ok(true)
    }

    /// Once more ends sessions whose role is gone, a little later.
    pub(super) fn look_again(&self, connection: &ConnectionName) {
        if !lock(&self.late).insert(connection.clone()) {
            return;
        }
        let (late, pool) = (Arc::clone(&self.late), Arc::clone(&self.pool));
        let connection = connection.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LATE).await;
            lock(&late).remove(&connection);
            let ended = async {
                let mut lent = lend(&pool, &connection).await?;
                let session = lent.connection()?;
                let outcome = limited(session.number(sql::ORPHANS)).await;
                lent.done(outcome)
            };
            match ended.await {
                Ok(0) => {}
                Ok(ended) => {
                    tracing::info!(%connection, ended, "sessions of dropped roles ended late")
                }
                Err(error) => {
                    tracing::debug!(%connection, %error, "late sessions were not looked for")
                }
            }
        });
    }
}

/// Drops roles in one transaction, and waits for the end of their sessions. Gives those that take more.
async fn drop_all(session: &Session, roles: &[&str]) -> Result<Vec<String>, Failure> {
    let after = format!("{}{}", sql::sessions(), sql::which_roles(roles));
    let text = sql::drop_roles(roles);
    let (sessions, left) = session.transaction_and(&text, &after).await?;
    if sessions.last() != Some(&0) {
        until_none(session, &sql::sessions()).await?;
    }
    Ok(left)
}

/// A session of which what was given up before is ended.
pub(super) async fn lend(
    pool: &Pool<Login>,
    connection: &ConnectionName,
) -> Result<Lent<Login>, EngineError> {
    let mut lent = pool.lend(connection).await?;
    let session = lent.connection()?;
    let ended = limited(pool.connector().end_lost(connection, session)).await;
    match ended {
        Ok(()) => Ok(lent),
        Err(failure) => Err(match lent.done::<()>(Err(failure)) {
            Ok(()) => EngineError::Unavailable("unknown".to_owned()),
            Err(error) => error,
        }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
