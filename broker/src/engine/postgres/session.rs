//! One open session: text in, what became of it out.

use super::metered::{Metered, Room};
use crate::engine::pool::Failure;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Connection, Error, SimpleQueryMessage};

/// How often a transaction is tried in which others came between.
const TRIES: u64 = 8;
/// From here on nothing that others made is found by a name or an operator of ours: with the usual search
/// path, whoever may create in `public` can have an operator there that fits better than the server's
/// own, and it would run as the broker.
const OUR_PATH: &str = "SET search_path = pg_catalog, pg_temp";
/// The server's clock, in milliseconds since the Unix epoch.
const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000::numeric)::bigint";
/// How long the server's clock is taken to go as ours does.
const CLOCK_AGE: Duration = Duration::from_secs(10);
/// How far apart our clocks may go before something is wrong with one of them.
const CLOCK_JUMP: Duration = Duration::from_secs(1);

/// An open session. Dropping it closes it, without a word to the server.
pub(super) struct Session {
    client: Client,
    io: AbortHandle,
    room: Room,
    pid: i32,
    clock: Clock,
    /// Where operators' statements look for what they name.
    path: String,
    /// Held by those who try again because they were disturbed.
    turn: Arc<Mutex<()>>,
}

/// What the server's clock said, and when by our own clocks: the one that never jumps, and the one that
/// goes on while the machine sleeps.
#[derive(Clone, Copy)]
struct Clock {
    millis: i64,
    at: Instant,
    wall: SystemTime,
}

impl Clock {
    fn now(millis: i64) -> Self {
        Self {
            millis,
            at: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn is_stale(&self) -> bool {
        let passed = self.at.elapsed();
        let wall = self.wall.elapsed().unwrap_or_default();
        passed > CLOCK_AGE || wall.abs_diff(passed) > CLOCK_JUMP
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.io.abort();
    }
}

/// Why a statement has no result.
enum Sql {
    /// Others changed the same at the same time: it may work now.
    Disturbed(String),
    Failed(Failure),
}

impl Session {
    /// `turn` is the same for all sessions at one server, `room` is that of the stream.
    pub(super) fn over<T>(
        opened: Result<(Client, Connection<Metered, T>), Error>,
        turn: Arc<Mutex<()>>,
        room: Room,
    ) -> Result<Self, Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (client, connection) = opened?;
        // How it ends is told to whoever waits for an answer.
        let io = tokio::spawn(async move { drop(connection.await) });
        Ok(Self {
            client,
            io: io.abort_handle(),
            room,
            pid: 0,
            clock: Clock::now(0),
            path: String::new(),
            turn,
        })
    }

    /// Sets what our own statements look at, and asks who serves us, and what time it is there.
    pub(super) async fn greeted(mut self) -> Result<Self, String> {
        let asked = format!(
            "SELECT pg_catalog.current_setting('search_path'); {OUR_PATH}; \
             SELECT pg_catalog.pg_backend_pid(); {CLOCK}"
        );
        let answer = self.client.simple_query(&asked).await;
        let answer = answer.map_err(|error| self.cause(&error))?;
        let said: Vec<&str> = texts(&answer).collect();
        let wrong = || "expected a PostgreSQL server that tells its process and time".to_owned();
        let [path, pid, millis] = said[..] else {
            return Err(wrong());
        };
        let [pid, millis] = [pid, millis].map(str::parse::<i64>);
        let (pid, millis) = (pid.map_err(|_| wrong())?, millis.map_err(|_| wrong())?);
        self.path = path.replace('\'', "''");
        self.pid = i32::try_from(pid).map_err(|_| "a process number is too large".to_owned())?;
        self.clock = Clock::now(millis);
        Ok(self)
    }

    /// What went wrong. The library only says that it closed a connection on which too much came.
    fn cause(&self, error: &Error) -> String {
        if self.room.is_over() {
            return "expected a PostgreSQL server, found an answer beyond all limits".to_owned();
        }
        cause(error)
    }

    /// The server's process.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// What the server's clock will say in `span`, as a timestamp literal without its quotes. Our own
    /// clock can be as wrong as it likes.
    pub(super) async fn time_in(&mut self, span: Duration) -> Result<String, Failure> {
        if self.clock.is_stale() {
            self.clock = Clock::now(self.number(CLOCK).await?);
        }
        self.later(span).map_err(Failure::Refused)
    }

    fn later(&self, span: Duration) -> Result<String, String> {
        let passed = self.clock.at.elapsed() + span + Duration::from_millis(999);
        let passed = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let seconds = self.clock.millis.saturating_add(passed) / 1000;
        let time = OffsetDateTime::from_unix_timestamp(seconds).map_err(|e| e.to_string())?;
        let form = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]+00");
        time.format(form).map_err(|error| error.to_string())
    }

    /// Does all of `sql`, or nothing of it; again if others came between.
    pub(super) async fn transaction(&self, sql: &str) -> Result<(), Failure> {
        // The server takes one message as one transaction.
        self.disturbed(sql).await.map(drop)
    }

    /// The same with statements that an operator wrote: they find what is in the path that the server
    /// gives the broker's account, and leave ours as it was, and whose rights the session has.
    pub(super) async fn operators(&self, sql: &str) -> Result<(), Failure> {
        self.transaction(&self.in_their_path(sql)).await
    }

    fn in_their_path(&self, sql: &str) -> String {
        let path = &self.path;
        format!(
            "SELECT pg_catalog.set_config('search_path', '{path}', true);{sql};\
             RESET SESSION AUTHORIZATION;RESET ROLE;{OUR_PATH};"
        )
    }

    /// Does `inside` in a transaction and then `after`, whose numbers are returned; again if others came
    /// between.
    pub(super) async fn transaction_then(
        &self,
        inside: &str,
        after: &str,
    ) -> Result<Vec<i64>, Failure> {
        let text = format!("BEGIN;{inside}COMMIT;{after}");
        Ok(numbers(&self.disturbed(&text).await?))
    }

    /// The same; also gives every answer that is no number.
    pub(super) async fn transaction_and(
        &self,
        inside: &str,
        after: &str,
    ) -> Result<(Vec<i64>, Vec<String>), Failure> {
        let text = format!("BEGIN;{inside}COMMIT;{after}");
        let answer = self.disturbed(&text).await?;
        let words = texts(&answer).filter(|text| text.parse::<i64>().is_err());
        let words = words.map(str::to_owned).collect();
        Ok((numbers(&answer), words))
    }

    /// The number that a query gives.
    pub(super) async fn number(&self, sql: &str) -> Result<i64, Failure> {
        let answer = self.disturbed(sql).await?;
        Ok(numbers(&answer).last().copied().unwrap_or(0))
    }

    async fn disturbed(&self, text: &str) -> Result<Vec<SimpleQueryMessage>, Failure> {
        let mut tries = 0;
        loop {
            // Those who try again do so one after the other.
            let turn = match tries {
                0 => None,
                _ => Some(self.turn.lock().await),
            };
            match self.once(text).await {
                Ok(answer) => return Ok(answer),
                Err(Sql::Failed(failure)) => return Err(failure),
                Err(Sql::Disturbed(cause)) if tries == TRIES => {
                    return Err(Failure::Refused(format!("{cause} ({TRIES} times)")));
                }
                Err(Sql::Disturbed(_)) => tries += 1,
            }
            drop(turn);
            tokio::time::sleep(Duration::from_millis(tries * 2)).await;
        }
    }

    async fn once(&self, text: &str) -> Result<Vec<SimpleQueryMessage>, Sql> {
        self.room.renew();
        let error = match self.client.simple_query(text).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let cause = self.cause(&error);
        let Some(refused) = error.as_db_error().filter(|said| is_alive(said)) else {
            return Err(Sql::Failed(Failure::Broken(cause)));
        };
        // It may stand in a transaction that failed.
        if let Err(error) = self.client.simple_query("ROLLBACK").await {
            return Err(Sql::Failed(Failure::Broken(self.cause(&error))));
        }
        if is_disturbed(refused) {
            return Err(Sql::Disturbed(cause));
        }
        Err(Sql::Failed(Failure::Refused(cause)))
    }
}

/// Whether the session goes on after it, and the server with what is asked of it: not after errors of
/// the classes insufficient resources (53), operator intervention (57) and system error (58), nor on a
/// server that only reads (25006), a standby. A statement that ran out of time is none of these: others'
/// locks can be in the way of this one alone.
fn is_alive(error: &DbError) -> bool {
    let code = error.code().code();
    if *error.code() == SqlState::QUERY_CANCELED {
        return true;
    }
    let troubled = ["53", "57", "58", "25006"]
        .iter()
        .any(|class| code.starts_with(class));
    !troubled && !matches!(error.severity(), "FATAL" | "PANIC")
}

fn is_disturbed(error: &DbError) -> bool {
    let code = error.code();
    // The server has no code of its own for this.
    let updated =
        *code == SqlState::INTERNAL_ERROR && error.message().contains("tuple concurrently");
    updated
        || *code == SqlState::T_R_SERIALIZATION_FAILURE
        || *code == SqlState::T_R_DEADLOCK_DETECTED
}

/// The first column of each row that is a number.
fn numbers(answer: &[SimpleQueryMessage]) -> Vec<i64> {
    texts(answer).filter_map(|text| text.parse().ok()).collect()
}

/// The first column of each row.
fn texts(answer: &[SimpleQueryMessage]) -> impl Iterator<Item = &str> {
    answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}

/// What went wrong, for operators. A statement that the server does not understand is quoted in what it
/// says; what can check a password is not.
pub(super) fn cause(error: &Error) -> String {
    let Some(said) = error.as_db_error() else {
        let source = std::error::Error::source(error).map(ToString::to_string);
        return source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    };
    let message = match said.message().split_once("SCRAM-SHA-256$") {
        Some((before, _)) => format!("{before}(a verifier)"),
        None => said.message().to_owned(),
    };
    format!("the server says: {message} ({})", said.code().code())
}
