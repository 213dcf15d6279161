//! After publishing, after a rotation, after reading back: no secret is in any memory, file, log, argument
//! or environment of ours.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, Realm, random_text, scan_memory, wait_until};

use super::super::resilience::app::{self, App, SOON};
use super::super::resilience::node::{Node, broker_for_nodes};
use super::search::{Search, values};

const COUNT: usize = 20;

/// The part of a token that is as good as a password.
fn signature(token: &[u8]) -> Result<Vec<u8>> {
    let last = token.rsplit(|byte| *byte == b'.').next();
    Ok(last.context("no token")?.to_vec())
}

/// Publishes twenty values and two tokens, then rotates, reads back and fetches once: after each step
/// nobody but the application holds anything.
fn nothing_lingers(broker: &Broker, workload_dir: &Path, node: Option<&Node>) -> Result<()> {
    let mut values = values(COUNT)?;
    let names: Vec<String> = values.iter().map(|(name, _)| name.clone()).collect();
    app::kv_credentials(broker, &names, app::TOKENS)?;
    for (name, value) in &values {
        app::put(broker, name, value)?;
    }
    let app = App::start(workload_dir, "")?;
    for (name, value) in &values {
        app.wait_for_secret(name, value, SOON)?;
    }
    let mut search = Search::of(&values);
    for token in ["token-ed", "token-es"] {
        search.add(token, &signature(&app.secret(token)?)?);
    }
    let everywhere = |search: &Search, step: &str| -> Result<()> {
        let look = || -> Result<()> {
            search.process("broker", broker.pid()?, "credential-number-3")?;
            if let Some(node) = node {
                search.process("node", node.pid()?, "run/workload.sock")?;
                search.log("the node", &node.log())?;
            }
            search.process("sidecar", app.sidecar()?, "/run/mayfly/workload.sock")?;
            search.process("shim", app.bare().pid(), "/mf/mayfly-shim\0run")?;
            search.log("the container", &app.bare().logs())?;
            search.state(broker)
        };
        // A sidecar shows a file before it lets go of what it wrote there.
        let clean = wait_until(SOON, "nothing to linger", || look().map(Some));
        clean.with_context(|| step.to_owned())
    };
    everywhere(&search, "after publishing")?;

    // The search does find a value in a process that holds one: the application's shell.
    app.tell("held=$(cat /run/secrets/credential-number-0)")?;
    let shell = app.pids("bash")?.pop().context("no shell")?;
    let scan = scan_memory(shell, search.secrets())?;
    ensure!(
        scan.hits.iter().any(|hit| hit.length == 40),
        "{:?}",
        scan.hits
    );

    for (name, value) in values.iter_mut().take(4) {
        *value = random_text(44)?.into_bytes();
        app::put(broker, name, value)?;
        app.wait_for_secret(name, value, SOON)?;
        search.add(name, value);
    }
    everywhere(&search, "after a rotation")?;

    let read = broker.cli(&["kv", "get", "e2e/credential-number-0", "--field", "value"])?;
    ensure!(
        read.as_bytes() == values[0].1,
        "kv get printed something else"
    );
    broker.cli(&["kv", "get", "e2e/credential-number-1", "--reveal"])?;
    everywhere(&search, "after kv get")?;

    let fetch = "curl -s --unix-socket /run/mayfly/workload.sock http://m/v1/credentials/credential-number-2";
    let fetched = app.tell(&format!("{fetch}/value"))?;
    ensure!(
        fetched.as_bytes() == values[2].1,
        "curl printed {fetched:?}"
    );
    let fetched = app.tell(fetch)?;
    ensure!(fetched.contains("\"fields\""), "curl printed {fetched:?}");
    everywhere(&search, "after a one-shot fetch")
}

#[test]
fn no_secret_lingers_with_the_embedded_node() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    nothing_lingers(&broker, &broker.workload_dir(), None)
}

#[test]
fn no_secret_lingers_with_a_node_of_its_own() -> Result<()> {
    let (broker, address) = broker_for_nodes()?;
    let node = Node::start(&broker, &address, "resilience-node-1")?;
    nothing_lingers(&broker, &node.workload_dir(), Some(&node))
}
