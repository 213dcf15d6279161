//! Times as people read them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// A span in its two largest units: `14m 3s`, `2d 5h`, `0s`.
pub fn span(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (name, size) in units {
        let count = rest / size;
        rest %= size;
        if count > 0 {
            parts.push(format!("{count}{name}"));
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() {
        "0s".to_owned()
    } else {
        parts.join(" ")
    }
}

/// A moment in milliseconds since the Unix epoch, as seen from `now`: `in 14m 3s`, `3s ago`.
pub fn relative(moment: u64, now: u64) -> String {
    if moment >= now {
        format!("in {}", span((moment - now) / 1000))
    } else {
        format!("{} ago", span((now - moment) / 1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_in_two_units() {
        for (seconds, told) in [
            (0, "0s"),
            (59, "59s"),
            (843, "14m 3s"),
            (3_600, "1h"),
            (3_605, "1h"),
            (190_000, "2d 4h"),
        ] {
            assert_eq!(span(seconds), told);
        }
        assert_eq!(relative(10_000, 4_000), "in 6s");
        assert_eq!(relative(4_000, 10_000), "6s ago");
    }
}
