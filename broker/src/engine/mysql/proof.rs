//! How the broker proves to a server that it knows its own password, without saying it.

use mayfly_wire::Secret;
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(super) const NATIVE: &str = "mysql_native_password";
pub(super) const CACHING: &str = "caching_sha2_password";

/// The answer to the server's `challenge`, or nothing for a plugin that is not known here.
pub(super) fn proof(plugin: &str, password: &Secret, challenge: &[u8]) -> Option<Vec<u8>> {
    if ![NATIVE, CACHING].contains(&plugin) {
        return None;
    }
    if password.is_empty() {
        return Some(Vec::new());
    }
    Some(match plugin {
        NATIVE => native(password.expose(), challenge),
        _ => caching(password.expose(), challenge),
    })
}

/// SHA1(password) xor SHA1(challenge, SHA1(SHA1(password))).
fn native(password: &[u8], challenge: &[u8]) -> Vec<u8> {
    let once = Sha1::digest(password);
    let mask = Sha1::new_with_prefix(challenge)
        .chain_update(Sha1::digest(once))
        .finalize();
    xor(&once, &mask)
}

/// SHA256(password) xor SHA256(SHA256(SHA256(password)), challenge).
fn caching(password: &[u8], challenge: &[u8]) -> Vec<u8> {
    let once = Sha256::digest(password);
    let twice = Sha256::digest(once);
    let mask = Sha256::new_with_prefix(twice)
        .chain_update(challenge)
        .finalize();
    xor(&once, &mask)
}

fn xor(one: &[u8], other: &[u8]) -> Vec<u8> {
    one.iter()
        .zip(other)
        .map(|(one, other)| one ^ other)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's hashlib from what the protocol's documentation says.
    #[test]
    fn proofs_are_what_others_compute() {
        let challenge: Vec<u8> = (1..=20).collect();
        let of = |plugin: &str, password: &str| {
            let password = Secret::from(password.to_owned());
            let proof = proof(plugin, &password, &challenge)?;
            Some(
                proof
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<String>(),
            )
        };
        assert_eq!(
            of(NATIVE, "secret").unwrap(),
            "b32bb3a583e1340c0a1108d58b1be49781ad8c2f"
        );
        assert_eq!(
            of(CACHING, "secret").unwrap(),
            "746ebe205d56a0707acb3e796e834e0dd7b1d61743b26bd5202c7a623230c7c9"
        );
        assert_eq!(of(NATIVE, "").unwrap(), "");
        assert_eq!(of("mysql_clear_password", "secret"), None);
        assert_eq!(of("mysql_old_password", "secret"), None);
    }
}
