//! Whoever edits the audit log is found out.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, Realm, TempDir, output};
use mayfly_wire::audit::{Chain, Event, GENESIS, Record, to_line};

use super::app;

type Lines = Vec<String>;

fn write(path: &Path, lines: &[String]) -> Result<()> {
    Ok(std::fs::write(
        path,
        lines
            .iter()
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    )?)
}

/// All records again, with hashes that fit, after `change`: what somebody can do without the key.
fn anew(lines: &[String], change: impl Fn(&mut Vec<Record>)) -> Result<Lines> {
    let mut chain = Chain::default();
    let records = lines.iter().map(|line| chain.follow(line));
    let mut records: Vec<Record> = records.collect::<Result<_, _>>()?;
    change(&mut records);
    let mut prev = GENESIS.to_owned();
    let mut made = Vec::new();
    for (record, seq) in records.iter_mut().zip(1..) {
        (record.seq, record.prev) = (seq, prev);
        let (line, hash) = to_line(record)?;
        made.push(line);
        prev = hash;
    }
    Ok(made)
}

/// What somebody did to the log, what `audit verify` says, and whether the hashes alone show it.
struct Edit {
    what: &'static str,
    lines: Lines,
    through_broker: &'static str,
    offline: Option<&'static str>,
}

fn edits(good: &[String]) -> Result<Vec<Edit>> {
    let at = good.len() / 2;
    let edit = |what, lines, through_broker, offline| Edit {
        what,
        lines,
        through_broker,
        offline,
    };
    let mut edited = good.to_vec();
    edited[at] = edited[at].replacen("uid:0", "uid:7", 1);
    ensure!(edited[at] != good[at], "nothing to edit in {}", good[at]);
    let mut removed = good.to_vec();
    removed.remove(at);
    let mut reordered = good.to_vec();
    reordered.swap(at, at + 1);
    let mut doubled = good.to_vec();
    doubled.insert(at, good[at].clone());
    let mut cut = good.to_vec();
    cut.pop();
    let rehashed = anew(good, |records| {
        if let Event::Operator { operator, .. } = &mut records[at].event {
            *operator = "uid:7".to_owned();
        }
    })?;
    let without = anew(good, |records| drop(records.remove(at)))?;
    Ok(vec![
        edit("edited", edited, "was edited", Some("was edited")),
        edit(
            "removed",
            removed,
            "removed, added or moved",
            Some("removed, added or moved"),
        ),
        edit(
            "reordered",
            reordered,
            "removed, added or moved",
            Some("removed, added or moved"),
        ),
        edit(
            "doubled",
            doubled,
            "removed, added or moved",
            Some("removed, added or moved"),
        ),
        // Only who knows the head, which is the broker, can tell.
        edit("cut at its end", cut, "records were removed", None),
        // Only who has the key can tell.
        edit("edited and hashed anew", rehashed, "MAC is not ours", None),
        edit("removed and hashed anew", without, "MAC is not ours", None),
    ])
}

fn verify(broker: &Broker, more: &[&str]) -> Result<Option<String>> {
    let mut command = broker.mayfly()?;
    let done = command.args(["audit", "verify"]).args(more).output()?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    Ok((!done.status.success()).then_some(said))
}

#[test]
fn every_edit_of_the_log_shows() -> Result<()> {
    let mut broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    app::kv_credentials(&broker, &["a".into()], "")?;
    for number in 0..8 {
        app::put(&broker, "a", format!("value {number}").as_bytes())?;
    }
    ensure!(verify(&broker, &[])?.is_none(), "a good log does not pass");
    broker.stop()?;
    let path = broker.state_dir().join("audit.jsonl");
    let text = std::fs::read_to_string(&path)?;
    let good: Lines = text.lines().map(str::to_owned).collect();
    let dir = TempDir::new()?;
    let copy = dir.join("copy.jsonl");
    let offline = |lines: &[String]| {
        write(&copy, lines)?;
        verify(&broker, &["--file", copy.to_str().context("no text")?])
    };
    ensure!(offline(&good)?.is_none(), "a good copy does not pass");

    let head = |lines: &[String]| -> Result<String> {
        write(&copy, lines)?;
        let mut command = broker.mayfly()?;
        command.args(["--output", "json", "audit", "verify", "--file"]);
        let report: serde_json::Value = serde_json::from_str(&output(command.arg(&copy))?)?;
        Ok(report["head"].to_string())
    };
    let own = head(&good)?;
    for edit in edits(&good)? {
        let said = offline(&edit.lines)?;
        match edit.offline {
            Some(expected) => {
                let said = said.with_context(|| format!("{}: not found offline", edit.what))?;
                ensure!(said.contains(expected), "{}: {said}", edit.what);
            }
            // The hashes hold, but the head is not the one that an operator wrote down.
            None => {
                ensure!(said.is_none(), "{}: {said:?}", edit.what);
                ensure!(head(&edit.lines)? != own, "{}: the same head", edit.what);
            }
        }
    }
    // A record that was cut in two.
    std::fs::write(&copy, &text[..text.len() - 20])?;
    let said = verify(&broker, &["--file", copy.to_str().context("no text")?])?;
    ensure!(
        said.is_some_and(|said| said.contains("cut off")),
        "a torn record passes"
    );
    Ok(())
}

#[test]
fn a_running_broker_finds_each_edit_and_a_restarted_one_does_not_start_on_it() -> Result<()> {
    let mut broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    app::kv_credentials(&broker, &["a".into()], "")?;
    for number in 0..8 {
        app::put(&broker, "a", format!("value {number}").as_bytes())?;
    }
    let path = broker.state_dir().join("audit.jsonl");
    // Verifying makes a record itself, before it reads.
    ensure!(verify(&broker, &[])?.is_none(), "a good log does not pass");
    let text = std::fs::read_to_string(&path)?;
    let good: Lines = text.lines().map(str::to_owned).collect();
    for edit in edits(&good)? {
        write(&path, &edit.lines)?;
        let said = verify(&broker, &[])?;
        let said = said.with_context(|| format!("{}: not found by the broker", edit.what))?;
        // The record of this very question stands after what was removed.
        ensure!(
            said.contains(edit.through_broker) || said.contains("not an audit record"),
            "{}: {said}",
            edit.what
        );
    }
    write(&path, &good)?;
    // A clean end, so that the store knows the last record too.
    broker.stop()?;
    let text = std::fs::read_to_string(&path)?;
    let good: Lines = text.lines().map(str::to_owned).collect();
    for edit in edits(&good)? {
        write(&path, &edit.lines)?;
        let failed = broker.restart().err();
        let failed = failed.with_context(|| format!("{}: the broker starts on it", edit.what))?;
        ensure!(
            format!("{failed:#}").contains("audit"),
            "{}: {failed:#}",
            edit.what
        );
    }
    Ok(())
}
