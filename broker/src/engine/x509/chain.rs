//! A root and the intermediate that signs for it.
//!
//! The root certifies intermediates and nothing else; who verifies knows only roots. A new intermediate
//! needs no overlap: each leaf comes with the one that signed it.

use crate::engine::authority::{AuthorityError, Generation, Schedule, put, take};
use crate::engine::pair::{Pair, pem};
use crate::engine::revocation::{List, serial as serial_of};
use crate::seal::random;
use crate::store::Revoked;
use mayfly_wire::admin::EngineKind;
use mayfly_wire::audit::hex;
use mayfly_wire::{LeaseId, Secret};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
    RevokedCertParams, SerialNumber,
};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use time::OffsetDateTime;

const DAY: u64 = 24 * 60 * 60 * 1000;
/// How long an intermediate signs, in milliseconds.
const INTERMEDIATE_SIGNS: u64 = 30 * DAY;
/// How long a root is good after its successor signs: longer than an intermediate signs and the longest
/// certificate lives.
const ROOT_STAYS: u64 = 365 * DAY;
/// Clocks differ: an authority is good from a little before it is made.
const BEFORE: u64 = 5 * 60 * 1000;
/// How long a list of what was revoked is good, in milliseconds: who verifies fetches another before.
const LIST_LASTS: u64 = DAY;

/// A certificate and its key.
struct Certified {
    certificate: Vec<u8>,
    pair: Pair,
}

/// A root and its intermediate. ECDSA P-256.
pub(super) struct Chain {
    signs_from: u64,
    /// When the root ends.
    ends: u64,
    root: Certified,
    /// When the intermediate was made, and when it ends.
    made: u64,
    until: u64,
    intermediate: Certified,
    /// The intermediates before, while what they signed may be good: only they can say what of that was
    /// revoked.
    before: Vec<Arc<Former>>,
}

/// An intermediate that another took the place of.
struct Former {
    /// It signed nothing after that.
    signed_until: u64,
    /// When it ends.
    until: u64,
    certified: Certified,
}

impl Certified {
    fn again(&self) -> Result<Self, AuthorityError> {
        Ok(Self {
            certificate: self.certificate.clone(),
            pair: Pair::read(self.pair.pkcs8(), &PKCS_ECDSA_P256_SHA256)?,
        })
    }

    fn import(bytes: &mut &[u8]) -> Result<Self, AuthorityError> {
        let certificate = take(bytes)?.to_vec();
        let pair = Pair::read(take(bytes)?, &PKCS_ECDSA_P256_SHA256)?;
        Ok(Self { certificate, pair })
    }
}

impl Chain {
    /// The root's certificate, DER.
    pub(super) fn root(&self) -> &[u8] {
        &self.root.certificate
    }

    /// The intermediate's certificate, DER.
    pub(super) fn intermediate(&self) -> &[u8] {
        &self.intermediate.certificate
    }

    /// What signs leaves.
    pub(super) fn issuer(&self) -> Issuer<'static, &Pair> {
        issuer(INTERMEDIATE, &self.intermediate.pair, 0)
    }

    fn intermediate_of(
        root: &Certified,
        now: u64,
        until: u64,
    ) -> Result<Certified, AuthorityError> {
        let pair = Pair::generate(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = authority(INTERMEDIATE, &pair, 0);
        lives(&mut params, now, until)?;
        params.use_authority_key_identifier_extension = true;
        let issuer = issuer(ROOT, &root.pair, 1);
        let certificate = params.signed_by(&pair, &issuer)?.der().to_vec();
        Ok(Certified { certificate, pair })
    }
}

impl Generation for Chain {
    const META: &'static str = "x509-authority";
    const ENGINE: EngineKind = EngineKind::X509;

    fn make(now: u64, signs_from: u64, schedule: Schedule) -> Result<Self, AuthorityError> {
        let ends = signs_from
            .saturating_add(schedule.rotate_every)
            .saturating_add(ROOT_STAYS);
        let pair = Pair::generate(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = authority(ROOT, &pair, 1);
        lives(&mut params, now, ends)?;
        let certificate = params.self_signed(&pair)?.der().to_vec();
        let root = Certified { certificate, pair };
        let until = end_of_intermediate(signs_from, 0, ends);
        Ok(Self {
            intermediate: Self::intermediate_of(&root, now, until)?,
            signs_from,
            ends,
            root,
            made: signs_from,
            until,
            before: Vec::new(),
        })
    }

    fn signs_from(&self) -> u64 {
        self.signs_from
    }

    fn ends(&self) -> u64 {
        self.ends
    }

    fn freshened(&self, now: u64, longest_ttl: u64) -> Result<Option<Self>, AuthorityError> {
        let until = end_of_intermediate(now, longest_ttl, self.ends);
        let is_short = self.until < now.saturating_add(longest_ttl).saturating_add(DAY);
        let is_old = self.made.saturating_add(INTERMEDIATE_SIGNS) <= now;
        if !(is_old || is_short) || until <= self.until {
            return Ok(None);
        }
        let root = self.root.again()?;
        let mut before = self.before.clone();
        before.push(Arc::new(Former {
            signed_until: now,
            until: self.until,
            certified: self.intermediate.again()?,
        }));
        before.retain(|former| former.until > now);
        Ok(Some(Self {
            intermediate: Self::intermediate_of(&root, now, until)?,
            signs_from: self.signs_from,
            ends: self.ends,
            root,
            made: now.max(self.signs_from),
            until,
            before,
        }))
    }

    /// As `openssl x509 -fingerprint -sha256` tells that of the root.
    fn fingerprints(&self) -> Vec<String> {
        let digest = Sha256::digest(&self.root.certificate);
        let bytes: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        vec![bytes.join(":")]
    }

    fn files(all: &[Arc<Self>]) -> BTreeMap<&'static str, String> {
        let bundle = super::bundle(all);
        let text = String::from_utf8_lossy(bundle.expose()).into_owned();
        BTreeMap::from([(super::FIELDS[2], text)])
    }

    /// PEM, one list after the other. Roots have empty ones: there are verifiers that want a list of
    /// every authority in a chain.
    fn list(all: &[Arc<Self>], list: &List<'_>) -> Result<Vec<u8>, AuthorityError> {
        let mut lists = Vec::new();
        let mut put = |issuer, revoked| {
            let list = signed_list(&issuer, list, revoked)?;
            lists.extend_from_slice(pem("X509 CRL", &list, 64).expose());
            Ok::<_, AuthorityError>(())
        };
        for chain in all {
            put(issuer(ROOT, &chain.root.pair, 1), Vec::new())?;
            let every = list.revoked.iter();
            put(chain.issuer(), every.clone().map(entry).collect())?;
            for former in &chain.before {
                // A number is nobody else's, so that one too many does no harm.
                let latest = former.signed_until.saturating_add(DAY);
                let its = every.clone().filter(|one| one.issued_at <= latest);
                let pair = &former.certified.pair;
                put(issuer(INTERMEDIATE, pair, 0), its.map(entry).collect())?;
            }
        }
        Ok(lists)
    }

    /// Four times (8 bytes each), then certificate and key of the root and of the intermediate; then, for
    /// each intermediate before, two times, its certificate and its key.
    fn export(&self) -> Secret {
        let times = self.before.iter();
        let times = times.map(|former| [former.signed_until, former.until].map(u64::to_be_bytes));
        let times: Vec<[[u8; 8]; 2]> = times.collect();
        let mut parts = vec![
            self.root.certificate.as_slice(),
            self.root.pair.pkcs8(),
            &self.intermediate.certificate,
            self.intermediate.pair.pkcs8(),
        ];
        for (former, times) in self.before.iter().zip(&times) {
            let [signed_until, until] = times;
            let Certified { certificate, pair } = &former.certified;
            parts.extend([signed_until.as_slice(), until, certificate, pair.pkcs8()]);
        }
        let length: usize = parts.iter().map(|part| 4 + part.len()).sum();
        let mut bytes = Vec::with_capacity(4 * 8 + length);
        for time in [self.signs_from, self.ends, self.made, self.until] {
            bytes.extend_from_slice(&time.to_be_bytes());
        }
        for part in parts {
            put(&mut bytes, part);
        }
        Secret::from(bytes)
    }

    fn import(mut bytes: &[u8]) -> Result<Self, AuthorityError> {
        let mut times = [0; 4];
        for time in &mut times {
            let split = bytes.split_first_chunk().ok_or(AuthorityError::Stored)?;
            *time = u64::from_be_bytes(*split.0);
            bytes = split.1;
        }
        let [signs_from, ends, made, until] = times;
        let root = Certified::import(&mut bytes)?;
        let intermediate = Certified::import(&mut bytes)?;
        let mut before = Vec::new();
        while !bytes.is_empty() {
            before.push(Arc::new(Former {
                signed_until: time(&mut bytes)?,
                until: time(&mut bytes)?,
                certified: Certified::import(&mut bytes)?,
            }));
        }
        Ok(Self {
            signs_from,
            ends,
            root,
            made,
            until,
            intermediate,
            before,
        })
    }
}

const ROOT: &str = "Mayfly root";
const INTERMEDIATE: &str = "Mayfly issuing authority";

/// It outlives what it signs by a day, and not its root.
fn end_of_intermediate(from: u64, longest_ttl: u64, root_ends: u64) -> u64 {
    let signs = from.saturating_add(INTERMEDIATE_SIGNS);
    let lives = longest_ttl.max(INTERMEDIATE_SIGNS).saturating_add(DAY);
    signs.saturating_add(lives).min(root_ends)
}

/// An authority with at most `below` authorities under it. Each has a name of its own, so that two are
/// not mistaken for each other.
fn authority(name: &str, pair: &Pair, below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    let digest = hex(&Sha256::digest(pair.der_bytes()));
    let short = digest.get(..8).unwrap_or_default();
    params.distinguished_name = DistinguishedName::new();
    let names = &mut params.distinguished_name;
    names.push(DnType::CommonName, format!("{name} {short}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn time(bytes: &mut &[u8]) -> Result<u64, AuthorityError> {
    let time = take(bytes)?
        .try_into()
        .map_err(|_| AuthorityError::Stored)?;
    Ok(u64::from_be_bytes(time))
}

fn issuer<'a>(name: &str, pair: &'a Pair, below: u8) -> Issuer<'static, &'a Pair> {
    Issuer::new(authority(name, pair, below), pair)
}

/// That of a lease's certificate.
pub(super) fn serial(lease: &LeaseId) -> SerialNumber {
    number(serial_of(lease))
}

/// 126 bits, positive and of one length (RFC 5280, section 4.1.2.2).
fn number(mut bytes: [u8; 16]) -> SerialNumber {
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn entry(revoked: &Revoked) -> RevokedCertParams {
    RevokedCertParams {
        serial_number: serial(&revoked.lease),
        revocation_time: date(revoked.listed_at),
        reason_code: None,
        invalidity_date: None,
    }
}

/// DER (RFC 5280, section 5).
fn signed_list(
    issuer: &Issuer<'_, &Pair>,
    list: &List<'_>,
    revoked_certs: Vec<RevokedCertParams>,
) -> Result<Vec<u8>, AuthorityError> {
    let params = CertificateRevocationListParams {
        this_update: date(list.now.saturating_sub(BEFORE)),
        next_update: date(list.now.saturating_add(LIST_LASTS)),
        crl_number: SerialNumber::from(list.number),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(issuer)?.der().to_vec())
}

/// From milliseconds since the Unix epoch, rounded down.
pub(super) fn date(ms: u64) -> OffsetDateTime {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    // Beyond the year 9999 no certificate can say when (RFC 5280, section 4.1.2.5).
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn lives(params: &mut CertificateParams, from: u64, until: u64) -> Result<(), AuthorityError> {
    params.serial_number = Some(number(random()?));
    params.not_before = date(from.saturating_sub(BEFORE));
    params.not_after = date(until);
    Ok(())
}
