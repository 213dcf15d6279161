//! One session, from its first bundle to its end.

use super::{Runner, tell};
use crate::ending::Ending;
use crate::log::Level;
use crate::publish::GRACE;
use crate::session::bundle::{self, NotPublished};
use crate::session::{Failure, SILENCE, Session};
use mayfly_wire::session::{Bundle, ClientMessage, Missing, ServerMessage};
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// How long the other side can take to read a line of ours.
const SAYING: Duration = Duration::from_secs(10);
/// Longest wait before files are tried again.
const MAX_RETRY: Duration = Duration::from_secs(30);

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
    pub(super) async fn converse(&mut self, mut session: Session) -> Result<Failure, Ending> {
        let mut heard = Instant::now();
        let mut waiting: Option<Waiting> = None;
        loop {
            let now = Instant::now();
            if let Some(ready) = waiting.take_if(|waiting| waiting.until <= now) {
                match self.publish(&mut session, &ready.bundle).await? {
                    Ok(()) => {}
                    Err(NotPublished::Session(failure)) => return Ok(failure),
                    Err(NotPublished::Files(error)) => {
                        self.failing_files = true;
                        let why = error.to_string();
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
            }
            let silent = heard + SILENCE;
            let wake = waiting
                .as_ref()
                .map_or(silent, |waiting| waiting.until.min(silent));
            let message = match self
                .meanwhile(timeout_at(wake.into(), session.next()))
                .await?
            {
                Ok(Ok(message)) => message,
                Ok(Err(failure)) => return Ok(failure),
                Err(_) if Instant::now() >= silent => return Ok(Failure::Silent),
                Err(_) => continue,
            };
            heard = Instant::now();
            match message {
                ServerMessage::Bundle(bundle) => {
                    let want = self.options.want.as_deref();
                    if let Err(failure) = bundle::check(&bundle, session.generation, want) {
                        return Ok(failure);
                    }
                    session.generation = bundle.generation;
                    let complete = self.tell_missing(&bundle.missing)?;
                    // A newer bundle is all that the workload holds: one that still waits is void.
                    waiting = complete.then(|| Waiting {
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
                    let trouble = self.publisher.withdraw(heard, &names);
                    let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
                    let fields = [("names", names.join(",").into())];
                    self.log.event(Level::Info, "withdrawn", &fields);
                    tell(self.log, &trouble);
                }
                ServerMessage::Ping {} => {
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

    async fn publish(
        &mut self,
        session: &mut Session,
        bundle: &Bundle,
    ) -> Result<Result<(), NotPublished>, Ending> {
        let published = bundle::publish(session, bundle, &mut self.publisher, Instant::now());
        let published = match published {
            Ok(published) => published,
            Err(error) => return Ok(Err(error)),
        };
        let acknowledgement = ClientMessage::Ack {
            generation: bundle.generation,
        };
        if let Err(failure) = self.say(session, acknowledgement).await? {
            return Ok(Err(failure.into()));
        }
        self.backoff.reset();
        self.complaint = None;
        self.failing_files = false;
        if published.changed {
            let fields = [
                ("generation", bundle.generation.into()),
                ("credentials", bundle.credentials.len().into()),
            ];
            self.log.event(Level::Info, "published", &fields);
        }
        tell(self.log, &published.trouble);
        match self.options.once {
            Some(_) => Err(Ending::Done),
            None => Ok(Ok(())),
        }
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
        let why: Vec<_> = missing
            .iter()
            .map(|missing| format!("{}: {}", missing.name, missing.refusal.code.phrase()))
            .collect();
        let why = why.join("; ");
        let lasting = missing
            .iter()
            .any(|missing| !missing.refusal.code.is_transient());
        if self.options.once.is_some() && lasting {
            return Err(Ending::Denied(why));
        }
        if self.missing != why {
            if !why.is_empty() {
                let fields = [("why", why.as_str().into())];
                self.log.event(Level::Warn, "missing", &fields);
            }
            self.missing = why;
        }
        Ok(self.options.once.is_none() || missing.is_empty())
    }
}
