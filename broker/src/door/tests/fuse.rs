//! A store whose broker is killed at a certain commit.

use crate::audit::{Head, HeadCell};
use crate::store::*;
use mayfly_wire::{ConnectionName, CredentialName, EngineKind, KvPath, LeaseId, WorkloadKey};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// When the broker is killed.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// Before this commit is on disk.
    Before(i64),
    /// After it is, and before anybody hears of it.
    After(i64),
}

/// From there on no commit is ever answered, and none is made.
pub struct Fuse {
    pub store: Arc<dyn Store>,
    left: AtomicI64,
    after: bool,
}

impl Fuse {
    pub fn new(store: Arc<dyn Store>, at: At) -> Self {
        let (left, after) = match at {
            At::Before(count) => (count, false),
            At::After(count) => (count, true),
        };
        let left = AtomicI64::new(left);
        Self { store, left, after }
    }

    /// Whether the broker was killed.
    pub fn is_blown(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }
}

impl Store for Fuse {
    fn commit(&self, unit: Vec<Op>) -> Answer<'_, ()> {
        Box::pin(async move {
            let left = self.left.fetch_sub(1, Ordering::SeqCst);
            if left > 0 {
                return self.store.commit(unit).await;
            }
            if left == 0 && self.after {
                let _ = self.store.commit(unit).await;
            }
            std::future::pending().await
        })
    }

    fn claim_due(&self, claim: Claim) -> Answer<'_, Vec<Lease>> {
        self.store.claim_due(claim)
    }
    fn next_due(&self, except: Vec<ConnectionName>) -> Answer<'_, Option<u64>> {
        self.store.next_due(except)
    }
    fn leases_in(&self, state: LeaseState) -> Answer<'_, Vec<Lease>> {
        self.store.leases_in(state)
    }
    fn keep_head(&self, head: HeadCell) {
        self.store.keep_head(head);
    }
    fn opened_with_head(&self) -> Option<Head> {
        self.store.opened_with_head()
    }
    fn kv(&self, path: KvPath, version: Option<u64>) -> Answer<'_, Option<KvRow>> {
        self.store.kv(path, version)
    }
    fn kv_history(&self, path: KvPath) -> Answer<'_, Vec<KvSummary>> {
        self.store.kv_history(path)
    }
    fn kv_list(&self) -> Answer<'_, Vec<KvSummary>> {
        self.store.kv_list()
    }
    fn lease(&self, id: LeaseId) -> Answer<'_, Option<Lease>> {
        self.store.lease(id)
    }
    fn lease_of(
        &self,
        workload: WorkloadKey,
        credential: CredentialName,
    ) -> Answer<'_, Option<Lease>> {
        self.store.lease_of(workload, credential)
    }
    fn leases_of(&self, workload: WorkloadKey) -> Answer<'_, Vec<Lease>> {
        self.store.leases_of(workload)
    }
    fn leases_on(&self, credential: CredentialName) -> Answer<'_, Vec<Lease>> {
        self.store.leases_on(credential)
    }
    fn leases(&self, after: Option<LeaseId>, most: u32) -> Answer<'_, Vec<Lease>> {
        self.store.leases(after, most)
    }
    fn lease_counts(&self) -> Answer<'_, BTreeMap<CredentialName, u64>> {
        self.store.lease_counts()
    }
    fn revoked(&self, engine: EngineKind, at: u64, most: u32) -> Answer<'_, Vec<Revoked>> {
        self.store.revoked(engine, at, most)
    }
    fn revoked_over(
        &self,
        engine: EngineKind,
        at: u64,
        keep: u32,
        most: u32,
    ) -> Answer<'_, Vec<Revoked>> {
        self.store.revoked_over(engine, at, keep, most)
    }
    fn workload(&self, key: WorkloadKey) -> Answer<'_, Option<Workload>> {
        self.store.workload(key)
    }
    fn workloads(
        &self,
        node: Option<String>,
        after: Option<WorkloadKey>,
        most: u32,
    ) -> Answer<'_, Vec<Workload>> {
        self.store.workloads(node, after, most)
    }
    fn workload_counts(&self) -> Answer<'_, BTreeMap<String, u64>> {
        self.store.workload_counts()
    }
    fn configuration(&self) -> Answer<'_, Option<Configuration>> {
        self.store.configuration()
    }
    fn meta(&self, key: String) -> Answer<'_, Option<Vec<u8>>> {
        self.store.meta(key)
    }
    fn meta_keys(&self, prefix: String) -> Answer<'_, Vec<String>> {
        self.store.meta_keys(prefix)
    }
}
