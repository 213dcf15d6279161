//! Values at rest: AES-256-GCM under a key of their own, derived by HKDF-SHA-256 (RFC 5869) from a root
//! key and a random salt, and bound to the place where they stand.
//!
//! A sealed record is `format (1 byte, 1) ‖ root key id (4, big endian) ‖ salt (32) ‖ ciphertext ‖ tag
//! (16)`. The nonce is derived together with the key, so neither is ever used twice. The associated data
//! are kind, path, version and root key id, each of fixed length or after its length, so a record that is
//! moved to another row, or to another version, does not open.

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use mayfly_kernel::memory::Region;
use mayfly_wire::Secret;
use sha2::Sha256;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use zeroize::{Zeroize as _, Zeroizing};

const FORMAT: u8 = 1;
const SALT: usize = 32;
const HEADER: usize = 1 + 4 + SALT;
const TAG: usize = 16;
/// Bytes of a root key.
pub const KEY: usize = 32;
/// Bytes of a [`RootKeys::mac`].
pub const MAC: usize = 4 + 32;
/// Most bytes of one value: far above every limit on what comes in.
const MAX_PLAINTEXT: usize = 16 * 1024 * 1024;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It was changed, cut, or moved from another place, or the key is another one.
    #[error(
        "a sealed value does not open where it stands: it was changed, cut, or moved here from \
         another place"
    )]
    DoesNotOpen,
    /// A root key that is not here.
    #[error("a sealed value needs root key {0}, which is not among those unwrapped")]
    UnknownKey(u32),
    /// Beyond the limit on one value.
    #[error("expected a value of at most {MAX_PLAINTEXT} bytes")]
    TooLong,
    /// The system's random source failed.
    #[error("the system's random source failed: {0}")]
    Random(getrandom::Error),
    /// No locked memory for a root key.
    #[error(
        "no locked memory for a root key: {0}; allow at least 1 MiB (LimitMEMLOCK=, ulimit -l)"
    )]
    Memory(std::io::Error),
}

/// The place that a sealed value is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordId<'a> {
    /// What kind of thing it is: `kv`, `lease`, `meta`.
    pub kind: &'static str,
    /// Which one.
    pub path: &'a str,
}

/// Random bytes.
///
/// # Errors
/// [`SealError::Random`].
pub fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(SealError::Random)?;
    Ok(bytes)
}

/// One key and its id, for the time of one call.
pub(crate) struct Sealing<'a> {
    pub(crate) id: u32,
    pub(crate) key: &'a [u8],
}

impl Sealing<'_> {
    fn associated(&self, record: &RecordId<'_>, version: u64) -> Vec<u8> {
        let mut data = Canon::default();
        data.text(record.kind).text(record.path).number(version);
        data.number(u64::from(self.id));
        data.0
    }

    fn cipher(&self, salt: &[u8]) -> Result<(Aes256Gcm, [u8; 12]), SealError> {
        let mut derived = Zeroizing::new([0; KEY + 12]);
        Hkdf::<Sha256>::new(Some(salt), self.key)
            .expand(b"mayfly record 1", derived.as_mut_slice())
            .map_err(|_| SealError::TooLong)?;
        let cipher = Aes256Gcm::new_from_slice(&derived[..KEY]).map_err(|_| SealError::TooLong)?;
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&derived[KEY..]);
        Ok((cipher, nonce))
    }

    pub(crate) fn seal(
        &self,
        record: &RecordId<'_>,
        version: u64,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        if plaintext.len() > MAX_PLAINTEXT {
            return Err(SealError::TooLong);
        }
        let salt: [u8; SALT] = random()?;
        let (cipher, nonce) = self.cipher(&salt)?;
        // All at once, so that the plaintext never stands in a block that a growing vector leaves.
        let mut sealed = Vec::with_capacity(HEADER + plaintext.len() + TAG);
        sealed.push(FORMAT);
        sealed.extend_from_slice(&self.id.to_be_bytes());
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(plaintext);
        let associated = self.associated(record, version);
        let tag = cipher.encrypt_inout_detached(
            &Nonce::from(nonce),
            &associated,
            (&mut sealed[HEADER..]).into(),
        );
        match tag {
            Ok(tag) => sealed.extend_from_slice(&tag),
            Err(_) => {
                sealed.zeroize();
                return Err(SealError::TooLong);
            }
        }
        Ok(sealed)
    }

    pub(crate) fn open(
        &self,
        record: &RecordId<'_>,
        version: u64,
        sealed: &[u8],
    ) -> Result<Secret, SealError> {
        if sealed.len() < HEADER + TAG || sealed.len() > HEADER + MAX_PLAINTEXT + TAG {
            return Err(SealError::DoesNotOpen);
        }
        let (head, tail) = sealed.split_at(HEADER);
        let (ciphertext, tag) = tail.split_at(tail.len() - TAG);
        let (cipher, nonce) = self.cipher(&head[1 + 4..])?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let tag = Tag::try_from(tag).map_err(|_| SealError::DoesNotOpen)?;
        let associated = self.associated(record, version);
        cipher
            .decrypt_inout_detached(
                &Nonce::from(nonce),
                &associated,
                buffer.as_mut_slice().into(),
                &tag,
            )
            .map_err(|_| SealError::DoesNotOpen)?;
        Ok(Secret::from(std::mem::take(&mut *buffer)))
    }
}

/// The format and the root key id that a sealed record names.
pub(crate) fn key_id_of(sealed: &[u8]) -> Result<u32, SealError> {
    match sealed {
        [FORMAT, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(SealError::DoesNotOpen),
    }
}

/// A root key that is not in use yet.
pub struct NextKey {
    id: u32,
    region: Region,
}

/// The root keys: the current one, which seals, and older ones, which still open. They stand in secret
/// memory ([`Region`]) and are zeroed when dropped.
pub struct RootKeys(RwLock<BTreeMap<u32, Region>>);

impl RootKeys {
    /// A first root key, id 1.
    ///
    /// # Errors
    /// [`SealError::Random`], [`SealError::Memory`].
    pub fn generate() -> Result<Self, SealError> {
        let keys = Self(RwLock::default());
        keys.adopt(keys.next()?);
        Ok(keys)
    }

    /// Makes the next root key, which is not used yet: see
    /// [`rotate_root_key`](crate::unseal::rotate_root_key).
    ///
    /// # Errors
    /// [`SealError::Random`], [`SealError::Memory`].
    pub fn next(&self) -> Result<NextKey, SealError> {
        let mut region = Region::new(KEY).map_err(SealError::Memory)?;
        getrandom::fill(region.bytes_mut()).map_err(SealError::Random)?;
        let id = self.current() + 1;
        Ok(NextKey { id, region })
    }

    /// Makes `next` the current key. It must be stored, wrapped, before.
    pub fn adopt(&self, next: NextKey) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.insert(next.id, next.region);
    }

    /// All keys, and `next` too, as bytes to be wrapped: for each, its id (4 bytes) and the key.
    #[must_use]
    pub fn export(&self, next: Option<&NextKey>) -> Secret {
        let keys = self.read();
        let next = next.map(|next| (&next.id, &next.region));
        let mut bytes = Vec::with_capacity((keys.len() + 1) * (4 + KEY));
        for (id, region) in keys.iter().chain(next) {
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(region.bytes());
        }
        Secret::from(bytes)
    }

    /// From what [`Self::export`] gave.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`] if it is something else, [`SealError::Memory`].
    pub fn import(bytes: &Secret) -> Result<Self, SealError> {
        let (entries, rest) = bytes.expose().as_chunks::<{ 4 + KEY }>();
        if entries.is_empty() || !rest.is_empty() {
            return Err(SealError::DoesNotOpen);
        }
        let mut keys = BTreeMap::new();
        for entry in entries {
            let (id, key) = entry.split_at(4);
            let mut region = Region::new(KEY).map_err(SealError::Memory)?;
            region.bytes_mut().copy_from_slice(key);
            let id = u32::from_be_bytes([id[0], id[1], id[2], id[3]]);
            keys.insert(id, region);
        }
        Ok(Self(RwLock::new(keys)))
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Region>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Id of the key that seals.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.read().last_key_value().map_or(0, |(id, _)| *id)
    }

    /// Seals `secret` for one place and version.
    ///
    /// # Errors
    /// [`SealError::TooLong`], [`SealError::Random`].
    pub fn seal(
        &self,
        record: &RecordId<'_>,
        version: u64,
        secret: &Secret,
    ) -> Result<Vec<u8>, SealError> {
        let keys = self.read();
        let (id, region) = keys.last_key_value().ok_or(SealError::UnknownKey(0))?;
        let (id, key) = (*id, region.bytes());
        Sealing { id, key }.seal(record, version, secret.expose())
    }

    /// Opens what was sealed for this place and version.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`], [`SealError::UnknownKey`].
    pub fn open(
        &self,
        record: &RecordId<'_>,
        version: u64,
        sealed: &[u8],
    ) -> Result<Secret, SealError> {
        let id = key_id_of(sealed)?;
        let keys = self.read();
        let key = keys.get(&id).ok_or(SealError::UnknownKey(id))?.bytes();
        Sealing { id, key }.open(record, version, sealed)
    }

    /// HMAC-SHA-256 of `data` under a key derived from the current root key for `purpose`, after that
    /// root key's id.
    ///
    /// # Errors
    /// [`SealError::UnknownKey`] when there is no key at all.
    pub fn mac(&self, purpose: &str, data: &[u8]) -> Result<[u8; MAC], SealError> {
        let id = self.current();
        let key = self.derive(id, purpose)?;
        let mut mac = [0; MAC];
        mac[..4].copy_from_slice(&id.to_be_bytes());
        mac[4..].copy_from_slice(&hmac(key.as_slice(), data)?);
        Ok(mac)
    }

    /// Whether `mac` is what [`Self::mac`] gave for this purpose and data, under any root key. In
    /// constant time.
    #[must_use]
    pub fn mac_holds(&self, purpose: &str, data: &[u8], mac: &[u8]) -> bool {
        let Some((id, tag)) = mac.split_first_chunk::<4>() else {
            return false;
        };
        let Ok(key) = self.derive(u32::from_be_bytes(*id), purpose) else {
            return false;
        };
        hmac_of(key.as_slice(), data).is_ok_and(|hmac| hmac.verify_slice(tag).is_ok())
    }

    /// A key for one purpose, derived from the *first* root key, so that rotating the root key does not
    /// change it.
    ///
    /// # Errors
    /// [`SealError::UnknownKey`] when there is no key at all.
    pub fn lasting_key(&self, purpose: &str) -> Result<Zeroizing<[u8; KEY]>, SealError> {
        let first = self.read().first_key_value().map_or(0, |(id, _)| *id);
        self.derive(first, purpose)
    }

    fn derive(&self, id: u32, purpose: &str) -> Result<Zeroizing<[u8; KEY]>, SealError> {
        let keys = self.read();
        let root = keys.get(&id).ok_or(SealError::UnknownKey(id))?;
        let mut key = Zeroizing::new([0; KEY]);
        Hkdf::<Sha256>::new(Some(b"mayfly purpose 1"), root.bytes())
            .expand(purpose.as_bytes(), key.as_mut_slice())
            .map_err(|_| SealError::TooLong)?;
        Ok(key)
    }
}

fn hmac_of(key: &[u8], data: &[u8]) -> Result<Hmac<Sha256>, SealError> {
    let mut hmac =
        <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key).map_err(|_| SealError::TooLong)?;
    hmac.update(data);
    Ok(hmac)
}

/// HMAC-SHA-256 (RFC 2104).
pub(crate) fn hmac(key: &[u8], data: &[u8]) -> Result<[u8; 32], SealError> {
    Ok(hmac_of(key, data)?.finalize().into_bytes().into())
}

/// Bytes that can be read in one way only: every part of variable length stands after its length.
#[derive(Default)]
pub(crate) struct Canon(pub(crate) Vec<u8>);

impl Canon {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KV: RecordId<'_> = RecordId {
        kind: "kv",
        path: "orders/db",
    };

    fn secret(text: &str) -> Secret {
        Secret::from(text.as_bytes().to_vec())
    }

    #[test]
    fn opens_only_where_it_was_sealed() {
        let keys = RootKeys::generate().unwrap();
        let sealed = keys.seal(&KV, 7, &secret("hunter2")).unwrap();
        assert_eq!(keys.open(&KV, 7, &sealed).unwrap().expose(), b"hunter2");
        let moved = |kind, path| RecordId { kind, path };
        for (record, version) in [
            (KV, 6),
            (KV, 8),
            (moved("kv", "orders/d"), 7),
            (moved("lease", "orders/db"), 7),
            (moved("k", "vorders/db"), 7),
        ] {
            assert!(matches!(
                keys.open(&record, version, &sealed),
                Err(SealError::DoesNotOpen)
            ));
        }
        assert!(RootKeys::generate().unwrap().open(&KV, 7, &sealed).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let keys = RootKeys::generate().unwrap();
        let sealed = keys.seal(&KV, 1, &secret("hunter2")).unwrap();
        for byte in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[byte] ^= 1 << bit;
                assert!(
                    keys.open(&KV, 1, &changed).is_err(),
                    "byte {byte} bit {bit}"
                );
            }
            assert!(keys.open(&KV, 1, &sealed[..byte]).is_err(), "cut at {byte}");
            assert!(keys.open(&KV, 1, &sealed[byte + 1..]).is_err());
        }
        let longer = [sealed.as_slice(), &[0]].concat();
        assert!(keys.open(&KV, 1, &longer).is_err());
    }

    #[test]
    fn nothing_of_the_value_shows_and_no_two_seals_are_alike() {
        let keys = RootKeys::generate().unwrap();
        let text = "correct horse battery staple";
        let one = keys.seal(&KV, 1, &secret(text)).unwrap();
        let two = keys.seal(&KV, 1, &secret(text)).unwrap();
        assert_ne!(one, two);
        assert!(!one.windows(8).any(|window| window == &text.as_bytes()[..8]));
        let empty = keys.seal(&KV, 1, &secret("")).unwrap();
        assert!(keys.open(&KV, 1, &empty).unwrap().is_empty());
    }

    #[test]
    fn a_rotated_root_key_still_opens_and_survives_export() {
        let keys = RootKeys::generate().unwrap();
        let old = keys.seal(&KV, 1, &secret("old")).unwrap();
        let mac = keys.mac("rows", b"row").unwrap();
        let lasting = keys.lasting_key("audit").unwrap();
        keys.adopt(keys.next().unwrap());
        let new = keys.seal(&KV, 2, &secret("new")).unwrap();
        assert_eq!(key_id_of(&new).unwrap(), 2);
        let again = RootKeys::import(&keys.export(None)).unwrap();
        assert_eq!(again.current(), 2);
        assert_eq!(again.open(&KV, 1, &old).unwrap().expose(), b"old");
        assert_eq!(again.open(&KV, 2, &new).unwrap().expose(), b"new");
        assert!(again.mac_holds("rows", b"row", &mac));
        assert_eq!(*again.lasting_key("audit").unwrap(), *lasting);
        assert!(RootKeys::import(&secret("short")).is_err());
        assert!(RootKeys::import(&secret("")).is_err());
    }

    #[test]
    fn a_mac_is_for_one_purpose_and_one_row() {
        let keys = RootKeys::generate().unwrap();
        let mac = keys.mac("rows", b"row").unwrap();
        assert!(keys.mac_holds("rows", b"row", &mac));
        assert!(!keys.mac_holds("rows", b"wor", &mac));
        assert!(!keys.mac_holds("audit", b"row", &mac));
        for byte in 0..mac.len() {
            let mut changed = mac;
            changed[byte] ^= 1;
            assert!(!keys.mac_holds("rows", b"row", &changed));
            assert!(!keys.mac_holds("rows", b"row", &mac[..byte]));
        }
    }
}
