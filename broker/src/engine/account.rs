//! An account at a server that belongs to one lease: what it is called, what the lease must hold to give
//! it again and to remove it, and what its holder is told.

use super::{EngineError, IssueRequest, Issued, lease_record, other_engine, password};
use crate::seal::RootKeys;
use crate::store::{Lease, Source, StoreError};
use mayfly_wire::engine::PasswordPolicy;
use mayfly_wire::session::Layout;
use mayfly_wire::{ConnectionConfig, ConnectionName, FieldName, LeaseId, Secret};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use zeroize::Zeroizing;

/// The version that the content of a lease is sealed for: it never changes while the lease lives.
const CONTENT: u64 = 0;
/// Most characters of the credential's name in an account's.
const FRONT: usize = 8;
/// Characters of the lease's id: 80 random bits.
const ID: usize = 20;

/// The name of a lease's account: `mf_orders_d_` and 20 characters of the lease's id. People read the
/// front, and the end makes it one of its kind. At most 32 bytes, which is what MySQL allows.
pub(super) fn name(request: &IssueRequest<'_>) -> String {
    let id = plain(request.lease.as_str(), usize::MAX);
    let id = id.trim_start_matches("lease_");
    let front = plain(request.credential.name.as_str(), FRONT);
    format!("mf_{front}_{}", &id[..id.len().min(ID)])
}

/// In lower-case letters, digits and `_`.
pub(super) fn plain(text: &str, most: usize) -> String {
    let letter = |letter: char| {
        let letter = letter.to_ascii_lowercase();
        let is_plain = letter.is_ascii_lowercase() || letter.is_ascii_digit();
        if is_plain { letter } else { '_' }
    };
    text.chars().map(letter).take(most).collect()
}

/// What a lease holds, sealed.
#[derive(Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) password: Zeroizing<String>,
    /// The operator's statements that remove it, as they were when it was issued.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) revoke: Vec<String>,
    /// Who then owns what it owned, as it was when it was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) heir: Option<String>,
}

impl Account {
    fn export(&self) -> Result<Secret, EngineError> {
        let bytes = serde_json::to_vec(self);
        bytes
            .map(Secret::from)
            .map_err(|error| EngineError::Unfit(format!("an account cannot be kept: {error}")))
    }

    fn import(bytes: &Secret) -> Result<Self, EngineError> {
        serde_json::from_slice(bytes.expose())
            .map_err(|_| StoreError::Damaged("what a lease holds is no account".to_owned()).into())
    }

    /// One with a new password.
    pub(super) fn new(
        policy: Option<&PasswordPolicy>,
        revoke: Vec<String>,
    ) -> Result<Self, EngineError> {
        let made = password::generate(policy)?;
        let password = String::from_utf8(made.expose().to_vec()).map(Zeroizing::new);
        let password =
            password.map_err(|_| EngineError::Unfit("a password is not text".to_owned()))?;
        Ok(Self {
            password,
            revoke,
            heir: None,
        })
    }

    /// That of a lease.
    pub(super) fn of(keys: &RootKeys, lease: &Lease) -> Result<Self, EngineError> {
        let Source::Account { sealed, .. } = &lease.source else {
            return Err(other_engine(lease));
        };
        Self::import(&keys.open(&lease_record(&lease.id), CONTENT, sealed)?)
    }

    /// What its lease holds.
    pub(super) fn source(
        &self,
        keys: &RootKeys,
        connection: &ConnectionName,
        name: &str,
        lease: &LeaseId,
    ) -> Result<Source, EngineError> {
        Ok(Source::Account {
            connection: connection.clone(),
            account: name.to_owned(),
            sealed: keys.seal(&lease_record(lease), CONTENT, &self.export()?)?,
        })
    }

    pub(super) fn password(&self) -> Secret {
        Secret::from(self.password.as_bytes().to_vec())
    }
}

/// Where the account of a lease is, and its name.
pub(super) fn at(lease: &Lease) -> Result<(&ConnectionName, &str), EngineError> {
    match &lease.source {
        Source::Account {
            connection,
            account,
            ..
        } => Ok((connection, account)),
        _ => Err(other_engine(lease)),
    }
}

/// How holders log in, beside name and password.
pub(super) struct Login<'a> {
    /// What kind of server it is (servicebinding.io).
    pub(super) kind: &'a str,
    /// Of the URI.
    pub(super) scheme: &'a str,
    pub(super) port: u16,
    /// A field of this name, which is also the path of the URI.
    pub(super) path: Option<(&'a str, &'a str)>,
}

/// The fields of a service binding (servicebinding.io), among them a URI.
pub(super) fn told(
    config: &ConnectionConfig,
    login: &Login<'_>,
    user: &str,
    password: &Secret,
    expires_at: u64,
    source: Source,
) -> Result<Issued, EngineError> {
    let host = config.public_host.as_deref().unwrap_or(&config.host);
    let port = login.port.to_string();
    let path = login.path.map_or("", |(_, path)| path);
    // Enough for all of it encoded, so that no piece of it is left behind in memory as it grows.
    let room = (user.len() + password.len() + host.len() + path.len()) * 3 + 64;
    let mut uri = Zeroizing::new(String::with_capacity(room));
    let _ = write!(uri, "{}://", login.scheme);
    encode(user.as_bytes(), &mut uri);
    uri.push(':');
    encode(password.expose(), &mut uri);
    uri.push('@');
    // An IPv6 address is the one thing that may hold a colon.
    if host.contains(':') {
        let _ = write!(uri, "[{host}]");
    } else {
        encode(host.as_bytes(), &mut uri);
    }
    let _ = write!(uri, ":{port}");
    if !path.is_empty() {
        uri.push('/');
        encode(path.as_bytes(), &mut uri);
    }
    let mut fields = BTreeMap::new();
    for (name, value) in [
        ("type", login.kind.as_bytes()),
        ("username", user.as_bytes()),
        ("password", password.expose()),
        ("host", host.as_bytes()),
        ("port", port.as_bytes()),
        ("uri", uri.as_bytes()),
    ]
    .into_iter()
    .chain(login.path.map(|(name, path)| (name, path.as_bytes())))
    {
        let name: FieldName = name
            .parse()
            .map_err(|error| EngineError::Unfit(format!("{error}")))?;
        fields.insert(name, Secret::from(value.to_vec()));
    }
    Ok(Issued {
        fields,
        layout: Layout::Fields,
        expires_at,
        source,
    })
}

/// Percent-encodes all but the unreserved characters (RFC 3986, section 2.3).
pub(super) fn encode(bytes: &[u8], text: &mut String) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
}
