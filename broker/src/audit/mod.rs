//! The audit log: append-only, hash-chained, on disk before the answer.
//!
//! The format and its checks are [`mayfly_wire::audit`]. Records that come in at the same time share one
//! write and one fdatasync.
//!
//! The store keeps the last durable record's hash, sealed, with each of its commits. So an audit file
//! whose end was cut off is refused at the next start, and a store that was put back from an older copy
//! goes on record. What stays unseen: records cut off that are newer than the store's last commit, and
//! store and audit file put back together from one backup. Copy the lines elsewhere as they are written
//! to see those too.

mod file;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use crate::clock::Clock;
use crate::seal::{self, Canon, RootKeys, SealError};
use mayfly_wire::admin::AuditReport;
use mayfly_wire::audit::{Event, GENESIS, hex};
use mayfly_wire::{FieldName, Secret};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{broadcast, mpsc, oneshot};
use zeroize::Zeroizing;

/// Most bytes of one record.
pub const MAX_RECORD: usize = 256 * 1024;
/// Records that a subscriber can be behind before it loses some.
const BEHIND: usize = 1024;
/// Records that can wait for the disk.
const WAITING: usize = 4096;

/// What can go wrong.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuditError {
    /// The file does not take records.
    #[error("audit file {path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: Arc<io::Error>,
    },
    /// An earlier sync failed, so nobody knows what is on the disk.
    #[error(
        "audit file {0}: the disk failed to make a record durable; nothing is issued until the \
         broker is restarted with a disk that works"
    )]
    Unsynced(PathBuf),
    /// Its last records are not what the broker wrote.
    #[error("audit file {path}: {problem}")]
    Broken {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Records are missing at its end, or the whole file is.
    #[error(
        "audit file {path}: its last record is {found}, but record {expected} was written: records \
         were removed; find out who did it, put the file back from its copy, or start once with \
         --accept-audit-loss to go on without them, on record"
    )]
    Lost {
        /// Which.
        path: PathBuf,
        /// The last record that the store knows of.
        expected: u64,
        /// The last one in the file.
        found: u64,
    },
    /// The event does not fit in a record.
    #[error("expected an audit record of at most {MAX_RECORD} bytes, found {0}")]
    TooLong(usize),
    /// The record cannot be made.
    #[error("an audit record cannot be made: {0}")]
    Unmade(String),
    /// The log is shutting down.
    #[error("the audit log is closed")]
    Closed,
}

/// The last record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            seq: 0,
            hash: GENESIS.to_owned(),
        }
    }
}

/// The last *durable* record and where the file ends after it, shared with who wants to know.
#[derive(Clone, Debug, Default)]
pub struct HeadCell(Arc<Mutex<(Head, u64)>>);

impl HeadCell {
    /// One that stands at `head`.
    #[must_use]
    pub fn of(head: Head) -> Self {
        Self(Arc::new(Mutex::new((head, 0))))
    }

    /// The last durable record.
    #[must_use]
    pub fn get(&self) -> Head {
        self.with_end().0
    }

    fn with_end(&self) -> (Head, u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, head: Head, end: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (head, end);
    }
}

/// The key under which records are authenticated and secret values hashed.
#[derive(Clone)]
pub struct AuditKey(Arc<Zeroizing<[u8; 32]>>);

impl AuditKey {
    /// Derived from the root keys; rotating them does not change it.
    ///
    /// # Errors
    /// [`SealError`] when there is no root key.
    pub fn derive(keys: &RootKeys) -> Result<Self, SealError> {
        Ok(Self(Arc::new(keys.lasting_key("audit records")?)))
    }

    fn mac(&self, text: &str) -> Result<String, SealError> {
        Ok(hex(&seal::hmac(self.0.as_slice(), text.as_bytes())?))
    }

    /// The keyed hash of a value, for [`Event::Operator`]: the same fields give the same hash, which
    /// tells nothing else about them.
    ///
    /// # Errors
    /// [`SealError`], which does not happen for a key of this length.
    pub fn value_hmac(&self, fields: &BTreeMap<FieldName, Secret>) -> Result<String, SealError> {
        let length = fields
            .iter()
            .map(|(name, value)| 16 + name.as_str().len() + value.len())
            .sum::<usize>();
        let mut canon = Canon(Vec::with_capacity(64 + length));
        canon.text("value");
        for (name, value) in fields {
            canon.text(name.as_str()).bytes(value.expose());
        }
        let bytes = Zeroizing::new(canon.0);
        Ok(hex(&seal::hmac(self.0.as_slice(), &bytes)?))
    }
}

struct Append {
    event: Event,
    done: oneshot::Sender<Result<u64, AuditError>>,
}

/// The audit log. Dropping it ends its thread once what was handed over is written.
pub struct AuditLog {
    path: PathBuf,
    key: AuditKey,
    head: HeadCell,
    appends: Option<mpsc::Sender<Append>>,
    lines: broadcast::Sender<Arc<str>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How to open the log.
pub struct Opening {
    /// Where the file is. It is made if it is missing and the store knows of no record.
    pub path: PathBuf,
    /// The key.
    pub key: AuditKey,
    /// The last record that the store knows of.
    pub known: Option<Head>,
    /// Go on, on record, when records are missing.
    pub accept_loss: bool,
}

impl AuditLog {
    /// Opens the log and checks its end: its last record is ours, and follows what the store knows of.
    /// A last line that a crash cut short was never answered for: it is removed, on record.
    ///
    /// # Errors
    /// [`AuditError::File`], [`AuditError::Broken`], [`AuditError::Lost`].
    pub fn open(opening: Opening, clock: Arc<dyn Clock>) -> Result<Self, AuditError> {
        let (path, key) = (opening.path.clone(), opening.key.clone());
        let opened = file::open(opening)?;
        let (lines, _) = broadcast::channel(BEHIND);
        let (appends, waiting) = mpsc::channel(WAITING);
        let head = HeadCell::default();
        head.set(opened.head.clone(), opened.end);
        let repaired = opened.repaired.clone();
        let mut writer = writer::Writer {
            path: path.clone(),
            file: opened.file,
            end: opened.end,
            head: opened.head,
            key: key.clone(),
            clock,
            durable: head.clone(),
            lines: lines.clone(),
            failed: writer::Failed::No,
        };
        if let Some(event) = repaired {
            writer
                .append_all(vec![event])
                .pop()
                .unwrap_or(Err(AuditError::Closed))?;
        }
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(|error| file_error(&path, error))?;
        Ok(Self {
            path,
            key,
            head,
            appends: Some(appends),
            lines,
            thread: Some(thread),
        })
    }

    /// Writes one record and gives its number once it is durable.
    ///
    /// # Errors
    /// [`AuditError`]; the record is then not in the log, and what it is about must not happen.
    pub async fn append(&self, event: Event) -> Result<u64, AuditError> {
        let (done, answer) = oneshot::channel();
        let appends = self.appends.as_ref().ok_or(AuditError::Closed)?;
        let sent = appends.send(Append { event, done }).await;
        sent.map_err(|_| AuditError::Closed)?;
        answer.await.map_err(|_| AuditError::Closed)?
    }

    /// The last durable record, as it moves; for [`Store::keep_head`](crate::store::Store::keep_head).
    #[must_use]
    pub fn head(&self) -> HeadCell {
        self.head.clone()
    }

    /// The key, for [`AuditKey::value_hmac`].
    #[must_use]
    pub fn key(&self) -> &AuditKey {
        &self.key
    }

    /// Each new line (without its line feed) once it is durable. Who falls too far behind loses some, and
    /// is told.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<str>> {
        self.lines.subscribe()
    }

    /// The last `count` durable lines, the oldest first.
    ///
    /// # Errors
    /// [`AuditError::File`].
    pub async fn tail(&self, count: usize) -> Result<Vec<String>, AuditError> {
        let (path, (_, end)) = (self.path.clone(), self.head.with_end());
        blocking(move || file::tail(&path, end, count).map_err(|error| file_error(&path, error)))
            .await
    }

    /// Reads the whole file: every record follows the one before, carries our MAC, and the last is the
    /// last that was written.
    ///
    /// # Errors
    /// [`AuditError::File`]. What is wrong with the chain is in the report.
    pub async fn verify(&self) -> Result<AuditReport, AuditError> {
        let (path, key) = (self.path.clone(), self.key.clone());
        let (head, end) = self.head.with_end();
        blocking(move || {
            verify::verify(&path, end, &key, &head).map_err(|error| file_error(&path, error))
        })
        .await
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        drop(self.appends.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AuditError> + Send + 'static,
) -> Result<T, AuditError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| AuditError::Closed)?
}

fn file_error(path: &Path, error: io::Error) -> AuditError {
    AuditError::File {
        path: path.to_owned(),
        error: Arc::new(error),
    }
}
