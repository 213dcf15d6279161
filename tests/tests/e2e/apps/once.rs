//! The init container of docs/sidecar.md, by its own words: fetched once, and then the application runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::wait_until;
use serde_json::Value;

use super::has_role;
use super::page::Page;

const SOON: Duration = Duration::from_secs(30);

/// What the page leaves to its reader; and `alone`, an init container that nobody holds the lease for.
const HERE: &str = r#"
services:
  hold:
    image: apps:alone
    user: "1000:1000"
    network_mode: none
  fetch:
    network_mode: none
    volumes: ["SOCKET:/run/mayfly:ro"]
  alone:
    image: localhost/mayfly/sidecar
    network_mode: none
    command: ["--once"]
    volumes: ["SOCKET:/run/mayfly:ro", "alone:/run/secrets"]
  app:
    image: apps:alone
    user: "1000:1000"
    network_mode: none
    command: [sh, -c, "echo \"got $$(cat /run/secrets/app-db/username).\"; exec sleep 1000"]
volumes:
  alone:
    driver_opts: {type: tmpfs, device: tmpfs, o: "size=1m,uid=1000,gid=1000,mode=0750,noswap"}
"#;

#[test]
fn an_application_runs_when_its_init_container_has_fetched() -> Result<()> {
    let page = Page::start("**Once.**", HERE)?;
    let (compose, broker, server) = (&page.compose, &page.broker, &page.server);
    for name in ["fetch", "alone"] {
        let container = compose.service(name)?;
        ensure!(container.wait()? == 0, "{name}: {:?}", container.logs());
    }
    let said = compose.service("app")?.wait_for_log("got ", SOON)?;
    let user = said
        .trim()
        .strip_prefix("got ")
        .and_then(|rest| rest.strip_suffix('.'));
    let user = user
        .filter(|user| !user.is_empty())
        .with_context(|| said.clone())?;

    // What `alone` fetched ended with it; what was fetched for `hold` is good.
    let leases = || -> Result<Vec<Value>> {
        let leases = broker.cli_json(&["leases"])?;
        Ok(leases.as_array().context("no list")?.clone())
    };
    wait_until(SOON, "one lease", || {
        Ok((leases()?.len() == 1).then_some(()))
    })?;
    ensure!(has_role(server, user)?, "the role of `hold` is gone");
    let roles = server.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'mf_%'")?;
    ensure!(roles.trim() == "1", "{roles} roles");
    compose.service("hold")?.kill()?;
    wait_until(SOON, "the role to go", || {
        Ok((!has_role(server, user)?).then_some(()))
    })?;
    wait_until(SOON, "no lease", || Ok(leases()?.is_empty().then_some(())))
}
