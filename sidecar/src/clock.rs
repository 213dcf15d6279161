//! What time it is. Ends are counted by CLOCK_BOOTTIME, which goes on while the machine sleeps or the
//! process is stopped, and which nobody can set (clock_gettime(2)). The time of day is only for what
//! others read, and for what a process before us wrote.

use crate::log::wall_clock;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{
    ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags,
};
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// By how many milliseconds the time of day may stray before it counts as set.
const TOLERANCE: u64 = 1_000;

/// One moment by every clock.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For timers.
    pub instant: Instant,
    /// Milliseconds since the machine started, by CLOCK_BOOTTIME.
    pub uptime: u64,
    /// Milliseconds since the Unix epoch, by a clock that can be set.
    pub wall: u64,
}

impl Moment {
    /// This one.
    #[must_use]
    pub fn now() -> Self {
        Self {
            instant: Instant::now(),
            uptime: uptime(),
            wall: wall_clock(),
        }
    }
}

/// Milliseconds since the machine started, its sleep included.
#[must_use]
pub fn uptime() -> u64 {
    // It fails for a clock that the kernel does not have (before Linux 2.6.39), and then always.
    let Ok(time) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        return wall_clock();
    };
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let milliseconds = u64::try_from(time.tv_nsec()).unwrap_or(0) / 1_000_000;
    seconds.saturating_mul(1_000).saturating_add(milliseconds)
}

/// Wakes when somebody sets the time of day, so that the record says the same as before in the new one
/// before whoever acts by it looks again (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
pub struct Watch(Option<AsyncFd<OwnedFd>>);

impl Watch {
    /// Without it the change is noticed all the same, at whatever comes next.
    #[must_use]
    pub fn new() -> Self {
        Self(watch().ok())
    }

    /// Returns when the time of day was set.
    pub async fn was_set(&self) {
        let Some(timer) = &self.0 else {
            return std::future::pending().await;
        };
        while let Ok(mut ready) = timer.readable().await {
            // A timer that was cancelled answers so once for each time.
            if nix::unistd::read(timer.get_ref(), &mut [0; 8]) == Err(nix::errno::Errno::ECANCELED)
            {
                return;
            }
            ready.clear_ready_matching(Ready::READABLE);
        }
        std::future::pending().await
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(
    deprecated,
    reason = "what replaces it needs a promise that the descriptor never changes; this one is ours alone"
)]
fn watch() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(TimerClock::CLOCK_REALTIME, flags)?;
    // It need never end: it is there to be cancelled.
    let never = Expiration::OneShot(TimeSpec::new(i64::from(u32::MAX) * 2, 0));
    let when = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    timer.set(never, when)?;
    AsyncFd::with_interest(OwnedFd::from(timer), Interest::READABLE)
}

/// Another clock's time, beside our uptime at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// What it is there.
    theirs: u64,
    /// What it is here.
    uptime: u64,
}

impl Offset {
    /// Of a clock that says `theirs` now.
    #[must_use]
    pub fn new(theirs: u64, uptime: u64) -> Self {
        Self { theirs, uptime }
    }

    /// Of the time of day.
    #[must_use]
    pub fn of_wall(moment: Moment) -> Self {
        Self::new(moment.wall, moment.uptime)
    }

    /// The uptime at a time of that clock. What is past all times stays so.
    #[must_use]
    pub fn to_uptime(self, theirs: u64) -> u64 {
        shift(theirs, self.theirs, self.uptime)
    }

    /// That clock's time at an uptime.
    #[must_use]
    pub fn from_uptime(self, uptime: u64) -> u64 {
        shift(uptime, self.uptime, self.theirs)
    }

    /// Whether the other clock was set since.
    #[must_use]
    pub fn was_set(self, theirs: u64, uptime: u64) -> bool {
        self.from_uptime(uptime).abs_diff(theirs) > TOLERANCE
    }

    /// The one that says less of a message's way: a message takes time and never arrives before it is
    /// sent, so the one by which less time has passed here is nearer the truth.
    #[must_use]
    pub fn nearer(self, other: Self) -> Self {
        match other.to_uptime(self.theirs) < self.uptime {
            true => other,
            false => self,
        }
    }
}

fn shift(time: u64, from: u64, to: u64) -> u64 {
    match time {
        u64::MAX => u64::MAX,
        // As far before or after the one moment as it is before or after the other.
        _ if time >= from => to.saturating_add(time - from),
        _ => to.saturating_sub(from - time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_carried_over_and_never_wrap() {
        let offset = Offset::new(1_000_000, 5_000);
        for (theirs, ours) in [
            (1_000_000, 5_000),
            (1_000_900, 5_900),
            (999_000, 4_000),
            (u64::MAX, u64::MAX),
            (u64::MAX - 1, u64::MAX - 1_000_000 + 4_999),
        ] {
            assert_eq!(offset.to_uptime(theirs), ours);
            assert_eq!(offset.from_uptime(ours), theirs);
        }
        // Before the machine started.
        assert_eq!(offset.to_uptime(0), 0);
        assert_eq!(Offset::new(0, 5_000).to_uptime(u64::MAX - 1), u64::MAX);
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_and_one_that_strays_is_not() {
        let offset = Offset::new(1_000_000, 5_000);
        assert!(!offset.was_set(1_010_900, 15_000) && !offset.was_set(1_009_100, 15_000));
        assert!(offset.was_set(1_012_000, 15_000) && offset.was_set(1_000_000, 15_000));
    }

    #[test]
    fn what_was_on_its_way_for_long_does_not_put_an_end_off() {
        let prompt = Offset::new(1_000_000, 5_000);
        let late = Offset::new(1_001_000, 46_000);
        assert_eq!(prompt.nearer(late), prompt);
        assert_eq!(late.nearer(prompt), prompt);
    }

    #[test]
    fn the_clocks_can_be_read() {
        let before = Moment::now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!((15..10_000).contains(&(uptime() - before.uptime)));
        assert!(before.wall > 1_600_000_000_000);
    }
}
