//! The `kv` engine: stored, versioned values.

use super::{Answer, Engine, EngineError, IssueRequest, Issued, other_engine};
use crate::clock::Clock;
use crate::seal::{RecordId, RootKeys};
use crate::store::{KvRow, KvSummary, Lease, Op, Source, Store, StoreError};
use mayfly_wire::admin::{CredentialConfig, EngineConfig, KvEntry, KvVersion};
use mayfly_wire::session::{Layout, MAX_BUNDLE, MAX_VALUE, VALUE_FIELD};
use mayfly_wire::{FieldName, KvPath, Secret};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::broadcast;

/// Most fields of one value.
pub const MAX_FIELDS: usize = 64;
/// Changes that a listener can be behind before it must look at everything again.
const BEHIND: usize = 1024;
/// Tries of a put that names no version, while others put to the same path.
const TRIES: usize = 16;

/// A value has a new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvChange {
    /// Where it stands.
    pub path: KvPath,
    /// Its new version.
    pub version: u64,
    /// Whether that is a deletion mark.
    pub deleted: bool,
}

/// One version of a value.
pub struct KvRead {
    /// Its version.
    pub version: u64,
    /// Its fields.
    pub fields: BTreeMap<FieldName, Secret>,
}

/// What a version holds: names of its fields, and their values, sealed; none for a deletion mark.
type Content = (Vec<FieldName>, Option<Vec<u8>>);

/// The engine.
pub struct Kv {
    store: Arc<dyn Store>,
    keys: Arc<RootKeys>,
    clock: Arc<dyn Clock>,
    changes: broadcast::Sender<KvChange>,
}

impl Kv {
    /// Over a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, keys: Arc<RootKeys>, clock: Arc<dyn Clock>) -> Self {
        let (changes, _) = broadcast::channel(BEHIND);
        Self {
            store,
            keys,
            clock,
            changes,
        }
    }

    /// Each new version once it is durable. A listener that falls too far behind is told, and must look
    /// at everything again.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<KvChange> {
        self.changes.subscribe()
    }

    /// Adds a version, if the current one is `if_version` (0: there is none, or it is deleted).
    ///
    /// # Errors
    /// [`EngineError::Unfit`] beyond a limit, [`EngineError::Conflict`] if the current version is
    /// another, the store's and the seal's.
    pub async fn put(
        &self,
        path: &KvPath,
        fields: BTreeMap<FieldName, Secret>,
        if_version: Option<u64>,
    ) -> Result<KvVersion, EngineError> {
        check_limits(&fields)?;
        let plaintext = encode(&fields);
        let names: Vec<FieldName> = fields.keys().cloned().collect();
        drop(fields);
        self.add(path, if_version, &|version| {
            let sealed = self.keys.seal(&record(path), version, &plaintext)?;
            Ok((names.clone(), Some(sealed)))
        })
        .await
    }

    /// Adds a deletion mark. Nobody is issued this value from now on; operators can still read the
    /// versions before it.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] if there is no value, or it is deleted already; the store's.
    pub async fn delete(&self, path: &KvPath) -> Result<KvVersion, EngineError> {
        let current = self.store.kv(path.clone(), None).await?;
        let exists = current.is_some_and(|row| row.sealed.is_some());
        if !exists {
            return Err(nothing_at(path, None));
        }
        self.add(path, None, &|_| Ok((Vec::new(), None))).await
    }

    async fn add(
        &self,
        path: &KvPath,
        if_version: Option<u64>,
        content: &(dyn Fn(u64) -> Result<Content, EngineError> + Sync),
    ) -> Result<KvVersion, EngineError> {
        let mut tries = 0;
        let row = loop {
            let current = self.store.kv(path.clone(), None).await?;
            let version = current.as_ref().map_or(0, |row| row.version);
            let shown = current
                .as_ref()
                .filter(|row| row.sealed.is_some())
                .map_or(0, |row| row.version);
            if if_version.is_some_and(|expected| expected != shown) {
                return Err(EngineError::Conflict(format!(
                    "{path}: expected version {}, found {shown}",
                    if_version.unwrap_or_default()
                )));
            }
            let (fields, sealed) = content(version + 1)?;
            let row = KvRow {
                path: path.clone(),
                version: version + 1,
                created_at: self.clock.now_ms(),
                fields,
                sealed,
            };
            match self.store.commit(vec![Op::KvPut(row.clone())]).await {
                Ok(()) => break row,
                // Another put came between. Without `if_version` the last one wins.
                Err(StoreError::Conflict(_)) if tries < TRIES => tries += 1,
                Err(error) => return Err(error.into()),
            }
        };
        let deleted = row.sealed.is_none();
        // Nobody may be listening.
        let _ = self.changes.send(KvChange {
            path: path.clone(),
            version: row.version,
            deleted,
        });
        Ok(KvVersion {
            path: row.path,
            version: row.version,
            created_at: row.created_at,
            deleted,
            fields: row.fields,
        })
    }

    /// Reads a version, or the current one.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] if there is none or it is a deletion mark; the store's and the seal's.
    pub async fn get(&self, path: &KvPath, version: Option<u64>) -> Result<KvRead, EngineError> {
        let row = self.store.kv(path.clone(), version).await?;
        let row = row.ok_or_else(|| nothing_at(path, version))?;
        let sealed = row.sealed.ok_or_else(|| nothing_at(path, version))?;
        let plaintext = self.keys.open(&record(path), row.version, &sealed)?;
        let fields = decode(&plaintext).ok_or_else(|| {
            StoreError::Damaged(format!("the value at {path} opens, but is no value"))
        })?;
        Ok(KvRead {
            version: row.version,
            fields,
        })
    }

    /// Every version, oldest first.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] if there never was one; the store's.
    pub async fn history(&self, path: &KvPath) -> Result<Vec<KvVersion>, EngineError> {
        let rows = self.store.kv_history(path.clone()).await?;
        if rows.is_empty() {
            return Err(nothing_at(path, None));
        }
        Ok(rows.into_iter().map(version_of).collect())
    }

    /// Every path with its current version, sorted.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self) -> Result<Vec<KvEntry>, EngineError> {
        let rows = self.store.kv_list().await?;
        let entry = |row: KvSummary| KvEntry {
            path: row.path,
            version: row.version,
            created_at: row.created_at,
            deleted: row.deleted,
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    async fn give(
        &self,
        credential: &CredentialConfig,
        expires_at: u64,
    ) -> Result<Issued, EngineError> {
        let EngineConfig::Kv { path } = &credential.engine else {
            return Err(EngineError::Conflict(format!(
                "{} is not a kv credential",
                credential.name
            )));
        };
        let KvRead { version, fields } = self.get(path, None).await?;
        let is_value = fields.len() == 1 && fields.keys().all(|name| name.as_str() == VALUE_FIELD);
        let layout = if is_value {
            Layout::Value
        } else {
            Layout::Fields
        };
        Ok(Issued {
            fields,
            layout,
            expires_at,
            source: Source::Kv {
                path: path.clone(),
                version,
            },
        })
    }
}

impl Engine for Kv {
    /// Any path can be right: its value may be put later.
    fn check(&self, _credential: &CredentialConfig) -> Result<(), String> {
        Ok(())
    }

    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued> {
        Box::pin(self.give(request.credential, request.expires_at()))
    }

    /// Gives the current version, which may be newer than the one that the lease gave last.
    fn reissue<'a>(
        &'a self,
        credential: &'a CredentialConfig,
        lease: &'a Lease,
    ) -> Answer<'a, Issued> {
        Box::pin(async move {
            match lease.source {
                Source::Kv { .. } => self.give(credential, lease.expires_at).await,
                _ => Err(other_engine(lease)),
            }
        })
    }

    /// A stored value is shared by its holders: there is nothing to take back from one of them.
    fn revoke<'a>(&'a self, _lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

fn record(path: &KvPath) -> RecordId<'_> {
    RecordId {
        kind: "kv",
        path: path.as_str(),
    }
}

fn version_of(row: KvSummary) -> KvVersion {
    KvVersion {
        path: row.path,
        version: row.version,
        created_at: row.created_at,
        deleted: row.deleted,
        fields: row.fields,
    }
}

/// What is said of a path without a value, or without that version of one.
pub fn nothing_at(path: &KvPath, version: Option<u64>) -> EngineError {
    EngineError::NotFound(match version {
        Some(version) => format!("{path} has no value in version {version}"),
        None => format!("{path} has no value; put one with `mayfly kv put {path}`"),
    })
}

fn check_limits(fields: &BTreeMap<FieldName, Secret>) -> Result<(), EngineError> {
    if fields.is_empty() || fields.len() > MAX_FIELDS {
        return Err(EngineError::Unfit(format!(
            "expected 1 to {MAX_FIELDS} fields, found {}",
            fields.len()
        )));
    }
    if let Some((name, value)) = fields.iter().find(|(_, value)| value.len() > MAX_VALUE) {
        return Err(EngineError::Unfit(format!(
            "field {name}: expected at most {MAX_VALUE} bytes, found {}",
            value.len()
        )));
    }
    let all: usize = fields.values().map(Secret::len).sum();
    if all > MAX_BUNDLE {
        return Err(EngineError::Unfit(format!(
            "expected at most {MAX_BUNDLE} bytes in all fields together, found {all}"
        )));
    }
    Ok(())
}

/// For each field: length of its name (1 byte), name, length of its value (4 bytes), value. In one
/// block of the right size, so that no copy is left where a growing vector stood.
pub(super) fn encode(fields: &BTreeMap<FieldName, Secret>) -> Secret {
    let length = fields
        .iter()
        .map(|(name, value)| 1 + name.as_str().len() + 4 + value.len())
        .sum();
    let mut bytes = Vec::with_capacity(length);
    for (name, value) in fields {
        // Names have at most 63 bytes, values at most MAX_VALUE.
        bytes.push(u8::try_from(name.as_str().len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(value.expose());
    }
    Secret::from(bytes)
}

pub(super) fn decode(plaintext: &Secret) -> Option<BTreeMap<FieldName, Secret>> {
    let mut rest = plaintext.expose();
    let mut fields = BTreeMap::new();
    while let Some((length, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(usize::from(*length))?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (value, after) = after.split_at_checked(length)?;
        let name = std::str::from_utf8(name).ok()?.parse().ok()?;
        fields.insert(name, Secret::from(value.to_vec()));
        rest = after;
    }
    Some(fields)
}
