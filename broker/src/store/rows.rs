//! Rows: how each is written, read, and put under its MAC.

use super::integrity::Integrity;
use super::{Configuration, KvRow, KvSummary, Lease, LeaseState, Source, StoreError, Workload};
use crate::seal::Canon;
use mayfly_wire::{EngineKind, FieldName, LeaseId, WorkloadKey};
use rusqlite::types::FromSql;
use rusqlite::{Connection, Params, Row};
use std::fmt::Display;

/// A kind of row.
pub(super) trait Record: Sized {
    /// Its table.
    const TABLE: &'static str;
    /// Its columns, the MAC last, in the order in which [`Self::read`] takes them.
    const COLUMNS: &'static str;

    /// Reads the columns before the MAC.
    fn read(row: &Row<'_>) -> Result<Self, StoreError>;
    /// Every column, in one form only.
    fn canon(&self) -> Result<Vec<u8>, StoreError>;
    /// Writes it over the row of the same key, if there is one.
    fn write(&self, connection: &Connection, mac: &[u8]) -> Result<(), StoreError>;

    /// Reads a row and checks its MAC.
    fn checked(row: &Row<'_>, integrity: &Integrity) -> Result<Self, StoreError> {
        let record = Self::read(row)?;
        let mac: Vec<u8> = column(row, row.as_ref().column_count() - 1)?;
        integrity.check(Self::TABLE, &record.canon()?, &mac)?;
        Ok(record)
    }
}

/// One entry of the broker's own.
pub(super) struct Meta {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
}

impl Record for KvRow {
    const TABLE: &'static str = "kv";
    const COLUMNS: &'static str = "path, version, created_at, fields, sealed, mac";

    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            path: parsed(row, 0)?,
            version: number(row, 1)?,
            created_at: number(row, 2)?,
            fields: fields(&column::<String>(row, 3)?)?,
            sealed: column(row, 4)?,
        })
    }

    fn canon(&self) -> Result<Vec<u8>, StoreError> {
        let mut canon = Canon::default();
        canon.text(Self::TABLE).text(self.path.as_str());
        canon.number(self.version).number(self.created_at);
        canon.text(&joined(&self.fields));
        match &self.sealed {
            Some(sealed) => canon.number(1).bytes(sealed),
            None => canon.number(0),
        };
        Ok(canon.0)
    }

    fn write(&self, connection: &Connection, mac: &[u8]) -> Result<(), StoreError> {
        execute(
            connection,
            "INSERT INTO kv (path, version, created_at, fields, sealed, mac) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            (
                self.path.as_str(),
                integer(self.version)?,
                integer(self.created_at)?,
                joined(&self.fields),
                &self.sealed,
                mac,
            ),
        )
    }
}

impl Record for Lease {
    const TABLE: &'static str = "leases";
    const COLUMNS: &'static str = "id, workload, credential, engine, node, name, state, issued_at, \
                                   expires_at, due_at, reason, attempts, problem, source, place, \
                                   account, version, sealed, mac";

    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        let found = number(row, 6)?;
        let state = LeaseState::numbered(found).ok_or_else(|| odd("state", found))?;
        let source = match number(row, 13)? {
            0 => Source::Kv {
                path: parsed(row, 14)?,
                version: number(row, 16)?,
            },
            1 => Source::Sealed(column(row, 17)?),
            2 => Source::Account {
                connection: parsed(row, 14)?,
                account: column(row, 15)?,
                sealed: column(row, 17)?,
            },
            3 => Source::Shared {
                version: number(row, 16)?,
            },
            other => return Err(odd("source", other)),
        };
        Ok(Self {
            id: LeaseId::from(column::<String>(row, 0)?),
            workload: workload_key(&column::<String>(row, 1)?)?,
            credential: parsed(row, 2)?,
            engine: engine(row, 3)?,
            node: column(row, 4)?,
            name: column(row, 5)?,
            state,
            issued_at: number(row, 7)?,
            expires_at: number(row, 8)?,
            due_at: number(row, 9)?,
            reason: column(row, 10)?,
            attempts: number(row, 11)?,
            problem: column(row, 12)?,
            source,
        })
    }

    fn canon(&self) -> Result<Vec<u8>, StoreError> {
        let columns = SourceColumns::of(&self.source);
        let mut canon = Canon::default();
        canon.text(Self::TABLE).text(self.id.as_str());
        canon.text(&self.workload.to_string());
        canon.text(self.credential.as_str());
        canon.text(self.engine.as_str()).text(&self.node);
        canon.text(&self.name).number(self.state.number());
        canon.number(self.issued_at).number(self.expires_at);
        canon.number(self.due_at).text(&self.reason);
        canon.number(self.attempts).text(&self.problem);
        canon.number(columns.tag).text(columns.place);
        canon.text(columns.account).number(columns.version);
        canon.bytes(columns.sealed);
        Ok(canon.0)
    }

    fn write(&self, connection: &Connection, mac: &[u8]) -> Result<(), StoreError> {
        let columns = SourceColumns::of(&self.source);
        execute(
            connection,
            "INSERT INTO leases (id, workload, credential, engine, node, name, state, issued_at, \
             expires_at, due_at, reason, attempts, problem, source, place, account, version, \
             sealed, mac) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, \
             ?18, ?19) \
             ON CONFLICT (id) DO UPDATE SET node = excluded.node, name = excluded.name, \
             state = excluded.state, issued_at = excluded.issued_at, \
             expires_at = excluded.expires_at, due_at = excluded.due_at, \
             reason = excluded.reason, attempts = excluded.attempts, problem = excluded.problem, \
             source = excluded.source, place = excluded.place, account = excluded.account, \
             version = excluded.version, sealed = excluded.sealed, mac = excluded.mac",
            rusqlite::params![
                self.id.as_str(),
                self.workload.to_string(),
                self.credential.as_str(),
                self.engine.as_str(),
                &self.node,
                &self.name,
                integer(self.state.number())?,
                integer(self.issued_at)?,
                integer(self.expires_at)?,
                integer(self.due_at)?,
                &self.reason,
                integer(self.attempts)?,
                &self.problem,
                integer(columns.tag)?,
                columns.place,
                columns.account,
                integer(columns.version)?,
                columns.sealed,
                mac,
            ],
        )
    }
}

/// A source as columns; those that it has no use for are empty.
struct SourceColumns<'a> {
    tag: u64,
    place: &'a str,
    account: &'a str,
    version: u64,
    sealed: &'a [u8],
}

impl<'a> SourceColumns<'a> {
    fn of(source: &'a Source) -> Self {
        let empty = Self {
            tag: 0,
            place: "",
            account: "",
            version: 0,
            sealed: &[],
        };
        match source {
            Source::Kv { path, version } => Self {
                place: path.as_str(),
                version: *version,
                ..empty
            },
            Source::Sealed(sealed) => Self {
                tag: 1,
                sealed,
                ..empty
            },
            Source::Account {
                connection,
                account,
                sealed,
            } => Self {
                tag: 2,
                place: connection.as_str(),
                account,
                sealed,
                ..empty
            },
            Source::Shared { version } => Self {
                tag: 3,
                version: *version,
                ..empty
            },
        }
    }
}

impl Record for Workload {
    const TABLE: &'static str = "workloads";
    const COLUMNS: &'static str = "key, node, evidence, seen_at, mac";

    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        let text: String = column(row, 2)?;
        let evidence = serde_json::from_str(&text).map_err(|error| odd("evidence", error))?;
        Ok(Self {
            evidence,
            seen_at: number(row, 3)?,
        })
    }

    fn canon(&self) -> Result<Vec<u8>, StoreError> {
        let mut canon = Canon::default();
        canon.text(Self::TABLE);
        canon.text(&self.evidence.workload.to_string());
        canon.text(&self.evidence.node);
        canon.text(&json(&self.evidence)?).number(self.seen_at);
        Ok(canon.0)
    }

    fn write(&self, connection: &Connection, mac: &[u8]) -> Result<(), StoreError> {
        execute(
            connection,
            "INSERT OR REPLACE INTO workloads (key, node, evidence, seen_at, mac) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (
                self.evidence.workload.to_string(),
                &self.evidence.node,
                json(&self.evidence)?,
                integer(self.seen_at)?,
                mac,
            ),
        )
    }
}

impl Record for Configuration {
    const TABLE: &'static str = "configuration";
    const COLUMNS: &'static str = "number, json, mac";

    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            number: number(row, 0)?,
            json: column(row, 1)?,
        })
    }

    fn canon(&self) -> Result<Vec<u8>, StoreError> {
        let mut canon = Canon::default();
        canon.text(Self::TABLE).number(self.number).text(&self.json);
        Ok(canon.0)
    }

    fn write(&self, connection: &Connection, mac: &[u8]) -> Result<(), StoreError> {
        execute(
            connection,
            "INSERT OR REPLACE INTO configuration (only, number, json, mac) VALUES (1, ?1, ?2, ?3)",
            (integer(self.number)?, &self.json, mac),
        )
    }
}

impl Record for Meta {
    const TABLE: &'static str = "meta";
    const COLUMNS: &'static str = "key, value, mac";

    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            key: column(row, 0)?,
            value: column(row, 1)?,
        })
    }

    fn canon(&self) -> Result<Vec<u8>, StoreError> {
        let mut canon = Canon::default();
        canon.text(Self::TABLE).text(&self.key).bytes(&self.value);
        Ok(canon.0)
    }

    fn write(&self, connection: &Connection, mac: &[u8]) -> Result<(), StoreError> {
        execute(
            connection,
            "INSERT OR REPLACE INTO meta (key, value, mac) VALUES (?1, ?2, ?3)",
            (&self.key, &self.value, mac),
        )
    }
}

impl From<KvRow> for KvSummary {
    fn from(row: KvRow) -> Self {
        Self {
            path: row.path,
            version: row.version,
            created_at: row.created_at,
            deleted: row.sealed.is_none(),
            fields: row.fields,
        }
    }
}

/// What SQLite said, in our words.
pub(super) fn sql(error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode::{ConstraintViolation, DatabaseCorrupt, NotADatabase};
    match error.sqlite_error_code() {
        Some(NotADatabase) => StoreError::Foreign(
            "the store file is not an SQLite database: expected the one that the broker made; put \
             it back from a backup, or move it away to begin anew"
                .to_owned(),
        ),
        Some(DatabaseCorrupt) => StoreError::Damaged(error.to_string()),
        Some(ConstraintViolation) => StoreError::Conflict(error.to_string()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

pub(super) fn execute(
    connection: &Connection,
    text: &str,
    parameters: impl Params,
) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(text).map_err(sql)?;
    statement.execute(parameters).map_err(sql)?;
    Ok(())
}

fn odd(what: &str, found: impl Display) -> StoreError {
    StoreError::Damaged(format!("a row's {what} is not valid: {found}"))
}

pub(super) fn column<T: FromSql>(row: &Row<'_>, index: usize) -> Result<T, StoreError> {
    row.get(index).map_err(|error| odd("column", error))
}

fn parsed<T: std::str::FromStr<Err: Display>>(
    row: &Row<'_>,
    index: usize,
) -> Result<T, StoreError> {
    let text: String = column(row, index)?;
    text.parse().map_err(|error| odd("name", error))
}

pub(super) fn engine(row: &Row<'_>, index: usize) -> Result<EngineKind, StoreError> {
    let name: String = column(row, index)?;
    EngineKind::named(&name).ok_or_else(|| odd("engine", name))
}

/// SQLite has signed 64-bit integers; ours stay far below their end.
pub(super) fn integer(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Unavailable(format!("{number} is too large")))
}

pub(super) fn number(row: &Row<'_>, index: usize) -> Result<u64, StoreError> {
    let number: i64 = column(row, index)?;
    u64::try_from(number).map_err(|_| odd("number", number))
}

fn joined(fields: &[FieldName]) -> String {
    let names: Vec<&str> = fields.iter().map(FieldName::as_str).collect();
    names.join("\n")
}

fn fields(text: &str) -> Result<Vec<FieldName>, StoreError> {
    text.lines()
        .map(|name| name.parse().map_err(|error| odd("field", error)))
        .collect()
}

fn json(evidence: &mayfly_wire::Evidence) -> Result<String, StoreError> {
    serde_json::to_string(evidence).map_err(|error| StoreError::Unavailable(error.to_string()))
}

/// The reverse of its `Display`.
fn workload_key(text: &str) -> Result<WorkloadKey, StoreError> {
    let mut parts = text.rsplitn(3, '/');
    let mut next = || parts.next().ok_or_else(|| odd("workload", text));
    let (pidns, cgroup, boot) = (next()?, next()?, next()?);
    let id = |text: &str| text.parse().map_err(|_| odd("workload", text));
    Ok(WorkloadKey {
        boot_id: boot.to_owned(),
        cgroup_id: id(cgroup)?,
        pidns_id: id(pidns)?,
    })
}
