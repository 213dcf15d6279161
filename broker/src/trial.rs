//! For tests alone, as the node's `forbid` is: a broker that ends in the middle of its work, or has a
//! clock that jumps. Without a `[test]` table in the configuration nothing of it happens.

use crate::clock::{Clock, SystemClock};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// `[test]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trial {
    /// The process ends without a word right after this step.
    pub abort_at: Option<Step>,
    /// How often it takes that step before: 0 for the first time.
    pub abort_after: u32,
    /// A file that says by how many seconds the clock is wrong, read each time that the clock is.
    pub clock_offset_file: Option<PathBuf>,
}

/// What a lease goes through, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It is on disk that it will be made.
    Planned,
    /// It is made at its target.
    Made,
    /// It is on record.
    Recorded,
    /// It is on disk that it is active, and what it takes the place of retires.
    Active,
    /// It is longer at its target.
    Extended,
    /// That it is longer is on record.
    RenewalRecorded,
    /// That it is longer is on disk.
    Renewed,
    /// It is on disk that it must end.
    Revoking,
    /// Nothing of it is left at its target.
    Revoked,
    /// Its end is on record.
    EndRecorded,
    /// Its end is on disk.
    Gone,
}

/// Ends the process at a step.
#[derive(Debug, Default)]
pub struct Fault {
    at: Option<Step>,
    left: AtomicU32,
}

impl Fault {
    /// As the configuration says.
    #[must_use]
    pub fn new(trial: &Trial) -> Self {
        Self {
            at: trial.abort_at,
            left: AtomicU32::new(trial.abort_after),
        }
    }

    /// A lease has taken this step.
    pub fn reached(&self, step: Step) {
        if self.at != Some(step) {
            return;
        }
        let less = |left: u32| left.checked_sub(1);
        let left = (self.left).fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        if left.is_err() {
            std::process::abort();
        }
    }
}

/// The system's clock, wrong by what a file says.
pub struct WrongClock(pub PathBuf);

impl Clock for WrongClock {
    fn now_ms(&self) -> u64 {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        let seconds: i64 = text.trim().parse().unwrap_or_default();
        let now = SystemClock.now_ms();
        now.saturating_add_signed(seconds.saturating_mul(1000))
    }
}
