//! How the shim ends: exit codes, and failures that carry one.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// The command line is wrong (EX_USAGE of sysexits.h).
pub const USAGE: u8 = 64;
/// No complete bundle came in time (EX_UNAVAILABLE).
pub const UNAVAILABLE: u8 = 69;
/// The kernel refused a step of hardening (EX_OSERR).
pub const OS_ERROR: u8 = 71;
/// The set-up is wrong, and trying again does not mend it (EX_CONFIG).
pub const CONFIGURATION: u8 = 78;
/// The application was found and cannot be executed, as a shell says it.
pub const NOT_EXECUTABLE: u8 = 126;
/// The application was not found, as a shell says it.
pub const NOT_FOUND: u8 = 127;

/// Why the application was not started: one sentence, and the exit code that goes with it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl Failure {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The exit code that stands for how the application ended: its own, or 128 and the number of the
/// signal that killed it, which is what a container engine reports for it without us.
pub fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(by_signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// The exit code of one that a signal ended.
pub fn by_signal(signal: i32) -> i32 {
    128 + signal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_passed_on_exactly() {
        for code in 0..=255 {
            assert_eq!(code_of(ExitStatus::from_raw(code << 8)), code as u8);
        }
        for signal in 1..=64 {
            assert_eq!(code_of(ExitStatus::from_raw(signal)), 128 + signal as u8);
            // The bit that says "dumped core" changes nothing.
            assert_eq!(
                code_of(ExitStatus::from_raw(signal | 0x80)),
                128 + signal as u8
            );
        }
    }
}
