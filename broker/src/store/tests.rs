//! What is SQLite's own: files, locks, damage, edits, and speed.

use super::conformance::{Backend, lease, run};
use super::{LeaseState, Op, OpenError, SqliteStore, Store, StoreError};
use crate::clock::SystemClock;
use crate::engine::kv::Kv;
use crate::testing::TempDir;
use crate::unseal::{KeyFile, rotate_root_key};
use mayfly_wire::Secret;
use rusqlite::Connection;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Sqlite(TempDir);

impl Sqlite {
    fn new() -> Self {
        Self(TempDir::new())
    }

    fn dir(&self) -> std::path::PathBuf {
        self.0.path().join("state")
    }

    fn try_open(&self) -> Result<SqliteStore, OpenError> {
        let key = KeyFile::new(self.0.path().join("root.key"));
        SqliteStore::open(&self.dir(), &key)
    }

    /// What it says when it does not open.
    fn refusal(&self) -> String {
        self.try_open().err().expect("it opened").to_string()
    }

    /// Edits the file as an attacker would.
    fn edit(&self, text: &str) {
        let connection = Connection::open(self.dir().join("store.db")).unwrap();
        connection.execute_batch(text).unwrap();
    }
}

impl Backend for Sqlite {
    fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.try_open().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_does_what_every_store_must() {
    run(&Sqlite::new()).await;
}

#[test]
fn files_are_for_the_owner_alone_and_one_broker_at_a_time() {
    let sqlite = Sqlite::new();
    let store = sqlite.try_open().unwrap();
    assert_eq!(
        std::fs::metadata(sqlite.dir()).unwrap().mode() & 0o777,
        0o700
    );
    let mut seen = 0;
    for entry in std::fs::read_dir(sqlite.dir()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{entry:?}");
        seen += 1;
    }
    assert!(seen >= 3, "the log and its index are there too");
    assert!(
        sqlite
            .refusal()
            .contains("another mayfly-broker is using it")
    );
    drop(store);
    sqlite.try_open().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(sqlite.dir(), open).unwrap();
    assert!(sqlite.refusal().contains("0755"));
}

#[test]
fn a_foreign_or_damaged_file_is_refused() {
    let sqlite = Sqlite::new();
    std::fs::create_dir(sqlite.dir()).unwrap();
    let file = sqlite.dir().join("store.db");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(sqlite.dir(), mode).unwrap();
    std::fs::write(
        &file,
        b"this is not a database, and long enough to be one".repeat(99),
    )
    .unwrap();
    assert!(sqlite.refusal().contains("not an SQLite database"));
    std::fs::remove_file(&file).unwrap();
    sqlite.edit("CREATE TABLE recipes (name TEXT)");
    assert!(sqlite.refusal().contains("belongs to another program"));
    std::fs::remove_file(&file).unwrap();
    drop(sqlite.try_open().unwrap());
    sqlite.edit("PRAGMA user_version = 99");
    assert!(sqlite.refusal().contains("newer broker"));
    sqlite.edit("DROP TABLE revoked; PRAGMA user_version = 1");
    sqlite.try_open().unwrap();
}

#[tokio::test]
async fn another_key_file_or_none_says_what_to_do() {
    let sqlite = Sqlite::new();
    drop(sqlite.try_open().unwrap());
    let key = sqlite.0.path().join("root.key");
    std::fs::rename(&key, sqlite.0.path().join("kept")).unwrap();
    assert!(sqlite.refusal().contains("put the key file back"));
    std::fs::write(&key, [3; 32]).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o400);
    std::fs::set_permissions(&key, mode).unwrap();
    assert!(sqlite.refusal().contains("belongs to another store"));
    std::fs::rename(sqlite.0.path().join("kept"), &key).unwrap();
    sqlite.try_open().unwrap();
}

/// Every way to edit the file that SQL offers is found: at the next start, and where a row is read, at once.
#[tokio::test]
async fn edits_are_found() {
    let sqlite = Sqlite::new();
    let store = sqlite.open();
    let source = vec![
        Op::LeaseInsert(lease(1, 1, "a")),
        Op::LeaseInsert(lease(2, 2, "a")),
        Op::MetaPut("m".into(), b"m".to_vec()),
    ];
    store.commit(source).await.unwrap();
    let old_row = lease(1, 1, "a");
    let mut newer = old_row.clone();
    newer.expires_at = 99_999;
    let copy = sqlite.0.path().join("copy");
    sqlite.edit(&format!("VACUUM INTO '{}'", copy.display()));
    store.commit(vec![Op::LeaseUpdate(newer)]).await.unwrap();
    drop(store);

    let pristine = std::fs::read(sqlite.dir().join("store.db")).unwrap();
    let old = copy.display();
    for edit in [
        "UPDATE leases SET expires_at = 4102444800000 WHERE credential = 'a'".to_owned(),
        "UPDATE leases SET workload = replace(workload, '/2/', '/3/')".to_owned(),
        "UPDATE leases SET place = 'payroll/db'".to_owned(),
        "UPDATE leases SET state = 7".to_owned(),
        "DELETE FROM leases WHERE workload LIKE '%/2/%'".to_owned(),
        "DELETE FROM meta".to_owned(),
        "UPDATE meta SET value = x'6e'".to_owned(),
        "INSERT INTO meta SELECT 'n', value, mac FROM meta".to_owned(),
        "UPDATE broker SET generation = generation - 1".to_owned(),
        "UPDATE broker SET stamp = NULL".to_owned(),
        "UPDATE broker SET stamp = NULL, generation = 0".to_owned(),
        // An older form of a row, with the MAC that we gave it then.
        format!(
            "ATTACH '{old}' AS old; DELETE FROM leases WHERE workload LIKE '%/1/%'; \
             INSERT INTO leases SELECT * FROM old.leases WHERE workload LIKE '%/1/%'"
        ),
        // An older stamp, with rows that are newer. (A whole older file is for the audit log to see.)
        format!(
            "ATTACH '{old}' AS old; UPDATE broker SET (generation, stamp) = \
                 (SELECT generation, stamp FROM old.broker)"
        ),
    ] {
        sqlite.edit(&edit);
        let refusal = sqlite.refusal();
        assert!(
            refusal.contains("not as the broker left it"),
            "{edit}: {refusal}"
        );
        std::fs::write(sqlite.dir().join("store.db"), &pristine).unwrap();
        for rest in ["store.db-wal", "store.db-shm"] {
            let _ = std::fs::remove_file(sqlite.dir().join(rest));
        }
    }

    let store = sqlite.open();
    sqlite.edit("UPDATE leases SET expires_at = 1 WHERE workload LIKE '%/2/%'");
    let read = store.lease(lease(2, 2, "a").id).await;
    assert!(matches!(read, Err(StoreError::Damaged(_))));
    let changed = store.commit(vec![Op::LeaseUpdate(lease(2, 2, "a"))]).await;
    assert!(matches!(changed, Err(StoreError::Damaged(_))));
    assert!(store.lease(old_row.id).await.unwrap().is_some());
}

#[tokio::test]
async fn a_value_moved_to_another_row_does_not_open() {
    let sqlite = Sqlite::new();
    let store = Arc::new(sqlite.try_open().unwrap());
    let kv = Kv::new(store.clone(), store.keys(), Arc::new(SystemClock));
    let put = |path: &'static str, value: &'static str| {
        let fields = [("value".parse().unwrap(), Secret::from(value.to_owned()))];
        let kv = &kv;
        async move { kv.put(&path.parse().unwrap(), fields.into(), None).await }
    };
    put("mine", "harmless").await.unwrap();
    put("payroll", "the-secret-of-the-payroll").await.unwrap();
    // With the MAC of its own row, and with that of the other.
    for columns in ["sealed", "sealed, mac"] {
        sqlite.edit(&format!(
            "UPDATE kv SET ({columns}) = (SELECT {columns} FROM kv WHERE path = 'payroll') \
             WHERE path = 'mine'"
        ));
        assert!(kv.get(&"mine".parse().unwrap(), None).await.is_err());
    }
    assert!(kv.get(&"payroll".parse().unwrap(), None).await.is_ok());
    let needle = b"the-secret-of-the-payroll";
    assert_eq!(files_holding(&sqlite.dir(), needle), 0);
}

/// What older root keys sealed and what the new one seals is there after opening again; so is the audit
/// key.
#[tokio::test]
async fn the_root_key_rotates() {
    let sqlite = Sqlite::new();
    let put = |store: &Arc<SqliteStore>, value: &'static str| {
        let kv = Kv::new(store.clone(), store.keys(), Arc::new(SystemClock));
        let fields = [("value".parse().unwrap(), Secret::from(value.to_owned()))];
        async move { kv.put(&"a".parse().unwrap(), fields.into(), None).await }
    };
    let store = Arc::new(sqlite.try_open().unwrap());
    let audit = store.keys().lasting_key("audit").unwrap();
    store
        .commit(vec![Op::LeaseInsert(lease(1, 1, "a"))])
        .await
        .unwrap();
    put(&store, "old").await.unwrap();
    let key = KeyFile::new(sqlite.0.path().join("root.key"));
    let id = rotate_root_key(store.as_ref(), &store.keys(), &key).await;
    assert_eq!(id.unwrap(), 2);
    put(&store, "new").await.unwrap();
    store
        .commit(vec![Op::LeaseUpdate(lease(1, 1, "a"))])
        .await
        .unwrap();
    // A key file that went missing: nothing changes.
    let missing = KeyFile::new(sqlite.0.path().join("missing"));
    assert!(
        rotate_root_key(store.as_ref(), &store.keys(), &missing)
            .await
            .is_err()
    );
    assert_eq!(store.keys().current(), 2);
    drop(store);

    let store = Arc::new(sqlite.try_open().unwrap());
    assert_eq!(store.keys().current(), 2);
    assert_eq!(*store.keys().lasting_key("audit").unwrap(), *audit);
    let kv = Kv::new(store.clone(), store.keys(), Arc::new(SystemClock));
    for (version, value) in [(1, "old"), (2, "new")] {
        let read = kv.get(&"a".parse().unwrap(), Some(version)).await.unwrap();
        assert_eq!(
            read.fields.values().next().unwrap().expose(),
            value.as_bytes()
        );
    }
}

/// How many of the files in `dir` hold the bytes.
fn files_holding(dir: &Path, needle: &[u8]) -> usize {
    let mut files = 0;
    let holding = std::fs::read_dir(dir).unwrap().filter(|entry| {
        files += 1;
        let bytes = std::fs::read(entry.as_ref().unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    });
    let holding = holding.count();
    assert!(files >= 3, "the write-ahead log is there too");
    holding
}

/// Prints, for 1, 8 and 64 callers at once, how many leases are committed in a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_grouped() {
    let sqlite = Sqlite::new();
    let store = sqlite.open();
    // Whatever else the disk does may be in the way of one attempt.
    let mut all = Vec::new();
    while !all.iter().any(|rates: &[u64; 3]| rates[2] > rates[0]) {
        assert!(all.len() < 5, "64 callers must share commits: {all:?}");
        all.push(rates(&store, all.len() as u64).await);
    }
}

async fn rates(store: &Arc<dyn Store>, attempt: u64) -> [u64; 3] {
    let mut rates = [0; 3];
    for (round, callers) in [1_u64, 8, 64].into_iter().enumerate() {
        let until = Instant::now() + Duration::from_millis(400);
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let store = store.clone();
                tokio::spawn(async move {
                    let mut done = 0_u64;
                    while Instant::now() < until {
                        let own = attempt * 1000 + round as u64 * 100 + caller;
                        let number = own * 1_000_000 + done;
                        let unit = vec![Op::LeaseInsert(lease(number, number, "a"))];
                        store.commit(unit).await.unwrap();
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut done = 0;
        for task in tasks {
            done += task.await.unwrap();
        }
        rates[round] = done * 1000 / 400;
        println!(
            "lease commits a second, {callers} callers: {}",
            rates[round]
        );
    }
    rates
}

/// Among 100,000 leases a lookup that reads those of a whole credential is one that everybody waits for.
#[test]
fn lookups_of_leases_have_their_indexes() {
    let dir = TempDir::new();
    let state = dir.path().join("state");
    drop(SqliteStore::open(&state, &KeyFile::new(dir.path().join("key"))).unwrap());
    let connection = Connection::open(state.join("store.db")).unwrap();
    let plan = |rest: &str| -> String {
        let text = format!("EXPLAIN QUERY PLAN SELECT * FROM leases {rest}");
        let mut statement = connection.prepare(&text).unwrap();
        let count = statement.parameter_count();
        let parameters = rusqlite::params_from_iter(vec!["x"; count]);
        let mut rows = statement.query(parameters).unwrap();
        rows.next().unwrap().unwrap().get(3).unwrap()
    };
    let held = plan(super::sqlite::HELD);
    assert!(held.contains("leases_by_holder"), "{held}");
    for state in [
        LeaseState::Planned,
        LeaseState::Retiring,
        LeaseState::Revoking,
    ] {
        let found = plan(super::sqlite::in_state(state));
        assert!(found.contains("leases_unsettled"), "{found}");
    }
}
