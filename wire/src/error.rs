//! Refusals: a stable code and a fixed phrase for the client. The cause goes to the log and the audit
//! record, never to the one who was refused.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The stable codes. A code is never renamed or given another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is not understood: its form, size or an unknown name in it.
    BadRequest,
    /// The peer could not be attested as one live container.
    NotAttested,
    /// The kernel has no SO_PEERPIDFD: repeat the request on this connection with the nonce.
    NonceRequired,
    /// Policy does not grant it.
    Denied,
    /// There is nothing of that name.
    NotFound,
    /// What the request was based on has changed since.
    Conflict,
    /// Too many connections or requests from this workload.
    TooMany,
    /// The request took too long to arrive.
    TooSlow,
    /// What is needed to answer (the broker, an engine's target) does not answer now. Try again.
    Unavailable,
    /// The broker is sealed: its root key is not unwrapped yet.
    Sealed,
    /// It failed inside. The broker's log has the cause.
    Internal,
}

impl Code {
    /// The fixed phrase that goes with the code.
    #[must_use]
    pub fn phrase(self) -> &'static str {
        match self {
            Self::BadRequest => "the request is not understood",
            Self::NotAttested => "the caller could not be attested as one live container",
            Self::NonceRequired => {
                "this kernel cannot name the caller by itself: repeat the request on this \
                 connection with the Mayfly-Nonce header that came with this answer"
            }
            Self::Denied => {
                "policy does not grant this; the operator can see why with `mayfly explain`"
            }
            Self::NotFound => "there is nothing of that name",
            Self::Conflict => "what this was based on has changed since; look again",
            Self::TooMany => "too many connections or requests at once; try again later",
            Self::TooSlow => "the request took too long to arrive",
            Self::Unavailable => "not available now; try again",
            Self::Sealed => "the broker is sealed; the operator must unseal it",
            Self::Internal => "it failed inside; the broker's log has the cause",
        }
    }

    /// The HTTP status (RFC 9110) that goes with the code.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NonceRequired => 401,
            Self::NotAttested | Self::Denied => 403,
            Self::NotFound => 404,
            Self::TooSlow => 408,
            Self::Conflict => 409,
            Self::TooMany => 429,
            Self::Internal => 500,
            Self::Unavailable | Self::Sealed => 503,
        }
    }

    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            Self::TooMany | Self::TooSlow | Self::Unavailable | Self::Sealed | Self::Internal
        )
    }
}

/// A refusal as it crosses a socket. `message` is the code's phrase, or on the admin socket, whose
/// callers are operators, the cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// For people.
    pub message: String,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self {
            code,
            message: code.phrase().to_owned(),
        }
    }
}

impl Refusal {
    /// A refusal that tells an operator the cause.
    #[must_use]
    pub fn because(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
