//! Passwords that nobody chose.

use super::statements::is_plain;
use crate::seal::{SealError, random};
use mayfly_wire::Secret;
use mayfly_wire::engine::PasswordPolicy;
use zeroize::Zeroizing;

const LOWER: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
const UPPER: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const DIGITS: &[u8] = b"0123456789";
/// Characters unless it is said otherwise: 190 bits.
const LENGTH: u8 = 32;
/// Fewest random bits.
const BITS: f64 = 128.0;
/// Most characters: servers store or cut what is longer.
const MOST: u8 = 128;

/// Whether a policy makes passwords that cannot be guessed, and that can stand in a statement.
///
/// # Errors
/// What was expected and what was found.
pub fn check(policy: &PasswordPolicy) -> Result<(), String> {
    if let Some(bad) = policy.symbols.chars().find(|symbol| {
        let byte = u8::try_from(*symbol).ok();
        !byte.is_some_and(|byte| is_plain(byte) && byte.is_ascii_punctuation())
    }) {
        return Err(format!(
            "password.symbols: expected printable ASCII without letters, digits, quotes and \
             backslash, found {bad:?}"
        ));
    }
    let alphabet = alphabet(&policy.symbols);
    let letters = u32::try_from(alphabet.len()).unwrap_or(u32::MAX);
    let each = f64::from(letters).log2();
    let bits = f64::from(policy.length) * each;
    if bits < BITS || policy.length > MOST {
        let least = (BITS / each).ceil();
        return Err(format!(
            "password.length: expected {least} to {MOST} with {letters} different characters, so \
             that {BITS} bits of it are random, found {}",
            policy.length
        ));
    }
    Ok(())
}

/// A new password, with at least one character of each kind that it may hold.
///
/// # Errors
/// The system's random source failed.
pub fn generate(policy: Option<&PasswordPolicy>) -> Result<Secret, SealError> {
    let symbols = policy.map_or("", |policy| policy.symbols.as_str());
    let length = usize::from(policy.map_or(LENGTH, |policy| policy.length));
    let alphabet = alphabet(symbols);
    let kinds = [LOWER, UPPER, DIGITS, symbols.as_bytes()];
    loop {
        let password = draw(&alphabet, length)?;
        let has = |kind: &&[u8]| password.expose().iter().any(|byte| kind.contains(byte));
        if kinds.iter().filter(|kind| !kind.is_empty()).all(has) {
            return Ok(password);
        }
    }
}

fn alphabet(symbols: &str) -> Vec<u8> {
    let mut all = [LOWER, UPPER, DIGITS, symbols.as_bytes()].concat();
    all.sort_unstable();
    all.dedup();
    all
}

fn draw(alphabet: &[u8], length: usize) -> Result<Secret, SealError> {
    let mut password = Vec::with_capacity(length);
    // Bytes beyond the last whole multiple would make some characters likelier than others.
    let fair = 256 - 256 % alphabet.len();
    while password.len() < length {
        let bytes = Zeroizing::new(random::<64>()?);
        let drawn = bytes.iter().map(|byte| usize::from(*byte));
        let drawn = drawn.filter(|byte| *byte < fair);
        let room = length - password.len();
        password.extend(drawn.take(room).map(|byte| alphabet[byte % alphabet.len()]));
    }
    Ok(Secret::from(password))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn policy(length: u8, symbols: &str) -> PasswordPolicy {
        PasswordPolicy {
            length,
            symbols: symbols.to_owned(),
        }
    }

    #[test]
    fn policies_that_are_too_weak_or_break_statements_are_refused() {
        check(&policy(22, "")).unwrap();
        check(&policy(21, "!#$%&()*+")).unwrap();
        for (bad, found) in [
            (policy(21, ""), "expected 22 to 128"),
            (policy(0, ""), "length"),
            (policy(129, ""), "length"),
            (policy(64, "'"), "symbols"),
            (policy(64, "\\"), "symbols"),
            (policy(64, " "), "symbols"),
            (policy(64, "é"), "symbols"),
            (policy(64, "a"), "symbols"),
        ] {
            let problem = check(&bad).unwrap_err();
            assert!(problem.contains(found), "{problem}");
        }
    }

    #[test]
    fn every_character_comes_up_and_no_password_twice() {
        let policy = policy(40, "!%");
        let (mut seen, mut letters) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..500 {
            let password = generate(Some(&policy)).unwrap().expose().to_vec();
            assert_eq!(password.len(), 40);
            assert!(password.iter().any(|byte| b"!%".contains(byte)));
            letters.extend(password.iter().copied());
            assert!(seen.insert(password));
        }
        assert_eq!(letters.len(), 64);
        assert_eq!(generate(None).unwrap().len(), 32);
    }
}
