//! OpenSSH's formats: keys (RFC 8709, and `PROTOCOL.key` of OpenSSH) and certificates
//! (`PROTOCOL.certkeys`), with Ed25519 throughout. `string` and the integers are those of RFC 4251,
//! section 5.

use crate::engine::pair::{ED25519, Pair, pem};
use base64::Engine as _;
use mayfly_wire::Secret;
use mayfly_wire::admin::SshKind;
use rcgen::{PublicKeyData as _, SigningKey as _};

const KEY: &str = "ssh-ed25519";
const CERTIFICATE: &str = "ssh-ed25519-cert-v01@openssh.com";
/// What a private key's file begins with.
const MAGIC: &[u8] = b"openssh-key-v1\0";
/// Length of a line of a private key's file.
const LINE: usize = 70;
/// What the private part of a file is padded to.
const BLOCK: usize = 8;

/// What a certificate says. Times are seconds since the Unix epoch.
pub(super) struct Certificate<'a> {
    pub(super) nonce: [u8; 32],
    pub(super) serial: u64,
    pub(super) kind: SshKind,
    pub(super) key_id: &'a str,
    pub(super) principals: &'a [String],
    pub(super) valid_after: u64,
    /// Not good from then on.
    pub(super) valid_before: u64,
    /// Names with their values, sorted by name.
    pub(super) critical_options: &'a [(&'static str, String)],
    /// Names, sorted.
    pub(super) extensions: &'a [&'static str],
}

impl Certificate<'_> {
    /// The certificate of a key, as bytes.
    pub(super) fn sign(&self, subject: &[u8], authority: &Pair) -> Result<Vec<u8>, rcgen::Error> {
        let mut bytes = Vec::new();
        string(&mut bytes, CERTIFICATE.as_bytes());
        string(&mut bytes, &self.nonce);
        string(&mut bytes, subject);
        bytes.extend_from_slice(&self.serial.to_be_bytes());
        let kind: u32 = match self.kind {
            SshKind::User => 1,
            SshKind::Host => 2,
        };
        bytes.extend_from_slice(&kind.to_be_bytes());
        string(&mut bytes, self.key_id.as_bytes());
        within(&mut bytes, |principals| {
            for principal in self.principals {
                string(principals, principal.as_bytes());
            }
        });
        bytes.extend_from_slice(&self.valid_after.to_be_bytes());
        bytes.extend_from_slice(&self.valid_before.to_be_bytes());
        within(&mut bytes, |options| {
            for (name, value) in self.critical_options {
                string(options, name.as_bytes());
                within(options, |data| string(data, value.as_bytes()));
            }
        });
        within(&mut bytes, |extensions| {
            for name in self.extensions {
                string(extensions, name.as_bytes());
                string(extensions, &[]);
            }
        });
        string(&mut bytes, &[]);
        string(&mut bytes, &public_key(authority.der_bytes()));
        let signed = authority.sign(&bytes)?;
        within(&mut bytes, |signature| {
            string(signature, KEY.as_bytes());
            string(signature, &signed);
        });
        Ok(bytes)
    }
}

/// A certificate as a line of a file.
pub(super) fn certificate_line(bytes: &[u8], comment: &str) -> String {
    format!("{CERTIFICATE} {} {comment}\n", base64(bytes))
}

/// A public key as a line of a file, without its end.
pub(super) fn public_line(public: &[u8], comment: &str) -> String {
    format!("{KEY} {} {comment}", base64(&public_key(public)))
}

/// A private key as a file, without a passphrase. `check` is any number.
pub(super) fn private_file(
    seed: &[u8; ED25519],
    public: &[u8],
    check: [u8; 4],
    comment: &str,
) -> Secret {
    // In one block each, so that no copy is left where a growing vector stood.
    let length = 2 * check.len()
        + 4
        + KEY.len()
        + 4
        + public.len()
        + 4
        + seed.len()
        + public.len()
        + 4
        + comment.len();
    let padding = length.next_multiple_of(BLOCK) - length;
    let mut private = Vec::with_capacity(length + padding);
    private.extend_from_slice(&check);
    private.extend_from_slice(&check);
    string(&mut private, KEY.as_bytes());
    string(&mut private, public);
    count(&mut private, seed.len() + public.len());
    private.extend_from_slice(seed);
    private.extend_from_slice(public);
    string(&mut private, comment.as_bytes());
    private.extend((1..=padding).map(|byte| u8::try_from(byte).unwrap_or(0)));
    let private = Secret::from(private);

    let mut open = MAGIC.to_vec();
    for text in ["none", "none", ""] {
        string(&mut open, text.as_bytes());
    }
    count(&mut open, 1);
    string(&mut open, &public_key(public));
    let mut bytes = Vec::with_capacity(open.len() + 4 + private.len());
    bytes.extend_from_slice(&open);
    string(&mut bytes, private.expose());
    let bytes = Secret::from(bytes);
    pem("OPENSSH PRIVATE KEY", bytes.expose(), LINE)
}

pub(super) fn public_key(public: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    string(&mut bytes, KEY.as_bytes());
    string(&mut bytes, public);
    bytes
}

fn count(to: &mut Vec<u8>, number: usize) {
    to.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
}

pub(super) fn string(to: &mut Vec<u8>, bytes: &[u8]) {
    count(to, bytes.len());
    to.extend_from_slice(bytes);
}

/// A string that holds what `write` writes.
pub(super) fn within(to: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inside = Vec::new();
    write(&mut inside);
    string(to, &inside);
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
