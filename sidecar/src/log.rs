//! One line an event, on stderr. Nothing that comes from a value ever gets here.

use serde_json::{Map, Value};
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `warn expired names="orders-db"`.
    Text,
    /// One JSON object a line.
    Json,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Info,
    /// Somebody should know.
    Warn,
    /// Something does not work.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Where events go.
#[derive(Clone, Copy, Debug)]
pub struct Log(pub Format);

impl Log {
    /// Writes one event.
    pub fn event(self, level: Level, event: &str, fields: &[(&str, Value)]) {
        let line = self.line(wall_clock(), level, event, fields);
        // If nobody can hear, there is nobody to tell.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn line(self, time: u64, level: Level, event: &str, fields: &[(&str, Value)]) -> String {
        match self.0 {
            Format::Text => {
                let mut line = format!("{} {event}", level.name());
                for (key, value) in fields {
                    // JSON's form of a string has no line breaks.
                    line.push_str(&format!(" {key}={value}"));
                }
                line + "\n"
            }
            Format::Json => {
                let mut object = Map::new();
                object.insert("time_ms".into(), time.into());
                object.insert("level".into(), level.name().into());
                object.insert("event".into(), event.into());
                for (key, value) in fields {
                    object.insert((*key).into(), value.clone());
                }
                Value::Object(object).to_string() + "\n"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_is_one_line() {
        let fields = [("why", Value::from("a\nb")), ("generation", Value::from(3))];
        let text = Log(Format::Text).line(7, Level::Warn, "closed", &fields);
        assert_eq!(text, "warn closed why=\"a\\nb\" generation=3\n");
        let json = Log(Format::Json).line(7, Level::Warn, "closed", &fields);
        assert_eq!(json.matches('\n').count(), 1);
        let read: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["why"], "a\nb");
        assert_eq!(read["time_ms"], 7);
    }
}
