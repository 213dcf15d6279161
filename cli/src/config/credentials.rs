//! One TOML file: its connections, its credentials, and its switches. A pure function from text; each
//! mistake knows its line.

use super::places;
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::engine::Span;
use mayfly_wire::{ConnectionConfig, ConnectionName, CredentialName, EngineConfig, EngineKind};
use serde::Deserialize;
use std::ops::Range;
use std::path::PathBuf;
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
    /// Every `[connection.NAME]`.
    pub connections: Vec<Connection>,
    /// Every `[credential.NAME]`.
    pub credentials: Vec<CredentialConfig>,
    /// Whether `[policy]` says `hardened = true`.
    pub hardened: bool,
    /// Where all of these stand.
    pub sections: Vec<places::Section>,
}

/// One `[connection.NAME]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Connection {
    /// What it says, without the certificates.
    pub config: ConnectionConfig,
    /// The file with the certificates that are trusted, and the line that names it.
    pub ca_file: Option<(PathBuf, usize)>,
}

/// `[policy]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    hardened: bool,
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
                    let section = Section::of("credential", name, settings, text)?;
                    file.sections.push(section.places());
                    file.credentials.push(section.credential()?);
                }
            }
            ("connection", DeValue::Table(table)) => {
                for (name, settings) in table {
                    let section = Section::of("connection", name, settings, text)?;
                    file.sections.push(section.places());
                    file.connections.push(section.connection()?);
                }
            }
            ("policy", DeValue::Table(table)) => {
                let policy = Deserializer::from(Spanned::new(place, table));
                file.hardened = Policy::deserialize(policy).map_err(invalid)?.hardened;
            }
            (other, _) => {
                let message = format!(
                    "expected [credential.NAME], [connection.NAME] or [policy], found `{other}`"
                );
                return Err(at(span, message));
            }
        }
    }
    Ok(file)
}

/// The table `[KIND.NAME]`.
struct Section<'a> {
    kind: &'static str,
    name: Spanned<DeString<'a>>,
    place: Range<usize>,
    table: DeTable<'a>,
    text: &'a str,
}

impl<'a> Section<'a> {
    fn of(
        kind: &'static str,
        name: Spanned<DeString<'a>>,
        settings: Spanned<DeValue<'a>>,
        text: &'a str,
    ) -> Result<Self, Mistake> {
        let place = settings.span();
        let DeValue::Table(table) = settings.into_inner() else {
            return Err(Mistake {
                line: line_of(text, name.span().start),
                message: format!(
                    "expected a table [{kind}.{}], found a value",
                    name.get_ref()
                ),
            });
        };
        Ok(Self {
            kind,
            name,
            place,
            table,
            text,
        })
    }

    /// To be asked before anything is taken out of the table.
    fn places(&self) -> places::Section {
        let settings = self.table.keys();
        places::Section {
            title: format!("{} {}", self.kind, self.name.get_ref()),
            heading: self.name.span(),
            settings: settings
                .map(|key| (key.get_ref().to_string(), key.span()))
                .collect(),
        }
    }

    fn at(&self, span: Range<usize>, message: &str) -> Mistake {
        Mistake {
            line: line_of(self.text, span.start),
            message: format!("{} {}: {message}", self.kind, self.name.get_ref()),
        }
    }

    /// A missing setting has no place of its own: that of the section's name is told.
    fn invalid(&self, error: &toml::de::Error) -> Mistake {
        let missing = error.message().starts_with("missing field");
        let span = error.span().filter(|_| !missing);
        self.at(span.unwrap_or(self.name.span()), error.message())
    }

    fn name<N: std::str::FromStr<Err: std::fmt::Display>>(&self) -> Result<N, Mistake> {
        self.name
            .get_ref()
            .parse()
            .map_err(|error: N::Err| Mistake {
                line: line_of(self.text, self.name.span().start),
                message: error.to_string(),
            })
    }

    /// Takes a span of time out of the table.
    fn span(&mut self, key: &str) -> Result<Option<u64>, Mistake> {
        let Some(value) = self.table.remove(key) else {
            return Ok(None);
        };
        let place = value.span();
        let span = match value.get_ref().as_str() {
            Some(text) => text.parse::<Span>(),
            None => Err("expected a string such as \"15m\", found something else".to_owned()),
        };
        match span {
            Ok(Span(seconds)) => Ok(Some(seconds)),
            Err(problem) => Err(self.at(place, &format!("{key}: {problem}"))),
        }
    }

    fn credential(mut self) -> Result<CredentialConfig, Mistake> {
        let name: CredentialName = self.name()?;
        let engines = || {
            let names = EngineKind::ALL.map(|kind| format!("{:?}", kind.as_str()));
            format!("expected engine to be one of {}", names.join(", "))
        };
        let Some(engine) = self.table.remove("engine") else {
            return Err(self.at(self.name.span(), &format!("{}, found no engine", engines())));
        };
        let kind = engine.get_ref().as_str().and_then(EngineKind::named);
        let Some(kind) = kind else {
            let found = engine.get_ref().as_str();
            let found =
                found.map_or_else(|| "something else".to_owned(), |text| format!("{text:?}"));
            return Err(self.at(engine.span(), &format!("{}, found {found}", engines())));
        };
        let ttl_seconds = self.span("ttl")?;
        let max_ttl_seconds = self.span("max_ttl")?;
        let grace_seconds = self.span("grace")?;
        let Some(ttl_seconds) = ttl_seconds else {
            let message = "missing field `ttl`: expected ttl = \"15m\", for example";
            return Err(self.at(self.name.span(), message));
        };
        let settings = std::mem::take(&mut self.table);
        // As if it were written `{ENGINE: {settings}}`, which is how the wire has it.
        let mut tagged = DeTable::new();
        let place = self.place.clone();
        tagged.insert(
            Spanned::new(place.clone(), kind.as_str().into()),
            Spanned::new(place.clone(), DeValue::Table(settings)),
        );
        let engine = EngineConfig::deserialize(Deserializer::from(Spanned::new(place, tagged)))
            .map_err(|error| self.invalid(&error))?;
        Ok(CredentialConfig {
            name,
            ttl_seconds,
            max_ttl_seconds,
            grace_seconds,
            engine,
        })
    }

    fn connection(mut self) -> Result<Connection, Mistake> {
        let name: ConnectionName = self.name()?;
        let ca_file = match self.table.remove("ca_file") {
            None => None,
            Some(value) => {
                let Some(path) = value.get_ref().as_str() else {
                    let message = "ca_file: expected a path as a string";
                    return Err(self.at(value.span(), message));
                };
                Some((path.into(), line_of(self.text, value.span().start)))
            }
        };
        for given in ["name", "password"] {
            if let Some(value) = self.table.get(given) {
                let message = match given {
                    "password" => {
                        "password: passwords never stand in these files; give it with `mayfly \
                         connection set`"
                    }
                    _ => "name: the name is the one in [connection.NAME]",
                };
                return Err(self.at(value.span(), message));
            }
        }
        let mut table = std::mem::take(&mut self.table);
        table.insert(
            Spanned::new(self.name.span(), "name".into()),
            Spanned::new(self.name.span(), DeValue::String(String::from(name).into())),
        );
        let place = self.place.clone();
        let config = ConnectionConfig::deserialize(Deserializer::from(Spanned::new(place, table)))
            .map_err(|error| self.invalid(&error))?;
        Ok(Connection { config, ca_file })
    }
}

/// Counts from 1.
pub fn line_of(text: &str, offset: usize) -> usize {
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
    fn a_server_and_what_is_made_there_are_read() {
        let text = r#"
[connection.shop]
engine = "postgres"
host = "db.internal"
username = "mayfly"
database = "shop"
ca_file = "ca.pem"

[credential.orders-db]
engine = "postgres"
connection = "shop"
ttl = "15m"
max_ttl = "1d"
create = ["CREATE ROLE {{name}} LOGIN PASSWORD {{password}} VALID UNTIL {{expiration}}"]

[credential.reports-db]
engine = "postgres"
connection = "shop"
ttl = "1h"
static = ["reports_a", "reports_b"]
rotate_every = "7d"
"#;
        let file = parse(text).unwrap();
        let connection = &file.connections[0];
        assert_eq!(connection.config.name.as_str(), "shop");
        assert_eq!(connection.config.database.as_deref(), Some("shop"));
        assert_eq!(connection.ca_file, Some(("ca.pem".into(), 7)));
        let of = |name: &str| {
            let mut found = file.credentials.iter();
            found.find(|config| config.name.as_str() == name).unwrap()
        };
        assert_eq!(of("orders-db").max_ttl_seconds, Some(86_400));
        let EngineConfig::Postgres(settings) = &of("reports-db").engine else {
            panic!("not postgres");
        };
        assert_eq!(settings.fixed, ["reports_a", "reports_b"]);
        assert_eq!(settings.rotate_every, Some(Span(604_800)));
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
            (
                "[connection.s]\nengine = \"postgres\"\n",
                1,
                "missing field `host`",
            ),
            ("[connection.s]\npassword = \"x\"\n", 2, "connection set"),
            ("[connection.s]\nengine = \"oracle\"\n", 2, "oracle"),
            ("credential = 1\n", 1, "[credential.NAME]"),
            ("\n\n[credential.A]\n", 3, "credential name"),
            ("[credential]\na = 1\n", 2, "table"),
            ("[credential.a]\n", 1, "found no engine"),
            ("[credential.a]\nengine = \"vault\"\n", 2, "\"vault\""),
            ("[credential.a]\nengine = 3\n", 2, "kv"),
            (
                &format!("{kv}color = 1\n"),
                5,
                "unexpected keys in table: color",
            ),
            (
                &format!("{kv}algorithm = \"EdDSA\"\n"),
                5,
                "unexpected keys in table: algorithm",
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
