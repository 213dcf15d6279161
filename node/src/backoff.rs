//! How long to wait before trying again.

use std::time::Duration;

/// The longest wait.
const MOST: Duration = Duration::from_secs(30);
/// The bound of the first wait; each further one doubles it.
const FIRST: Duration = Duration::from_millis(100);

/// A random wait from zero to a bound that doubles with each failure ("full jitter"), so that those
/// who lost the same broker do not come back all at once.
pub(crate) fn delay(failures: u32) -> Duration {
    let bound = FIRST
        .saturating_mul(1 << failures.clamp(1, 16).saturating_sub(1))
        .min(MOST);
    bound.mul_f64(fraction())
}

/// A random number from 0 to 1. Without a random source it is 1: the longest wait is always safe.
fn fraction() -> f64 {
    getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded_and_differ() {
        for failures in [0, 1, 5, 40, u32::MAX] {
            assert!(delay(failures) <= MOST);
        }
        assert!(delay(1) <= FIRST);
        let first = delay(20);
        assert!((0..8).any(|_| delay(20) != first));
    }
}
