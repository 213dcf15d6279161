//! How the process ends, and what it tells whoever started it.

use crate::config::BadConfig;
use crate::session::Failure;
use mayfly_wire::PublishFault;
use std::process::ExitCode;

/// Why it ends. The numbers are those of sysexits(3).
#[derive(Debug, thiserror::Error)]
pub enum Ending {
    /// `--once` is done.
    #[error("done")]
    Done,
    /// SIGTERM or SIGINT.
    #[error("asked to stop")]
    Stopped,
    /// The command line is wrong.
    #[error("{0}\nTry mayfly-sidecar --help.")]
    Usage(String),
    /// `--once`, and no bundle came in time.
    #[error("no bundle came in time; last: {0}")]
    TooLate(String),
    /// `--once`, and the files could not be written in time; or files could not be overwritten at
    /// the end.
    #[error("{0}")]
    Files(String),
    /// The request was not understood; it will not be next time either.
    #[error("{0}; sidecar and broker are of versions that do not understand each other")]
    NotUnderstood(Failure),
    /// `--once`, and policy does not grant it.
    #[error("{0}")]
    Denied(String),
    /// The configuration is wrong.
    #[error("{0}")]
    BadConfig(BadConfig),
    /// The directory will not do.
    #[error("{why}")]
    Unfit {
        /// In a word that does not change.
        fault: PublishFault,
        /// What was found and what to do.
        why: String,
    },
}

impl Ending {
    /// The exit status.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Stopped => 75,
            Self::Usage(_) => 64,
            Self::TooLate(_) => 69,
            Self::Files(_) => 74,
            Self::NotUnderstood(_) => 76,
            Self::Denied(_) => 77,
            Self::Unfit { .. } | Self::BadConfig(_) => 78,
        }
    }
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        Self::from(ending.code())
    }
}
