//! What a sidecar reports when it cannot publish, which can be the mark of an attack (a symlink planted
//! where files shall stand), or when what it published has ended without being renewed: both go on
//! record.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Most characters of a [`Detail`].
pub const MAX_DETAIL: usize = 400;
/// Most bytes of a report's body: a detail in which JSON escapes every character, and the rest.
pub const MAX_REPORT: usize = 4 * 1024;

/// Nothing was published, or not all; what was published before still stands. Or nobody could be told,
/// or what was published has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishFailure {
    /// The generation of the bundle that waits; 0 when the directory itself will not do and no session
    /// was opened.
    pub generation: u64,
    /// Why.
    pub code: PublishFault,
    /// What was found, for the operator.
    pub detail: Detail,
}

/// Why. A word is never renamed or given another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishFault {
    /// The directory is not there.
    NoDirectory,
    /// Its content would reach a disk, or a filesystem that keeps what was deleted.
    NotTmpfs,
    /// Its pages can be written to swap.
    Swap,
    /// It is mounted read-only.
    ReadOnly,
    /// A symlink that the sidecar did not make stands in its way.
    Symlink,
    /// Something of another user stands in its way.
    ForeignOwner,
    /// Something else that the sidecar did not make stands in its way.
    Foreign,
    /// The sidecar may not write there, or not give files to the user they are for.
    NoPermission,
    /// There is no space left.
    NoSpace,
    /// Anything else that the kernel said.
    Io,
    /// A file that the sidecar's configuration wants could not be made; the others were.
    Output,
    /// All was published, but the application could not be told.
    NotTold,
    /// All was published, but the application did not say in time that it uses it.
    NotAcknowledged,
    /// What was not renewed in time is gone.
    ExpiredRemoved,
    /// What was not renewed in time is kept, as the configuration says, and its holder runs on it.
    KeptStale,
    /// What was not renewed in time is gone, and the application is stopped for it, as the
    /// configuration says.
    StoppedStale,
}

impl PublishFault {
    /// In words, as the end of "cannot publish: ".
    #[must_use]
    pub fn phrase(self) -> &'static str {
        match self {
            Self::NoDirectory => "the directory is not there",
            Self::NotTmpfs => "the directory is not on a tmpfs",
            Self::Swap => "the directory's pages could be written to swap",
            Self::ReadOnly => "the directory is read-only",
            Self::Symlink => "a symlink stands where it publishes",
            Self::ForeignOwner => "something of another user stands where it publishes",
            Self::Foreign => "something that it did not make stands where it publishes",
            Self::NoPermission => "it may not write there",
            Self::NoSpace => "there is no space left",
            Self::Io => "a system call failed",
            Self::Output => "an output of its configuration could not be made",
            Self::NotTold => "the application could not be told",
            Self::NotAcknowledged => "the application did not acknowledge in time",
            Self::ExpiredRemoved => "what was not renewed in time is gone",
            Self::KeptStale => "what was not renewed in time is kept stale",
            Self::StoppedStale => "the application is stopped for what was not renewed in time",
        }
    }

    /// Whether it is not about publishing, but about what was published and has reached its end.
    #[must_use]
    pub fn is_about_an_end(self) -> bool {
        matches!(
            self,
            Self::ExpiredRemoved | Self::KeptStale | Self::StoppedStale
        )
    }
}

/// One short printable line. It comes from inside a container, so it is cut and cleaned where it is
/// made and again wherever it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Detail(String);

impl Detail {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Detail {
    fn from(text: &str) -> Self {
        // The first line; what follows it is advice.
        let line = text.lines().next().unwrap_or_default();
        let clean = |one: char| if is_plain(one) { one } else { '?' };
        Self(line.chars().take(MAX_DETAIL).map(clean).collect())
    }
}

/// Neither a control character nor one that turns the direction of writing.
#[must_use]
pub fn is_plain(one: char) -> bool {
    !one.is_control()
        && !matches!(one, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

impl From<String> for Detail {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<Detail> for String {
    fn from(detail: Detail) -> Self {
        detail.0
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_arrives_is_one_short_printable_line() {
        let hostile = format!("a\u{1b}[2J\u{202e}b{}\nsecond", "x".repeat(10_000));
        let json = serde_json::json!({
            "generation": 3, "code": "symlink", "detail": hostile
        });
        let read: PublishFailure = serde_json::from_value(json).unwrap();
        let detail = read.detail.as_str();
        assert!(detail.starts_with("a?[2J?bxxx"), "{detail}");
        assert_eq!(detail.chars().count(), MAX_DETAIL);
        assert!(!detail.contains('\n') && !detail.contains("second"));
    }

    #[test]
    fn the_longest_report_fits_its_limit() {
        let longest = PublishFailure {
            generation: u64::MAX,
            code: PublishFault::NoPermission,
            detail: "\"".repeat(MAX_DETAIL).into(),
        };
        let wide = PublishFailure {
            detail: "\u{10ffff}".repeat(MAX_DETAIL).into(),
            ..longest.clone()
        };
        for report in [longest, wide] {
            assert!(serde_json::to_vec(&report).unwrap().len() <= MAX_REPORT);
        }
    }

    #[test]
    fn an_unknown_field_or_code_is_refused() {
        for text in [
            r#"{"generation":1,"code":"symlink","detail":"","more":1}"#,
            r#"{"generation":1,"code":"symlnk","detail":""}"#,
        ] {
            assert!(serde_json::from_str::<PublishFailure>(text).is_err());
        }
    }
}
