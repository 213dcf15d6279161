//! Times as people read them, and durations as they write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// Reads `90s`, `15m`, `1h30m`, `7d`.
pub fn parse_span(text: &str) -> Option<Duration> {
    let mut total: u64 = 0;
    let mut digits = String::new();
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let size = match letter {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        let count: u64 = digits.parse().ok()?;
        digits.clear();
        total = total.checked_add(count.checked_mul(size)?)?;
    }
    (digits.is_empty() && total > 0).then(|| Duration::from_secs(total))
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

    #[test]
    fn spans_are_read() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h30m", 5_400), ("7d", 604_800)] {
            assert_eq!(parse_span(text), Some(Duration::from_secs(seconds)));
        }
        let endless = "99999999999999999999d";
        for text in ["", "15", "m", "15 m", "-1s", "0s", "1w", "m15", endless] {
            assert_eq!(parse_span(text), None, "{text:?}");
        }
    }
}
