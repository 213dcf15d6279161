//! The stream on which bundles arrive: opened over HTTP/1.1, then one JSON message a line.

pub mod bundle;
mod connect;
mod lines;
mod outputs;

pub use connect::report;
pub use outputs::NotMade;

use crate::clock::{Moment, Offset};
use lines::Lines;
use mayfly_wire::sealed::PrivateKey;
use mayfly_wire::session::{ClientMessage, PING_SECONDS, PROTOCOL, ServerMessage};
use mayfly_wire::{Code, CredentialName, WorkloadKey};
use std::io;
use std::path::Path;
use std::time::Duration;

/// After how long without a word the other side is taken for dead: three pings.
pub const SILENCE: Duration = Duration::from_secs(3 * PING_SECONDS);

/// Why a session could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The socket is not there, or nobody listens.
    #[error("the workload socket {path} does not answer: {error}")]
    Unreachable {
        /// The socket's path.
        path: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The stream broke.
    #[error("the session broke: {0}")]
    Broken(#[from] io::Error),
    /// The answer was no HTTP.
    #[error("expected HTTP on the workload socket: {0}")]
    Http(#[from] hyper::Error),
    /// The broker said no.
    #[error("refused: {}", .0.phrase())]
    Refused(Code),
    /// Nothing was heard for too long.
    #[error("nothing was heard for too long")]
    Silent,
    /// The other side closed without a word.
    #[error("the session was closed")]
    Closed,
    /// What was said is against the protocol.
    #[error("expected {expected}, found {found}")]
    Protocol {
        /// By the contract.
        expected: &'static str,
        /// On the stream. Never a value.
        found: String,
    },
}

impl Failure {
    fn protocol(expected: &'static str, found: impl Into<String>) -> Self {
        Self::Protocol {
            expected,
            found: found.into(),
        }
    }
}

/// An open session.
pub struct Session {
    lines: Lines,
    /// Opens this session's bundles.
    pub key: PrivateKey,
    /// Whom we were attested as. Sealed values are bound to it.
    pub workload: WorkloadKey,
    /// The last bundle's generation.
    pub generation: u64,
    /// What time it is for the broker, as its bundles say it.
    clock: Option<Offset>,
}

impl Session {
    /// Opens a session with a key pair of its own.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn open(socket: &Path, want: Option<Vec<CredentialName>>) -> Result<Self, Failure> {
        let (key, public_key) = mayfly_wire::sealed::generate();
        let mut lines = connect::open(socket, public_key, want).await?;
        match lines.next().await? {
            ServerMessage::Hello { protocol, workload } if protocol == PROTOCOL => Ok(Self {
                lines,
                key,
                workload,
                generation: 0,
                clock: None,
            }),
            ServerMessage::Hello { protocol, .. } => Err(Failure::protocol(
                "session protocol 1",
                format!("protocol {protocol}"),
            )),
            ServerMessage::Refused(refusal) => Err(Failure::Refused(refusal.code)),
            _ => Err(Failure::protocol(
                "hello as the first line",
                "another message",
            )),
        }
    }

    /// The next message. Loses nothing if it is dropped before it is done.
    ///
    /// # Errors
    /// [`Failure`]; the session is then over.
    pub async fn next(&mut self) -> Result<ServerMessage, Failure> {
        self.lines.next().await
    }

    /// Notes what time it was for the broker when it sent what arrives now. 0 if it does not say.
    pub fn set_clock(&mut self, theirs: u64, now: Moment) {
        if theirs > 0 {
            let heard = Offset::new(theirs, now.uptime);
            self.clock = Some(self.clock.map_or(heard, |known| known.nearer(heard)));
        }
    }

    /// What time it is for the broker. One that never said goes by the same time of day as we do.
    #[must_use]
    pub fn clock(&self) -> Offset {
        self.clock.unwrap_or_else(|| Offset::of_wall(Moment::now()))
    }

    /// Says something.
    ///
    /// # Errors
    /// [`Failure`]; the session is then over.
    pub async fn say(&mut self, message: &ClientMessage) -> Result<(), Failure> {
        self.lines.say(message).await
    }
}
