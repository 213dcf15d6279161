//! The companion of docs/sidecar.md, by its own words: a sidecar in a container beside one that knows
//! nothing of us.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Container, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::has_role;
use super::page::Page;

const SOON: Duration = Duration::from_secs(30);

/// What the page leaves to its reader: the application, and where things are on this machine.
const HERE: &str = r#"
services:
  app:
    image: apps:alone
    user: "1000:1000"
    network_mode: none
    command: [sh, -c, "trap 'echo heard $$(cat /run/secrets/app-db/username).' HUP; while :; do sleep 0.05; done"]
  sidecar:
    network_mode: none
    volumes: ["SOCKET:/run/mayfly:ro"]
"#;

fn end(container: &Container<'_>) -> Result<i32> {
    let pid = container.pid()?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    Ok(pid)
}

#[test]
fn a_companion_serves_a_container_that_knows_nothing_of_it() -> Result<()> {
    let page = Page::start("**Companion.**", HERE)?;
    let (compose, broker, server) = (&page.compose, &page.broker, &page.server);
    let app = compose.service("app")?;
    let why = || format!("{:?}", compose.cli(&["logs"]));
    let user = || app.exec(&["cat", "/run/secrets/app-db/username"]);
    let first = wait_until(SOON, "the first role", || user().map(Some)).with_context(why)?;
    let lease = || -> Result<Value> {
        let leases = broker.cli_json(&["leases"])?;
        let active = leases.as_array().context("no list")?.iter();
        let mut active = active.filter(|lease| lease["state"] == "active");
        Ok(active.next().context("no lease")?["lease"].clone())
    };

    // It hears of a change by a signal, and the new files are there by then.
    let rotate = |before: &str| -> Result<String> {
        broker.cli(&["rotate", "app-db"])?;
        let next = wait_until(SOON, "the next role", || {
            let next = user()?;
            Ok((next != before).then_some(next))
        })?;
        app.wait_for_log(&format!("heard {next}."), SOON)?;
        Ok(next)
    };
    let second = rotate(&first).with_context(why)?;

    // A companion that is killed comes back to what it had.
    let held = lease()?;
    let sidecar = compose.service("sidecar")?;
    let dead = end(&sidecar)?;
    wait_until(SOON, "another sidecar", || {
        ensure!(sidecar.pid()? != dead, "it is not gone yet");
        sidecar.exec(&["/bin/mayfly-sidecar", "health"]).map(Some)
    })
    .with_context(why)?;
    ensure!(lease()? == held && user()? == second, "another lease");
    let third = rotate(&second).with_context(why)?;
    let health =
        || -> Result<bool> { Ok(sidecar.inspect()?["State"]["Health"]["Status"] == "healthy") };
    wait_until(SOON, "the engine to call it healthy", || {
        Ok(health()?.then_some(()))
    })?;

    // The application is the workload: with it all ends.
    end(&app)?;
    wait_until(SOON, "its role to go", || {
        Ok((!has_role(server, &third)?).then_some(()))
    })?;
    wait_until(SOON, "its leases to end", || {
        Ok((broker.cli_json(&["leases"])? == Value::Array(Vec::new())).then_some(()))
    })
}
