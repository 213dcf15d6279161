//! What is published, withdrawn and expires as one: a credential as it is, or the file of an output.

use mayfly_wire::CredentialName;
use std::fmt;

/// Most directories and the file of one item's path.
const SEGMENTS: usize = 3;
const SEGMENT: usize = 63;

/// Where an item is in its generation: a file, or a directory of files. Never leads out of it, and
/// never to a name of the publishing scheme's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item(String);

/// Why a path was refused.
#[derive(Debug, thiserror::Error)]
#[error(
    "expected a path inside the publishing directory of at most 3 names, each 1 to 63 of a-z, A-Z, \
     0-9, '-', '_' and '.', not beginning with '-' or '..', found {0:?}"
)]
pub struct BadItem(String);

impl Item {
    /// Its path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that it is reached by in the publishing directory.
    #[must_use]
    pub fn top(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }

    /// Whether a file belongs to it.
    #[must_use]
    pub fn owns(&self, path: &str) -> bool {
        let rest = path.strip_prefix(self.0.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether both cannot be in one generation.
    #[must_use]
    pub fn collides(&self, other: &Self) -> bool {
        self.owns(&other.0) || other.owns(&self.0)
    }
}

impl TryFrom<String> for Item {
    type Error = BadItem;
    fn try_from(text: String) -> Result<Self, BadItem> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let good = |name: &str| {
            (1..=SEGMENT).contains(&name.len())
                && name.bytes().all(allowed)
                && name != "."
                && !name.starts_with("..")
                && !name.starts_with('-')
        };
        match text.split('/').count() <= SEGMENTS && text.split('/').all(good) {
            true => Ok(Self(text)),
            false => Err(BadItem(text.chars().take(80).collect())),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Item {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::try_from(text).map_err(serde::de::Error::custom)
    }
}

impl From<&CredentialName> for Item {
    fn from(name: &CredentialName) -> Self {
        Self(name.to_string())
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// When an item ends. Milliseconds of uptime ([`crate::clock`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// From when on what it holds is not valid any more.
    pub expires_at: u64,
    /// When its files go: later, if they are kept stale.
    pub gone_at: u64,
    /// Whether the application is to be stopped then.
    pub stop: bool,
}

impl End {
    /// Goes when it expires.
    #[must_use]
    pub fn at(expires_at: u64) -> Self {
        Self {
            expires_at,
            gone_at: expires_at,
            stop: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out() {
        for text in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/..",
            "../a",
            "a/../b",
            "..data",
            "..data/a",
            "a/..gen-1",
            "a/./b",
            "a b",
            "a\0",
            "a\n",
            "é",
            "-a",
            "a/b/c/d",
            &"a".repeat(64),
        ] {
            assert!(Item::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        for text in [
            "a",
            ".env",
            "conf/db.json",
            "a/b/.pgpass",
            "TLS_1/server.pem",
        ] {
            assert_eq!(Item::try_from(text.to_owned()).unwrap().as_str(), text);
        }
    }

    #[test]
    fn items_own_what_is_under_them() {
        let item = |text: &str| Item::try_from(text.to_owned()).unwrap();
        assert!(item("db").owns("db") && item("db").owns("db/password"));
        assert!(!item("db").owns("db2") && !item("db/a").owns("db"));
        assert!(item("db/a").collides(&item("db")) && !item("db/a").collides(&item("db/b")));
        assert_eq!(item("conf/db.json").top(), "conf");
    }
}
