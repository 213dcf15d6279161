//! After publishing, no secret is in any memory, file, log, argument or environment of ours.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{
    Broker, BrokerOptions, Needle, Realm, random_text, scan_bytes, scan_memory,
};

use super::app::{self, App, SOON};
use super::node::{Node, broker_for_nodes};

const COUNT: usize = 20;

/// What one process must hold (or the search means nothing) and must not.
struct Search {
    secrets: Vec<Needle>,
}

impl Search {
    fn of(values: &[(String, Vec<u8>)]) -> Self {
        let secrets = values
            .iter()
            .flat_map(|(name, value)| Needle::forms(name, value))
            .collect();
        Self { secrets }
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        self.secrets.extend(Needle::forms(name, value));
    }

    /// Searches a process of ours, which must hold `control` and no secret.
    fn process(&self, what: &str, pid: i32, control: &str) -> Result<()> {
        let mut needles = self.secrets.clone();
        needles.push(Needle::new("control", control.as_bytes()));
        let scan = scan_memory(pid, &needles)?;
        let (controls, leaks): (Vec<_>, Vec<_>) =
            scan.hits.iter().partition(|hit| hit.needle == "control");
        ensure!(
            controls.iter().any(|hit| hit.length == control.len()),
            "{what}: {control:?} was not found, so the search finds nothing"
        );
        ensure!(leaks.is_empty(), "{what} holds secrets: {leaks:#?}");
        for region in &scan.unreadable {
            ensure!(
                ["[vvar", "[vsyscall]", "secretmem"]
                    .iter()
                    .any(|kept| region.contains(kept)),
                "{what}: unread: {region}"
            );
        }
        for file in ["cmdline", "environ"] {
            self.file(Path::new(&format!("/proc/{pid}/{file}")))?;
        }
        Ok(())
    }

    fn file(&self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let hits = scan_bytes(&bytes, &path.display().to_string(), &self.secrets)?;
        ensure!(
            hits.is_empty(),
            "{} holds secrets: {hits:#?}",
            path.display()
        );
        Ok(())
    }

    /// Searches the broker's files: database, its log, audit, key, and what it logged.
    fn state(&self, broker: &Broker) -> Result<()> {
        let files: Vec<PathBuf> = std::fs::read_dir(broker.state_dir())?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        for name in ["store.db", "audit.jsonl"] {
            ensure!(
                files.iter().any(|path| path
                    .file_name()
                    .is_some_and(|f| f.as_bytes() == name.as_bytes())),
                "no {name}: {files:?}"
            );
        }
        for path in files.iter().filter(|path| path.is_file()) {
            self.file(path)?;
        }
        self.log("the broker", &broker.log())
    }

    fn log(&self, what: &str, log: &str) -> Result<()> {
        let hits = scan_bytes(log.as_bytes(), what, &self.secrets)?;
        ensure!(hits.is_empty(), "{what} logged secrets: {hits:#?}\n{log}");
        Ok(())
    }
}

/// Values of both kinds: text, and bytes that are no text.
fn values() -> Result<Vec<(String, Vec<u8>)>> {
    (0..COUNT)
        .map(|number| {
            let value = if number % 2 == 0 {
                random_text(40)?.into_bytes()
            } else {
                random_bytes()?
            };
            Ok((format!("credential-number-{number}"), value))
        })
        .collect()
}

fn random_bytes() -> Result<Vec<u8>> {
    let mut bytes = vec![0; 48];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(bytes)
}

/// The part of a token that is as good as a password.
fn signature(token: &[u8]) -> Result<Vec<u8>> {
    let last = token.rsplit(|byte| *byte == b'.').next();
    Ok(last.context("no token")?.to_vec())
}

/// Publishes twenty values and two tokens, then rotates, reads back and fetches once: after each step
/// nobody but the application holds anything.
fn nothing_lingers(broker: &Broker, workload_dir: &Path, node: Option<&Node>) -> Result<()> {
    let mut values = values()?;
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
        search
            .process("broker", broker.pid()?, "credential-number-3")
            .with_context(|| step.to_string())?;
        if let Some(node) = node {
            search
                .process("node", node.pid()?, "run/workload.sock")
                .with_context(|| step.to_string())?;
            search.log("the node", &node.log())?;
        }
        search
            .process("sidecar", app.sidecar()?, "/run/mayfly/workload.sock")
            .with_context(|| step.to_string())?;
        search
            .process("shim", app.bare().pid(), "/mf/mayfly-shim\0run")
            .with_context(|| step.to_string())?;
        search.log("the container", &app.bare().logs())?;
        search.state(broker).with_context(|| step.to_string())
    };
    everywhere(&search, "after publishing")?;

    // The search does find a value in a process that holds one: the application's shell.
    app.tell("held=$(cat /run/secrets/credential-number-0)")?;
    let shell = app.pids("bash")?.pop().context("no shell")?;
    let scan = scan_memory(shell, &search.secrets)?;
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
