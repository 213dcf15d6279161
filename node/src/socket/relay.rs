//! One open session: messages between the client's connection and the broker, neither of which can
//! make the node wait or grow without bound.

use super::stream::{Caller, CheckedStream};
use crate::config::Limits;
use crate::lines::{Lines, line};
use crate::served::Stay;
use crate::upstream::Session;
use mayfly_wire::link::SessionUpdate;
use mayfly_wire::session::{ClientMessage, MAX_CLIENT_LINE, MAX_SERVER_LINE, ServerMessage};
use mayfly_wire::{Code, Evidence, Refusal};
use std::future::Future;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};

/// How a session ends.
enum End {
    /// The client closed it, or its connection broke: nothing can be said any more.
    Closed,
    /// The client was at fault, which is reported.
    Fault(&'static str, String, Code),
    /// The client is told why.
    Told(Refusal),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

pub(super) struct Relay {
    pub(super) stream: CheckedStream,
    pub(super) caller: Arc<Caller>,
    pub(super) stay: Stay,
    pub(super) session: Session,
    /// What the broker knows of the client when the session begins.
    pub(super) evidence: Evidence,
    pub(super) limits: Limits,
    /// Becomes true when the node stops.
    pub(super) stopping: watch::Receiver<bool>,
}

impl Relay {
    /// Runs the session to its end. `early` is what the client sent right behind its request.
    pub(super) async fn run(mut self, early: &[u8]) {
        let mut reader = Reader::new();
        reader.input.extend_from_slice(early);
        let end = match self.pass(&mut reader).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let last = match end {
            End::Closed => return,
            End::Fault(reason, detail, code) => {
                self.caller.refuse(reason, detail);
                code.into()
            }
            End::Told(refusal) => refusal,
        };
        // It may not be reading any more; then this ends by itself.
        let _ = self.write(&ServerMessage::Refused(last)).await;
    }

    async fn pass(&mut self, reader: &mut Reader) -> Result<std::convert::Infallible, End> {
        let period = self.limits.ping();
        let mut pings = interval_at(Instant::now() + period, period);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut known = self.evidence.clone();
        let mut look = Box::pin(self.look_again(&known));
        // A client only ever answers: it has no more to say than it was told.
        let (mut told, mut answered) = (0_u64, 0_u64);
        loop {
            tokio::select! {
                // Deaths first, and pings before a client that talks all the time.
                biased;
                () = self.stay.death() => return Err(End::Closed),
                () = stopped(&mut self.stopping) => {
                    return Err(End::Told(Code::Unavailable.into()));
                }
                () = sleep_until(heard + period * 3) => {
                    let detail = "no answer to three pings".to_owned();
                    return Err(End::Fault("too_slow", detail, Code::TooSlow));
                }
                _ = pings.tick() => {
                    self.write(&ServerMessage::Ping {}).await?;
                    told += 1;
                }
                looked = &mut look => {
                    let evidence = looked.map_err(|code| End::Told(code.into()))?;
                    // While the broker has not taken what came before, this waits for the next look.
                    let update = SessionUpdate::Changed(Box::new(evidence.clone()));
                    if self.session.up.try_send(update).is_ok() {
                        known = evidence;
                    }
                    look = Box::pin(self.look_again(&known));
                }
                message = self.session.down.recv() => match message {
                    Some(ServerMessage::Refused(refusal)) => return Err(End::Told(refusal)),
                    // The node asks whether the client is there.
                    Some(ServerMessage::Ping {}) => {}
                    Some(message) => {
                        self.write(&message).await?;
                        told += 1;
                    }
                    None => return Err(End::Told(Code::Unavailable.into())),
                },
                // Nothing is read from a client whose last message the broker has not taken.
                message = async {
                    let place = self.session.up.reserve().await;
                    let place = place.map_err(|_| End::Told(Code::Unavailable.into()))?;
                    Ok::<_, End>((place, reader.next(&self.stream).await?))
                } => {
                    let (place, message) = message?;
                    heard = Instant::now();
                    answered += 1;
                    if answered > told {
                        let detail = "more messages than there was to answer".to_owned();
                        return Err(End::Fault("too_many", detail, Code::TooMany));
                    }
                    match message {
                        ClientMessage::Pong {} => {}
                        ClientMessage::Ack { generation } => {
                            place.send(SessionUpdate::Ack { generation });
                        }
                    }
                }
            }
        }
    }

    /// Attests the client at intervals, until what is established is not what the broker knows. An
    /// engine that does not answer now is asked the next time.
    fn look_again(
        &self,
        known: &Evidence,
    ) -> impl Future<Output = Result<Evidence, Code>> + Send + use<> {
        let (caller, period) = (Arc::clone(&self.caller), self.limits.reattest());
        let known = known.clone();
        async move {
            loop {
                sleep(period).await;
                match caller.attestor.attest(&caller.peer).await {
                    Ok(attested) if attested.evidence == known => {}
                    Ok(attested) => return Ok(attested.evidence),
                    Err(error) if error.code().is_transient() => {}
                    Err(error) => {
                        let code = error.code();
                        caller.not_attested(error);
                        return Err(code);
                    }
                }
            }
        }
    }

    /// Writes one message, to the end or within the time limit.
    async fn write(&self, message: &ServerMessage) -> Result<(), End> {
        let line = line(message).map_err(|_| End::Told(Code::Internal.into()))?;
        if line.len() > MAX_SERVER_LINE {
            tracing::error!(bytes = line.len(), "the broker sent too large a bundle");
            return Err(End::Told(Code::Internal.into()));
        }
        // The last thing before a credential is released.
        if matches!(message, ServerMessage::Bundle(_)) && !self.is_alive() {
            return Err(End::Fault(
                "peer_exited",
                "the process that opened the session has exited".to_owned(),
                Code::NotAttested,
            ));
        }
        match timeout(self.limits.write(), self.stream.write_all(&line)).await {
            Ok(written) => Ok(written?),
            Err(_) => {
                let detail = format!("did not read a message of {} bytes in time", line.len());
                self.caller.refuse("too_slow", detail);
                // Half a message is on the way, so no other can follow.
                Err(End::Closed)
            }
        }
    }

    fn is_alive(&self) -> bool {
        self.caller.peer.alive() && !self.stay.is_dead()
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Reads the client's messages.
struct Reader {
    lines: Lines,
    input: Vec<u8>,
    used: usize,
}

/// Bytes read at once: a client's messages are small.
const READ: usize = 1024;

impl Reader {
    fn new() -> Self {
        Self {
            lines: Lines::new(MAX_CLIENT_LINE),
            input: Vec::new(),
            used: 0,
        }
    }

    /// The next message. Cancel safe: what was read is kept in `self`.
    async fn next(&mut self, stream: &CheckedStream) -> Result<ClientMessage, End> {
        let bad = |detail: &str| Err(End::Fault("bad_message", detail.into(), Code::BadRequest));
        loop {
            let mut rest = self.input.get(self.used..).unwrap_or_default();
            let line = self.lines.take(&mut rest);
            self.used = self.input.len() - rest.len();
            match line {
                Some(Ok(line)) => {
                    return match serde_json::from_slice(&line) {
                        Ok(message) => Ok(message),
                        Err(error) => bad(&error.to_string()),
                    };
                }
                Some(Err(error)) => return bad(error),
                None => {}
            }
            let mut buffer = [0; READ];
            let length = stream.read(&mut buffer).await?;
            if length == 0 {
                return Err(End::Closed);
            }
            self.input.clear();
            self.used = 0;
            self.input
                .extend_from_slice(buffer.get(..length).unwrap_or_default());
        }
    }
}
