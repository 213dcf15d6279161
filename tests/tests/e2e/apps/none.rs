//! No sidecar, by the words of docs/sidecar.md: an application that asks by itself.

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, PostgresServer, Realm, wait_until};

use super::page::block;
use super::{configure, connection, role};
use crate::e2e::resilience::app::{ALL, App, SOON};

#[test]
fn an_application_that_asks_by_itself_gets_what_a_sidecar_would() -> Result<()> {
    let server = PostgresServer::start(&["fsync=off"])?;
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let config = [connection(&server), role("orders-db", "1m")];
    configure(&broker, ALL, &config.concat())?;
    let app = App::wanting(&broker.workload_dir(), "orders-db")?;
    let password = wait_until(SOON, "the sidecar's file", || {
        app.secret("orders-db/password").map(Some)
    })?;
    let page = block("**None.**", "sh")?;
    let mut lines = page.lines();
    let mut ask = || -> Result<String> {
        let line = lines.next().context("a line is missing in the page")?;
        app.tell(&line.replace("curl ", "curl -sS -f "))
    };
    // The same lease: the workload's, not the asker's.
    let all: serde_json::Value = serde_json::from_str(&ask()?)?;
    ensure!(all.to_string().contains("\"orders-db\""), "{all}");
    ensure!(ask()?.as_bytes() == password, "another password");
    let leases = broker.cli_json(&["leases"])?;
    ensure!(
        leases.as_array().is_some_and(|all| all.len() == 1),
        "{leases}"
    );
    Ok(())
}
