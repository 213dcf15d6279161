//! SCRAM-SHA-256 verifiers (RFC 5802, section 3; RFC 7677), in the form that PostgreSQL stores and takes
//! in the place of a password: `SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY`, in base64.

use crate::seal::{SealError, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Bytes of salt, as many as PostgreSQL takes itself.
const SALT: usize = 16;

/// What a server must hold to check `password`, and from which nobody can log in.
///
/// The password must be ASCII, which SASLprep (RFC 4013) leaves as it is.
///
/// # Errors
/// The seal's, of which none can come true here.
pub(super) fn verifier(
    password: &[u8],
    salt: [u8; SALT],
    iterations: u32,
) -> Result<String, SealError> {
    let salted = stretched(password, salt, iterations)?;
    let client = Zeroizing::new(hmac(salted.as_slice(), b"Client Key")?);
    let server = Zeroizing::new(hmac(salted.as_slice(), b"Server Key")?);
    let stored = Sha256::digest(client.as_slice());
    Ok(format!(
        "SCRAM-SHA-256${iterations}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored),
        STANDARD.encode(server.as_slice())
    ))
}

/// `Hi` of RFC 5802: PBKDF2 (RFC 8018) with HMAC-SHA-256 and one block.
fn stretched(
    password: &[u8],
    salt: [u8; SALT],
    iterations: u32,
) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut first = salt.to_vec();
    first.extend_from_slice(&1_u32.to_be_bytes());
    let mut last = Zeroizing::new(hmac(password, &first)?);
    let mut all = last.clone();
    for _ in 1..iterations {
        *last = hmac(password, last.as_slice())?;
        for (all, last) in all.iter_mut().zip(last.iter()) {
            *all ^= last;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's hashlib and hmac.
    #[test]
    fn is_what_others_compute() {
        let salt = *b"0123456789abcdef";
        for (iterations, expected) in [
            (
                1,
                "SCRAM-SHA-256$1:MDEyMzQ1Njc4OWFiY2RlZg==$6E6za7g9nQj7bvJ78b+hKOVaeRanit38xaWlCSvoB4Y=:+Xl/1j60mYw7IUJQ7cmQYlUgCDB0vLsvuw4MqpuAMaQ=",
            ),
            (
                4096,
                "SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$nQpbZ77WudtqufPwikHXGRt6g2QJ4zns8bZLw273DRM=:jn2amWP1q1h+jgjy0YTO14S6/F02SV7taipOeB7ef20=",
            ),
        ] {
            assert_eq!(verifier(b"pencil", salt, iterations).unwrap(), expected);
        }
    }
}
