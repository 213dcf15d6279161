//! The `x509` engine: certificates for TLS (RFC 5280), from an authority that the broker holds.
//!
//! They are short-lived. What ends before stands on a list (RFC 5280, section 5) for those who ask for
//! one; there is no responder. To all others it is worth nothing from `notAfter` on.

mod chain;
mod csr;

use super::authority::{Authority, Succession};
use super::names::{COMMON_NAME, DNS, MAX_NAMES, Name, SPIFFE_ID};
use super::pair::{Pair, pem};
use super::{
    Answer, Certifier, Engine, EngineError, IssueRequest, Issued, lease_record, other_engine,
};
use crate::seal::{RootKeys, random};
use crate::store::{Lease, Source, Store, StoreError};
use chain::{Chain, date, serial};
use csr::Requested;
use mayfly_wire::admin::{CredentialConfig, EngineConfig, X509Key, X509Usage};
use mayfly_wire::session::Layout;
use mayfly_wire::{FieldName, Secret};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

pub use super::authority::Schedule;

const DAY: u64 = 24 * 60 * 60 * 1000;
/// Clocks differ: a certificate is good from a minute before it is made.
const BEFORE: u64 = 60 * 1000;
/// The attribute `serialNumber` of a subject (X.520, section 6.2.9), which nobody takes for a host's
/// name. It holds the lease.
const LEASE: [u64; 4] = [2, 5, 4, 5];
/// Certificate and intermediate, private key, roots.
const FIELDS: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// The engine.
pub struct X509 {
    keys: Arc<RootKeys>,
    authority: Authority<Chain>,
}

impl X509 {
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

    /// Roots sign for five years, and are published a day, or as long as the longest certificate lives,
    /// before they sign.
    #[must_use]
    pub fn schedule() -> Schedule {
        Schedule {
            rotate_every: 5 * 365 * DAY,
            publish_ahead: DAY,
        }
    }

    /// With a request of the workload's for its own key, or with a key that is made here.
    async fn make(
        &self,
        request: IssueRequest<'_>,
        csr: Option<&str>,
    ) -> Result<Issued, EngineError> {
        let wanted = Wanted::read(request.credential).map_err(EngineError::Unfit)?;
        let mut params = wanted.params(&request).map_err(EngineError::Unfit)?;
        params.serial_number = Some(serial(request.lease));
        let key = wanted.key(csr).map_err(EngineError::Unfit)?;
        let ttl = request.expires_at().saturating_sub(request.now);
        let authorities = self.authority.ready(request.now, ttl).await?;
        let chain = signer(&authorities, request.now)?;
        let issuer = chain.issuer();
        let [certificate, private, _] = names()?;
        let mut own = BTreeMap::new();
        let leaf = match &key {
            Key::Theirs(key) => params.signed_by(key, &issuer)?,
            Key::Ours(algorithm) => {
                // In the older of two PKCS#8 forms: OpenSSL before 3.2 does not read the one with the
                // public key.
                let pair = match algorithm {
                    Algorithm::EcdsaP256 => Pair::generate(&rcgen::PKCS_ECDSA_P256_SHA256)?,
                    Algorithm::Ed25519 => Pair::from_seed(&Zeroizing::new(random()?))?,
                };
                own.insert(private, pem("PRIVATE KEY", pair.pkcs8(), 64));
                params.signed_by(&pair, &issuer)?
            }
        };
        let leaf = certificates([leaf.der().as_ref(), chain.intermediate()]);
        own.insert(certificate, leaf);
        let expires_at = request.expires_at();
        let record = lease_record(request.lease);
        let content = super::kv::encode(&own);
        let sealed = self.keys.seal(&record, expires_at, &content)?;
        issued(own, &authorities, expires_at, sealed)
    }
}

/// Whose key is certified.
enum Key {
    Ours(Algorithm),
    Theirs(Requested),
}

/// Of a key that is made here.
enum Algorithm {
    EcdsaP256,
    Ed25519,
}

fn signer(authorities: &Succession<Chain>, now: u64) -> Result<&Chain, EngineError> {
    let signer = authorities.signer(now);
    signer.ok_or_else(|| EngineError::Unavailable("no authority yet".to_owned()))
}

fn names() -> Result<[FieldName; 3], EngineError> {
    let parse = |name: &str| name.parse::<FieldName>();
    let [certificate, key, roots] = FIELDS.map(parse);
    let bad = |error| EngineError::Unfit(format!("{error}"));
    Ok([
        certificate.map_err(bad)?,
        key.map_err(bad)?,
        roots.map_err(bad)?,
    ])
}

fn certificates<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> Secret {
    let each = all.into_iter().map(|der| pem("CERTIFICATE", der, 64));
    let each: Vec<Secret> = each.collect();
    let each: Vec<&[u8]> = each.iter().map(Secret::expose).collect();
    Secret::from(each.concat())
}

fn bundle(authorities: &[Arc<Chain>]) -> Secret {
    certificates(authorities.iter().map(|chain| chain.root()))
}

/// The lease's own fields, and the roots as they are now.
fn issued(
    mut fields: BTreeMap<FieldName, Secret>,
    authorities: &Succession<Chain>,
    expires_at: u64,
    sealed: Vec<u8>,
) -> Result<Issued, EngineError> {
    let [.., roots] = names()?;
    fields.insert(roots, bundle(&authorities.all));
    Ok(Issued {
        fields,
        layout: Layout::Fields,
        expires_at,
        source: Source::Sealed(sealed),
    })
}

/// A certificate as configured, understood.
struct Wanted<'a> {
    spiffe_id: Option<Name>,
    dns_names: Vec<Name>,
    common_name: Option<Name>,
    usage: &'a [X509Usage],
    key: X509Key,
}

impl<'a> Wanted<'a> {
    fn read(credential: &'a CredentialConfig) -> Result<Self, String> {
        let EngineConfig::X509(settings) = &credential.engine else {
            return Err(format!("{} is not an x509 credential", credential.name));
        };
        let spiffe_id = settings.spiffe_id.as_deref();
        let common_name = settings.common_name.as_deref();
        if spiffe_id.is_none() && common_name.is_none() && settings.dns_names.is_empty() {
            return Err("expected spiffe_id, dns_names or common_name, found none".to_owned());
        }
        if settings.dns_names.len() > MAX_NAMES {
            let found = settings.dns_names.len();
            return Err(format!(
                "dns_names: expected at most {MAX_NAMES}, found {found}"
            ));
        }
        if settings.usage.is_empty() {
            return Err("usage: expected \"client\", \"server\" or both, found none".to_owned());
        }
        let names = settings.dns_names.iter();
        let names = names.map(|text| Name::parse(DNS, text));
        Ok(Self {
            spiffe_id: spiffe_id
                .map(|text| Name::parse(SPIFFE_ID, text))
                .transpose()?,
            dns_names: names.collect::<Result<_, _>>()?,
            common_name: common_name
                .map(|text| Name::parse(COMMON_NAME, text))
                .transpose()?,
            usage: &settings.usage,
            key: settings.key,
        })
    }

    fn key(&self, csr: Option<&str>) -> Result<Key, String> {
        let read = |csr: &str| {
            let read = Requested::read(csr);
            read.map_err(|expected| format!("certificate request: expected {expected}"))
        };
        match (self.key, csr) {
            (X509Key::Workload, Some(csr)) => Ok(Key::Theirs(read(csr)?)),
            (X509Key::Workload, None) => {
                Err("the workload keeps its key: expected a certificate request".to_owned())
            }
            (_, Some(_)) => Err("expected no certificate request: its key is made here".to_owned()),
            (X509Key::EcdsaP256, None) => Ok(Key::Ours(Algorithm::EcdsaP256)),
            (X509Key::Ed25519, None) => Ok(Key::Ours(Algorithm::Ed25519)),
        }
    }

    fn params(&self, request: &IssueRequest<'_>) -> Result<CertificateParams, String> {
        let render = |name: &Name| name.render(&request.credential.name, request.evidence);
        let unfit = |error: rcgen::Error| error.to_string();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let lease = request.lease.as_str().try_into().map_err(unfit)?;
        let subject = &mut params.distinguished_name;
        subject.push(
            DnType::CustomDnType(LEASE.to_vec()),
            DnValue::PrintableString(lease),
        );
        if let Some(name) = &self.common_name {
            subject.push(DnType::CommonName, render(name)?);
        }
        if let Some(id) = &self.spiffe_id {
            let id = render(id)?.try_into().map_err(unfit)?;
            params.subject_alt_names.push(SanType::URI(id));
        }
        for name in &self.dns_names {
            let name = render(name)?.try_into().map_err(unfit)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usage = |usage: &X509Usage| match usage {
            X509Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            X509Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        };
        params.extended_key_usages = self.usage.iter().map(usage).collect();
        params.use_authority_key_identifier_extension = true;
        params.not_before = date(request.now.saturating_sub(BEFORE));
        // A certificate is good through its last second (RFC 5280, section 4.1.2.5), and must not
        // outlive its lease.
        params.not_after = date(request.expires_at().saturating_sub(1000));
        Ok(params)
    }
}

impl Engine for X509 {
    fn check(&self, credential: &CredentialConfig) -> Result<(), String> {
        Wanted::read(credential).map(|_| ())
    }

    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued> {
        Box::pin(self.make(request, None))
    }

    fn certify<'a>(&'a self, request: IssueRequest<'a>, csr: &'a str) -> Answer<'a, Issued> {
        Box::pin(self.make(request, Some(csr)))
    }

    /// Gives the very certificate that the lease holds, with the roots of today.
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
            let authorities = self.authority.current();
            issued(own, &authorities, lease.expires_at, sealed.clone())
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
