//! The check of the whole store when it is opened: the file's structure, every row's MAC, and the sum.

use super::integrity::{Integrity, Sum};
use super::rows::{Meta, Record, column, sql};
use super::sqlite::connect;
use super::writer::{read_stamp, write_stamp};
use super::{Configuration, KvRow, Lease, Revoked, StoreError, Workload};
use crate::audit::Head;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// Checks the file, every row, and their sum.
pub(super) fn check(
    path: &Path,
    connection: &Connection,
    integrity: &Integrity,
) -> Result<(Sum, u64, Option<Head>), StoreError> {
    let found = check_rows(path, connection, integrity)?;
    let (generation, stamp) = read_stamp(connection)?;
    let Some(stamp) = stamp else {
        if generation != 0 || found != Sum::default() {
            return Err(StoreError::Damaged("its stamp is missing".to_owned()));
        }
        let stamp = integrity.stamp(0, &found, &Head::default())?;
        write_stamp(connection, 0, &stamp)?;
        return Ok((found, 0, None));
    };
    let (expected, head) = integrity.open_stamp(generation, &stamp)?;
    if found != expected {
        return Err(StoreError::Damaged(
            "rows were added, removed, or put back from an older copy".to_owned(),
        ));
    }
    Ok((found, generation, Some(head)))
}

/// Checks the file and every row, and gives the sum of them. Each of the large parts has a thread and a
/// connection of its own: nobody else has the file open, so that all see the same.
fn check_rows(
    path: &Path,
    connection: &Connection,
    integrity: &Integrity,
) -> Result<Sum, StoreError> {
    let reader = || connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let (structure, leases, workloads) = (reader()?, reader()?, reader()?);
    std::thread::scope(|scope| {
        let structure = scope.spawn(move || check_structure(&structure));
        let leases = scope.spawn(move || sum_of::<Lease>(&leases, integrity));
        let workloads = scope.spawn(move || sum_of::<Workload>(&workloads, integrity));
        let others = [
            sum_of::<KvRow>(connection, integrity),
            sum_of::<Configuration>(connection, integrity),
            sum_of::<Meta>(connection, integrity),
            sum_of::<Revoked>(connection, integrity),
        ];
        let ended = |_| StoreError::Unavailable("a thread that checks it ended".to_owned());
        structure.join().map_err(ended)??;
        let mut sum = leases.join().map_err(ended)??;
        sum.merge(&workloads.join().map_err(ended)??);
        for other in others {
            sum.merge(&other?);
        }
        Ok(sum)
    })
}

fn check_structure(connection: &Connection) -> Result<(), StoreError> {
    let state: String = connection
        .query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))
        .map_err(sql)?;
    if state == "ok" {
        return Ok(());
    }
    Err(StoreError::Damaged(state))
}

/// Reads every row of a table, checks its MAC, and sums them up.
fn sum_of<R: Record>(connection: &Connection, integrity: &Integrity) -> Result<Sum, StoreError> {
    let mut sum = Sum::default();
    add_table::<R>(connection, integrity, &mut sum)?;
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
