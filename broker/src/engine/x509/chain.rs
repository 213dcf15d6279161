//! A root and the intermediate that signs for it.
//!
//! The root certifies intermediates and nothing else; who verifies knows only roots. A new intermediate
//! needs no overlap: each leaf comes with the one that signed it.

use crate::engine::authority::{AuthorityError, Generation, Schedule, put, take};
use crate::engine::pair::Pair;
use crate::seal::random;
use mayfly_wire::Secret;
use mayfly_wire::admin::EngineKind;
use mayfly_wire::audit::hex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber,
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
        let pair = &self.intermediate.pair;
        Issuer::new(authority(INTERMEDIATE, pair, 0), pair)
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
        let issuer = Issuer::new(authority(ROOT, &root.pair, 1), &root.pair);
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
        let pair = Pair::read(self.root.pair.pkcs8(), &PKCS_ECDSA_P256_SHA256)?;
        let root = Certified {
            certificate: self.root.certificate.clone(),
            pair,
        };
        Ok(Some(Self {
            intermediate: Self::intermediate_of(&root, now, until)?,
            signs_from: self.signs_from,
            ends: self.ends,
            root,
            made: now.max(self.signs_from),
            until,
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

    /// Four times (8 bytes each), then certificate and key of the root and of the intermediate.
    fn export(&self) -> Secret {
        let parts = [
            self.root.certificate.as_slice(),
            self.root.pair.pkcs8(),
            &self.intermediate.certificate,
            self.intermediate.pair.pkcs8(),
        ];
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
        let mut certified = || {
            let certificate = take(&mut bytes)?.to_vec();
            let pair = Pair::read(take(&mut bytes)?, &PKCS_ECDSA_P256_SHA256)?;
            Ok::<_, AuthorityError>(Certified { certificate, pair })
        };
        let [signs_from, ends, made, until] = times;
        Ok(Self {
            signs_from,
            ends,
            root: certified()?,
            made,
            until,
            intermediate: certified()?,
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
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Random: 127 bits, positive and of one length (RFC 5280, section 4.1.2.2).
pub(super) fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes: [u8; 16] = random()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// From milliseconds since the Unix epoch, rounded down.
pub(super) fn date(ms: u64) -> OffsetDateTime {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    // Beyond the year 9999 no certificate can say when (RFC 5280, section 4.1.2.5).
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn lives(params: &mut CertificateParams, from: u64, until: u64) -> Result<(), AuthorityError> {
    params.serial_number = Some(serial()?);
    params.not_before = date(from.saturating_sub(BEFORE));
    params.not_after = date(until);
    Ok(())
}
