//! How long to wait after a failure.

/// The first wait, in milliseconds.
const FIRST: u64 = 1000;

/// After so many failures in a row: twice as long each time, up to `longest`, and up to a quarter more or
/// less of it by chance, so that what failed together does not come back together. In milliseconds.
pub fn after(failures: u64, longest: u64) -> u64 {
    let mut random = [0; 2];
    // Without randomness all come back together, which is no harm to one.
    let _ = getrandom::fill(&mut random);
    spread(failures, longest, u16::from_le_bytes(random))
}

fn spread(failures: u64, longest: u64, random: u16) -> u64 {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let wait = FIRST
        .saturating_mul(2_u64.saturating_pow(doublings))
        .min(longest);
    wait - wait / 4 + (wait / 2) * u64::from(random) / u64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_its_longest_and_varies_by_a_quarter() {
        let range = |failures| {
            let at = |random| spread(failures, 60_000, random);
            (at(0), at(u16::MAX))
        };
        assert_eq!(range(0), (750, 1250));
        assert_eq!(range(1), (750, 1250));
        assert_eq!(range(3), (3000, 5000));
        assert_eq!(range(7), (45_000, 75_000));
        assert_eq!(range(u64::MAX), (45_000, 75_000));
        assert!((750..=1250).contains(&after(1, 60_000)));
    }
}
