//! Leases that ended before their certificates expire. Those who verify learn of them from lists, which
//! the engines make from this.

use super::rows::{Record, column, engine, execute, integer, number};
use super::{Lease, Source, StoreError};
use crate::seal::Canon;
use mayfly_wire::{EngineKind, LeaseId};
use rusqlite::{Connection, Row};

/// A lease that ended, and whose certificate is still good. All times are milliseconds since the Unix
/// epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Its id, from which its certificate's serial number follows.
    pub lease: LeaseId,
    /// What made it.
    pub engine: EngineKind,
    /// When it began.
    pub issued_at: u64,
    /// From when on its certificate is not to be accepted any more.
    pub listed_at: u64,
    /// When its certificate expires.
    pub expires_at: u64,
}

impl Revoked {
    /// What a lease that ends leaves behind, if it is one with a certificate that is good until then.
    pub(super) fn of(lease: &Lease, listed_at: u64) -> Option<Self> {
        let certifies = matches!(lease.engine, EngineKind::X509 | EngineKind::Ssh);
        let has_one = certifies && matches!(lease.source, Source::Sealed(_));
        (has_one && lease.expires_at > listed_at).then(|| Self {
            lease: lease.id.clone(),
            engine: lease.engine,
            issued_at: lease.issued_at,
            listed_at,
            expires_at: lease.expires_at,
        })
    }
}

impl Record for Revoked {
    const TABLE: &'static str = "revoked";
    const COLUMNS: &'static str = "lease, engine, issued_at, listed_at, expires_at, mac";

    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            lease: LeaseId::from(column::<String>(row, 0)?),
            engine: engine(row, 1)?,
            issued_at: number(row, 2)?,
            listed_at: number(row, 3)?,
            expires_at: number(row, 4)?,
        })
    }

    fn canon(&self) -> Result<Vec<u8>, StoreError> {
        let mut canon = Canon::default();
        canon.text(Self::TABLE).text(self.lease.as_str());
        canon.text(self.engine.as_str()).number(self.issued_at);
        canon.number(self.listed_at).number(self.expires_at);
        Ok(canon.0)
    }

    fn write(&self, connection: &Connection, mac: &[u8]) -> Result<(), StoreError> {
        execute(
            connection,
            "INSERT OR REPLACE INTO revoked \
             (lease, engine, issued_at, listed_at, expires_at, mac) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            (
                self.lease.as_str(),
                self.engine.as_str(),
                integer(self.issued_at)?,
                integer(self.listed_at)?,
                integer(self.expires_at)?,
                mac,
            ),
        )
    }
}

/// Those of an engine that are still good after a time, the last to expire first.
pub(super) const LISTED: &str =
    "WHERE engine = ?1 AND expires_at > ?2 ORDER BY expires_at DESC, lease DESC LIMIT ?3";

/// Those that are not, and those that are too many, the first to expire first.
pub(super) const OVER: &str = "WHERE engine = ?1 AND (expires_at <= ?2 OR (expires_at, lease) <= \
                               (SELECT expires_at, lease FROM revoked WHERE engine = ?1 \
                               ORDER BY expires_at DESC, lease DESC LIMIT 1 OFFSET ?3)) \
                               ORDER BY expires_at, lease LIMIT ?4";

#[cfg(test)]
pub(super) mod conformance {
    use super::*;
    use crate::store::conformance::{Backend, lease};
    use crate::store::{Op, Store};

    fn with_certificate(number: u64, engine: EngineKind) -> Lease {
        Lease {
            engine,
            source: Source::Sealed(vec![1]),
            ..lease(300 + number, 300 + number, "certificate")
        }
    }

    async fn numbers(store: &dyn Store, at: u64, most: u32) -> Vec<u64> {
        let found = store.revoked(EngineKind::X509, at, most).await.unwrap();
        found.iter().map(|one| one.expires_at - 10_300).collect()
    }

    async fn over(store: &dyn Store, at: u64, keep: u32, most: u32) -> Vec<u64> {
        let found = store.revoked_over(EngineKind::X509, at, keep, most);
        let found = found.await.unwrap();
        found.iter().map(|one| one.expires_at - 10_300).collect()
    }

    /// A lease of an engine that certifies leaves its certificate revoked, in the very commit of its end.
    pub async fn run(backend: &dyn Backend) {
        let store = backend.open();
        let all = [
            with_certificate(1, EngineKind::X509),
            with_certificate(2, EngineKind::X509),
            with_certificate(3, EngineKind::X509),
            with_certificate(4, EngineKind::Ssh),
            with_certificate(5, EngineKind::Jwt),
        ];
        for lease in &all {
            let end = Op::LeaseEnd(lease.id.clone(), 2_000);
            store
                .commit(vec![Op::LeaseInsert(lease.clone())])
                .await
                .unwrap();
            // All of it, or nothing.
            let fails = vec![
                end.clone(),
                Op::LeaseEnd(LeaseId::from_random([9; 16]), 2_000),
            ];
            store.commit(fails).await.unwrap_err();
            let kept = store.revoked(lease.engine, 0, 10).await.unwrap();
            assert!(kept.iter().all(|one| one.lease != lease.id));
            store.commit(vec![end]).await.unwrap();
        }
        drop(store);
        let store = backend.open();
        let store = store.as_ref();
        assert_eq!(numbers(store, 0, 10).await, [3, 2, 1]);
        let first = &store.revoked(EngineKind::X509, 0, 10).await.unwrap()[2];
        assert_eq!(Some(first), Revoked::of(&all[0], 2_000).as_ref());
        assert_eq!(numbers(store, 10_301, 10).await, [3, 2]);
        assert_eq!(numbers(store, 0, 2).await, [3, 2]);
        let of = async |kind| store.revoked(kind, 0, 10).await.unwrap().len();
        assert_eq!(
            (of(EngineKind::Ssh).await, of(EngineKind::Jwt).await),
            (1, 0)
        );
        // One that ends when its certificate expires leaves nothing.
        let late = with_certificate(6, EngineKind::X509);
        let end = Op::LeaseEnd(late.id.clone(), late.expires_at);
        store
            .commit(vec![Op::LeaseInsert(late), end])
            .await
            .unwrap();
        assert_eq!(numbers(store, 0, 10).await, [3, 2, 1]);

        assert!(over(store, 0, 3, 10).await.is_empty());
        assert_eq!(over(store, 10_302, 3, 10).await, [1, 2]);
        assert_eq!(over(store, 10_302, 3, 1).await, [1]);
        assert_eq!(over(store, 0, 1, 10).await, [1, 2]);
        assert_eq!(over(store, 10_303, 1, 10).await, [1, 2, 3]);
        for _ in 0..2 {
            let remove = vec![Op::RevokedRemove(all[0].id.clone())];
            store.commit(remove).await.unwrap();
        }
        assert_eq!(numbers(store, 0, 10).await, [3, 2]);
    }
}
