//! Key revocation lists (`PROTOCOL.krl` of OpenSSH).

use super::format::{public_key, string, within};

/// `SSHKRL\n\0`.
const MAGIC: u64 = 0x5353_484b_524c_0a00;
const VERSION: u32 = 1;
/// A section of certificates that one key signed.
const CERTIFICATES: u8 = 1;
/// A part of such a section: the certificates' serial numbers.
const SERIALS: u8 = 0x20;

/// A list with the number of this edition, made at a time in seconds since the Unix epoch: no certificate
/// that one of `authorities` (public keys) signed with one of these serial numbers.
pub(super) fn list(edition: u64, made: u64, authorities: &[&[u8]], serials: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC.to_be_bytes());
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    // The last is of flags, of which there are none.
    for number in [edition, made, 0] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    string(&mut bytes, &[]);
    string(&mut bytes, b"mayfly");
    if serials.is_empty() {
        return bytes;
    }
    for authority in authorities {
        bytes.push(CERTIFICATES);
        within(&mut bytes, |section| {
            string(section, &public_key(authority));
            string(section, &[]);
            section.push(SERIALS);
            within(section, |all| {
                for serial in serials {
                    all.extend_from_slice(&serial.to_be_bytes());
                }
            });
        });
    }
    bytes
}
