//! Whoever edits the store gets a broker that refuses, and never another's secret.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, Realm, TempDir, output, random_text};

use super::app::{self, App, SOON};

const NAMES: [&str; 3] = ["first", "second", "third"];

/// Runs SQL on a database file, with nothing of ours.
fn sql(database: &Path, statements: &str) -> Result<String> {
    const RUN: &str = "import sqlite3,sys
db = sqlite3.connect(sys.argv[1], timeout=10)
flip = lambda b: b[:len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1:]
db.create_function('flip', 1, flip)
for statement in sys.argv[2].split(';'):
    rows = db.execute(statement)
    if rows.rowcount == 0: sys.exit('nothing changed: ' + statement)
db.commit()
print(rows.fetchall())";
    let mut python = Command::new("python3");
    output(python.args(["-c", RUN]).arg(database).arg(statements))
}

/// A broker with three values, one of them of two versions, and a container that holds them.
fn served() -> Result<(Broker, App, Vec<Vec<u8>>)> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    app::kv_credentials(&broker, &NAMES.map(str::to_owned), "")?;
    let mut values = Vec::new();
    for name in NAMES {
        app::put(&broker, name, b"an older value")?;
        let value = random_text(40)?.into_bytes();
        app::put(&broker, name, &value)?;
        values.push(value);
    }
    let app = App::start(&broker.workload_dir(), "")?;
    for (name, value) in NAMES.iter().zip(&values) {
        app.wait_for_secret(name, value, SOON)?;
    }
    Ok((broker, app, values))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        let _ = std::fs::remove_file(to.join(name));
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name))?;
        }
    }
    Ok(())
}

/// One edit each, by somebody who can write the file and has no key.
const EDITS: [(&str, &str); 14] = [
    (
        "two ciphertexts swapped",
        "CREATE TEMP TABLE t AS SELECT path, sealed FROM kv WHERE version = 2;
         UPDATE kv SET sealed = (SELECT sealed FROM t WHERE path = 'e2e/second') WHERE path = 'e2e/first' AND version = 2;
         UPDATE kv SET sealed = (SELECT sealed FROM t WHERE path = 'e2e/first') WHERE path = 'e2e/second' AND version = 2",
    ),
    (
        "ciphertexts swapped with their MACs",
        "CREATE TEMP TABLE t AS SELECT * FROM kv WHERE version = 2;
         UPDATE kv SET sealed = (SELECT sealed FROM t WHERE path = 'e2e/second'), mac = (SELECT mac FROM t WHERE path = 'e2e/second') WHERE path = 'e2e/first' AND version = 2;
         UPDATE kv SET sealed = (SELECT sealed FROM t WHERE path = 'e2e/first'), mac = (SELECT mac FROM t WHERE path = 'e2e/first') WHERE path = 'e2e/second' AND version = 2",
    ),
    ("an older version put in place of the newer", "DELETE FROM kv WHERE path = 'e2e/first' AND version = 2"),
    ("an older value under the newer number", "UPDATE kv SET sealed = (SELECT sealed FROM kv WHERE path = 'e2e/first' AND version = 1) WHERE path = 'e2e/first' AND version = 2"),
    ("a bit flipped in a ciphertext", "UPDATE kv SET sealed = flip(sealed) WHERE path = 'e2e/first' AND version = 2"),
    ("a ciphertext cut short", "UPDATE kv SET sealed = substr(sealed, 1, length(sealed) - 1) WHERE path = 'e2e/first' AND version = 2"),
    ("a bit flipped in a MAC", "UPDATE kv SET mac = flip(mac) WHERE path = 'e2e/first' AND version = 2"),
    ("a lease that lives longer", "UPDATE leases SET expires_at = expires_at + 86400000"),
    ("a lease for another value", "UPDATE leases SET place = 'e2e/second' WHERE credential = 'first'"),
    ("a lease removed", "DELETE FROM leases WHERE credential = 'first'"),
    ("a workload that is another", "UPDATE workloads SET evidence = replace(evidence, '\"lacking\"', '\"Lacking\"'), seen_at = seen_at + 1"),
    ("a configuration edited", "UPDATE configuration SET json = replace(json, 'e2e/first', 'e2e/second')"),
    ("signing keys edited", "UPDATE meta SET value = flip(value)"),
    ("root keys edited", "UPDATE broker SET root_keys = flip(root_keys)"),
];

#[test]
fn a_broker_does_not_start_on_an_edited_store() -> Result<()> {
    let (mut broker, app, values) = served()?;
    broker.stop()?;
    let (backup, state) = (TempDir::new()?, broker.state_dir());
    copy(&state, backup.path())?;
    for (what, statements) in EDITS {
        copy(backup.path(), &state)?;
        sql(&state.join("store.db"), statements).with_context(|| what.to_string())?;
        let failed = broker.restart().err();
        let failed = failed.with_context(|| format!("{what}: the broker starts on it"))?;
        let said = format!("{failed:#}");
        ensure!(
            said.contains("store.db"),
            "{what}: the error names no file: {said}"
        );
        for (name, value) in NAMES.iter().zip(&values) {
            ensure!(app.secret(name)? == *value, "{what}: {name} changed");
        }
    }
    // Put back as it was, all goes on, with the same leases.
    copy(backup.path(), &state)?;
    broker.restart()?;
    app::put(&broker, "first", b"a newer value")?;
    app.wait_for_secret("first", b"a newer value", SOON * 3)
}

#[test]
fn a_running_broker_serves_no_row_that_was_edited() -> Result<()> {
    let (broker, app, values) = served()?;
    let fetch = |name: &str| {
        app.tell(&format!(
            "curl -s --unix-socket /run/mayfly/workload.sock http://m/v1/credentials/{name}/value"
        ))
    };
    ensure!(fetch("first")?.as_bytes() == values[0], "not served before");
    let (_, swap) = EDITS[1];
    sql(&broker.state_dir().join("store.db"), swap)?;
    for name in ["first", "second"] {
        let said = fetch(name)?;
        ensure!(said.contains("\"code\":\"internal\""), "{name}: {said}");
        let refused = broker.cli(&["kv", "get", &format!("e2e/{name}"), "--reveal"]);
        let refused = refused.err().context("kv get shows an edited value")?;
        ensure!(format!("{refused:#}").contains("changed"), "{refused:#}");
    }
    ensure!(
        fetch("third")?.as_bytes() == values[2],
        "the others are not served"
    );
    ensure!(
        broker
            .log()
            .contains("changed by something other than the broker"),
        "no word in the log"
    );
    Ok(())
}

#[test]
fn whichever_byte_of_the_file_is_changed_nothing_wrong_is_served() -> Result<()> {
    let (mut broker, app, values) = served()?;
    broker.stop()?;
    let (backup, state) = (TempDir::new()?, broker.state_dir());
    copy(&state, backup.path())?;
    // All of it in one file.
    sql(
        &backup.path().join("store.db"),
        "PRAGMA wal_checkpoint(TRUNCATE)",
    )?;
    let good = std::fs::read(backup.path().join("store.db"))?;
    let (mut refused, mut served) = (0, 0);
    for round in 0..32_usize {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
        let at = usize::try_from(u64::from_le_bytes(seed) % good.len() as u64)?;
        let mut bad = good.clone();
        // A bit, or the rest of the file.
        if round % 8 == 7 {
            bad.truncate(at);
        } else {
            bad[at] ^= 1 << (round % 8);
        }
        copy(backup.path(), &state)?;
        std::fs::write(state.join("store.db"), &bad)?;
        if broker.restart().is_err() {
            refused += 1;
            continue;
        }
        served += 1;
        // A byte that nothing reads, or a row that is refused when it is read.
        for (name, value) in NAMES.iter().zip(&values) {
            let got = broker.cli(&["kv", "get", &format!("e2e/{name}"), "--field", "value"]);
            ensure!(
                got.is_err() || got.is_ok_and(|got| got.as_bytes() == value),
                "byte {at}: another value for {name}"
            );
            ensure!(
                app.secret(name)? == *value,
                "byte {at}: {name} changed in the container"
            );
        }
        broker.kill()?;
    }
    println!("of 32 damaged files {refused} were refused, {served} held nothing that counts");
    ensure!(refused > 0, "no damage was noticed: this searches nothing");
    Ok(())
}
