//! Key pairs that leave nothing behind.

use mayfly_wire::Secret;
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::{Zeroize as _, Zeroizing};

/// Length of an Ed25519 seed (RFC 8032, section 5.1.5) and public key.
pub(super) const ED25519: usize = 32;
/// What stands before the seed in the PKCS#8 form of an Ed25519 key (RFC 8410, section 7).
const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A key pair whose private key is zeroed when it is dropped. The cryptographic library frees its own
/// copy with zeroes as well.
pub(super) struct Pair(KeyPair);

impl Pair {
    pub(super) fn generate(algorithm: &'static SignatureAlgorithm) -> Result<Self, rcgen::Error> {
        KeyPair::generate_for(algorithm).map(Self)
    }

    /// From its PKCS#8 form.
    pub(super) fn read(
        pkcs8: &[u8],
        algorithm: &'static SignatureAlgorithm,
    ) -> Result<Self, rcgen::Error> {
        let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8);
        KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, algorithm).map(Self)
    }

    /// The Ed25519 key pair of a seed.
    pub(super) fn from_seed(seed: &[u8; ED25519]) -> Result<Self, rcgen::Error> {
        let mut pkcs8 = Zeroizing::new([0; ED25519_PKCS8.len() + ED25519]);
        let (prefix, rest) = pkcs8.split_at_mut(ED25519_PKCS8.len());
        prefix.copy_from_slice(&ED25519_PKCS8);
        rest.copy_from_slice(seed);
        Self::read(pkcs8.as_slice(), &rcgen::PKCS_ED25519)
    }

    /// The private key in its PKCS#8 form.
    pub(super) fn pkcs8(&self) -> &[u8] {
        self.0.serialized_der()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for Pair {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for Pair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// Bytes as PEM (RFC 7468) with lines of `width`, in one block of the right size.
pub(super) fn pem(label: &str, bytes: &[u8], width: usize) -> Secret {
    use base64::Engine as _;
    let engine = &base64::engine::general_purpose::STANDARD;
    let width = width.max(4);
    let encoded = bytes.len().div_ceil(3) * 4;
    let frame = 2 * label.len() + "-----BEGIN -----\n-----END -----\n".len();
    let mut text = Vec::with_capacity(frame + encoded + encoded.div_ceil(width));
    text.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
    let mut line = Zeroizing::new(vec![0; width]);
    for part in bytes.chunks(width / 4 * 3) {
        // A part of a line always fits into it.
        let length = engine.encode_slice(part, &mut line).unwrap_or(0);
        text.extend_from_slice(line.get(..length).unwrap_or_default());
        text.push(b'\n');
    }
    text.extend_from_slice(format!("-----END {label}-----\n").as_bytes());
    Secret::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_is_what_others_write() {
        let pair = KeyPair::generate().unwrap();
        let ours = pem("PRIVATE KEY", pair.serialized_der(), 64);
        let ours = std::str::from_utf8(ours.expose()).unwrap();
        assert_eq!(ours, pair.serialize_pem().replace("\r\n", "\n"));
        let exact = pem("X", &[7; 96], 64);
        let text = std::str::from_utf8(exact.expose()).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().all(|line| line.len() <= 64));
    }

    /// RFC 8032, section 7.1, test 1.
    #[test]
    fn a_seed_makes_its_key_pair() {
        let bytes = |hex: &str| -> Vec<u8> {
            let pairs = (0..hex.len()).step_by(2);
            pairs
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect()
        };
        let seed = bytes("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let pair = Pair::from_seed(&seed.try_into().unwrap()).unwrap();
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(pair.der_bytes(), bytes(public));
        let signature = pair.sign(b"").unwrap();
        assert_eq!(signature[..4], bytes("e5564300"));
    }
}
