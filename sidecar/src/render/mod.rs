//! From the fields of a credential to the content of a file, in the form that an application reads.
//! No I/O. What a format cannot say is refused by the field's name, never guessed and never quoted.

mod buffer;
mod database;
mod json;
mod pem;
mod properties;
mod shell;
pub mod template;
#[cfg(test)]
mod testing;

pub use buffer::{Buffer, MAX_OUTPUT};

use mayfly_wire::session::VALUE_FIELD;
use mayfly_wire::{CredentialName, FieldName, Secret};
use serde::Deserialize;

/// The form of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Format {
    /// One field's bytes.
    #[serde(rename = "raw")]
    Raw,
    /// A directory of one file a field.
    #[serde(rename = "fields")]
    Fields,
    /// One JSON object.
    #[serde(rename = "json")]
    Json,
    /// What a POSIX shell can source.
    #[serde(rename = "env")]
    Env,
    /// What readers of `.env` files agree on.
    #[serde(rename = "dotenv")]
    Dotenv,
    /// java.util.Properties.
    #[serde(rename = "properties")]
    Properties,
    /// The password file of libpq.
    #[serde(rename = "pgpass")]
    Pgpass,
    /// An option file of MySQL's and MariaDB's clients.
    #[serde(rename = "my.cnf")]
    MyCnf,
    /// A JDBC URL.
    #[serde(rename = "jdbc")]
    Jdbc,
    /// A connection URL.
    #[serde(rename = "url")]
    Url,
    /// Certificates and key in one file.
    #[serde(rename = "pem-bundle")]
    PemBundle,
    /// A template of the operator's.
    #[serde(rename = "template")]
    Template,
}

/// Why an output was not rendered. Holds names, never a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A field is not there.
    #[error("expected a field `{0}`, found none in {1}")]
    NoField(String, CredentialName),
    /// A value cannot be said in this format.
    #[error("the field `{field}` {why}")]
    Value {
        /// Which.
        field: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The output is larger than a file of ours may be.
    #[error("the output is larger than 1 MiB")]
    TooLarge,
    /// Two fields have the same name in the output.
    #[error("the fields {0} and {1} would both be called {2}")]
    SameName(FieldName, FieldName, String),
    /// A field's name is none in the output.
    #[error("the field {0} cannot be called {1:?} here; set another `prefix`")]
    BadName(FieldName, String),
    /// The template.
    #[error("{0}")]
    Template(String),
}

/// A credential that was opened.
pub struct Opened {
    /// Its name.
    pub name: CredentialName,
    /// Whether it is one value, called `value`.
    pub one_value: bool,
    /// When it ends: milliseconds of uptime.
    pub expires_at: u64,
    /// Its fields, sorted by name.
    pub fields: Vec<(FieldName, Secret)>,
}

impl Opened {
    /// A field's bytes, if it is there.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&Secret> {
        let mut fields = self.fields.iter();
        fields
            .find(|(name, _)| name.as_str() == field)
            .map(|(_, value)| value)
    }

    /// A field's bytes.
    ///
    /// # Errors
    /// [`Refused::NoField`].
    pub fn bytes(&self, field: &str) -> Result<&Secret, Refused> {
        let none = || Refused::NoField(field.to_owned(), self.name.clone());
        self.get(field).ok_or_else(none)
    }

    /// A field as text without NUL, if it is there.
    fn text(&self, field: &str) -> Result<Option<&str>, Refused> {
        self.get(field).map(|value| plain(field, value)).transpose()
    }

    /// A field as text without NUL.
    fn need(&self, field: &str) -> Result<&str, Refused> {
        plain(field, self.bytes(field)?)
    }

    /// All fields as text without NUL.
    fn texts(&self) -> impl Iterator<Item = Result<(&FieldName, &str), Refused>> {
        let text = |(name, value)| Ok((name, plain(FieldName::as_str(name), value)?));
        self.fields
            .iter()
            .map(|(name, value)| (name, value))
            .map(text)
    }
}

fn refuse(field: &str, why: &'static str) -> Refused {
    Refused::Value {
        field: field.to_owned(),
        why,
    }
}

fn utf8<'a>(field: &str, value: &'a Secret) -> Result<&'a str, Refused> {
    std::str::from_utf8(value.expose()).map_err(|_| refuse(field, "is not UTF-8, and this is text"))
}

fn plain<'a>(field: &str, value: &'a Secret) -> Result<&'a str, Refused> {
    let text = utf8(field, value)?;
    match text.contains('\0') {
        true => Err(refuse(field, "has a NUL, which this format cannot say")),
        false => Ok(text),
    }
}

/// What an output says besides its format.
#[derive(Debug, Default)]
pub struct Choices {
    /// For `raw`: which field.
    pub field: Option<FieldName>,
    /// For `pem-bundle`: which fields, in order.
    pub fields: Vec<FieldName>,
    /// For `env`, `dotenv`, `properties`: what names begin with.
    pub prefix: Option<String>,
    /// For `url`, `jdbc`: what the URL begins with.
    pub scheme: Option<String>,
}

/// Renders one credential. `fields` and `template` are not rendered here: the first is several
/// files, the second may take several credentials.
///
/// # Errors
/// [`Refused`].
pub fn render(format: Format, opened: &Opened, choices: &Choices) -> Result<Secret, Refused> {
    let mut out = Buffer::default();
    match format {
        Format::Raw | Format::Fields | Format::Template => {
            let value = opened.bytes(raw_field(opened, choices))?.expose();
            put(&mut out, value)?;
        }
        Format::Json => json::write(opened, &mut out)?,
        Format::Env => shell::env(opened, choices.prefix.as_deref(), &mut out)?,
        Format::Dotenv => shell::dotenv(opened, choices.prefix.as_deref(), &mut out)?,
        Format::Properties => properties::write(opened, choices.prefix.as_deref(), &mut out)?,
        Format::Pgpass => database::pgpass(opened, &mut out)?,
        Format::MyCnf => database::my_cnf(opened, &mut out)?,
        Format::Jdbc => database::jdbc(opened, choices.scheme.as_deref(), &mut out)?,
        Format::Url => database::url(opened, choices.scheme.as_deref(), &mut out)?,
        Format::PemBundle => pem::write(opened, &choices.fields, &mut out)?,
    }
    Ok(out.into_secret())
}

/// The field that is named, or the only one.
fn raw_field<'a>(opened: &'a Opened, choices: &'a Choices) -> &'a str {
    match (&choices.field, opened.fields.as_slice()) {
        (Some(field), _) => field.as_str(),
        (None, [(only, _)]) => only.as_str(),
        (None, _) => VALUE_FIELD,
    }
}

fn put(out: &mut Buffer, bytes: &[u8]) -> Result<(), Refused> {
    match out.add(bytes) {
        true => Ok(()),
        false => Err(Refused::TooLarge),
    }
}

/// Writes text, with some characters written otherwise.
fn put_escaped(
    out: &mut Buffer,
    text: &str,
    escape: impl Fn(char) -> Option<&'static str>,
) -> Result<(), Refused> {
    let mut buffer = [0; 4];
    for letter in text.chars() {
        match escape(letter) {
            Some(escaped) => put(out, escaped.as_bytes())?,
            None => put(out, letter.encode_utf8(&mut buffer).as_bytes())?,
        }
    }
    zeroize::Zeroize::zeroize(&mut buffer);
    Ok(())
}

/// Writes text percent-encoded, all but the unreserved characters of RFC 3986.
fn put_percent(out: &mut Buffer, text: &str) -> Result<(), Refused> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            put(out, &[byte])?;
        } else {
            let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or_default();
            put(out, &[b'%', digit(byte >> 4), digit(byte & 15)])?;
        }
    }
    Ok(())
}

/// What the names of a credential's values begin with and how they go on: for one value its own
/// name, for several `PREFIX` and the field's.
fn named(opened: &Opened, prefix: Option<&str>, join: &str, field: &FieldName) -> String {
    match prefix {
        Some(prefix) if opened.one_value => prefix.to_owned(),
        Some(prefix) => format!("{prefix}{field}"),
        None if opened.one_value => opened.name.to_string(),
        None => format!("{}{join}{field}", opened.name),
    }
}

/// All values with their names in the output, which are all different.
fn names(
    opened: &Opened,
    name: impl Fn(&FieldName) -> String,
) -> Result<Vec<(String, &FieldName, &str)>, Refused> {
    let mut named: Vec<(String, &FieldName, &str)> = Vec::new();
    for text in opened.texts() {
        let (field, text) = text?;
        let name = name(field);
        if let Some((_, other, _)) = named.iter().find(|(known, ..)| *known == name) {
            return Err(Refused::SameName((*other).clone(), field.clone(), name));
        }
        named.push((name, field, text));
    }
    Ok(named)
}
