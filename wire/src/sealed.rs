//! Field values sealed to one sidecar: HPKE (RFC 9180) in base mode, DHKEM(X25519, HKDF-SHA256),
//! HKDF-SHA256, AES-256-GCM.
//!
//! One encapsulation serves one bundle; its values are sealed in the order in which they stand in it,
//! so a value that is moved, dropped or repeated does not open. Workload and generation are bound
//! through `info`, lease and field through the associated data.

use crate::bytes::Base64;
use crate::name::FieldName;
use crate::secret::Secret;
use crate::workload::{LeaseId, WorkloadKey};
use hpke::aead::{AeadCtxR, AeadCtxS, AesGcm256};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _};
use serde::{Deserialize, Serialize};

type Kem = X25519HkdfSha256;

/// What can go wrong when sealing or opening.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealError {
    /// The public key or the encapsulated key is not a valid X25519 point.
    #[error("expected a 32-byte X25519 public key (RFC 9180)")]
    BadKey,
    /// The value was sealed to another key, or for another workload, generation, lease or field, or
    /// was changed on the way.
    #[error("a sealed value does not open: it is not for this session, or was changed on the way")]
    DoesNotOpen,
    /// More than 2^64 values in one bundle, or a value beyond what AES-GCM can seal.
    #[error("a value cannot be sealed")]
    CannotSeal,
}

/// The public key that a sidecar made for one session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(Base64);

/// The private half. It never leaves the sidecar's memory, and is zeroed when dropped.
pub struct PrivateKey(<Kem as hpke::Kem>::PrivateKey);

/// Makes the key pair of one session, from the system's random source.
#[must_use]
pub fn generate() -> (PrivateKey, PublicKey) {
    let (private, public) = Kem::gen_keypair();
    (
        PrivateKey(private),
        PublicKey(Base64(public.to_bytes().to_vec())),
    )
}

fn info(workload: &WorkloadKey, generation: u64) -> Vec<u8> {
    format!("mayfly bundle 1\n{workload}\n{generation}").into_bytes()
}

fn associated(lease: &LeaseId, field: &FieldName) -> Vec<u8> {
    format!("{lease}\n{field}").into_bytes()
}

/// Seals the values of one bundle, in order.
pub struct Sealer(AeadCtxS<AesGcm256, HkdfSha256, Kem>);

impl Sealer {
    /// Begins a bundle; also returns the encapsulated key that the bundle carries.
    ///
    /// # Errors
    /// [`SealError::BadKey`].
    pub fn new(
        to: &PublicKey,
        workload: &WorkloadKey,
        generation: u64,
    ) -> Result<(Self, Base64), SealError> {
        let key =
            <Kem as hpke::Kem>::PublicKey::from_bytes(&to.0.0).map_err(|_| SealError::BadKey)?;
        let (encapsulated, context) = hpke::setup_sender::<AesGcm256, HkdfSha256, Kem>(
            &OpModeS::Base,
            &key,
            &info(workload, generation),
        )
        .map_err(|_| SealError::BadKey)?;
        Ok((Self(context), Base64(encapsulated.to_bytes().to_vec())))
    }

    /// Seals the next value.
    ///
    /// # Errors
    /// [`SealError::CannotSeal`].
    pub fn seal(
        &mut self,
        lease: &LeaseId,
        field: &FieldName,
        value: &Secret,
    ) -> Result<Base64, SealError> {
        let sealed = self.0.seal(value.expose(), &associated(lease, field));
        sealed.map(Base64).map_err(|_| SealError::CannotSeal)
    }
}

/// Opens the values of one bundle, in the order in which they stand in it.
pub struct Opener(AeadCtxR<AesGcm256, HkdfSha256, Kem>);

impl Opener {
    /// Begins a bundle that carries `encapsulated`.
    ///
    /// # Errors
    /// [`SealError::BadKey`].
    pub fn new(
        key: &PrivateKey,
        encapsulated: &Base64,
        workload: &WorkloadKey,
        generation: u64,
    ) -> Result<Self, SealError> {
        let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(&encapsulated.0)
            .map_err(|_| SealError::BadKey)?;
        let context = hpke::setup_receiver::<AesGcm256, HkdfSha256, Kem>(
            &OpModeR::Base,
            &key.0,
            &encapsulated,
            &info(workload, generation),
        )
        .map_err(|_| SealError::BadKey)?;
        Ok(Self(context))
    }

    /// Opens the next value.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`].
    pub fn open(
        &mut self,
        lease: &LeaseId,
        field: &FieldName,
        sealed: &Base64,
    ) -> Result<Secret, SealError> {
        let opened = self.0.open(&sealed.0, &associated(lease, field));
        opened.map(Secret::from).map_err(|_| SealError::DoesNotOpen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(cgroup_id: u64) -> WorkloadKey {
        WorkloadKey {
            boot_id: "b".into(),
            cgroup_id,
            pidns_id: 2,
        }
    }

    #[test]
    fn opens_only_as_it_was_sealed() {
        let (private, public) = generate();
        let (lease, field) = (LeaseId::from_random([7; 16]), "password".parse().unwrap());
        let seal = |generation| {
            let (mut sealer, encapsulated) =
                Sealer::new(&public, &workload(1), generation).unwrap();
            let sealed = sealer
                .seal(&lease, &field, &Secret::from(b"hunter2".to_vec()))
                .unwrap();
            (encapsulated, sealed)
        };
        let (encapsulated, sealed) = seal(3);
        let open =
            |key: &PrivateKey, workload: &WorkloadKey, generation, lease: &LeaseId, sealed| {
                Opener::new(key, &encapsulated, workload, generation)
                    .and_then(|mut opener| opener.open(lease, &field, sealed))
                    .map(|secret| secret.expose().to_vec())
            };
        assert_eq!(
            open(&private, &workload(1), 3, &lease, &sealed).unwrap(),
            b"hunter2"
        );

        let other_lease = LeaseId::from_random([8; 16]);
        let mut flipped = sealed.clone();
        flipped.0[0] ^= 1;
        for result in [
            open(&generate().0, &workload(1), 3, &lease, &sealed),
            open(&private, &workload(9), 3, &lease, &sealed),
            open(&private, &workload(1), 4, &lease, &sealed),
            open(&private, &workload(1), 3, &other_lease, &sealed),
            open(&private, &workload(1), 3, &lease, &flipped),
            open(&private, &workload(1), 3, &lease, &Base64(vec![])),
        ] {
            assert_eq!(result, Err(SealError::DoesNotOpen));
        }
    }

    #[test]
    fn a_bad_public_key_is_refused() {
        let short = PublicKey(Base64(vec![1; 31]));
        assert!(matches!(
            Sealer::new(&short, &workload(1), 1),
            Err(SealError::BadKey)
        ));
        let zero = PublicKey(Base64(vec![0; 32]));
        assert!(matches!(
            Sealer::new(&zero, &workload(1), 1),
            Err(SealError::BadKey)
        ));
    }
}
