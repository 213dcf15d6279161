//! Telling the application that something changed: together what changes together, again what fails.

mod act;
mod http;
mod schedule;
mod shim;
pub mod target;

use crate::config::{Action, Config, Notify, Process};
use crate::publish::item::Item;
use mayfly_kernel::pidfd::Pidfd;
use schedule::{Schedule, Step};
use shim::{Shim, Telling};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::task::JoinSet;

/// What an action can know and use. Nothing of it is secret.
#[derive(Clone)]
pub struct Context {
    /// The publishing directory.
    pub dir: PathBuf,
    /// The generation that is current.
    pub generation: String,
    /// What changed.
    pub changed: BTreeSet<Item>,
    /// Which process the application is.
    pub process: Option<Process>,
    /// Whether the shim listens on the sidecar's standard input.
    pub shim: bool,
    /// The shim itself.
    the_shim: Arc<Shim>,
    /// What this is an attempt of.
    telling: Telling,
    /// The process that is being stopped.
    stopping: Arc<Mutex<Option<Pidfd>>>,
}

/// How one way of telling stands, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which, in words.
    pub what: String,
    /// `idle`, `pending` or `failed`.
    pub state: &'static str,
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
}

/// What came of an attempt.
pub struct Told {
    /// Which way, in words.
    pub what: String,
    /// What went wrong.
    pub error: Option<String>,
    /// Whether it is not tried again.
    pub last: bool,
}

struct Line {
    notify: Notify,
    schedule: Schedule,
    /// What is to be told.
    changed: BTreeSet<Item>,
    /// What is being told.
    telling: BTreeSet<Item>,
    /// How often it was asked for.
    count: u64,
}

/// All ways of telling the application.
pub struct Notifier {
    lines: Vec<Line>,
    running: JoinSet<(usize, Result<(), String>)>,
    context: Context,
}

impl Notifier {
    /// Of a configuration.
    #[must_use]
    pub fn new(config: &Config, dir: PathBuf, shim: bool) -> Self {
        let stop = config.application.is_some().then(Notify::stop);
        let lines = config
            .notify
            .iter()
            .cloned()
            .chain(stop)
            .map(|notify| Line {
                notify,
                schedule: Schedule::default(),
                changed: BTreeSet::new(),
                telling: BTreeSet::new(),
                count: 0,
            });
        Self {
            lines: lines.collect(),
            running: JoinSet::new(),
            context: Context {
                dir,
                generation: String::new(),
                changed: BTreeSet::new(),
                process: config
                    .application
                    .as_ref()
                    .map(|known| known.process.clone()),
                shim,
                the_shim: Arc::default(),
                telling: Telling::default(),
                stopping: Arc::default(),
            },
        }
    }

    /// Something changed: whom it concerns is told when it is quiet.
    pub fn changed<'a>(
        &mut self,
        now: Instant,
        items: impl IntoIterator<Item = &'a Item> + Clone,
        generation: &str,
    ) {
        self.context.generation = generation.to_owned();
        for line in &mut self.lines {
            let on = &line.notify.on;
            let of_interest = items.clone().into_iter();
            let mut of_interest = of_interest
                .filter(|item| on.is_empty() || on.contains(item))
                .peekable();
            if line.notify.action != Action::Stop && of_interest.peek().is_some() {
                line.changed.extend(of_interest.cloned());
                line.count += 1;
                line.schedule.ask(now, line.notify.debounce);
            }
        }
    }

    /// The application is to end.
    pub fn stop(&mut self, now: Instant) {
        for line in &mut self.lines {
            if line.notify.action == Action::Stop {
                if !line.schedule.is_pending() {
                    self.context.stopping = Arc::default();
                }
                line.count += 1;
                line.schedule.ask(now, line.notify.debounce);
            }
        }
    }

    /// It need not end any more.
    pub fn drop_stop(&mut self) {
        for line in &mut self.lines {
            if line.notify.action == Action::Stop {
                line.schedule.drop_it();
            }
        }
    }

    /// When [`Notifier::start_due`] has something to do.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.lines
            .iter()
            .filter_map(|line| line.schedule.due())
            .min()
    }

    /// Starts what is due.
    pub fn start_due(&mut self, now: Instant) {
        for (number, line) in self.lines.iter_mut().enumerate() {
            if !line.schedule.start(now) {
                continue;
            }
            let notify = line.notify.clone();
            line.telling = std::mem::take(&mut line.changed);
            let context = Context {
                changed: line.telling.clone(),
                telling: Telling {
                    line: number,
                    count: line.count,
                },
                ..self.context.clone()
            };
            self.running
                .spawn(async move { (number, act::perform(&notify, &context).await) });
        }
    }

    /// The next attempt that is over. Never, if none runs.
    pub async fn next(&mut self, now: impl Fn() -> Instant) -> Told {
        loop {
            match self.running.join_next().await {
                Some(Ok((number, outcome))) => {
                    if let Some(told) = self.note(number, outcome, now()) {
                        return told;
                    }
                }
                // Its task was cancelled, which nobody does.
                Some(Err(_)) => {}
                None => return std::future::pending().await,
            }
        }
    }

    fn note(&mut self, number: usize, outcome: Result<(), String>, now: Instant) -> Option<Told> {
        let line = self.lines.get_mut(number)?;
        let error = outcome.err();
        let told = std::mem::take(&mut line.telling);
        if error.is_some() {
            line.changed.extend(told);
        }
        let step = line.schedule.finished(now, error.as_deref(), &line.notify);
        Some(Told {
            what: line.notify.action.words(),
            error,
            last: step == Step::GivenUp,
        })
    }

    /// Whether everything that was to be told was told, with success.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.lines.iter().all(|line| line.schedule.is_well())
    }

    /// How each stands.
    pub fn standing(&self) -> impl Iterator<Item = Standing> {
        self.lines.iter().map(|line| Standing {
            what: line.notify.action.words(),
            state: line.schedule.state(),
            error: line.schedule.error().map(str::to_owned),
        })
    }
}
