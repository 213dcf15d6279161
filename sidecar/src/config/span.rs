//! Lengths of time, as people write them.

use serde::Deserialize;
use std::time::Duration;

/// `500ms`, `30s`, `2m`, `12h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = match unit {
            "ms" => Some(1),
            "s" => Some(1_000),
            "m" => Some(60_000),
            "h" => Some(3_600_000),
            "d" => Some(86_400_000_u64),
            _ => None,
        };
        let number = number.parse::<u32>().ok();
        let length = unit
            .zip(number)
            .map(|(unit, number)| unit * u64::from(number));
        match length {
            Some(length) => Ok(Self(Duration::from_millis(length))),
            None => Err(format!(
                "expected a time such as 500ms, 30s, 2m, 12h or 7d, found {text:?}"
            )),
        }
    }
}
