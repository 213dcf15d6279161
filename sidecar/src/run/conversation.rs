//! One session, from its first bundle to its end.

use super::{Runner, tell};
use crate::clock::{Moment, uptime};
use crate::ending::Ending;
use crate::log::{Level, wall_clock};
use crate::publish::GRACE;
use crate::publish::item::Item;
use crate::session::bundle::{self, NotPublished, Outcome, Plan};
use crate::session::{Failure, NotMade, SILENCE, Session};
use crate::status::Failed;
use mayfly_wire::session::{Bundle, ClientMessage, Missing, ServerMessage};
use mayfly_wire::{CredentialName, PublishFault};
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// How long the other side can take to read a line of ours.
const SAYING: Duration = Duration::from_secs(10);
/// Longest wait before files are tried again.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Of how much that is missing it is said why.
const MOST_SAID: usize = 64;

/// A bundle that is not published yet, still sealed.
struct Waiting {
    bundle: Bundle,
    since: Instant,
    until: Instant,
}

impl Runner<'_> {
    /// Holds a session until it fails.
    ///
    /// # Errors
    /// If the process is to end.
    pub(super) async fn converse(
        &mut self,
        mut session: Session,
        want: Option<&[CredentialName]>,
    ) -> Result<Failure, Ending> {
        let mut heard = Instant::now();
        let mut heard_at = uptime();
        let mut waiting: Option<Waiting> = None;
        // The generation that is published and not acknowledged yet.
        let mut owed: Option<u64> = None;
        loop {
            let now = Instant::now();
            if let Some(ready) = waiting.take_if(|waiting| waiting.until <= now) {
                match self.publish(&session, &ready.bundle) {
                    Ok(true) => owed = Some(ready.bundle.generation),
                    Ok(false) => owed = None,
                    Err(NotPublished::Session(failure)) => return Ok(failure),
                    Err(NotPublished::Files(error)) => {
                        self.failing_files = true;
                        let why = error.to_string();
                        self.status.not_published = Some(why.clone());
                        if self.complain("publishing failed", why.clone()) {
                            let generation = ready.bundle.generation;
                            self.report(generation, error.fault(), &why);
                        }
                        // Longer and longer, but not before a replaced generation makes room.
                        let wait = ready.since.elapsed().clamp(GRACE, MAX_RETRY);
                        waiting = Some(Waiting {
                            until: now + wait,
                            ..ready
                        });
                    }
                }
                if self.options.once.is_some() && waiting.is_none() && owed.is_none() {
                    return Err(Ending::Files("an output could not be made".to_owned()));
                }
            }
            if self.options.once.is_some() {
                self.word = None;
            }
            if let Some(generation) = owed
                && self.has_word(now)
            {
                let word = ClientMessage::Ack { generation };
                if let Err(failure) = self.say(&mut session, word).await? {
                    return Ok(failure);
                }
                owed = None;
                if self.options.once.is_some() {
                    return Err(Ending::Done);
                }
            }
            let silent = heard + SILENCE;
            let look = self.word.filter(|_| owed.is_some());
            let look = look.map(|word| now + word.look());
            let wake = waiting.iter().map(|waiting| waiting.until);
            let wake = wake.chain(look).chain([silent]).min().unwrap_or(silent);
            let message = match self
                .meanwhile(timeout_at(wake.into(), session.next()))
                .await?
            {
                Ok(Ok(message)) => message,
                Ok(Err(failure)) => return Ok(failure),
                Err(_) if Instant::now() >= silent => return Ok(Failure::Silent),
                Err(_) => continue,
            };
            // It can have lain here while we were stopped or the machine slept.
            let late = Duration::from_millis(uptime().saturating_sub(heard_at));
            if late > SILENCE {
                return Ok(Failure::Silent);
            }
            heard = Instant::now();
            heard_at = uptime();
            match message {
                ServerMessage::Bundle(bundle) => {
                    session.set_clock(bundle.now, Moment::now());
                    if let Err(failure) = bundle::check(&bundle, session.generation, want) {
                        return Ok(failure);
                    }
                    session.generation = bundle.generation;
                    let publishable = self.tell_missing(&bundle.missing)?;
                    // A newer bundle is all that the workload holds: one that still waits is void.
                    waiting = publishable.then(|| Waiting {
                        bundle,
                        since: heard,
                        until: self.publisher.room().unwrap_or(heard),
                    });
                }
                ServerMessage::Withdraw { names } => {
                    waiting.take_if(|waiting| {
                        let mut held = waiting.bundle.credentials.iter();
                        held.any(|credential| names.contains(&credential.name))
                    });
                    self.withdraw(heard, &names);
                }
                ServerMessage::Ping {} => {
                    self.owed.pay();
                    if let Err(failure) = self.say(&mut session, ClientMessage::Pong {}).await? {
                        return Ok(failure);
                    }
                }
                ServerMessage::Refused(refusal) => return Ok(Failure::Refused(refusal.code)),
                ServerMessage::Hello { .. } => {
                    return Ok(Failure::Protocol {
                        expected: "hello once",
                        found: "another hello".to_owned(),
                    });
                }
            }
        }
    }

    fn withdraw(&mut self, now: Instant, names: &[CredentialName]) {
        let outputs = self.config.outputs.iter();
        let outputs = outputs.filter(|output| {
            let mut made_of = output.credentials.iter();
            made_of.any(|name| names.contains(name))
        });
        let outputs = outputs.map(|output| output.item.clone());
        let items: Vec<_> = names.iter().map(Item::from).chain(outputs).collect();
        let (gone, trouble) = self.publisher.withdraw(now, &items);
        let is_withdrawn = |path: &String| items.iter().any(|item| item.as_str() == path);
        self.status.expired.retain(|path| !is_withdrawn(path));
        let names: Vec<_> = names.iter().map(CredentialName::as_str).collect();
        let fields = [("names", names.join(",").into())];
        self.log.event(Level::Info, "withdrawn", &fields);
        if !gone.is_empty() {
            self.changed(now, &gone);
        }
        tell(self.log, &trouble);
    }

    /// Nothing is granted any more, which a withdrawal could not say for want of a session.
    pub(super) fn withdraw_all(&mut self) {
        let now = Instant::now();
        let items: Vec<_> = self
            .publisher
            .held()
            .map(|(item, _)| item.clone())
            .collect();
        if items.is_empty() {
            return;
        }
        let (gone, trouble) = self.publisher.withdraw(now, &items);
        let names: Vec<_> = gone.iter().map(Item::as_str).collect();
        let fields = [("names", names.join(",").into())];
        self.log.event(Level::Warn, "withdrawn", &fields);
        self.changed(now, &gone);
        tell(self.log, &trouble);
    }

    /// Publishes. Returns whether all of it was made, so that it is to be acknowledged.
    fn publish(&mut self, session: &Session, bundle: &Bundle) -> Result<bool, NotPublished> {
        let plan = Plan {
            config: self.config,
            access: self.options.access,
            broker: session.clock(),
        };
        let now = Instant::now();
        // It starts with what it finds, and then has all of it.
        let starts_later = self.awaited.is_some();
        let mut missing = bundle.missing.iter();
        let complete = !missing.any(|missing| missing.refusal.code.is_transient());
        if !complete && self.publisher.is_incomplete() {
            self.publisher.mark_incomplete()?;
        }
        let Outcome {
            mut published,
            not_made,
        } = bundle::publish(session, bundle, plan, &mut self.publisher, now)?;
        if complete {
            self.publisher.mark_complete(&mut published.trouble);
        }
        self.look_for_awaited();
        self.generation = bundle.generation;
        let renewals = bundle.credentials.iter().map(|one| one.renews_at);
        let first = renewals.filter(|at| *at > 0).min();
        self.renews_at = first.map(|at| session.clock().to_uptime(at));
        self.backoff.reset();
        self.complaint = None;
        self.failing_files = false;
        self.status.not_published = None;
        // A set is all that the workload holds: what it lacks is not awaited any more, or missing.
        self.status.expired.clear();
        self.stop_no_more();
        self.look_at_place();
        if published.first || !published.changed.is_empty() {
            let fields = [
                ("generation", bundle.generation.into()),
                ("credentials", bundle.credentials.len().into()),
            ];
            self.log.event(Level::Info, "published", &fields);
        }
        if starts_later || (published.first && !self.options.shim) {
            // Whoever waits for its first set is not told of it.
            self.status.changed_at_ms = Some(wall_clock());
        } else if !published.changed.is_empty() {
            self.changed(now, &published.changed);
            self.expect_word(now);
        }
        tell(self.log, &published.trouble);
        self.tell_not_made(&not_made);
        let all = match self.options.once {
            Some(_) => not_made.absent.is_empty(),
            None => true,
        };
        Ok(all && not_made.failed.is_empty())
    }

    /// Says which outputs could not be made, once.
    fn tell_not_made(&mut self, not_made: &NotMade) {
        let failed = not_made.failed.iter().zip(std::iter::repeat(true));
        let absent = not_made.absent.iter().zip(std::iter::repeat(false));
        let mut all = Vec::new();
        for ((item, why), failed) in failed.chain(absent) {
            let failure = Failed {
                path: item.to_string(),
                why: why.clone(),
            };
            if !self.status.failed.contains(&failure) {
                let fields = [
                    ("output", item.as_str().into()),
                    ("why", why.as_str().into()),
                ];
                self.log.event(Level::Error, "output failed", &fields);
                // What was not granted, the broker knows.
                if failed {
                    let why = format!("{item}: {why}");
                    self.report(self.generation, PublishFault::Output, &why);
                }
            }
            all.push(failure);
        }
        self.status.failed = all;
    }

    async fn say(
        &mut self,
        session: &mut Session,
        message: ClientMessage,
    ) -> Result<Result<(), Failure>, Ending> {
        let said = self
            .meanwhile(timeout(SAYING, session.say(&message)))
            .await?;
        Ok(said.unwrap_or(Err(Failure::Silent)))
    }

    /// Says what is missing, once. Returns whether the bundle is to be published: `--once` publishes
    /// all that was asked for or nothing.
    fn tell_missing(&mut self, missing: &[Missing]) -> Result<bool, Ending> {
        let said =
            |missing: &Missing| format!("{}: {}", missing.name, missing.refusal.code.phrase());
        let mut why: Vec<_> = missing.iter().take(MOST_SAID).map(said).collect();
        if missing.len() > MOST_SAID {
            why.push(format!("and {} more", missing.len() - MOST_SAID));
        }
        let why = why.join("; ");
        let (transient, lasting): (Vec<_>, Vec<_>) = missing
            .iter()
            .partition(|missing| missing.refusal.code.is_transient());
        if self.options.once.is_some() && !lasting.is_empty() {
            return Err(Ending::Denied(why));
        }
        if self.missing != why {
            if !why.is_empty() {
                let fields = [("why", why.as_str().into())];
                self.log.event(Level::Warn, "missing", &fields);
            }
            self.missing = why;
        }
        if transient.is_empty() || self.options.once.is_none() {
            return Ok(true);
        }
        let names: Vec<_> = transient.into_iter().take(MOST_SAID).map(said).collect();
        let why = format!("the first set waits for {}", names.join("; "));
        self.complain("nothing is published yet", why);
        Ok(false)
    }
}
