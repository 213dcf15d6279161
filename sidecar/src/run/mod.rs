//! Ties sessions and files together, with time and signals. One thread, one loop; while nothing
//! happens it sleeps until the next thing that is due.

mod acknowledge;
mod conversation;
mod follow;
pub mod place;
pub mod report;
mod show;

use crate::backoff::Backoff;
use crate::clock::{Moment, Watch};
use crate::config::Config;
use crate::ending::Ending;
use crate::log::{Level, Log, wall_clock};
use crate::notify::Notifier;
use crate::options::Options;
use crate::publish::item::Item;
use crate::publish::{Publisher, Tended, Trouble};
use crate::session::{Failure, Session};
use crate::status::{self, Board, Status};
use follow::{Follow, Seen};
use mayfly_wire::{Code, CredentialName, PublishFault};
use report::Owed;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, sleep_until, timeout};

/// How long opening a session can take.
const OPENING: Duration = Duration::from_secs(15);

/// Runs until it is told to stop, the application ends that it follows, or `--once` is done. `missed`
/// is what others had to remove before.
///
/// # Errors
/// If signals cannot be received.
pub async fn run(
    options: &Options,
    config: &Config,
    log: Log,
    publisher: Publisher,
    missed: &[String],
) -> std::io::Result<Ending> {
    let board = match options.once {
        // It does not stay to keep it true.
        Some(_) => Board::none(),
        None => show::board(&publisher, log),
    };
    let untold = match (options.once, publisher.current()) {
        (None, Some(generation)) => !status::was_told(publisher.dir(), generation),
        _ => false,
    };
    let mut status = Status {
        version: 1,
        ..Status::default()
    };
    if options.once.is_none() {
        // A sidecar before us removed it, and it has not come back since.
        status.expired = status::read(publisher.dir())
            .map(|before| before.status.expired)
            .unwrap_or_default();
        status.expired.extend_from_slice(missed);
        status.expired.sort_unstable();
        status.expired.dedup();
        let held = |path: &String| publisher.held().any(|(item, _)| item.as_str() == path);
        status.expired.retain(|path| !held(path));
    }
    let mut runner = Runner {
        options,
        config,
        log,
        publisher,
        notifier: Notifier::new(config, options.dir.clone(), options.shim),
        board,
        follow: Follow::new(config),
        status,
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        backoff: Backoff::default(),
        complaint: None,
        failing_files: false,
        missing: String::new(),
        word: None,
        generation: 0,
        renews_at: None,
        owed: Owed::new(&options.socket, log),
        stopped_for: BTreeSet::new(),
        watch: Watch::new(),
        awaited: options.awaited.as_deref(),
    };
    runner.look_for_awaited();
    if untold && runner.awaited.is_none() {
        runner.take_up();
    }
    if !missed.is_empty() {
        let why = format!("while no sidecar was at work: {}", missed.join(","));
        runner.owed.add(0, PublishFault::ExpiredRemoved, &why);
    }
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
    config: &'a Config,
    log: Log,
    publisher: Publisher,
    notifier: Notifier,
    board: Board,
    follow: Follow,
    /// What of the status is not seen from the publisher and the notifier.
    status: Status,
    terminate: Signal,
    interrupt: Signal,
    backoff: Backoff,
    /// What was last complained about, so that it is said once and not at each attempt.
    complaint: Option<String>,
    /// Whether it was about files.
    failing_files: bool,
    /// What the last bundle lacked, and why.
    missing: String,
    /// The application's word, if it is waited for.
    word: Option<acknowledge::Word>,
    /// The session's generation that was published last.
    generation: u64,
    /// When the first of what it holds is to be renewed, in milliseconds of uptime.
    renews_at: Option<u64>,
    /// What the broker must hear of what has ended.
    owed: Owed,
    /// What has expired that the application is being stopped for.
    stopped_for: BTreeSet<Item>,
    /// Whether somebody sets the time of day.
    watch: Watch,
    /// What the shim will start the application with, until that is there.
    awaited: Option<&'a [String]>,
}

impl Runner<'_> {
    /// Session after session.
    async fn serve(&mut self) -> Result<Infallible, Ending> {
        let options = self.options;
        let want = self.want();
        loop {
            let opening = timeout(OPENING, Session::open(&options.socket, want.clone()));
            let failure = match self.meanwhile(opening).await? {
                Ok(Ok(session)) => {
                    self.status.connected = true;
                    self.owed.pay();
                    self.converse(session, want.as_deref()).await?
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Silent,
            };
            self.status.connected = false;
            let wait = self.judge(failure)?;
            self.meanwhile(sleep(wait)).await?;
        }
    }

    /// What is asked for: what was said, or what the outputs need if nothing else is published.
    fn want(&self) -> Option<Vec<CredentialName>> {
        let by_outputs = || self.config.used().into_iter().cloned().collect();
        let only = self.config.only_outputs.then(by_outputs);
        self.options.want.clone().or(only)
    }

    /// How long to wait before the next session, after the last one failed.
    fn judge(&mut self, failure: Failure) -> Result<Duration, Ending> {
        let Failure::Refused(code) = failure else {
            self.complain("session failed", failure.to_string());
            return Ok(self.backoff.transient(random()));
        };
        if code == Code::BadRequest && self.options.once.is_some() {
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
        if code == Code::Denied {
            // Its leases have ended.
            self.withdraw_all();
        }
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
            self.notifier.start_due(Instant::now());
            self.show();
            let due = self.publisher.due(Moment::now());
            let due = due.into_iter().chain(self.notifier.due()).min();
            tokio::select! {
                biased;
                _ = self.terminate.recv() => return Err(Ending::Stopped),
                _ = self.interrupt.recv() => return Err(Ending::Stopped),
                done = &mut work => return Ok(done),
                seen = self.follow.next() => match seen {
                    Seen::Ended => {
                        self.log.event(Level::Info, "the application has ended", &[]);
                        return Err(Ending::Stopped);
                    }
                    Seen::Found => {}
                    Seen::Lost(why) => {
                        let fields = [("why", why.into())];
                        self.log.event(Level::Error, "cannot end with the application", &fields);
                    }
                },
                told = self.notifier.next(Instant::now) => self.told(&told),
                () = until(due) => {}
                () = self.watch.was_set() => {}
            }
        }
    }

    fn tend(&mut self) {
        let moment = Moment::now();
        let now = moment.instant;
        let tended = self.publisher.tend(moment);
        for (items, event, why) in [
            (
                &tended.expired,
                "expired",
                "they were not renewed in time; their files are gone",
            ),
            (
                &tended.stale,
                "stale",
                "they were not renewed in time; their files are kept",
            ),
        ] {
            if !items.is_empty() {
                let names: Vec<_> = items.iter().map(Item::as_str).collect();
                let fields = [("names", names.join(",").into()), ("why", why.into())];
                self.log.event(Level::Warn, event, &fields);
            }
        }
        self.put_on_record(&tended);
        if !tended.expired.is_empty() {
            self.changed(now, &tended.expired);
        }
        let expired = tended.expired.iter().map(Item::to_string);
        self.status.expired.extend(expired);
        if !tended.stop.is_empty() {
            self.stopped_for.extend(tended.stop);
            let why = "a credential has expired that the application is not to run without";
            self.log.event(
                Level::Error,
                "stopping the application",
                &[("why", why.into())],
            );
            self.notifier.stop(now);
        }
        tell(self.log, &tended.trouble);
    }

    /// Nobody runs on what has ended without a trace.
    fn put_on_record(&self, tended: &Tended) {
        let gone = match tended.stop.is_empty() {
            true => PublishFault::ExpiredRemoved,
            false => PublishFault::StoppedStale,
        };
        for (items, code) in [
            (&tended.expired, gone),
            (&tended.stale, PublishFault::KeptStale),
        ] {
            if !items.is_empty() {
                let names: Vec<_> = items.iter().map(Item::as_str).collect();
                self.owed.add(self.generation, code, &names.join(","));
            }
        }
    }

    /// If all is back that the application is being stopped for, it is stopped no more.
    fn stop_no_more(&mut self) {
        let before = self.stopped_for.len();
        let publisher = &self.publisher;
        self.stopped_for
            .retain(|item| !publisher.held().any(|(held, _)| held == item));
        if before > 0 && self.stopped_for.is_empty() {
            self.notifier.drop_stop();
        }
    }

    /// Tells the application, if it is to be told.
    fn changed<'i>(&mut self, now: Instant, items: impl IntoIterator<Item = &'i Item> + Clone) {
        self.status.changed_at_ms = Some(wall_clock());
        if self.options.once.is_none() && self.awaited.is_none() {
            let generation = self.publisher.current().unwrap_or_default();
            self.notifier.changed(now, items, generation);
        }
    }

    /// Whether the shim has by now what it starts the application with, as it sees it: what it names, or
    /// a complete set. From then on there is somebody to tell.
    fn look_for_awaited(&mut self) {
        let publisher = &self.publisher;
        let is_there = |path: &String| publisher.has(path);
        self.awaited.take_if(|names| match *names {
            [] => !publisher.is_incomplete(),
            names => names.iter().all(is_there),
        });
    }

    /// A sidecar before us ended in the middle of telling the application: it is told of everything.
    fn take_up(&mut self) {
        let now = Instant::now();
        let generation = self.publisher.current().unwrap_or_default();
        let held: Vec<_> = self.publisher.held().map(|(item, _)| item).collect();
        self.notifier.changed(now, held.iter().copied(), generation);
        self.expect_word(now);
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
                let due = self.publisher.due(Moment::now());
                until(due).await;
                self.tend();
            }
            return ending;
        }
        self.board.remove(self.publisher.dir());
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
