//! The thread that writes: all units that wait share one transaction, and so one fsync.

use super::integrity::{Integrity, Sum};
use super::rows::{Meta, Record, column, integer, number, sql};
use super::{
    Claim, Configuration, KvRow, Lease, LeaseState, Op, Revoked, StoreError, Workload, claims,
};
use crate::audit::HeadCell;
use mayfly_wire::LeaseId;
use rusqlite::{Connection, OptionalExtension as _, Params, Transaction, TransactionBehavior};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Most units of one commit.
const GROUP: usize = 512;
/// The MAC of a lease whose certificate was revoked.
const REVOKED: &str = "SELECT mac FROM revoked WHERE lease = ?1";

/// Where an answer goes.
type Done<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the thread is given.
pub(super) enum Job {
    /// A unit to commit.
    Unit(Vec<Op>, Done<()>),
    /// Due work to claim.
    Claim(Claim, Done<Vec<Lease>>),
}

/// What is to be answered once the group is on disk.
enum Outcome {
    Unit(Result<(), StoreError>, Done<()>),
    Claim(Result<Vec<Lease>, StoreError>, Done<Vec<Lease>>),
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) integrity: Integrity,
    pub(super) sum: Sum,
    /// Counts up with each commit.
    pub(super) generation: u64,
    pub(super) head: Arc<Mutex<HeadCell>>,
}

impl Writer {
    pub(super) fn run(mut self, mut waiting: mpsc::Receiver<Job>) {
        let mut jobs = Vec::new();
        while waiting.blocking_recv_many(&mut jobs, GROUP) > 0 {
            let mut outcomes = Vec::with_capacity(jobs.len());
            let committed = self.group(jobs.drain(..), &mut outcomes);
            if let Err(error) = &committed {
                tracing::error!(%error, "a commit of the store failed");
            }
            // Who asked may have gone; what is committed stands.
            for outcome in outcomes {
                match outcome {
                    Outcome::Unit(result, done) => {
                        let _ = done.send(committed.clone().and(result));
                    }
                    Outcome::Claim(result, done) => {
                        let _ = done.send(committed.clone().and(result));
                    }
                }
            }
        }
    }

    /// Commits the jobs together. Each that fails on its own account fails alone; an error of the disk
    /// fails all.
    fn group(
        &mut self,
        jobs: impl Iterator<Item = Job>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), StoreError> {
        let begun = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate);
        let mut transaction = match begun.map_err(sql) {
            Ok(transaction) => transaction,
            Err(error) => {
                outcomes.extend(jobs.map(|job| match job {
                    Job::Unit(_, done) => Outcome::Unit(Ok(()), done),
                    Job::Claim(_, done) => Outcome::Claim(Ok(Vec::new()), done),
                }));
                return Err(error);
            }
        };
        let mut sum = self.sum;
        let mut broken = Ok(());
        let mut put = None;
        for job in jobs {
            let integrity = &self.integrity;
            match job {
                Job::Unit(unit, done) => {
                    let result = alone(&mut transaction, &mut sum, &mut broken, |at, sum| {
                        apply(at, integrity, sum, &mut put, &unit)
                    });
                    outcomes.push(Outcome::Unit(result, done));
                }
                Job::Claim(claim, done) => {
                    let result = alone(&mut transaction, &mut sum, &mut broken, |at, sum| {
                        claims::claim(at, integrity, sum, &claim)
                    });
                    outcomes.push(Outcome::Claim(result, done));
                }
            }
        }
        broken?;
        let generation = self.generation + 1;
        let head = self
            .head
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get();
        let stamp = self.integrity.stamp(generation, &sum, &head)?;
        write_stamp(&transaction, generation, &stamp)?;
        transaction.commit().map_err(sql)?;
        self.sum = sum;
        self.generation = generation;
        Ok(())
    }
}

/// Does one job so that it leaves nothing behind if it fails. An error of the disk is kept in `broken`,
/// and nothing is done after it.
fn alone<T>(
    transaction: &mut Transaction<'_>,
    sum: &mut Sum,
    broken: &mut Result<(), StoreError>,
    work: impl FnOnce(&Connection, &mut Sum) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    broken.clone()?;
    let mut after = *sum;
    let done = (|| {
        let savepoint = transaction.savepoint().map_err(sql)?;
        let result = work(&savepoint, &mut after);
        match result {
            Ok(_) => savepoint.commit().map_err(sql)?,
            Err(StoreError::Unavailable(_)) => {}
            Err(_) => savepoint.finish().map_err(sql)?,
        }
        result
    })();
    match &done {
        Ok(_) => *sum = after,
        Err(error @ StoreError::Unavailable(_)) => *broken = Err(error.clone()),
        Err(_) => {}
    }
    done
}

pub(super) fn write_stamp(
    connection: &Connection,
    generation: u64,
    stamp: &[u8],
) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE broker SET generation = ?1, stamp = ?2")
        .and_then(|mut statement| {
            let generation = i64::try_from(generation).unwrap_or(i64::MAX);
            statement.execute((generation, stamp))
        })
        .map_err(sql)?;
    Ok(())
}

/// One unit, on the way to its commit.
struct Applying<'a> {
    connection: &'a Connection,
    integrity: &'a Integrity,
    sum: &'a mut Sum,
    /// What this group put last: leases of one workload come many at once, each with the same evidence.
    put: &'a mut Option<Box<Workload>>,
}

fn apply(
    connection: &Connection,
    integrity: &Integrity,
    sum: &mut Sum,
    put: &mut Option<Box<Workload>>,
    unit: &[Op],
) -> Result<(), StoreError> {
    let mut applying = Applying {
        connection,
        integrity,
        sum,
        put,
    };
    let applied = unit.iter().try_for_each(|op| applying.op(op));
    if applied.is_err() {
        // It is taken back.
        *put = None;
    }
    applied
}

impl Applying<'_> {
    fn op(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::KvPut(row) => self.kv_put(row),
            Op::LeaseInsert(lease) => self.lease_insert(lease),
            Op::LeaseUpdate(lease) => self.lease_update(lease),
            Op::LeaseDue(id, due_at) => self.lease_due(id, *due_at),
            Op::LeaseEnd(id, at) => self.lease_end(id, *at),
            Op::RevokedRemove(id) => there_or_not(self.remove(
                REVOKED,
                "DELETE FROM revoked WHERE lease = ?1",
                id.as_str(),
                "revoked lease",
            )),
            Op::WorkloadPut(workload) => self.workload_put(workload),
            Op::WorkloadRemove(key) => self.workload_remove(&key.to_string()),
            Op::ConfigPut(configuration) => self.config_put(configuration),
            // Wrapped, they carry their own authentication.
            Op::RootKeysPut(wrapped) => self
                .connection
                .execute("UPDATE broker SET root_keys = ?1", (wrapped,))
                .map(|_| ())
                .map_err(sql),
            Op::MetaPut(key, value) => {
                let meta = Meta {
                    key: key.clone(),
                    value: value.clone(),
                };
                self.replace("SELECT mac FROM meta WHERE key = ?1", key, &meta)
            }
            Op::MetaRemove(key) => there_or_not(self.remove(
                "SELECT mac FROM meta WHERE key = ?1",
                "DELETE FROM meta WHERE key = ?1",
                key,
                "entry",
            )),
        }
    }

    fn workload_put(&mut self, workload: &Workload) -> Result<(), StoreError> {
        if (self.put.as_ref()).is_some_and(|put| put.evidence == workload.evidence) {
            return Ok(());
        }
        let key = workload.evidence.workload.to_string();
        self.replace("SELECT mac FROM workloads WHERE key = ?1", &key, workload)?;
        *self.put = Some(Box::new(workload.clone()));
        Ok(())
    }

    /// Looked at here, where nothing comes between: a lease that begins for it meanwhile would be left
    /// with nobody.
    fn workload_remove(&mut self, key: &str) -> Result<(), StoreError> {
        let revoking = integer(LeaseState::Revoking.number())?;
        let lives: Option<String> = self.one(
            "SELECT id FROM leases WHERE workload = ?1 AND state <> ?2 LIMIT 1",
            (key, revoking),
        )?;
        if lives.is_some() {
            return Ok(());
        }
        *self.put = None;
        there_or_not(self.remove(
            "SELECT mac FROM workloads WHERE key = ?1",
            "DELETE FROM workloads WHERE key = ?1",
            key,
            "workload",
        ))
    }

    fn kv_put(&mut self, row: &KvRow) -> Result<(), StoreError> {
        let current: Option<i64> = self.one(
            "SELECT max(version) FROM kv WHERE path = ?1",
            (row.path.as_str(),),
        )?;
        let current = current.unwrap_or(0);
        if integer(row.version)? != current + 1 {
            return Err(StoreError::Conflict(format!(
                "{} is at version {current} by now",
                row.path
            )));
        }
        self.write(row)
    }

    fn lease_insert(&mut self, lease: &Lease) -> Result<(), StoreError> {
        if lease.state != lease.first_state() {
            return Err(lease.skips(None, Some(lease.state)));
        }
        self.only_one(lease)?;
        if self.lease(&lease.id)?.is_some() {
            return Err(StoreError::Conflict(format!("{} exists already", lease.id)));
        }
        self.write(lease)
    }

    /// Whether no other lease of the same workload and credential is in the state that this one would
    /// be in.
    fn only_one(&self, lease: &Lease) -> Result<(), StoreError> {
        if !matches!(lease.state, LeaseState::Planned | LeaseState::Active) {
            return Ok(());
        }
        let found: Option<String> = self.one(
            // The index is only used when its own condition stands here.
            "SELECT id FROM leases WHERE workload = ?1 AND credential = ?2 AND state = ?3 \
             AND state IN (0, 1) AND id <> ?4",
            (
                lease.workload.to_string(),
                lease.credential.as_str(),
                integer(lease.state.number())?,
                lease.id.as_str(),
            ),
        )?;
        match found {
            None => Ok(()),
            Some(id) => Err(StoreError::Conflict(format!(
                "workload {} holds {} already, under {id}",
                lease.workload.id(),
                lease.credential
            ))),
        }
    }

    /// A lease as it stands, and its MAC.
    fn lease(&self, id: &LeaseId) -> Result<Option<(Lease, Vec<u8>)>, StoreError> {
        let text = format!("SELECT {} FROM leases WHERE id = ?1", Lease::COLUMNS);
        let mut statement = self.connection.prepare_cached(&text).map_err(sql)?;
        let mut rows = statement.query((id.as_str(),)).map_err(sql)?;
        let Some(row) = rows.next().map_err(sql)? else {
            return Ok(None);
        };
        let lease = Lease::checked(row, self.integrity)?;
        Ok(Some((lease, column(row, row.as_ref().column_count() - 1)?)))
    }

    fn lease_update(&mut self, lease: &Lease) -> Result<(), StoreError> {
        let found = self.lease(&lease.id)?;
        let (old, mac) = found.ok_or_else(|| StoreError::NotFound(lease.id.to_string()))?;
        if !old.state.may_become(lease.state) {
            return Err(old.skips(Some(old.state), Some(lease.state)));
        }
        self.only_one(lease)?;
        self.integrity.subtract(self.sum, &mac)?;
        self.write(&Lease {
            id: old.id,
            workload: old.workload,
            credential: old.credential,
            engine: old.engine,
            ..lease.clone()
        })
    }

    fn lease_due(&mut self, id: &LeaseId, due_at: u64) -> Result<(), StoreError> {
        let Some((lease, mac)) = self.lease(id)? else {
            return Ok(());
        };
        self.integrity.subtract(self.sum, &mac)?;
        self.write(&Lease { due_at, ..lease })
    }

    fn lease_end(&mut self, id: &LeaseId, at: u64) -> Result<(), StoreError> {
        let found = self.lease(id)?;
        let (old, _) = found.ok_or_else(|| StoreError::NotFound(format!("lease {id}")))?;
        if !old.may_end() {
            return Err(old.skips(Some(old.state), None));
        }
        if let Some(revoked) = Revoked::of(&old, at) {
            self.replace(REVOKED, id.as_str(), &revoked)?;
        }
        self.remove(
            "SELECT mac FROM leases WHERE id = ?1",
            "DELETE FROM leases WHERE id = ?1",
            id.as_str(),
            "lease",
        )
    }

    fn config_put(&mut self, configuration: &Configuration) -> Result<(), StoreError> {
        let current: Option<(i64, Vec<u8>)> = self
            .connection
            .prepare_cached("SELECT number, mac FROM configuration")
            .and_then(|mut statement| {
                statement
                    .query_row((), |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()
            })
            .map_err(sql)?;
        let number = current.as_ref().map_or(0, |(number, _)| *number);
        if integer(configuration.number)? != number + 1 {
            return Err(StoreError::Conflict(format!(
                "the configuration is at number {number} by now"
            )));
        }
        if let Some((_, mac)) = current {
            self.integrity.subtract(self.sum, &mac)?;
        }
        self.write(configuration)
    }

    fn replace(&mut self, select: &str, key: &str, record: &impl Record) -> Result<(), StoreError> {
        if let Some(mac) = self.mac(select, key)? {
            self.integrity.subtract(self.sum, &mac)?;
        }
        self.write(record)
    }

    fn remove(
        &mut self,
        select: &str,
        delete: &str,
        key: &str,
        what: &str,
    ) -> Result<(), StoreError> {
        let mac = self.mac(select, key)?;
        let mac = mac.ok_or_else(|| StoreError::NotFound(format!("{what} {key}")))?;
        self.connection
            .prepare_cached(delete)
            .and_then(|mut statement| statement.execute((key,)))
            .map_err(sql)?;
        self.integrity.subtract(self.sum, &mac)
    }

    fn write(&mut self, record: &impl Record) -> Result<(), StoreError> {
        let mac = self.integrity.mac(&record.canon()?)?;
        record.write(self.connection, &mac)?;
        self.integrity.add(self.sum, &mac)
    }

    fn mac(&self, select: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.one(select, (key,))
    }

    fn one<T: rusqlite::types::FromSql>(
        &self,
        select: &str,
        parameters: impl Params,
    ) -> Result<Option<T>, StoreError> {
        self.connection
            .prepare_cached(select)
            .and_then(|mut statement| {
                statement
                    .query_row(parameters, |row| row.get::<_, Option<T>>(0))
                    .optional()
            })
            .map(Option::flatten)
            .map_err(sql)
    }
}

/// What need not be there is gone either way.
fn there_or_not(removed: Result<(), StoreError>) -> Result<(), StoreError> {
    match removed {
        Err(StoreError::NotFound(_)) => Ok(()),
        other => other,
    }
}

/// Generation and stamp, as they stand.
pub(super) fn read_stamp(connection: &Connection) -> Result<(u64, Option<Vec<u8>>), StoreError> {
    let mut statement = connection
        .prepare("SELECT generation, stamp FROM broker")
        .map_err(sql)?;
    let mut rows = statement.query(()).map_err(sql)?;
    match rows.next().map_err(sql)? {
        Some(row) => Ok((number(row, 0)?, column(row, 1)?)),
        None => Ok((0, None)),
    }
}
