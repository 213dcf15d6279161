//! Ties sessions and files together, with time and signals. One thread, one loop; while nothing
//! happens it sleeps until the next thing that is due.

mod conversation;
pub mod place;
pub mod report;

use crate::backoff::Backoff;
use crate::ending::Ending;
use crate::log::{Level, Log, wall_clock};
use crate::options::Options;
use crate::publish::{Publisher, Trouble};
use crate::session::{Failure, Session};
use mayfly_wire::Code;
use std::convert::Infallible;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, sleep_until, timeout};

/// How long opening a session can take.
const OPENING: Duration = Duration::from_secs(15);

/// Runs until it is told to stop, or `--once` is done.
///
/// # Errors
/// If signals cannot be received.
pub async fn run(options: &Options, log: Log, publisher: Publisher) -> std::io::Result<Ending> {
    let mut runner = Runner {
        options,
        log,
        publisher,
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        backoff: Backoff::default(),
        complaint: None,
        failing_files: false,
        missing: String::new(),
    };
    let ending = match options.once {
        None => runner.serve().await,
        Some(limit) => match timeout(limit, runner.serve()).await {
            Ok(ending) => ending,
            Err(_) => runner.too_late(),
        },
    };
    Ok(match ending {
        Ok(never) => match never {},
        Err(ending) => runner.end(ending).await,
    })
}

/// What the loop holds.
struct Runner<'a> {
    options: &'a Options,
    log: Log,
    publisher: Publisher,
    terminate: Signal,
    interrupt: Signal,
    backoff: Backoff,
    /// What was last complained about, so that it is said once and not at each attempt.
    complaint: Option<String>,
    /// Whether it was about files.
    failing_files: bool,
    /// What the last bundle lacked, and why.
    missing: String,
}

impl Runner<'_> {
    /// Session after session.
    async fn serve(&mut self) -> Result<Infallible, Ending> {
        let options = self.options;
        loop {
            let opening = timeout(
                OPENING,
                Session::open(&options.socket, options.want.clone()),
            );
            let failure = match self.meanwhile(opening).await? {
                Ok(Ok(session)) => self.converse(session).await?,
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Silent,
            };
            let wait = self.judge(failure)?;
            self.meanwhile(sleep(wait)).await?;
        }
    }

    /// How long to wait before the next session, after the last one failed.
    fn judge(&mut self, failure: Failure) -> Result<Duration, Ending> {
        let Failure::Refused(code) = failure else {
            self.complain("session failed", failure.to_string());
            return Ok(self.backoff.transient(random()));
        };
        if code == Code::BadRequest {
            return Err(Ending::NotUnderstood(failure));
        }
        if code.is_transient() || code == Code::Conflict {
            self.complain("session refused", failure.to_string());
            return Ok(self.backoff.transient(random()));
        }
        if self.options.once.is_some() {
            return Err(Ending::Denied(failure.to_string()));
        }
        self.complain("session refused", failure.to_string());
        Ok(self.backoff.refused(random()))
    }

    /// Does `work`, and meanwhile what falls due with the files.
    ///
    /// # Errors
    /// [`Ending::Stopped`].
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Ending> {
        let mut work = pin!(work);
        loop {
            self.tend();
            let due = self.publisher.due(Instant::now(), wall_clock());
            tokio::select! {
                biased;
                _ = self.terminate.recv() => return Err(Ending::Stopped),
                _ = self.interrupt.recv() => return Err(Ending::Stopped),
                done = &mut work => return Ok(done),
                () = until(due) => {}
            }
        }
    }

    fn tend(&mut self) {
        let tended = self.publisher.tend(Instant::now(), wall_clock());
        if !tended.expired.is_empty() {
            let names: Vec<_> = tended.expired.iter().map(|name| name.as_str()).collect();
            let fields = [
                ("names", names.join(",").into()),
                (
                    "why",
                    "they were not renewed in time; their files are gone".into(),
                ),
            ];
            self.log.event(Level::Warn, "expired", &fields);
        }
        tell(self.log, &tended.trouble);
    }

    /// Logs a failure that may come again and again, once. Says whether it did.
    fn complain(&mut self, event: &str, why: String) -> bool {
        let is_new = self.complaint.as_ref() != Some(&why);
        if is_new {
            let fields = [("why", why.clone().into())];
            self.log.event(Level::Warn, event, &fields);
            self.complaint = Some(why);
        }
        is_new
    }

    fn too_late(&mut self) -> Result<Infallible, Ending> {
        let why = self.complaint.take();
        let why = why.unwrap_or_else(|| "the broker did not answer".to_owned());
        Err(match self.failing_files {
            true => Ending::Files(why),
            false => Ending::TooLate(why),
        })
    }

    /// Leaves files only where they are meant to stay.
    async fn end(mut self, ending: Ending) -> Ending {
        if self.options.once.is_some() {
            // What was there before is left as it was, but a replaced generation is not left.
            while self.publisher.has_retired() {
                let due = self.publisher.due(Instant::now(), u64::MIN);
                until(due).await;
                self.tend();
            }
            return ending;
        }
        let trouble = self.publisher.wipe();
        tell(self.log, &trouble);
        match ending {
            Ending::Stopped if trouble.is_empty() => Ending::Done,
            Ending::Stopped => Ending::Files("some files could not be overwritten".to_owned()),
            other => other,
        }
    }
}

fn tell(log: Log, trouble: &Trouble) {
    for error in trouble.iter() {
        let fields = [("why", error.to_string().into())];
        log.event(Level::Error, "cleaning failed", &fields);
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// A random number to spread attempts with. Without a random source, the middle will do.
fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}
