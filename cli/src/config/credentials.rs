//! One TOML file: its credentials, and its switches. A pure function from text; each mistake knows its
//! line.

use crate::when::parse_span;
use mayfly_wire::admin::{CredentialConfig, EngineConfig, JwtAlgorithm};
use mayfly_wire::{CredentialName, KvPath};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, Deserializer};

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Counts from 1.
    pub line: usize,
    /// What was expected, what was found.
    pub message: String,
}

/// What one file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Every `[credential.NAME]`.
    pub credentials: Vec<CredentialConfig>,
    /// Whether `[policy]` says `hardened = true`.
    pub hardened: bool,
}

/// `[policy]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    hardened: bool,
}

/// The settings of the `kv` engine.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kv {
    ttl: Spanned<String>,
    path: KvPath,
}

/// The settings of the `jwt` engine.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Jwt {
    ttl: Spanned<String>,
    algorithm: JwtAlgorithm,
    audience: Vec<String>,
    subject: String,
    #[serde(default)]
    claims: BTreeMap<String, String>,
}

/// Reads a file.
pub fn parse(text: &str) -> Result<File, Mistake> {
    let at = |span: Range<usize>, message: String| Mistake {
        line: line_of(text, span.start),
        message,
    };
    let invalid =
        |error: toml::de::Error| at(error.span().unwrap_or(0..0), error.message().to_owned());
    let document = DeTable::parse(text).map_err(invalid)?;
    let mut file = File::default();
    for (key, value) in document.into_inner() {
        let (span, place) = (key.span(), value.span());
        match (key.get_ref().as_ref(), value.into_inner()) {
            ("credential", DeValue::Table(table)) => {
                for (name, settings) in table {
                    file.credentials.push(named(&name, settings, text)?);
                }
            }
            ("policy", DeValue::Table(table)) => {
                let policy = Deserializer::from(Spanned::new(place, table));
                file.hardened = Policy::deserialize(policy).map_err(invalid)?.hardened;
            }
            (other, _) => {
                let message = format!("expected [credential.NAME] or [policy], found `{other}`");
                return Err(at(span, message));
            }
        }
    }
    Ok(file)
}

fn named<'a>(
    key: &Spanned<DeString<'a>>,
    settings: Spanned<DeValue<'a>>,
    text: &str,
) -> Result<CredentialConfig, Mistake> {
    let wrong = |message: String| Mistake {
        line: line_of(text, key.span().start),
        message,
    };
    let name: CredentialName = key
        .get_ref()
        .parse()
        .map_err(|error| wrong(format!("{error}")))?;
    let place = settings.span();
    let DeValue::Table(table) = settings.into_inner() else {
        return Err(wrong(format!(
            "expected a table [credential.{name}], found a value"
        )));
    };
    credential(name, key.span(), Spanned::new(place, table), text)
}

fn credential<'a>(
    name: CredentialName,
    name_span: Range<usize>,
    settings: Spanned<DeTable<'a>>,
    text: &str,
) -> Result<CredentialConfig, Mistake> {
    let at = |span: Range<usize>, message: String| Mistake {
        line: line_of(text, span.start),
        message: format!("credential {name}: {message}"),
    };
    // A missing setting has no place of its own: that of the credential's name is told.
    let here = |error: toml::de::Error| {
        let missing = error.message().starts_with("missing field");
        let span = error.span().filter(|_| !missing);
        at(
            span.unwrap_or(name_span.clone()),
            error.message().to_owned(),
        )
    };
    let place = settings.span();
    let mut table = settings.into_inner();
    let Some(engine) = table.remove("engine") else {
        let message = "expected engine = \"kv\" or \"jwt\", found no engine".to_owned();
        return Err(at(name_span, message));
    };
    let rest = Deserializer::from(Spanned::new(place, table));
    let (ttl, config) = match engine.get_ref().as_str() {
        Some("kv") => {
            let kv = Kv::deserialize(rest).map_err(here)?;
            (kv.ttl, EngineConfig::Kv { path: kv.path })
        }
        Some("jwt") => {
            let jwt = Jwt::deserialize(rest).map_err(here)?;
            let config = EngineConfig::Jwt {
                algorithm: jwt.algorithm,
                audience: jwt.audience,
                subject: jwt.subject,
                claims: jwt.claims,
            };
            (jwt.ttl, config)
        }
        found => {
            let found =
                found.map_or_else(|| "something else".to_owned(), |text| format!("{text:?}"));
            let message = format!("expected engine = \"kv\" or \"jwt\", found {found}");
            return Err(at(engine.span(), message));
        }
    };
    let Some(span) = parse_span(ttl.get_ref()) else {
        let message = format!(
            "expected ttl as a span such as \"90s\", \"15m\", \"1h30m\" or \"7d\", found {:?}",
            ttl.get_ref()
        );
        return Err(at(ttl.span(), message));
    };
    Ok(CredentialConfig {
        name,
        ttl_seconds: span.as_secs(),
        max_ttl_seconds: None,
        grace_seconds: None,
        engine: config,
    })
}

/// Counts from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_engines_are_read() {
        let text = r#"
[credential.orders-db]
engine = "kv"
path = "orders/db"
ttl = "15m"

[credential."api.token"]
engine = "jwt"
algorithm = "EdDSA"
audience = ["https://api.example.com"]
subject = "{name}"
claims = { team = "orders" }
ttl = "300s"
"#;
        let found = parse(text).unwrap().credentials;
        assert_eq!(found.len(), 2);
        let kv = found
            .iter()
            .find(|c| c.name.as_str() == "orders-db")
            .unwrap();
        assert_eq!(kv.ttl_seconds, 900);
        assert!(matches!(&kv.engine, EngineConfig::Kv { path } if path.as_str() == "orders/db"));
        let jwt = found
            .iter()
            .find(|c| c.name.as_str() == "api.token")
            .unwrap();
        let EngineConfig::Jwt { claims, .. } = &jwt.engine else {
            panic!("not a jwt");
        };
        assert_eq!(claims["team"], "orders");
    }

    #[test]
    fn the_hardened_rules_are_switched_by_a_file() {
        assert!(parse("[policy]\nhardened = true\n").unwrap().hardened);
        assert!(!parse("").unwrap().hardened);
    }

    #[test]
    fn every_mistake_is_told_with_its_line_and_what_was_expected() {
        let kv = "[credential.a]\nengine = \"kv\"\npath = \"p\"\nttl = \"1m\"\n";
        for (text, line, words) in [
            ("[credentials.a]\n", 1, "[credential.NAME]"),
            ("credential = 1\n", 1, "[credential.NAME]"),
            ("\n\n[credential.A]\n", 3, "credential name"),
            ("[credential]\na = 1\n", 2, "table"),
            ("[credential.a]\n", 1, "found no engine"),
            ("[credential.a]\nengine = \"vault\"\n", 2, "\"vault\""),
            ("[credential.a]\nengine = 3\n", 2, "kv"),
            (&format!("{kv}color = 1\n"), 5, "unknown field `color`"),
            (
                &format!("{kv}algorithm = \"EdDSA\"\n"),
                5,
                "expected `ttl` or `path`",
            ),
            (
                "\n[credential.a]\nengine = \"kv\"\nttl = \"1m\"\n",
                2,
                "missing field `path`",
            ),
            (&kv.replace("\"1m\"", "\"soon\""), 4, "\"15m\""),
            (&kv.replace("\"1m\"", "60"), 4, "string"),
            (&kv.replace("\"p\"", "\"../p\""), 3, "kv path"),
            (&format!("{kv}path = \"q\"\n"), 5, "duplicate key"),
            ("[policy]\nhardend = true\n", 2, "unknown field `hardend`"),
            ("[credential.a\n", 1, ""),
        ] {
            let mistake = parse(text).unwrap_err();
            assert_eq!(mistake.line, line, "{text}\n{mistake:?}");
            assert!(mistake.message.contains(words), "{text}\n{mistake:?}");
        }
    }
}
