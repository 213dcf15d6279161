//! The `ssh` engine: OpenSSH certificates for users and hosts, from an authority that the broker holds.
//!
//! They are short-lived. What ends before stands on a list for those who have one (`RevokedKeys`,
//! `RevokedHostKeys`); to all others it opens no connection from its expiry on.

mod format;
mod keys;
mod krl;

use super::authority::{Authority, Succession};
use super::names::{DNS, MAX_NAMES, Name, USER};
use super::{
    Answer, Certifier, Engine, EngineError, IssueRequest, Issued, lease_record, other_engine,
};
use crate::seal::{RootKeys, random};
use crate::store::{Lease, Source, Store, StoreError};
use format::{Certificate, certificate_line, private_file, public_line};
use keys::{Keys, Seeded};
use mayfly_wire::admin::{CredentialConfig, EngineConfig, SshKind, SshSettings};
use mayfly_wire::session::Layout;
use mayfly_wire::{FieldName, LeaseId, Secret};
use rcgen::PublicKeyData as _;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use super::authority::Schedule;

const DAY: u64 = 24 * 60 * 60 * 1000;
/// Clocks differ: a certificate is good from a minute before it is made.
const BEFORE: u64 = 60;
/// Most bytes of a forced command.
const MAX_COMMAND: usize = 4096;
const PRIVATE: &str = "id_ed25519";
const PUBLIC: &str = "id_ed25519.pub";
const CERTIFICATE: &str = "id_ed25519-cert.pub";
/// For `TrustedUserCAKeys` of sshd_config(5).
const USER_AUTHORITIES: &str = "ca.pub";
/// For `UserKnownHostsFile` of ssh_config(5).
const HOST_AUTHORITIES: &str = "known_hosts";

/// The engine.
pub struct Ssh {
    keys: Arc<RootKeys>,
    authority: Authority<Keys>,
}

impl Ssh {
    /// Loads the authority, if there is one yet; it is made for the first certificate.
    ///
    /// # Errors
    /// The store's and the seal's.
    pub async fn open(
        store: Arc<dyn Store>,
        keys: Arc<RootKeys>,
        schedule: Schedule,
    ) -> Result<Self, EngineError> {
        let authority = Authority::open(store, Arc::clone(&keys), schedule).await?;
        Ok(Self { keys, authority })
    }

    /// Keys sign for a year, and are published a day, or as long as the longest certificate lives,
    /// before they sign.
    #[must_use]
    pub fn schedule() -> Schedule {
        Schedule {
            rotate_every: 365 * DAY,
            publish_ahead: DAY,
        }
    }

    async fn make(&self, request: IssueRequest<'_>) -> Result<Issued, EngineError> {
        let wanted = Wanted::read(request.credential).map_err(EngineError::Unfit)?;
        let principals = wanted.principals(&request).map_err(EngineError::Unfit)?;
        let ttl = request.expires_at().saturating_sub(request.now);
        let all = self.authority.ready(request.now, ttl).await?;
        let signer = all.signer(request.now);
        let signer =
            signer.ok_or_else(|| EngineError::Unavailable("no authority yet".to_owned()))?;
        let name = &request.credential.name;
        let workload = request.evidence.workload.id();
        let key_id = format!("mayfly {name} {workload} {}", request.lease);
        let settings = wanted.settings;
        let mut extensions: Vec<&str> = settings.extensions.iter().map(|e| e.as_str()).collect();
        extensions.sort_unstable();
        extensions.dedup();
        let certificate = Certificate {
            nonce: random()?,
            serial: serial(request.lease),
            kind: settings.kind,
            key_id: &key_id,
            principals: &principals,
            valid_after: (request.now / 1000).saturating_sub(BEFORE),
            valid_before: request.expires_at() / 1000,
            critical_options: &wanted.critical_options(),
            extensions: &extensions,
        };
        let own = Seeded::generate()?;
        let public = own.pair.der_bytes();
        let signed = certificate.sign(public, signer.of(settings.kind))?;
        // Nothing of the workload's goes into a comment.
        let comment = request.lease.as_str();
        let mut fields = BTreeMap::new();
        for (field, value) in [
            (PRIVATE, private_file(&own.seed, public, random()?, comment)),
            (PUBLIC, Secret::from(public_line(public, comment) + "\n")),
            (
                CERTIFICATE,
                Secret::from(certificate_line(&signed, comment)),
            ),
        ] {
            fields.insert(field_name(field)?, value);
        }
        let expires_at = request.expires_at();
        let record = lease_record(request.lease);
        let content = super::kv::encode(&fields);
        let sealed = self.keys.seal(&record, expires_at, &content)?;
        issued(fields, &all, expires_at, sealed)
    }
}

/// The files by which others verify, and whom.
const FILES: [(&str, SshKind); 2] = [
    (USER_AUTHORITIES, SshKind::User),
    (HOST_AUTHORITIES, SshKind::Host),
];

/// One authority a line.
fn authorities(all: &[Arc<Keys>], kind: SshKind) -> String {
    let prefix = match kind {
        SshKind::User => "",
        SshKind::Host => "@cert-authority * ",
    };
    let line = |keys: &Arc<Keys>| {
        let line = public_line(keys.of(kind).der_bytes(), "mayfly");
        format!("{prefix}{line}\n")
    };
    all.iter().map(line).collect()
}

/// That of a lease's certificate.
fn serial(lease: &LeaseId) -> u64 {
    // Servers take zero for none at all, and revoke nothing by it.
    u64::from_be_bytes(super::revocation::serial(lease)).max(1)
}

fn field_name(name: &str) -> Result<FieldName, EngineError> {
    let name = name.parse();
    name.map_err(|error| EngineError::Unfit(format!("{error}")))
}

/// The lease's own fields, and the authorities as they are now.
fn issued(
    mut fields: BTreeMap<FieldName, Secret>,
    all: &Succession<Keys>,
    expires_at: u64,
    sealed: Vec<u8>,
) -> Result<Issued, EngineError> {
    for (field, kind) in FILES {
        let lines = authorities(&all.all, kind);
        fields.insert(field_name(field)?, Secret::from(lines));
    }
    Ok(Issued {
        fields,
        layout: Layout::Fields,
        expires_at,
        source: Source::Sealed(sealed),
    })
}

/// A certificate as configured, understood.
struct Wanted<'a> {
    settings: &'a SshSettings,
    principals: Vec<Name>,
}

impl<'a> Wanted<'a> {
    fn read(credential: &'a CredentialConfig) -> Result<Self, String> {
        let EngineConfig::Ssh(settings) = &credential.engine else {
            return Err(format!("{} is not an ssh credential", credential.name));
        };
        // One without any would be good for every name.
        if settings.principals.is_empty() || settings.principals.len() > MAX_NAMES {
            return Err(format!(
                "principals: expected 1 to {MAX_NAMES}, found {}",
                settings.principals.len()
            ));
        }
        let is_plain = settings.extensions.is_empty()
            && settings.force_command.is_none()
            && settings.source_address.is_empty();
        if settings.kind == SshKind::Host && !is_plain {
            return Err(
                "extensions, force_command and source_address: expected none of them for a host"
                    .to_owned(),
            );
        }
        if let Some(command) = &settings.force_command {
            let fits = (1..=MAX_COMMAND).contains(&command.len());
            if !fits || command.contains(char::is_control) {
                return Err(format!(
                    "force_command: expected 1 to {MAX_COMMAND} bytes without control characters"
                ));
            }
        }
        if settings.source_address.len() > MAX_NAMES {
            let found = settings.source_address.len();
            return Err(format!(
                "source_address: expected at most {MAX_NAMES}, found {found}"
            ));
        }
        let network = settings
            .source_address
            .iter()
            .find(|text| !is_network(text));
        if let Some(found) = network {
            return Err(format!(
                "source_address: expected an address, or ADDRESS/LENGTH with no bit set beyond LENGTH \
                 (10.0.0.0/8), found {found:?}"
            ));
        }
        let principals = settings.principals.iter();
        let principals = principals.map(|text| match settings.kind {
            SshKind::User => Name::parse(USER, text),
            SshKind::Host => Name::parse(DNS, text),
        });
        Ok(Self {
            settings,
            principals: principals.collect::<Result<_, _>>()?,
        })
    }

    fn principals(&self, request: &IssueRequest<'_>) -> Result<Vec<String>, String> {
        let names = self.principals.iter();
        let names = names.map(|name| name.render(&request.credential.name, request.evidence));
        names.collect()
    }

    fn critical_options(&self) -> Vec<(&'static str, String)> {
        let mut options = Vec::new();
        if let Some(command) = &self.settings.force_command {
            options.push(("force-command", command.clone()));
        }
        if !self.settings.source_address.is_empty() {
            options.push(("source-address", self.settings.source_address.join(",")));
        }
        options
    }
}

/// An address, or one with the length of a prefix and no bit set beyond it, as sshd wants it.
fn is_network(text: &str) -> bool {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return false;
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    length.is_none_or(|length| {
        let digits = length.bytes().all(|byte| byte.is_ascii_digit());
        let length = length.parse::<u8>().ok();
        let length = length.filter(|length| digits && *length <= most);
        // All 128 may be gone.
        length.is_some_and(|length| bits.checked_shl(length.into()).unwrap_or(0) == 0)
    })
}

impl Engine for Ssh {
    fn check(&self, credential: &CredentialConfig) -> Result<(), String> {
        Wanted::read(credential).map(|_| ())
    }

    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued> {
        Box::pin(self.make(request))
    }

    /// Gives the very certificate that the lease holds, with the authorities of today.
    fn reissue<'a>(
        &'a self,
        _credential: &'a CredentialConfig,
        lease: &'a Lease,
    ) -> Answer<'a, Issued> {
        Box::pin(async move {
            let Source::Sealed(sealed) = &lease.source else {
                return Err(other_engine(lease));
            };
            let record = lease_record(&lease.id);
            let own = self.keys.open(&record, lease.expires_at, sealed)?;
            let own = super::kv::decode(&own).ok_or_else(|| {
                StoreError::Damaged(format!("the content of {} is not valid", lease.id))
            })?;
            let all = self.authority.current();
            issued(own, &all, lease.expires_at, sealed.clone())
        })
    }

    /// A certificate that left is on the list from its lease's end on, which the store sees to. To who
    /// does not read that it is good until it expires, which is why it is short.
    fn revoke<'a>(&'a self, _lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn certifier(&self) -> Option<&dyn Certifier> {
        Some(&self.authority)
    }
}
