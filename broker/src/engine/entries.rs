//! Sealed entries in the store, each a number that counts up and the content sealed for that number.

use super::EngineError;
use crate::seal::{RecordId, RootKeys};
use crate::store::{Op, Store, StoreError};
use mayfly_wire::Secret;
use std::sync::Arc;

/// Entries of one kind.
pub(super) struct Entries {
    store: Arc<dyn Store>,
    keys: Arc<RootKeys>,
    kind: &'static str,
}

impl Entries {
    /// `kind` is what keys begin with, and what the content is bound to.
    pub(super) fn new(store: Arc<dyn Store>, keys: Arc<RootKeys>, kind: &'static str) -> Self {
        Self { store, keys, kind }
    }

    pub(super) async fn get(&self, name: &str) -> Result<Option<(u64, Secret)>, EngineError> {
        let Some(entry) = self.store.meta(self.key(name)).await? else {
            return Ok(None);
        };
        let (number, sealed) = entry.split_first_chunk::<8>().ok_or_else(|| {
            StoreError::Damaged(format!("the entry {} is cut short", self.key(name)))
        })?;
        let number = u64::from_be_bytes(*number);
        Ok(Some((
            number,
            self.keys.open(&self.record(name), number, sealed)?,
        )))
    }

    pub(super) async fn put(
        &self,
        name: &str,
        number: u64,
        content: &Secret,
    ) -> Result<(), EngineError> {
        let sealed = self.keys.seal(&self.record(name), number, content)?;
        let entry = [number.to_be_bytes().as_slice(), &sealed].concat();
        let op = Op::MetaPut(self.key(name), entry);
        Ok(self.store.commit(vec![op]).await?)
    }

    pub(super) async fn remove(&self, name: &str) -> Result<(), EngineError> {
        let op = Op::MetaRemove(self.key(name));
        Ok(self.store.commit(vec![op]).await?)
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.kind)
    }

    fn record<'a>(&self, name: &'a str) -> RecordId<'a> {
        RecordId {
            kind: self.kind,
            path: name,
        }
    }
}
