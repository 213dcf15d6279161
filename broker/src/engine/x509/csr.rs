//! A workload's request for a certificate (PKCS#10, RFC 2986). Of all that it says only the public key
//! counts, and that the request was signed with it: names and extensions are the configuration's.

use rcgen::{PublicKeyData, SignatureAlgorithm};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateSigningRequestDer, alg_id};

/// Tags (X.690, section 8.1.2).
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const ATTRIBUTES: u8 = 0xa0;

/// A key that the workload keeps.
#[derive(Debug)]
pub(super) struct Requested {
    public: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl PublicKeyData for Requested {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl Requested {
    /// Reads a request in PEM.
    ///
    /// # Errors
    /// What was expected.
    pub(super) fn read(pem: &str) -> Result<Self, &'static str> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|_| "one certificate request in PEM")?;
        let parts = Parts::of(&der).ok_or("a certificate request (RFC 2986)")?;
        let kinds = [
            (
                alg_id::ECDSA_P256,
                alg_id::ECDSA_SHA256,
                &rcgen::PKCS_ECDSA_P256_SHA256,
            ),
            (alg_id::ED25519, alg_id::ED25519, &rcgen::PKCS_ED25519),
        ];
        let kind = kinds.into_iter().find(|(key, signature, _)| {
            key.as_ref() == parts.key_algorithm && signature.as_ref() == parts.signature_algorithm
        });
        let (key, signature, algorithm) =
            kind.ok_or("a key of ECDSA P-256, with SHA-256, or of Ed25519")?;
        let all = aws_lc_rs::default_provider().signature_verification_algorithms;
        let verified = all.all.iter().any(|one| {
            one.public_key_alg_id() == key
                && one.signature_alg_id() == signature
                && one
                    .verify_signature(parts.public, parts.signed, parts.signature)
                    .is_ok()
        });
        if !verified {
            return Err("a request that is signed with its own key");
        }
        Ok(Self {
            public: parts.public.to_vec(),
            algorithm,
        })
    }
}

struct Parts<'a> {
    signed: &'a [u8],
    key_algorithm: &'a [u8],
    public: &'a [u8],
    signature_algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Parts<'a> {
    /// RFC 2986, section 4.
    fn of(der: &'a [u8]) -> Option<Self> {
        let mut all = Der(der);
        let mut request = Der(all.take(SEQUENCE)?.content);
        let information = request.take(SEQUENCE)?;
        let signature_algorithm = request.take(SEQUENCE)?.content;
        let signature = request.take(BIT_STRING)?.whole_bytes()?;
        let mut inside = Der(information.content);
        let is_first_version = inside.take(INTEGER)?.content == [0];
        inside.take(SEQUENCE)?;
        let mut key = Der(inside.take(SEQUENCE)?.content);
        inside.take(ATTRIBUTES)?;
        let key_algorithm = key.take(SEQUENCE)?.content;
        let public = key.take(BIT_STRING)?.whole_bytes()?;
        let ends = [all, request, inside, key];
        let is_all = ends.iter().all(|rest| rest.0.is_empty());
        (is_first_version && is_all).then_some(Self {
            signed: information.all,
            key_algorithm,
            public,
            signature_algorithm,
            signature,
        })
    }
}

/// What is left of some DER.
struct Der<'a>(&'a [u8]);

struct Element<'a> {
    all: &'a [u8],
    content: &'a [u8],
}

impl<'a> Der<'a> {
    /// The next element, which must have this tag. A length has at most two bytes, and the shortest
    /// form.
    fn take(&mut self, tag: u8) -> Option<Element<'a>> {
        let (length, head) = match *self.0 {
            [found, short, ..] if found == tag && short < 0x80 => (usize::from(short), 2),
            [found, 0x81, one, ..] if found == tag && one >= 0x80 => (usize::from(one), 3),
            [found, 0x82, high, low, ..] if found == tag && high > 0 => {
                (usize::from(u16::from_be_bytes([high, low])), 4)
            }
            _ => return None,
        };
        let (all, rest) = self.0.split_at_checked(head + length)?;
        self.0 = rest;
        let content = all.get(head..)?;
        Some(Element { all, content })
    }
}

impl<'a> Element<'a> {
    /// Of a bit string.
    fn whole_bytes(&self) -> Option<&'a [u8]> {
        let (unused, bytes) = self.content.split_first()?;
        (*unused == 0).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pair::pem;
    use rcgen::{CertificateParams, KeyPair};

    fn request(algorithm: &'static SignatureAlgorithm) -> (KeyPair, Vec<u8>) {
        let pair = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        let request = params.serialize_request(&pair).unwrap();
        (pair, request.der().to_vec())
    }

    fn read(der: &[u8]) -> Result<Requested, &'static str> {
        let pem = pem("CERTIFICATE REQUEST", der, 64);
        Requested::read(std::str::from_utf8(pem.expose()).unwrap())
    }

    #[test]
    fn the_key_is_that_of_the_request() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let (pair, der) = request(algorithm);
            let requested = read(&der).unwrap();
            assert_eq!(requested.der_bytes(), pair.public_key_raw());
            let ours = requested.subject_public_key_info();
            assert_eq!(ours, pair.subject_public_key_info());
        }
    }

    #[test]
    fn what_is_cut_changed_or_signed_by_another_is_refused() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let (_, der) = request(algorithm);
            for length in 0..der.len() {
                assert!(read(&der[..length]).is_err(), "{length}");
            }
            for at in 0..der.len() {
                let mut other = der.clone();
                other[at] ^= 1;
                assert!(read(&other).is_err(), "{at}");
            }
            assert!(read(&[der.as_slice(), &[0]].concat()).is_err());
        }
        let (_, der) = request(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert!(read(&der).unwrap_err().contains("P-256"));
        assert!(Requested::read("").is_err());
        assert!(Requested::read("-----BEGIN CERTIFICATE REQUEST-----\n!\n").is_err());
    }
}
