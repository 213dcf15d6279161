//! The tables, and how an older file becomes a newer one.

use super::StoreError;
use super::rows::sql;
use rusqlite::{Connection, TransactionBehavior};

/// `Mfly`: marks the file as ours (PRAGMA application_id).
const APPLICATION: i32 = 0x4d66_6c79;

/// Each step brings the file from the version that is its index to the next.
const STEPS: [&str; 3] = [
    "
CREATE TABLE broker (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    root_keys BLOB,
    generation INTEGER NOT NULL,
    stamp BLOB
) STRICT;
INSERT INTO broker (only, generation) VALUES (1, 0);
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT;
CREATE TABLE configuration (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    number INTEGER NOT NULL,
    json TEXT NOT NULL,
    mac BLOB NOT NULL
) STRICT;
CREATE TABLE kv (
    path TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    fields TEXT NOT NULL,
    sealed BLOB,
    mac BLOB NOT NULL,
    PRIMARY KEY (path, version)
) STRICT;
CREATE TABLE workloads (
    key TEXT PRIMARY KEY,
    node TEXT NOT NULL,
    evidence TEXT NOT NULL,
    seen_at INTEGER NOT NULL,
    mac BLOB NOT NULL
) STRICT;
CREATE INDEX workloads_by_node ON workloads (node);
CREATE TABLE leases (
    id TEXT PRIMARY KEY,
    workload TEXT NOT NULL,
    credential TEXT NOT NULL,
    engine TEXT NOT NULL,
    node TEXT NOT NULL,
    name TEXT NOT NULL,
    state INTEGER NOT NULL,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    problem TEXT NOT NULL,
    source INTEGER NOT NULL,
    place TEXT NOT NULL,
    account TEXT NOT NULL,
    version INTEGER NOT NULL,
    sealed BLOB NOT NULL,
    mac BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX leases_by_holder ON leases (workload, credential, state) WHERE state IN (0, 1);
CREATE INDEX leases_by_workload ON leases (workload);
CREATE INDEX leases_by_credential ON leases (credential);
CREATE INDEX leases_by_due ON leases (due_at, source, place);
CREATE INDEX leases_unsettled ON leases (state) WHERE state IN (0, 2, 3);
",
    // A node's workloads in pages.
    "
DROP INDEX workloads_by_node;
CREATE INDEX workloads_by_node ON workloads (node, key);
",
    // Leases that ended before their certificates expire.
    "
CREATE TABLE revoked (
    lease TEXT PRIMARY KEY,
    engine TEXT NOT NULL,
    issued_at INTEGER NOT NULL,
    listed_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    mac BLOB NOT NULL
) STRICT;
CREATE INDEX revoked_by_end ON revoked (engine, expires_at, lease);
",
];

/// Brings the file to the newest version, or refuses one that is not ours.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let read = |connection: &Connection, pragma: &str| {
        connection.query_row(&format!("PRAGMA {pragma}"), (), |row| row.get::<_, i32>(0))
    };
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))
        .map_err(sql)?;
    let application = read(connection, "application_id").map_err(sql)?;
    if tables > 0 && application != APPLICATION {
        return Err(StoreError::Foreign(format!(
            "this SQLite file belongs to another program (application_id {application:#x}, expected \
             {APPLICATION:#x}): give the broker a state directory of its own"
        )));
    }
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA journal_size_limit = 67108864;")
        .map_err(sql)?;
    let version = read(connection, "user_version").map_err(sql)?;
    let at = usize::try_from(version).unwrap_or(usize::MAX);
    let Some(steps) = STEPS.get(at..) else {
        return Err(StoreError::Foreign(format!(
            "this store has version {version}, and this broker knows up to {}: it was used by a \
             newer broker; start that one",
            STEPS.len()
        )));
    };
    for (step, number) in steps.iter().zip(at + 1..) {
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(sql)?;
        let marks =
            format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {number};");
        transaction.execute_batch(step).map_err(sql)?;
        transaction.execute_batch(&marks).map_err(sql)?;
        transaction.commit().map_err(sql)?;
    }
    Ok(())
}
