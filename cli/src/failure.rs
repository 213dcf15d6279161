//! Why a command did not do what it was asked, and the exit status that says so.

use mayfly_wire::{Code, Refusal};
use std::io;
use std::process::ExitCode;

/// What `mayfly --help` says about exit statuses.
pub const EXIT_STATUSES: &str = "\
Examples:
  mayfly apply -f config/
  mayfly explain --help

Exit status:
  0   done
  1   failed
  2   the command line is not understood
  3   the broker refuses this operator
  4   there is nothing of that name
  5   what this was based on has changed since
  6   the broker cannot be reached, or cannot answer now
  64  the configuration has a mistake";

/// A command that failed. The message is for the operator, and never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Anything without a status of its own.
    #[error("{0}")]
    Failed(String),
    /// The arguments fit the syntax, but not together or not here.
    #[error("{0}")]
    Usage(String),
    /// A configuration directory, a policy or a setting is wrong.
    #[error("{0}")]
    Config(String),
    /// The broker refused.
    #[error("{0}")]
    Refused(Refusal),
    /// Nobody answers on the admin socket.
    #[error("{0}")]
    Unreachable(String),
    /// Whoever read our output has gone: nothing to say, and nobody to say it to.
    #[error("the reader of the output has gone")]
    OutputClosed,
}

impl Failure {
    /// A failure of a system call or a file, with what was being done.
    pub fn doing(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Failed(format!("{what}: {error}"))
    }

    /// The exit status; see [`EXIT_STATUSES`].
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Config(_) => 64,
            Self::Unreachable(_) => 6,
            Self::OutputClosed => 0,
            Self::Refused(refusal) => match refusal.code {
                Code::Denied | Code::NotAttested | Code::NonceRequired => 3,
                Code::NotFound => 4,
                Code::Conflict => 5,
                Code::Unavailable | Code::Sealed | Code::TooMany | Code::TooSlow => 6,
                Code::BadRequest | Code::Internal => 1,
            },
        })
    }
}

impl From<nix::errno::Errno> for Failure {
    fn from(error: nix::errno::Errno) -> Self {
        Self::Failed(error.desc().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_the_status_that_help_names() {
        let refused = |code: Code| Failure::Refused(code.into()).exit_code();
        for (found, expected) in [
            (Failure::Failed(String::new()).exit_code(), 1),
            (Failure::Usage(String::new()).exit_code(), 2),
            (refused(Code::Denied), 3),
            (refused(Code::NotFound), 4),
            (refused(Code::Conflict), 5),
            (refused(Code::Sealed), 6),
            (Failure::Unreachable(String::new()).exit_code(), 6),
            (Failure::Config(String::new()).exit_code(), 64),
        ] {
            assert_eq!(found, ExitCode::from(expected));
            assert!(EXIT_STATUSES.contains(&format!("  {expected} ")));
        }
    }
}
