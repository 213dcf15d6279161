//! Certificates whose leases ended before they expire: what stands on the lists that authorities make.

use super::{Answer, EngineError};
use crate::store::{Op, Revoked, Store, StoreError};
use mayfly_wire::{EngineKind, LeaseId};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Most certificates on a list. What expires first then leaves it early: it could do harm for the
/// shortest time.
const MOST: u32 = 100_000;
/// Certificates that leave the store in one commit.
const AT_ONCE: u32 = 500;
/// Clocks differ: a certificate leaves the list a minute after it expired, in milliseconds.
const CLOCKS: u64 = 60 * 1000;

/// What a list says.
pub(super) struct List<'a> {
    /// Counts up with each list, whatever the clock does.
    pub(super) number: u64,
    /// When it is made: milliseconds since the Unix epoch.
    pub(super) now: u64,
    pub(super) revoked: &'a [Revoked],
}

/// What the serial number of a lease's certificate is made of. A lease has one certificate, and its id is
/// random and nobody's choice; so the number of an ended lease is known without keeping it.
pub(super) fn serial<const N: usize>(lease: &LeaseId) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(Sha256::digest(lease.as_str())) {
        *to = from;
    }
    bytes
}

/// What an engine's lists are made from.
pub(super) struct Revocations {
    store: Arc<dyn Store>,
    engine: EngineKind,
    /// Held while the number of a list is made durable.
    numbering: Mutex<()>,
}

impl Revocations {
    pub(super) fn new(store: Arc<dyn Store>, engine: EngineKind) -> Self {
        Self {
            store,
            engine,
            numbering: Mutex::default(),
        }
    }

    /// What stands on a list that is made now.
    pub(super) async fn at(&self, now: u64) -> Result<Vec<Revoked>, EngineError> {
        let at = now.saturating_sub(CLOCKS);
        let mut all = self.store.revoked(self.engine, at, MOST).await?;
        all.retain(|one| one.listed_at <= now);
        Ok(all)
    }

    /// The next list's number: on disk before the list is.
    pub(super) async fn number(&self) -> Result<u64, EngineError> {
        let _one = self.numbering.lock().await;
        let key = format!("{}-list", self.engine);
        let last = match self.store.meta(key.clone()).await? {
            None => 0,
            Some(bytes) => {
                let bytes = <[u8; 8]>::try_from(bytes.as_slice());
                let odd = |_| StoreError::Damaged(format!("{key} is not valid"));
                u64::from_be_bytes(bytes.map_err(odd)?)
            }
        };
        let number = last + 1;
        let put = Op::MetaPut(key, number.to_be_bytes().to_vec());
        self.store.commit(vec![put]).await?;
        Ok(number)
    }

    /// Forgets what has expired, and what is too much.
    pub(super) fn trim(&self, now: u64) -> Answer<'_, ()> {
        self.trim_to(now, MOST)
    }

    fn trim_to(&self, now: u64, most: u32) -> Answer<'_, ()> {
        Box::pin(async move {
            let at = now.saturating_sub(CLOCKS);
            loop {
                let over = self.store.revoked_over(self.engine, at, most, AT_ONCE);
                let over = over.await?;
                if over.is_empty() {
                    return Ok(());
                }
                let early = over.iter().filter(|one| one.expires_at > at).count();
                if early > 0 {
                    tracing::error!(
                        engine = %self.engine,
                        early,
                        most,
                        "the list of revoked certificates is full: those that expire first left it"
                    );
                }
                let remove = |one: Revoked| Op::RevokedRemove(one.lease);
                self.store
                    .commit(over.into_iter().map(remove).collect())
                    .await?;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Lease, LeaseState, Source, SqliteStore};
    use crate::testing::{TempDir, evidence};
    use crate::unseal::KeyFile;

    fn ends(number: u16) -> [Op; 2] {
        let evidence = evidence(number.into());
        let lease = Lease {
            id: LeaseId::from_random(u128::from(number).to_be_bytes()),
            workload: evidence.workload,
            credential: "id".parse().unwrap(),
            engine: EngineKind::X509,
            node: evidence.node,
            name: "n".into(),
            state: LeaseState::Active,
            issued_at: 0,
            // Several at the same time.
            expires_at: 1_000_000 + u64::from(number / 4),
            due_at: 0,
            reason: String::new(),
            attempts: 0,
            problem: String::new(),
            source: Source::Sealed(Vec::new()),
        };
        let end = Op::LeaseEnd(lease.id.clone(), 1000);
        [Op::LeaseInsert(lease), end]
    }

    #[tokio::test]
    async fn what_is_too_much_leaves_the_list_with_what_expires_first() {
        let dir = TempDir::new();
        let key = KeyFile::new(dir.path().join("root.key"));
        let store = Arc::new(SqliteStore::open(&dir.path().join("state"), &key).unwrap());
        let all = (0..1200).flat_map(ends).collect();
        store.commit(all).await.unwrap();
        let revocations = Revocations::new(store, EngineKind::X509);
        revocations.trim_to(2000, 50).await.unwrap();
        assert_eq!(revocations.at(999).await.unwrap(), [], "not yet");
        let left = revocations.at(1000).await.unwrap();
        assert_eq!(left.len(), 50);
        assert!(
            left.iter()
                .all(|one| one.expires_at >= 1_000_000 + 1150 / 4)
        );
        revocations.trim(1_000_299 + CLOCKS).await.unwrap();
        assert_eq!(revocations.at(2000).await.unwrap(), []);
    }

    #[tokio::test]
    async fn numbers_count_up_through_a_restart() {
        let dir = TempDir::new();
        let key = KeyFile::new(dir.path().join("root.key"));
        for expected in [1, 3] {
            let store = SqliteStore::open(&dir.path().join("state"), &key).unwrap();
            let revocations = Revocations::new(Arc::new(store), EngineKind::Ssh);
            assert_eq!(revocations.number().await.unwrap(), expected);
            assert_eq!(revocations.number().await.unwrap(), expected + 1);
        }
    }

    #[test]
    fn serial_numbers_follow_from_the_lease() {
        let (one, two) = (LeaseId::from_random([1; 16]), LeaseId::from_random([2; 16]));
        assert_eq!(serial::<16>(&one), serial::<16>(&one));
        assert_ne!(serial::<16>(&one), serial::<16>(&two));
        assert_eq!(serial::<16>(&one)[..8], serial::<8>(&one));
    }
}
