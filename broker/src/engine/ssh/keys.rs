//! The authority's keys: one certifies users, the other hosts.

use super::format::public_key;
use crate::engine::authority::{AuthorityError, Generation, Schedule};
use crate::engine::pair::{ED25519, Pair};
use crate::engine::revocation::List;
use crate::seal::random;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD as STANDARD_NO_PAD;
use mayfly_wire::Secret;
use mayfly_wire::admin::{EngineKind, SshKind};
use rcgen::PublicKeyData as _;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

/// A key pair with the seed that it is made from.
pub(super) struct Seeded {
    pub(super) seed: Zeroizing<[u8; ED25519]>,
    pub(super) pair: Pair,
}

impl Seeded {
    pub(super) fn generate() -> Result<Self, AuthorityError> {
        Self::of(Zeroizing::new(random()?))
    }

    fn of(seed: Zeroizing<[u8; ED25519]>) -> Result<Self, AuthorityError> {
        let pair = Pair::from_seed(&seed)?;
        Ok(Self { seed, pair })
    }
}

/// Both keys.
pub(super) struct Keys {
    signs_from: u64,
    user: Seeded,
    host: Seeded,
}

impl Keys {
    pub(super) fn of(&self, kind: SshKind) -> &Pair {
        match kind {
            SshKind::User => &self.user.pair,
            SshKind::Host => &self.host.pair,
        }
    }
}

impl Generation for Keys {
    const META: &'static str = "ssh-authority";
    const ENGINE: EngineKind = EngineKind::Ssh;

    fn make(_now: u64, signs_from: u64, _schedule: Schedule) -> Result<Self, AuthorityError> {
        Ok(Self {
            signs_from,
            user: Seeded::generate()?,
            host: Seeded::generate()?,
        })
    }

    fn signs_from(&self) -> u64 {
        self.signs_from
    }

    /// A key says nothing of its end.
    fn ends(&self) -> u64 {
        u64::MAX
    }

    /// As `ssh-keygen -l` tells them, and whom each certifies.
    fn fingerprints(&self) -> Vec<String> {
        let both = [("users", SshKind::User), ("hosts", SshKind::Host)];
        let told = both.map(|(whom, kind)| {
            let digest = Sha256::digest(public_key(self.of(kind).der_bytes()));
            format!("SHA256:{} ({whom})", STANDARD_NO_PAD.encode(digest))
        });
        told.into()
    }

    fn files(all: &[Arc<Self>]) -> BTreeMap<&'static str, String> {
        let files = super::FILES.into_iter();
        files
            .map(|(name, kind)| (name, super::authorities(all, kind)))
            .collect()
    }

    /// The serial numbers are each for one certificate, so that all stand in the section of every key:
    /// of both kinds, and of those before.
    fn list(all: &[Arc<Self>], list: &List<'_>) -> Result<Vec<u8>, AuthorityError> {
        let keys = all.iter().flat_map(|keys| [&keys.user, &keys.host]);
        let keys: Vec<&[u8]> = keys.map(|one| one.pair.der_bytes()).collect();
        let serials = list.revoked.iter().map(|one| super::serial(&one.lease));
        let serials: Vec<u64> = serials.collect();
        Ok(super::krl::list(
            list.number,
            list.now / 1000,
            &keys,
            &serials,
        ))
    }

    /// From when they sign (8 bytes), and the seeds.
    fn export(&self) -> Secret {
        let mut bytes = Vec::with_capacity(8 + 2 * ED25519);
        bytes.extend_from_slice(&self.signs_from.to_be_bytes());
        bytes.extend_from_slice(self.user.seed.as_slice());
        bytes.extend_from_slice(self.host.seed.as_slice());
        Secret::from(bytes)
    }

    fn import(bytes: &[u8]) -> Result<Self, AuthorityError> {
        let stored = || AuthorityError::Stored;
        let (signs_from, rest) = bytes.split_first_chunk().ok_or_else(stored)?;
        let (user, host) = rest.split_first_chunk().ok_or_else(stored)?;
        let host = <&[u8; ED25519]>::try_from(host).map_err(|_| stored())?;
        Ok(Self {
            signs_from: u64::from_be_bytes(*signs_from),
            user: Seeded::of(Zeroizing::new(*user))?,
            host: Seeded::of(Zeroizing::new(*host))?,
        })
    }
}
