//! The signing keys of the `jwt` engine, and when each signs.
//!
//! A key is published before it signs, and stays published until the last token that it signed has
//! expired. Both follow from when keys sign, so that is all that is kept.

use crate::seal::SealError;
use jsonwebtoken::EncodingKey;
use mayfly_wire::Secret;
use mayfly_wire::admin::JwtAlgorithm;
use mayfly_wire::bytes::encode;
use rcgen::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The algorithms, each with keys of its own.
pub(super) const ALGORITHMS: [JwtAlgorithm; 2] = [JwtAlgorithm::EdDsa, JwtAlgorithm::Es256];

/// How keys change. All in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// How long a key signs.
    pub rotate_every: u64,
    /// How long it is published before it signs: longer than anybody may cache the key set.
    pub publish_ahead: u64,
}

impl Default for Schedule {
    /// Seven days, and one day.
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60 * 1000;
        Self {
            rotate_every: 7 * DAY,
            publish_ahead: DAY,
        }
    }
}

/// One signing key.
pub(super) struct SigningKey {
    pub(super) algorithm: JwtAlgorithm,
    /// It signs from then on: milliseconds since the Unix epoch.
    pub(super) signs_from: u64,
    /// RFC 7638 thumbprint.
    pub(super) kid: String,
    pub(super) private: EncodingKey,
    /// RFC 7517.
    public: Value,
    pkcs8: Secret,
}

/// All signing keys.
#[derive(Default)]
pub(super) struct Ring {
    pub(super) keys: Vec<SigningKey>,
    /// The longest that a token signed with any of them lives, in milliseconds.
    pub(super) longest_ttl: u64,
}

impl SigningKey {
    fn generate(algorithm: JwtAlgorithm, signs_from: u64) -> Result<Self, RingError> {
        let kind = match algorithm {
            JwtAlgorithm::EdDsa => &rcgen::PKCS_ED25519,
            JwtAlgorithm::Es256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        };
        let pair = KeyPair::generate_for(kind).map_err(RingError::Key)?;
        Ok(Self::new(algorithm, signs_from, &pair))
    }

    fn new(algorithm: JwtAlgorithm, signs_from: u64, pair: &KeyPair) -> Self {
        let pkcs8 = Secret::from(pair.serialized_der().to_vec());
        let raw = pair.public_key_raw();
        let (private, members, canonical) = match algorithm {
            JwtAlgorithm::EdDsa => {
                let x = encode(raw);
                (
                    EncodingKey::from_ed_der(pkcs8.expose()),
                    json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": x}),
                    format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#),
                )
            }
            JwtAlgorithm::Es256 => {
                // SEC 1, uncompressed: 4, x, y.
                let point = raw.get(1..).unwrap_or_default();
                let (x, y) = point.split_at(point.len() / 2);
                let (x, y) = (encode(x), encode(y));
                (
                    EncodingKey::from_ec_der(pkcs8.expose()),
                    json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y}),
                    format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#),
                )
            }
        };
        let kid = encode(&Sha256::digest(canonical));
        let mut public = members;
        public["kid"] = json!(kid);
        public["use"] = json!("sig");
        Self {
            algorithm,
            signs_from,
            kid,
            private,
            public,
            pkcs8,
        }
    }

    fn copy(&self) -> Result<Self, RingError> {
        Self::read(self.algorithm, self.signs_from, self.pkcs8.expose())
    }

    fn read(algorithm: JwtAlgorithm, signs_from: u64, pkcs8: &[u8]) -> Result<Self, RingError> {
        let pair = KeyPair::try_from(pkcs8).map_err(RingError::Key)?;
        Ok(Self::new(algorithm, signs_from, &pair))
    }
}

/// What can go wrong with keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum RingError {
    #[error("a signing key cannot be made or read: {0}")]
    Key(rcgen::Error),
    #[error("the stored signing keys are not valid")]
    Stored,
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl Ring {
    /// What the ring must become at `now`, or nothing if it is right as it is.
    pub(super) fn next(
        &self,
        now: u64,
        schedule: Schedule,
        longest_ttl: u64,
    ) -> Result<Option<Self>, RingError> {
        let longest_ttl = longest_ttl.max(self.longest_ttl);
        let mut changed = longest_ttl != self.longest_ttl;
        let mut keys = Vec::new();
        for algorithm in ALGORITHMS {
            let mut own: Vec<&SigningKey> = self.of(algorithm).collect();
            own.sort_by_key(|key| key.signs_from);
            for (index, key) in own.iter().enumerate() {
                let over = own
                    .get(index + 1)
                    .is_some_and(|after| after.signs_from.saturating_add(longest_ttl) <= now);
                if over {
                    changed = true;
                } else {
                    keys.push(key.copy()?);
                }
            }
            let from = match own.last() {
                None => Some(now),
                Some(last) => {
                    let due = last.signs_from.saturating_add(schedule.rotate_every);
                    (due <= now.saturating_add(schedule.publish_ahead))
                        .then(|| due.max(now.saturating_add(schedule.publish_ahead)))
                }
            };
            if let Some(from) = from {
                changed = true;
                keys.push(SigningKey::generate(algorithm, from)?);
            }
        }
        Ok(changed.then_some(Self { keys, longest_ttl }))
    }

    fn of(&self, algorithm: JwtAlgorithm) -> impl Iterator<Item = &SigningKey> {
        self.keys
            .iter()
            .filter(move |key| key.algorithm == algorithm)
    }

    /// The key that signs at `now`: the newest whose time has come.
    pub(super) fn signer(&self, algorithm: JwtAlgorithm, now: u64) -> Option<&SigningKey> {
        // A clock that was set back must not leave nobody to sign.
        let due = self.of(algorithm).filter(|key| key.signs_from <= now);
        due.max_by_key(|key| key.signs_from)
            .or_else(|| self.of(algorithm).min_by_key(|key| key.signs_from))
    }

    /// RFC 7517, section 5.
    pub(super) fn key_set(&self) -> String {
        let keys: Vec<&Value> = self.keys.iter().map(|key| &key.public).collect();
        json!({ "keys": keys }).to_string()
    }

    /// All of it as bytes, to be sealed: the longest time to live, then for each key its algorithm (1
    /// byte), when it signs (8), the length of its PKCS#8 form (4), and that.
    pub(super) fn export(&self) -> Secret {
        let length = self
            .keys
            .iter()
            .map(|key| 13 + key.pkcs8.len())
            .sum::<usize>();
        let mut bytes = Vec::with_capacity(8 + length);
        bytes.extend_from_slice(&self.longest_ttl.to_be_bytes());
        for key in &self.keys {
            bytes.push(match key.algorithm {
                JwtAlgorithm::EdDsa => 1,
                JwtAlgorithm::Es256 => 2,
            });
            bytes.extend_from_slice(&key.signs_from.to_be_bytes());
            let length = u32::try_from(key.pkcs8.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(key.pkcs8.expose());
        }
        Secret::from(bytes)
    }

    pub(super) fn import(bytes: &Secret) -> Result<Self, RingError> {
        let stored = || RingError::Stored;
        let (longest_ttl, mut rest) = bytes.expose().split_first_chunk().ok_or_else(stored)?;
        let mut keys = Vec::new();
        while let Some((algorithm, after)) = rest.split_first() {
            let algorithm = match algorithm {
                1 => JwtAlgorithm::EdDsa,
                2 => JwtAlgorithm::Es256,
                _ => return Err(stored()),
            };
            let (from, after) = after.split_first_chunk::<8>().ok_or_else(stored)?;
            let (length, after) = after.split_first_chunk::<4>().ok_or_else(stored)?;
            let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| stored())?;
            let (pkcs8, after) = after.split_at_checked(length).ok_or_else(stored)?;
            keys.push(SigningKey::read(
                algorithm,
                u64::from_be_bytes(*from),
                pkcs8,
            )?);
            rest = after;
        }
        Ok(Self {
            keys,
            longest_ttl: u64::from_be_bytes(*longest_ttl),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        rotate_every: 1000,
        publish_ahead: 100,
    };

    fn kids(ring: &Ring) -> Vec<&str> {
        let own = ring.of(JwtAlgorithm::EdDsa);
        own.map(|key| key.kid.as_str()).collect()
    }

    #[test]
    fn keys_are_published_before_they_sign_and_until_their_tokens_expire() {
        let first = Ring::default().next(0, SCHEDULE, 300).unwrap().unwrap();
        let old = first.signer(JwtAlgorithm::EdDsa, 0).unwrap().kid.clone();
        assert!(first.next(899, SCHEDULE, 300).unwrap().is_none());

        let both = first.next(900, SCHEDULE, 300).unwrap().unwrap();
        assert_eq!(kids(&both).len(), 2);
        assert_eq!(both.signer(JwtAlgorithm::EdDsa, 999).unwrap().kid, old);
        let new = both.signer(JwtAlgorithm::EdDsa, 1000).unwrap().kid.clone();
        assert_ne!(new, old);
        // A token signed at 999 lives until 1299.
        assert!(both.next(1299, SCHEDULE, 300).unwrap().is_none());
        let after = both.next(1300, SCHEDULE, 300).unwrap().unwrap();
        assert_eq!(kids(&after), [new]);
        assert!(both.key_set().contains(&old) && !after.key_set().contains(&old));
    }

    #[test]
    fn after_a_long_stop_the_next_key_is_still_published_ahead() {
        let first = Ring::default().next(0, SCHEDULE, 0).unwrap().unwrap();
        let next = first.next(50_000, SCHEDULE, 0).unwrap().unwrap();
        let old = first
            .signer(JwtAlgorithm::Es256, 50_000)
            .unwrap()
            .kid
            .clone();
        assert_eq!(next.signer(JwtAlgorithm::Es256, 50_099).unwrap().kid, old);
        assert_ne!(next.signer(JwtAlgorithm::Es256, 50_100).unwrap().kid, old);
    }

    #[test]
    fn survives_export() {
        let ring = Ring::default().next(7, SCHEDULE, 5).unwrap().unwrap();
        let again = Ring::import(&ring.export()).unwrap();
        assert_eq!(again.key_set(), ring.key_set());
        assert_eq!(again.longest_ttl, 5);
        let bytes = ring.export();
        for length in [0, 7, 9, 20, bytes.len() - 1] {
            let cut = Secret::from(bytes.expose()[..length].to_vec());
            assert!(Ring::import(&cut).is_err(), "{length}");
        }
        assert!(!ring.key_set().contains("\"d\""));
    }
}
