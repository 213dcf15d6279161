//! `[[output]]`: one file, or directory of files, made of a credential.

use super::{Span, stale};
use crate::publish::Access;
use crate::publish::item::{End, Item};
use crate::render::{Choices, Format};
use mayfly_wire::{CredentialName, FieldName};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// What happens when an output's credential is not renewed in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExpiry {
    /// Its file goes.
    #[default]
    Remove,
    /// Its file stays, for `max_stale` or for good, and the status says so.
    KeepStale,
    /// Its file goes, and the application with it.
    StopApplication,
}

impl OnExpiry {
    /// When something ends that expires then.
    #[must_use]
    pub fn end(self, expires_at: u64, max_stale: Option<Duration>) -> End {
        let stale = max_stale.map(|stale| u64::try_from(stale.as_millis()).unwrap_or(u64::MAX));
        End {
            expires_at,
            gone_at: match self {
                Self::KeepStale => expires_at.saturating_add(stale.unwrap_or(u64::MAX)),
                Self::Remove | Self::StopApplication => expires_at,
            },
            stop: self == Self::StopApplication,
        }
    }
}

/// Where a template's text is.
#[derive(Debug, PartialEq, Eq)]
pub enum Template {
    /// In the configuration.
    Text(String),
    /// In a file beside it.
    File(PathBuf),
}

/// One name or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Names {
    One(CredentialName),
    Several(Vec<CredentialName>),
}

/// The table as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    credential: Names,
    pub(super) file: Option<Item>,
    format: Format,
    field: Option<FieldName>,
    #[serde(default)]
    fields: Vec<FieldName>,
    prefix: Option<String>,
    scheme: Option<String>,
    template: Option<String>,
    template_file: Option<PathBuf>,
    mode: Option<String>,
    owner: Option<u32>,
    group: Option<u32>,
    on_expiry: Option<OnExpiry>,
    max_stale: Option<Span>,
}

/// One output, checked.
#[derive(Debug)]
pub struct Output {
    /// What it is made of: one credential, or for a template several.
    pub credentials: Vec<CredentialName>,
    /// Where it is published.
    pub item: Item,
    /// Its form.
    pub format: Format,
    /// What its form leaves open.
    pub choices: Choices,
    /// Its template.
    pub template: Option<Template>,
    /// Who can read it.
    pub access: Access,
    on_expiry: OnExpiry,
    max_stale: Option<Duration>,
}

impl Output {
    /// When it ends, if its credentials expire then.
    #[must_use]
    pub fn end(&self, expires_at: u64) -> End {
        self.on_expiry.end(expires_at, self.max_stale)
    }

    /// Whether the application is not to run without it.
    #[must_use]
    pub fn stops(&self) -> bool {
        self.on_expiry == OnExpiry::StopApplication
    }
}

impl Written {
    pub(super) fn check(
        self,
        access: Access,
        (on_expiry, max_stale): (OnExpiry, Option<Duration>),
    ) -> Result<Output, String> {
        let several = self.format == Format::Template;
        let credentials = match self.credential {
            Names::One(name) => vec![name],
            Names::Several(names) if several && !names.is_empty() => names,
            Names::Several(_) => {
                return Err("`credential` is one name; only a template takes several".to_owned());
            }
        };
        let item = match (self.file, credentials.as_slice()) {
            (Some(item), _) => item,
            (None, [one]) if matches!(self.format, Format::Raw | Format::Fields) => Item::from(one),
            (None, _) => return Err("expected `file`".to_owned()),
        };
        for (key, given, formats) in [
            ("field", self.field.is_some(), &[Format::Raw][..]),
            ("fields", !self.fields.is_empty(), &[Format::PemBundle]),
            (
                "prefix",
                self.prefix.is_some(),
                &[Format::Env, Format::Dotenv, Format::Properties],
            ),
            (
                "scheme",
                self.scheme.is_some(),
                &[Format::Url, Format::Jdbc],
            ),
            (
                "template or template_file",
                self.template.is_some() || self.template_file.is_some(),
                &[Format::Template],
            ),
        ] {
            if given && !formats.contains(&self.format) {
                return Err(format!("{key} does not go with this format"));
            }
        }
        if let Some(scheme) = &self.scheme {
            let word = |byte: u8| byte.is_ascii_alphanumeric() || b"+.-:".contains(&byte);
            if scheme.is_empty() || !scheme.bytes().all(word) {
                return Err("`scheme` is what stands before ://".to_owned());
            }
        }
        if let Some(prefix) = &self.prefix
            && (prefix.len() > 128 || prefix.contains(['\n', '\r', '\0']))
        {
            return Err("`prefix` is at most 128 bytes in one line".to_owned());
        }
        let template = match (self.template, self.template_file) {
            (Some(text), None) => Some(Template::Text(text)),
            (None, Some(file)) => Some(Template::File(file)),
            (None, None) if !several => None,
            _ => return Err("expected one of `template` and `template_file`".to_owned()),
        };
        let (on_expiry, max_stale) = match self.on_expiry {
            Some(own) => (own, self.max_stale.map(|span| span.0)),
            None => (
                on_expiry,
                self.max_stale.map_or(max_stale, |span| Some(span.0)),
            ),
        };
        stale(on_expiry, self.max_stale)?;
        Ok(Output {
            credentials,
            item,
            format: self.format,
            choices: Choices {
                field: self.field,
                fields: self.fields,
                prefix: self.prefix,
                scheme: self.scheme,
            },
            template,
            access: Access {
                mode: self.mode.map_or(Ok(access.mode), |mode| mode_of(&mode))?,
                uid: self.owner.map_or(Ok(access.uid), id)?,
                gid: self.group.map_or(Ok(access.gid), id)?,
            },
            on_expiry,
            max_stale,
        })
    }
}

fn mode_of(text: &str) -> Result<u32, String> {
    match text {
        "0400" => Ok(0o400),
        "0440" => Ok(0o440),
        "0444" => Ok(0o444),
        other => Err(format!(
            "mode: expected \"0400\", \"0440\" or \"0444\", found {other:?}"
        )),
    }
}

/// `u32::MAX` means "leave as it is" to chown(2).
fn id(number: u32) -> Result<Option<u32>, String> {
    match number {
        u32::MAX => Err("owner and group are numbers below 4294967295".to_owned()),
        id => Ok(Some(id)),
    }
}
