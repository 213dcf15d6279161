//! What a server stores to check a password with, computed here so that no statement holds a password.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use curve25519_dalek::EdwardsPoint;
use mayfly_wire::Secret;
use sha2::{Digest as _, Sha256, Sha512};
use zeroize::Zeroizing;

/// How a user proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plugin {
    /// `mysql_native_password`: what every client knows, and MariaDB's usual one.
    Native,
    /// `ed25519` of MariaDB.
    Ed25519,
    /// `caching_sha2_password`: MySQL's usual one since 8.0.
    CachingSha2,
}

impl Plugin {
    pub(super) const ALL: [Self; 3] = [Self::Native, Self::Ed25519, Self::CachingSha2];

    /// Its name at the server.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Native => "mysql_native_password",
            Self::Ed25519 => "ed25519",
            Self::CachingSha2 => "caching_sha2_password",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        let is = |plugin: &Self| plugin.as_str().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(is)
    }

    /// What the server stores. Holds no character that means anything inside quotes. `salt` is random.
    pub(super) fn verifier(self, password: &Secret, salt: [u8; 20]) -> String {
        match self {
            Self::Native => native(password),
            Self::Ed25519 => ed25519(password),
            Self::CachingSha2 => {
                let salt = salt.map(|byte| ALPHABET[usize::from(byte) % ALPHABET.len()]);
                let hash = sha256_crypt(password.expose(), &salt);
                format!("$A$005${}{hash}", String::from_utf8_lossy(&salt))
            }
        }
    }
}

/// SHA-1 of SHA-1, which is as good as the password is random: ours have 128 bits and more.
fn native(password: &Secret) -> String {
    use sha1::Digest as _;
    let stage = Zeroizing::new(<[u8; 20]>::from(sha1::Sha1::digest(password.expose())));
    let mut text = String::from("*");
    for byte in sha1::Sha1::digest(*stage) {
        text.push_str(&format!("{byte:02X}"));
    }
    text
}

/// The public key of which the password, of any length, is the private key (MariaDB's
/// `plugin/auth_ed25519`: RFC 8032, but that the seed need not have 32 bytes).
fn ed25519(password: &Secret) -> String {
    let digest = Zeroizing::new(<[u8; 64]>::from(Sha512::digest(password.expose())));
    let mut scalar = Zeroizing::new([0; 32]);
    scalar.copy_from_slice(&digest[..32]);
    let public = EdwardsPoint::mul_base_clamped(*scalar).compress();
    STANDARD_NO_PAD.encode(public.as_bytes())
}

const ROUNDS: usize = 5000;
const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// In which order the bytes of the digest are written, three to four characters.
const ORDER: [[usize; 3]; 10] = [
    [0, 10, 20],
    [21, 1, 11],
    [12, 22, 2],
    [3, 13, 23],
    [24, 4, 14],
    [15, 25, 5],
    [6, 16, 26],
    [27, 7, 17],
    [18, 28, 8],
    [9, 19, 29],
];

/// SHA-crypt with SHA-256 (<https://www.akkadia.org/drepper/SHA-crypt.txt>), but that MySQL's salt has
/// 20 bytes where that allows 16. 43 characters.
fn sha256_crypt(password: &[u8], salt: &[u8]) -> String {
    let repeated = |digest: &[u8], length: usize| -> Zeroizing<Vec<u8>> {
        Zeroizing::new(digest.iter().copied().cycle().take(length).collect())
    };
    let mut second = Sha256::new();
    for part in [password, salt, password] {
        second.update(part);
    }
    let second = second.finalize();
    let mut first = Sha256::new();
    first.update(password);
    first.update(salt);
    first.update(&*repeated(&second, password.len()));
    let mut bits = password.len();
    while bits > 0 {
        first.update(if bits & 1 == 1 { &second[..] } else { password });
        bits >>= 1;
    }
    let mut digest = first.finalize();
    let mut long = Sha256::new();
    for _ in 0..password.len() {
        long.update(password);
    }
    let key = repeated(&long.finalize(), password.len());
    let mut long = Sha256::new();
    for _ in 0..16 + usize::from(digest[0]) {
        long.update(salt);
    }
    let salt = repeated(&long.finalize(), salt.len());
    for round in 0..ROUNDS {
        let odd = round % 2 == 1;
        let mut next = Sha256::new();
        next.update(if odd { &key[..] } else { &digest[..] });
        if round % 3 != 0 {
            next.update(&*salt);
        }
        if round % 7 != 0 {
            next.update(&*key);
        }
        next.update(if odd { &digest[..] } else { &key[..] });
        digest = next.finalize();
    }
    let mut text = String::new();
    let mut write = |high: u8, middle: u8, low: u8, count: usize| {
        let mut bits = u32::from_be_bytes([0, high, middle, low]);
        for _ in 0..count {
            text.push(char::from(ALPHABET[(bits & 63) as usize]));
            bits >>= 6;
        }
    };
    for [high, middle, low] in ORDER {
        write(digest[high], digest[middle], digest[low], 4);
    }
    write(0, digest[31], digest[30], 3);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(plugin: Plugin, password: &str) -> String {
        plugin.verifier(&Secret::from(password.to_owned()), [7; 20])
    }

    /// The server's own answers to `SELECT PASSWORD('secret')` and `SELECT ED25519_PASSWORD('secret')`
    /// (the documentation of MariaDB has the second, too).
    #[test]
    fn the_servers_own_verifiers() {
        assert_eq!(
            of(Plugin::Native, "secret"),
            "*14E65567ABDB5135D0CFD9A70B3032C179A49EE7"
        );
        assert_eq!(
            of(Plugin::Ed25519, "secret"),
            "ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY"
        );
    }

    /// A salt of 16 bytes as `openssl passwd -5` makes it, and MySQL's 20 bytes as the example of
    /// hashcat's mode 7401 has them.
    #[test]
    fn sha_crypt_as_others_compute_it() {
        assert_eq!(
            sha256_crypt(b"Hello world!", b"saltstring"),
            "5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"
        );
        let salt = [
            0xF9, 0xCC, 0x98, 0xCE, 0x08, 0x89, 0x29, 0x24, 0xF5, 0x0A, 0x21, 0x3B, 0x6B, 0xC5,
            0x71, 0xA2, 0xC1, 0x17, 0x78, 0xC5,
        ];
        assert_eq!(
            sha256_crypt(b"hashcat", &salt),
            "bTy95Y99eAME1dwEkHOA1ndHGBWz.1bxSSRkuTXFGV/"
        );
    }

    #[test]
    fn no_verifier_can_end_a_quoted_text() {
        for plugin in Plugin::ALL {
            for salt in 0..=255 {
                let text = plugin.verifier(&Secret::from("x".repeat(32)), [salt; 20]);
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"*$./+".contains(&byte);
                assert!(text.bytes().all(plain), "{text}");
            }
        }
    }
}
