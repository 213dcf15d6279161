//! The thread that writes: all units that wait share one transaction, and so one fsync.

use super::integrity::{Integrity, Sum};
use super::rows::{Meta, Record, column, integer, number, sql};
use super::{Configuration, KvRow, Lease, LeaseState, Op, StoreError, Workload};
use crate::audit::HeadCell;
use rusqlite::{Connection, OptionalExtension as _, Params, TransactionBehavior};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Most units of one commit.
const GROUP: usize = 512;

pub(super) struct Job {
    pub(super) unit: Vec<Op>,
    pub(super) done: oneshot::Sender<Result<(), StoreError>>,
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
            let (units, answers): (Vec<_>, Vec<_>) =
                jobs.drain(..).map(|job| (job.unit, job.done)).unzip();
            let results = self.group(&units).unwrap_or_else(|error| {
                tracing::error!(%error, "a commit of the store failed");
                vec![Err(error); units.len()]
            });
            for (result, answer) in results.into_iter().zip(answers) {
                // Who asked may have gone; what is committed stands.
                let _ = answer.send(result);
            }
        }
    }

    /// Commits the units together. Each that fails on its own account fails alone; an error of the disk
    /// fails all.
    fn group(&mut self, units: &[Vec<Op>]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(sql)?;
        let mut sum = self.sum;
        let mut results = Vec::with_capacity(units.len());
        for unit in units {
            let mut after = sum;
            let savepoint = transaction.savepoint().map_err(sql)?;
            let result = apply(&savepoint, &self.integrity, &mut after, unit);
            match &result {
                Ok(()) => {
                    savepoint.commit().map_err(sql)?;
                    sum = after;
                }
                Err(StoreError::Unavailable(_)) => result.clone()?,
                Err(_) => savepoint.finish().map_err(sql)?,
            }
            results.push(result);
        }
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
        Ok(results)
    }
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
}

fn apply(
    connection: &Connection,
    integrity: &Integrity,
    sum: &mut Sum,
    unit: &[Op],
) -> Result<(), StoreError> {
    let mut applying = Applying {
        connection,
        integrity,
        sum,
    };
    unit.iter().try_for_each(|op| applying.op(op))
}

impl Applying<'_> {
    fn op(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::KvPut(row) => self.kv_put(row),
            Op::LeaseInsert(lease) => self.lease_insert(lease),
            Op::LeaseUpdate(lease) => self.lease_update(lease),
            Op::LeaseEnd(id) => self.remove(
                "SELECT mac FROM leases WHERE id = ?1",
                "DELETE FROM leases WHERE id = ?1",
                id.as_str(),
                "lease",
            ),
            Op::WorkloadPut(workload) => {
                let key = workload.evidence.workload.to_string();
                self.replace(
                    "SELECT mac FROM workloads WHERE key = ?1",
                    &key,
                    workload.as_ref(),
                )
            }
            Op::WorkloadRemove(key) => self.remove(
                "SELECT mac FROM workloads WHERE key = ?1",
                "DELETE FROM workloads WHERE key = ?1",
                &key.to_string(),
                "workload",
            ),
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
            Op::MetaRemove(key) => {
                let removed = self.remove(
                    "SELECT mac FROM meta WHERE key = ?1",
                    "DELETE FROM meta WHERE key = ?1",
                    key,
                    "entry",
                );
                match removed {
                    Err(StoreError::NotFound(_)) => Ok(()),
                    other => other,
                }
            }
        }
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
        self.only_holder(lease)?;
        if self
            .mac("SELECT mac FROM leases WHERE id = ?1", lease.id.as_str())?
            .is_some()
        {
            return Err(StoreError::Conflict(format!("{} exists already", lease.id)));
        }
        self.write(lease)
    }

    /// Whether no other lease stands for the same workload and credential, if this one would.
    fn only_holder(&self, lease: &Lease) -> Result<(), StoreError> {
        if !matches!(lease.state, LeaseState::Planned | LeaseState::Active) {
            return Ok(());
        }
        let found: Option<String> = self.one(
            "SELECT id FROM leases WHERE workload = ?1 AND credential = ?2 AND state IN (0, 1) \
             AND id <> ?3",
            (
                lease.workload.to_string(),
                lease.credential.as_str(),
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

    fn lease_update(&mut self, lease: &Lease) -> Result<(), StoreError> {
        self.only_holder(lease)?;
        let text = format!("SELECT {} FROM leases WHERE id = ?1", Lease::COLUMNS);
        let mut statement = self.connection.prepare_cached(&text).map_err(sql)?;
        let mut rows = statement.query((lease.id.as_str(),)).map_err(sql)?;
        let row = rows.next().map_err(sql)?;
        let row = row.ok_or_else(|| StoreError::NotFound(lease.id.to_string()))?;
        let old = Lease::checked(row, self.integrity)?;
        let mac: Vec<u8> = column(row, row.as_ref().column_count() - 1)?;
        drop(rows);
        drop(statement);
        self.integrity.subtract(self.sum, &mac)?;
        self.write(&Lease {
            id: old.id,
            workload: old.workload,
            credential: old.credential,
            engine: old.engine,
            ..lease.clone()
        })
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

/// Reads every row, checks its MAC, and sums them up.
pub(super) fn sum_of_all(
    connection: &Connection,
    integrity: &Integrity,
) -> Result<Sum, StoreError> {
    let mut sum = Sum::default();
    add_table::<KvRow>(connection, integrity, &mut sum)?;
    add_table::<Lease>(connection, integrity, &mut sum)?;
    add_table::<Workload>(connection, integrity, &mut sum)?;
    add_table::<Configuration>(connection, integrity, &mut sum)?;
    add_table::<Meta>(connection, integrity, &mut sum)?;
    Ok(sum)
}

fn add_table<R: Record>(
    connection: &Connection,
    integrity: &Integrity,
    sum: &mut Sum,
) -> Result<(), StoreError> {
    let text = format!("SELECT {} FROM {}", R::COLUMNS, R::TABLE);
    let mut statement = connection.prepare(&text).map_err(sql)?;
    let last = statement.column_count() - 1;
    let mut rows = statement.query(()).map_err(sql)?;
    while let Some(row) = rows.next().map_err(sql)? {
        R::checked(row, integrity)?;
        let mac: Vec<u8> = column(row, last)?;
        integrity.add(sum, &mac)?;
    }
    Ok(())
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
