//! Time comes in as an argument, so that tests can say what it is.

use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;

    /// The same moment in a way that the next start of the broker can compare with its own.
    fn mark(&self) -> Option<Mark> {
        None
    }

    /// How far the time of day is from this, in milliseconds, if somebody set it.
    fn set_by(&self) -> Option<u64> {
        None
    }
}

/// One moment: what the broker took the time to be, and how long the machine was up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Which boot of the machine.
    pub boot_id: String,
    /// Milliseconds since then, the time that it slept included.
    pub uptime: u64,
    /// Milliseconds since the Unix epoch.
    pub now: u64,
}

/// Differences that are none, in milliseconds.
const TOLERANCE: u64 = 2000;

impl Mark {
    /// What time it would be now by an earlier mark, if that is another time than it is. Within one boot
    /// nobody can fool this; else it is known only that time does not go back.
    #[must_use]
    pub fn set_since(&self, earlier: &Self) -> Option<u64> {
        let by_then = if self.boot_id == earlier.boot_id {
            let passed = self.uptime.saturating_sub(earlier.uptime);
            earlier.now.saturating_add(passed)
        } else {
            earlier.now.max(self.now)
        };
        (by_then.abs_diff(self.now) > TOLERANCE).then_some(by_then)
    }
}

/// The time of day when the broker started, and from then on what has really passed: CLOCK_BOOTTIME goes
/// on while the machine sleeps or the process is stopped, and nobody can set it (clock_gettime(2)). So a
/// clock that is set cuts no lease short and makes none longer.
pub struct SteadyClock {
    boot_id: String,
    uptime_at_start: u64,
    now_at_start: u64,
    uptime: fn() -> Option<u64>,
    wall: Arc<dyn Clock>,
}

impl SteadyClock {
    /// Starts it, at what `wall` says.
    ///
    /// # Errors
    /// The kernel's, when it does not tell which boot this is, or how long ago it was.
    pub fn start(wall: Arc<dyn Clock>) -> std::io::Result<Self> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Self::over(boot_id.trim().to_owned(), uptime, wall)
            .ok_or_else(|| std::io::Error::other("CLOCK_BOOTTIME cannot be read"))
    }

    fn over(boot_id: String, uptime: fn() -> Option<u64>, wall: Arc<dyn Clock>) -> Option<Self> {
        Some(Self {
            boot_id,
            uptime_at_start: uptime()?,
            now_at_start: wall.now_ms(),
            uptime,
            wall,
        })
    }

    fn passed(&self) -> u64 {
        // It could be read at the start, so it can be read.
        let uptime = (self.uptime)().unwrap_or(u64::MAX);
        uptime.saturating_sub(self.uptime_at_start)
    }
}

impl Clock for SteadyClock {
    fn now_ms(&self) -> u64 {
        self.now_at_start.saturating_add(self.passed())
    }

    fn mark(&self) -> Option<Mark> {
        let passed = self.passed();
        Some(Mark {
            boot_id: self.boot_id.clone(),
            uptime: self.uptime_at_start.saturating_add(passed),
            now: self.now_at_start.saturating_add(passed),
        })
    }

    fn set_by(&self) -> Option<u64> {
        let apart = self.wall.now_ms().abs_diff(self.now_ms());
        (apart > TOLERANCE).then_some(apart)
    }
}

fn uptime() -> Option<u64> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    let millis = u64::try_from(time.tv_nsec()).ok()? / 1_000_000;
    Some(seconds * 1000 + millis)
}

/// The time of day, as somebody may set it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    }
}

/// A clock that stands where it was put.
#[cfg(test)]
#[derive(Default)]
pub struct Fixed(pub std::sync::atomic::AtomicU64);

#[cfg(test)]
impl Clock for Fixed {
    fn now_ms(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        static UPTIME: Cell<u64> = const { Cell::new(5_000) };
        static WALL: Cell<u64> = const { Cell::new(1_800_000_000_000) };
    }
    const MILLION_SECONDS: u64 = 1_000_000_000;

    struct Wall;

    impl Clock for Wall {
        fn now_ms(&self) -> u64 {
            WALL.get()
        }
    }

    #[test]
    fn a_clock_that_is_set_changes_nothing_and_a_pause_counts() {
        let wall = Arc::new(Wall);
        let clock = SteadyClock::over("b".into(), || Some(UPTIME.get()), wall).unwrap();
        let start = WALL.get();
        WALL.set(start + MILLION_SECONDS);
        assert_eq!(clock.now_ms(), start);
        assert_eq!(clock.set_by(), Some(MILLION_SECONDS));
        WALL.set(start - MILLION_SECONDS);
        UPTIME.set(5_250);
        assert_eq!(clock.now_ms(), start + 250);
        UPTIME.set(5_000 + MILLION_SECONDS);
        WALL.set(start + MILLION_SECONDS + 1);
        assert_eq!(clock.now_ms(), start + MILLION_SECONDS);
        assert_eq!(clock.set_by(), None);
    }

    #[test]
    fn the_kernel_tells_how_long_the_machine_is_up() {
        let clock = SteadyClock::start(Arc::new(SystemClock)).unwrap();
        let before = clock.mark().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let after = clock.mark().unwrap();
        assert!((25..60_000).contains(&(after.uptime - before.uptime)));
        assert_eq!(after.uptime - before.uptime, after.now - before.now);
        assert_eq!(after.set_since(&before), None);
    }

    #[test]
    fn between_two_starts_time_is_what_the_kernel_says_and_never_goes_back() {
        let mark = |boot: &str, uptime, now| Mark {
            boot_id: boot.into(),
            uptime,
            now,
        };
        let before = mark("b", 10_000, 5_000_000);
        assert_eq!(mark("b", 20_000, 5_011_000).set_since(&before), None);
        // Set back, and set forward, while the broker was down.
        assert_eq!(mark("b", 20_000, 1_000).set_since(&before), Some(5_010_000));
        assert_eq!(
            mark("b", 20_000, 9_000_000).set_since(&before),
            Some(5_010_000)
        );
        // Another boot: nobody knows how long it was away.
        assert_eq!(mark("c", 5, 9_000_000).set_since(&before), None);
        assert_eq!(mark("c", 5, 1_000).set_since(&before), Some(5_000_000));
    }
}
