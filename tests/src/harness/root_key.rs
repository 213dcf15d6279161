//! A broker's root keys, opened from its disk by what docs and code say of the format, and nothing of
//! the broker's own: for tests that must know what they search for.

use std::path::Path;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use anyhow::{Context, Result, anyhow, ensure};
use hkdf::Hkdf;
use rusqlite::{Connection, OpenFlags};
use sha2::Sha256;

/// The bytes of the key file, and of each root key that it wraps.
///
/// # Errors
/// When the store is not there, or is of another format.
pub fn root_keys(state_dir: &Path) -> Result<(Vec<u8>, Vec<Vec<u8>>)> {
    let key = std::fs::read(state_dir.join("seal.key")).context("reading the key file")?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let store = Connection::open_with_flags(state_dir.join("store.db"), flags)?;
    let wrapped: Vec<u8> = store.query_row("SELECT root_keys FROM broker", (), |row| row.get(0))?;
    let (head, sealed) = wrapped.split_at_checked(37).context("too short")?;
    ensure!(head[..5] == [1, 0, 0, 0, 0], "another format: {head:?}");
    let mut derived = [0; 44];
    Hkdf::<Sha256>::new(Some(&head[5..]), &key)
        .expand(b"mayfly record 1", &mut derived)
        .map_err(|error| anyhow!("{error}"))?;
    let mut associated = Vec::new();
    for text in ["meta", "root-keys"] {
        associated.extend_from_slice(&(text.len() as u64).to_be_bytes());
        associated.extend_from_slice(text.as_bytes());
    }
    // Version and the wrapping key's id.
    associated.extend_from_slice(&[0; 16]);
    let nonce = Nonce::try_from(&derived[32..])?;
    let sealed = Payload {
        msg: sealed,
        aad: &associated,
    };
    let opened = Aes256Gcm::new_from_slice(&derived[..32])?
        .decrypt(&nonce, sealed)
        .map_err(|_| anyhow!("the root keys do not open"))?;
    ensure!(
        !opened.is_empty() && opened.len().is_multiple_of(36),
        "{} bytes",
        opened.len()
    );
    let keys = opened.chunks(36).map(|one| one[4..].to_vec()).collect();
    Ok((key, keys))
}
