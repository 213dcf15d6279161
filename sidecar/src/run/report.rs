//! Telling the broker that nothing can be published, which can be the mark of an attack, and what has
//! ended without being renewed, of which there must be a trace. It is never waited for longer than a
//! moment: files matter more than a word about them.

use super::Runner;
use crate::log::{Level, Log};
use crate::options::Options;
use crate::publish::dir::Dir;
use crate::session;
use crate::status;
use mayfly_kernel::expiry::{Area, Line, lines};
use mayfly_wire::{PublishFailure, PublishFault};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long a report may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Most reports that are kept for a broker that is away.
const MOST_OWED: usize = 32;

/// Reports of what has ended. The broker is often away just then, so each is kept until it is heard.
pub struct Owed {
    socket: PathBuf,
    log: Log,
    reports: Arc<Mutex<Vec<PublishFailure>>>,
}

impl Owed {
    /// None yet.
    pub fn new(socket: &Path, log: Log) -> Self {
        Self {
            socket: socket.to_owned(),
            log,
            reports: Arc::default(),
        }
    }

    /// Adds one and tries to be heard.
    pub fn add(&self, generation: u64, code: PublishFault, items: &str) {
        let mut reports = hold(&self.reports);
        if reports.len() == MOST_OWED {
            reports.remove(0);
        }
        reports.push(PublishFailure {
            generation,
            code,
            detail: items.into(),
        });
        drop(reports);
        self.pay();
    }

    /// Tries to be heard, if there is anything to say.
    pub fn pay(&self) {
        let owed = std::mem::take(&mut *hold(&self.reports));
        if owed.is_empty() {
            return;
        }
        let (socket, log, reports) = (self.socket.clone(), self.log, Arc::clone(&self.reports));
        tokio::spawn(async move {
            let mut owed = owed.into_iter();
            while let Some(report) = owed.next() {
                if !send(&socket, log, &report).await {
                    let mut reports = hold(&reports);
                    let later = std::mem::take(&mut *reports);
                    reports.extend([report].into_iter().chain(owed).chain(later));
                    return;
                }
            }
        });
    }
}

fn hold(reports: &Mutex<Vec<PublishFailure>>) -> MutexGuard<'_, Vec<PublishFailure>> {
    reports.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is overdue by the record in a directory, and so was left to others to remove.
pub fn overdue(dir: &Path, now: u64) -> Vec<String> {
    paths(&record(dir), |line| line.gone_at <= now)
}

fn record(dir: &Path) -> Vec<u8> {
    Area::open(dir)
        .map(|area| area.record())
        .unwrap_or_default()
}

fn paths(record: &[u8], wanted: impl Fn(&Line<'_>) -> bool) -> Vec<String> {
    let wanted = lines(record).filter(wanted);
    wanted.map(|line| line.path.to_owned()).collect()
}

/// `--report`: says what has ended, for a shim whose sidecar may be frozen or dead. What a sidecar
/// keeps that lives and knows that it expired, it says by itself.
pub fn report_ended(options: &Options, log: Log, now: u64) {
    let record = record(&options.dir);
    let alive_at = Dir::open(&options.dir)
        .ok()
        .and_then(|dir| status::read(&dir).ok())
        .filter(|found| found.running)
        .map_or(0, |found| found.alive_at_ms);
    let due = |line: &Line<'_>| line.gone_at <= now;
    for (code, items) in [
        (
            PublishFault::StoppedStale,
            paths(&record, |line| due(line) && line.stop),
        ),
        (
            PublishFault::ExpiredRemoved,
            paths(&record, |line| due(line) && !line.stop),
        ),
        (
            PublishFault::KeptStale,
            paths(&record, |line| {
                !due(line) && line.expires_at <= now && line.expires_at > alive_at
            }),
        ),
    ] {
        if !items.is_empty() {
            let why = "by the shim, for a sidecar that is frozen or dead";
            before_any_session(options, log, code, &format!("{}; {why}", items.join(",")));
        }
    }
}

impl Runner<'_> {
    /// Reports that the bundle of this generation is not published, while the session goes on: a
    /// withdrawal must not wait for it.
    pub(super) fn report(&self, generation: u64, code: PublishFault, why: &str) {
        let (socket, log) = (self.options.socket.clone(), self.log);
        let failure = PublishFailure {
            generation,
            code,
            detail: why.into(),
        };
        tokio::spawn(async move {
            send(&socket, log, &failure).await;
        });
    }
}

/// Reports that the directory will not do, from a process that is about to end.
pub fn before_any_session(options: &Options, log: Log, code: PublishFault, why: &str) {
    let failure = PublishFailure {
        generation: 0,
        code,
        detail: why.into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            runtime.block_on(send(&options.socket, log, &failure));
        }
        Err(error) => unheard(log, error.to_string()),
    }
}

/// Says whether it was heard.
async fn send(socket: &Path, log: Log, failure: &PublishFailure) -> bool {
    match timeout(LIMIT, session::report(socket, failure)).await {
        Ok(Ok(())) => {
            log.event(Level::Info, "reported to the broker", &[]);
            return true;
        }
        Ok(Err(error)) => unheard(log, error.to_string()),
        Err(_) => unheard(log, "no answer in time".to_owned()),
    }
    false
}

fn unheard(log: Log, why: String) {
    log.event(
        Level::Warn,
        "not reported to the broker",
        &[("why", why.into())],
    );
}
