//! A full disk: nothing is issued, nothing is half done, and all goes on when there is room.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, Realm, output};
use mayfly_wire::audit::{Chain, Event};

use super::app::{self, App, SOON, leases};

/// A small file system over a broker's state directory.
struct Small(PathBuf);

impl Small {
    fn mount(broker: &mut Broker) -> Result<Self> {
        broker.stop()?;
        let state = broker.state_dir();
        let aside = state.with_file_name("aside");
        output(Command::new("cp").arg("-a").arg(&state).arg(&aside))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs"]);
        output(mount.arg(&state))?;
        let small = Self(state.clone());
        output(
            Command::new("cp")
                .arg("-a")
                .arg(aside.join("."))
                .arg(&state),
        )?;
        std::fs::remove_dir_all(aside)?;
        broker.restart()?;
        Ok(small)
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves not one page.
    fn fill(&self) -> Result<()> {
        let full = std::fs::write(self.ballast(), vec![1; 4 << 20]);
        ensure!(full.is_err(), "there is room for 4 MiB on 3");
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The leases that ever began, by the records, whose chain must hold.
fn begun(state: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(state.join("audit.jsonl"))?;
    let mut chain = Chain::default();
    let mut begun = Vec::new();
    for line in text.lines() {
        let event = chain.follow(line).with_context(|| line.to_owned())?.event;
        if let Event::Issued {
            lease,
            again: false,
            ..
        } = event
        {
            begun.push(lease.to_string());
        }
    }
    Ok(begun)
}

#[test]
fn a_full_disk_refuses_and_is_got_over() -> Result<()> {
    let mut broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    app::kv_credentials(&broker, &["a".into(), "b".into()], "")?;
    app::put(&broker, "a", b"the value of a")?;
    app::put(&broker, "b", b"the value of b")?;
    let small = Small::mount(&mut broker)?;
    let first = App::start(&broker.workload_dir(), "")?;
    first.wait_for_secret("a", b"the value of a", SOON)?;
    let held = leases(&broker)?;
    ensure!(held.len() == 2, "{held:?}");

    let late = App::wanting(&broker.workload_dir(), "b")?;
    let held = leases(&broker)?;
    ensure!(held.len() == 3, "{held:?}");

    small.fill()?;
    // Pages that were there already may hold a record or two more, but no lease.
    let ask = "curl -s --unix-socket /run/mayfly/workload.sock http://m/v1/credentials/a/value";
    let said = late.tell(ask)?;
    ensure!(
        said.contains("\"code\":\"unavailable\""),
        "a full disk, and it says {said:?}"
    );
    let put = app::put(&broker, "a", b"a newer value")
        .err()
        .context("put with a full disk")?;
    ensure!(
        format!("{put:#}").contains("database or disk is full"),
        "{put:#}"
    );
    // Who has something keeps it.
    ensure!(first.secret("a")? == b"the value of a", "the file changed");

    small.free()?;
    ensure!(late.tell(ask)? == "the value of a", "it does not go on");
    app::put(&broker, "a", b"a newer value")?;
    first.wait_for_secret("a", b"a newer value", SOON)?;
    let now = leases(&broker)?;
    ensure!(
        held.iter().all(|(key, lease)| now.get(key) == Some(lease)),
        "{held:?} {now:?}"
    );
    ensure!(
        now.len() == 4,
        "expected two leases for each of two: {now:?}"
    );
    // The record comes first: there may be one of a lease that never was, never a lease without one.
    let records = begun(&broker.state_dir())?;
    for lease in now.values() {
        let count = records.iter().filter(|record| *record == lease).count();
        ensure!(count == 1, "{lease} began {count} times on record");
    }
    broker.cli(&["audit", "verify"])?;
    // And killed while it is full, it starts once there is room.
    small.fill()?;
    broker.kill()?;
    small.free()?;
    broker.restart()?;
    broker.cli(&["audit", "verify"])?;
    ensure!(leases(&broker)? == now, "the leases changed");
    drop(small);
    Ok(())
}
