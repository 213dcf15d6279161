//! Names that become file names, paths and policy entities, and so are checked where they enter.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a name was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{kind} {given:?} is not valid: expected {expected}")]
pub struct BadName {
    kind: &'static str,
    given: String,
    expected: &'static str,
}

fn bad(kind: &'static str, given: &str, expected: &'static str) -> BadName {
    BadName {
        kind,
        given: given.chars().take(80).collect(),
        expected,
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) { Ok(Self(text)) } else { Err(bad($kind, &text, $expected)) }
            }
        }

        impl std::str::FromStr for $type {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a credential, as configured: `orders-db`. Also the name of its file or directory.
    CredentialName,
    "credential name",
    "1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or a digit",
    |text| is_word(text, 63, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
);

name_type!(
    /// The name of a connection, as configured: `shop`.
    ConnectionName,
    "connection name",
    "1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or a digit",
    |text| is_word(text, 63, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
);

name_type!(
    /// The name of one field of a credential: `password`, `tls.crt`. Also the name of its file.
    FieldName,
    "field name",
    "1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.', beginning with a letter, a digit or '_'",
    |text| is_word(text, 63, |byte| byte.is_ascii_alphanumeric() || byte == b'_')
);

name_type!(
    /// Where a value stands in the `kv` engine: `orders/db`.
    KvPath,
    "kv path",
    "up to 255 bytes of segments joined by '/', each 1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.', \
     beginning with a letter, a digit or '_'",
    |text| text.len() <= 255
        && text
            .split('/')
            .all(|part| is_word(part, 63, |byte| byte.is_ascii_alphanumeric() || byte == b'_'))
);

/// A first byte that satisfies `first`, then those or `-`, `_`, `.`. No name can be `.`, `..`, or the
/// `..data` of the publishing scheme, and none can hold a path separator.
fn is_word(text: &str, most: usize, first: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= most
        && bytes.first().is_some_and(|&byte| first(byte))
        && bytes
            .iter()
            .all(|&byte| first(byte) || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_a_directory_are_refused() {
        for text in [
            "",
            ".",
            "..",
            "..data",
            "a/b",
            "A",
            "-a",
            "a\0",
            "a b",
            "é",
            &"a".repeat(64),
        ] {
            assert!(text.parse::<CredentialName>().is_err(), "{text:?}");
        }
        for text in ["orders-db", "0", "a.b_c-d"] {
            assert_eq!(text.parse::<CredentialName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn kv_paths_have_no_empty_or_dotted_segments() {
        for text in [
            "",
            "/",
            "a//b",
            "/a",
            "a/",
            "a/../b",
            "a/./b",
            &"a/".repeat(200),
        ] {
            assert!(text.parse::<KvPath>().is_err(), "{text:?}");
        }
        assert!("orders/db".parse::<KvPath>().is_ok());
    }

    #[test]
    fn deserializing_checks_too() {
        assert!(serde_json::from_str::<FieldName>("\"../x\"").is_err());
        assert!(serde_json::from_str::<FieldName>("\"tls.crt\"").is_ok());
    }
}
