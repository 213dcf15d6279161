//! Due work: which leases are to be looked at, and by whom.

use super::integrity::{Integrity, Sum};
use super::rows::{Record, column, integer, sql};
use super::{Claim, Lease, StoreError};
use mayfly_wire::ConnectionName;
use rusqlite::Connection;
use rusqlite::types::Value;
use std::fmt::Write as _;

/// Gives what is due and has it due again as [`Claim::again`] says.
pub(super) fn claim(
    connection: &Connection,
    integrity: &Integrity,
    sum: &mut Sum,
    claim: &Claim,
) -> Result<Vec<Lease>, StoreError> {
    let mut text = format!("SELECT {} FROM leases WHERE due_at <= ?1", Lease::COLUMNS);
    let mut values = vec![time(claim.now)];
    add_except(&mut text, &mut values, &claim.except);
    let _ = write!(text, " ORDER BY due_at LIMIT {}", claim.most);
    let mut claimed = Vec::new();
    let mut statement = connection.prepare_cached(&text).map_err(sql)?;
    let mut rows = (statement.query(rusqlite::params_from_iter(values))).map_err(sql)?;
    while let Some(row) = rows.next().map_err(sql)? {
        let lease = Lease::checked(row, integrity)?;
        let mac: Vec<u8> = column(row, row.as_ref().column_count() - 1)?;
        claimed.push((lease, mac));
    }
    drop(rows);
    let mut leases = Vec::with_capacity(claimed.len());
    for (lease, mac) in claimed {
        integrity.subtract(sum, &mac)?;
        let due_at = claim.again(&lease);
        let lease = Lease { due_at, ..lease };
        let mac = integrity.mac(&lease.canon()?)?;
        connection
            .prepare_cached("UPDATE leases SET due_at = ?1, mac = ?2 WHERE id = ?3")
            .and_then(|mut update| update.execute((time(due_at), &mac, lease.id.as_str())))
            .map_err(sql)?;
        integrity.add(sum, &mac)?;
        leases.push(lease);
    }
    Ok(leases)
}

/// When the next is due.
pub(super) fn next(
    connection: &Connection,
    except: &[ConnectionName],
) -> Result<Option<u64>, StoreError> {
    let mut text = "SELECT due_at FROM leases WHERE due_at >= ?1".to_owned();
    let mut values = vec![time(0)];
    add_except(&mut text, &mut values, except);
    text.push_str(" ORDER BY due_at LIMIT 1");
    let mut statement = connection.prepare_cached(&text).map_err(sql)?;
    let mut rows = (statement.query(rusqlite::params_from_iter(values))).map_err(sql)?;
    let row = rows.next().map_err(sql)?;
    row.map(|row| super::rows::number(row, 0)).transpose()
}

/// Leaves out what is at these targets. The few names are bound, never written into the text.
fn add_except(text: &mut String, values: &mut Vec<Value>, except: &[ConnectionName]) {
    if except.is_empty() {
        return;
    }
    text.push_str(" AND NOT (source = 2 AND place IN (");
    for (number, name) in except.iter().enumerate() {
        let comma = if number == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}?{}", values.len() + 1);
        values.push(Value::Text(name.to_string()));
    }
    text.push_str("))");
}

/// A time as SQLite takes it; one that is too far away is as far as it goes.
fn time(at: u64) -> Value {
    Value::Integer(integer(at).unwrap_or(i64::MAX))
}
