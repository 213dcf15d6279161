//! The store in one SQLite file: write-ahead log, every commit on disk before it is answered.
//!
//! The state directory has mode 0700 and holds `store.db` (0600) and `lock`, which keeps a second broker
//! out.

use super::check::check;
pub use super::files::OpenError;
use super::files::{lock, prepare_directory, prepare_file};
use super::integrity::Integrity;
use super::rows::{Meta, Record, integer, number, sql};
use super::writer::{Job, Writer};
use super::{
    Answer, Claim, Configuration, KvRow, KvSummary, Lease, LeaseState, Op, Revoked, Store,
    StoreError, Workload, claims, revoked, schema,
};
use crate::audit::{Head, HeadCell};
use crate::seal::RootKeys;
use crate::unseal::{UnsealError, Unsealer};
use mayfly_wire::{ConnectionName, CredentialName, EngineKind, KvPath, LeaseId, WorkloadKey};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Params};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Units that can wait for the disk.
const WAITING: usize = 4096;
/// Reads at the same time.
const READERS: usize = 4;

/// An active lease by its holder. SQLite uses an index of some of the rows only where the index's own
/// condition stands in the statement, however plainly another implies it.
pub(super) const HELD: &str =
    "WHERE workload = ?1 AND credential = ?2 AND state = 1 AND state IN (0, 1)";

/// The leases in a state. All but the active ones have an index.
pub(super) fn in_state(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Planned => "WHERE state = 0 AND state IN (0, 2, 3)",
        LeaseState::Active => "WHERE state = 1",
        LeaseState::Retiring => "WHERE state = 2 AND state IN (0, 2, 3)",
        LeaseState::Revoking => "WHERE state = 3 AND state IN (0, 2, 3)",
    }
}

/// The store in SQLite.
pub struct SqliteStore {
    shared: Arc<Shared>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    opened_with: Option<Head>,
    head: Arc<Mutex<HeadCell>>,
    keys: Arc<RootKeys>,
    // Held until the store is closed.
    _lock: File,
}

/// What readers need.
struct Shared {
    file: PathBuf,
    integrity: Integrity,
    readers: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

impl SqliteStore {
    /// Opens the store in `dir`, or makes a new one, and unwraps its root keys. Reads and checks every
    /// row.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path, unsealer: &dyn Unsealer) -> Result<Self, OpenError> {
        prepare_directory(dir)?;
        let lock = lock(dir)?;
        let path = dir.join("store.db");
        prepare_file(&path)?;
        let store = |error| OpenError::Store {
            path: path.clone(),
            error,
        };
        let mut connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(store)?;
        schema::migrate(&mut connection).map_err(store)?;
        let keys = Arc::new(root_keys(&connection, unsealer, &path)?);
        let integrity = Integrity::new(keys.clone()).map_err(store)?;
        let (sum, generation, opened_with) =
            check(&path, &connection, &integrity).map_err(store)?;
        let head = Arc::new(Mutex::new(HeadCell::of(
            opened_with.clone().unwrap_or_default(),
        )));
        let writer = Writer {
            connection,
            integrity: integrity.clone(),
            sum,
            generation,
            head: head.clone(),
        };
        let (jobs, waiting) = mpsc::channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(waiting))
            .map_err(|error| OpenError::File {
                path: path.clone(),
                error,
            })?;
        Ok(Self {
            shared: Arc::new(Shared {
                file: path,
                integrity,
                readers: Mutex::default(),
                permits: Semaphore::new(READERS),
            }),
            jobs: Some(jobs),
            thread: Some(thread),
            opened_with,
            head,
            keys,
            _lock: lock,
        })
    }

    /// The root keys that the store was opened with.
    #[must_use]
    pub fn keys(&self) -> Arc<RootKeys> {
        self.keys.clone()
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection, &Integrity) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<'_, T> {
        Box::pin(async move {
            let closed = || StoreError::Unavailable("the store is closed".to_owned());
            let _permit = self.shared.permits.acquire().await.map_err(|_| closed())?;
            let shared = self.shared.clone();
            let read = tokio::task::spawn_blocking(move || shared.read(work)).await;
            read.map_err(|_| closed())?
        })
    }

    /// Reads the few rows of one key here and now: to hand that to another thread and back takes
    /// several times as long as the reading.
    fn look<R: Record + Send + 'static>(
        &self,
        rest: &'static str,
        parameters: impl Params + Send + 'static,
    ) -> Answer<'_, Vec<R>> {
        Box::pin(async move {
            let closed = || StoreError::Unavailable("the store is closed".to_owned());
            let _permit = self.shared.permits.acquire().await.map_err(|_| closed())?;
            let read = |connection: &Connection, integrity: &Integrity| {
                select(connection, integrity, rest, parameters)
            };
            self.shared.read(read)
        })
    }

    /// Hands a job to the thread that writes.
    async fn write<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::Unavailable("the store is closed".to_owned());
        let (done, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(closed)?;
        jobs.send(job(done)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    fn some<R: Record + Send + 'static>(
        &self,
        rest: &'static str,
        parameters: impl Params + Send + 'static,
    ) -> Answer<'_, Vec<R>> {
        self.read(move |connection, integrity| select(connection, integrity, rest, parameters))
    }

    fn first<R: Record + Send + 'static>(
        &self,
        rest: &'static str,
        parameters: impl Params + Send + 'static,
    ) -> Answer<'_, Option<R>> {
        let all = self.look(rest, parameters);
        Box::pin(async { Ok(all.await?.into_iter().next()) })
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn read<T>(
        &self,
        work: impl FnOnce(&Connection, &Integrity) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let idle = self
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let connection = match idle {
            Some(connection) => connection,
            None => connect(&self.file, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let result = work(&connection, &self.integrity);
        self.readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
        result
    }
}

fn select<R: Record>(
    connection: &Connection,
    integrity: &Integrity,
    rest: &str,
    parameters: impl Params,
) -> Result<Vec<R>, StoreError> {
    let text = format!("SELECT {} FROM {} {rest}", R::COLUMNS, R::TABLE);
    let mut statement = connection.prepare_cached(&text).map_err(sql)?;
    let mut rows = statement.query(parameters).map_err(sql)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next().map_err(sql)? {
        records.push(R::checked(row, integrity)?);
    }
    Ok(records)
}

impl Store for SqliteStore {
    fn commit(&self, unit: Vec<Op>) -> Answer<'_, ()> {
        Box::pin(self.write(|done| Job::Unit(unit, done)))
    }

    fn keep_head(&self, head: HeadCell) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = head;
    }

    fn opened_with_head(&self) -> Option<Head> {
        self.opened_with.clone()
    }

    fn kv(&self, path: KvPath, version: Option<u64>) -> Answer<'_, Option<KvRow>> {
        match version.map(integer) {
            None => self.first(
                "WHERE path = ?1 ORDER BY version DESC LIMIT 1",
                (String::from(path),),
            ),
            Some(Ok(version)) => self.first(
                "WHERE path = ?1 AND version = ?2",
                (String::from(path), version),
            ),
            Some(Err(_)) => Box::pin(async { Ok(None) }),
        }
    }

    fn kv_history(&self, path: KvPath) -> Answer<'_, Vec<KvSummary>> {
        let rows = self.some::<KvRow>("WHERE path = ?1 ORDER BY version", (String::from(path),));
        Box::pin(async { Ok(rows.await?.into_iter().map(KvSummary::from).collect()) })
    }

    fn kv_list(&self) -> Answer<'_, Vec<KvSummary>> {
        let rows = self.some::<KvRow>(
            "AS row WHERE version = (SELECT max(version) FROM kv WHERE path = row.path) \
             ORDER BY path",
            (),
        );
        Box::pin(async { Ok(rows.await?.into_iter().map(KvSummary::from).collect()) })
    }

    fn lease(&self, id: LeaseId) -> Answer<'_, Option<Lease>> {
        self.first("WHERE id = ?1", (id.to_string(),))
    }

    fn lease_of(
        &self,
        workload: WorkloadKey,
        credential: CredentialName,
    ) -> Answer<'_, Option<Lease>> {
        self.first(HELD, (workload.to_string(), String::from(credential)))
    }

    fn leases_of(&self, workload: WorkloadKey) -> Answer<'_, Vec<Lease>> {
        self.look(
            "WHERE workload = ?1 ORDER BY credential, id",
            (workload.to_string(),),
        )
    }

    fn leases_on(&self, credential: CredentialName) -> Answer<'_, Vec<Lease>> {
        self.some("WHERE credential = ?1", (String::from(credential),))
    }

    fn claim_due(&self, claim: Claim) -> Answer<'_, Vec<Lease>> {
        Box::pin(self.write(|done| Job::Claim(claim, done)))
    }

    fn next_due(&self, except: Vec<ConnectionName>) -> Answer<'_, Option<u64>> {
        self.read(move |connection, _| claims::next(connection, &except))
    }

    fn leases_in(&self, state: LeaseState) -> Answer<'_, Vec<Lease>> {
        self.some(in_state(state), ())
    }

    fn leases(&self, after: Option<LeaseId>, most: u32) -> Answer<'_, Vec<Lease>> {
        // Every id comes after the empty text.
        let after = after.map_or_else(String::new, |id| id.to_string());
        self.some("WHERE id > ?1 ORDER BY id LIMIT ?2", (after, most))
    }

    fn lease_counts(&self) -> Answer<'_, BTreeMap<CredentialName, u64>> {
        self.read(|connection, _| {
            let named = counts(connection, "leases", "credential")?.into_iter();
            let parsed = named.map(|(name, count)| {
                let name = name.parse();
                let name =
                    name.map_err(|error| StoreError::Damaged(format!("a lease: {error}")))?;
                Ok((name, count))
            });
            parsed.collect()
        })
    }

    fn revoked(&self, engine: EngineKind, at: u64, most: u32) -> Answer<'_, Vec<Revoked>> {
        match integer(at) {
            Ok(at) => self.some(revoked::LISTED, (engine.as_str(), at, most)),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    fn revoked_over(
        &self,
        engine: EngineKind,
        at: u64,
        keep: u32,
        most: u32,
    ) -> Answer<'_, Vec<Revoked>> {
        match integer(at) {
            Ok(at) => self.some(revoked::OVER, (engine.as_str(), at, keep, most)),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    fn workload(&self, key: WorkloadKey) -> Answer<'_, Option<Workload>> {
        self.first("WHERE key = ?1", (key.to_string(),))
    }

    fn workloads(
        &self,
        node: Option<String>,
        after: Option<WorkloadKey>,
        most: u32,
    ) -> Answer<'_, Vec<Workload>> {
        // Every key comes after the empty text.
        let after = after.map_or_else(String::new, |key| key.to_string());
        match node {
            Some(node) => self.some(
                "WHERE node = ?1 AND key > ?2 ORDER BY key LIMIT ?3",
                (node, after, most),
            ),
            None => self.some("WHERE key > ?1 ORDER BY key LIMIT ?2", (after, most)),
        }
    }

    fn workload_counts(&self) -> Answer<'_, BTreeMap<String, u64>> {
        self.read(|connection, _| counts(connection, "workloads", "node"))
    }

    fn configuration(&self) -> Answer<'_, Option<Configuration>> {
        self.first("", ())
    }

    fn meta(&self, key: String) -> Answer<'_, Option<Vec<u8>>> {
        let entry = self.first::<Meta>("WHERE key = ?1", (key,));
        Box::pin(async { Ok(entry.await?.map(|meta| meta.value)) })
    }

    fn meta_keys(&self, prefix: String) -> Answer<'_, Vec<String>> {
        let entries = self.some::<Meta>(
            "WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key",
            (prefix,),
        );
        Box::pin(async { Ok(entries.await?.into_iter().map(|meta| meta.key).collect()) })
    }
}

/// How many rows of a table have each value of a column that an index begins with.
fn counts(
    connection: &Connection,
    table: &str,
    column: &str,
) -> Result<BTreeMap<String, u64>, StoreError> {
    let text = format!("SELECT {column}, count(*) FROM {table} GROUP BY {column}");
    let mut statement = connection.prepare_cached(&text).map_err(sql)?;
    let mut rows = statement.query(()).map_err(sql)?;
    let mut counts = BTreeMap::new();
    while let Some(row) = rows.next().map_err(sql)? {
        counts.insert(row.get(0).map_err(sql)?, number(row, 1)?);
    }
    Ok(counts)
}

pub(super) fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags).map_err(sql)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Else a statement is planned anew each time that another value is bound to it.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
        .map_err(sql)?;
    connection
        .execute_batch(
            "PRAGMA busy_timeout = 5000; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; \
             PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY; PRAGMA mmap_size = 0;",
        )
        .map_err(sql)?;
    Ok(connection)
}

/// The root keys of the store; new ones for a new store.
fn root_keys(
    connection: &Connection,
    unsealer: &dyn Unsealer,
    path: &Path,
) -> Result<RootKeys, OpenError> {
    let store = |error| OpenError::Store {
        path: path.to_owned(),
        error: sql(error),
    };
    let wrapped: Option<Vec<u8>> = connection
        .query_row("SELECT root_keys FROM broker", (), |row| row.get(0))
        .map_err(store)?;
    if let Some(wrapped) = wrapped {
        let exported = unsealer.unwrap_keys(&wrapped)?;
        return Ok(RootKeys::import(&exported).map_err(UnsealError::from)?);
    }
    let keys = RootKeys::generate().map_err(UnsealError::from)?;
    let wrapped = unsealer.wrap(&keys.export(None), true)?;
    connection
        .execute("UPDATE broker SET root_keys = ?1", (wrapped,))
        .map_err(store)?;
    Ok(keys)
}
