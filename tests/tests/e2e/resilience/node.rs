//! A `mayfly-node` of its own, which reaches the broker over the node link.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use mayfly_tests::harness::{
    Broker, BrokerOptions, Guard, Realm, TempDir, binary, free_port, log_path, random_text,
    wait_until,
};
use nix::sys::signal::Signal;

/// A running node.
pub struct Node {
    dir: TempDir,
    log: PathBuf,
    process: Option<Guard>,
}

/// A broker without a node of its own that listens for nodes, and its address.
pub fn broker_for_nodes() -> Result<(Broker, String)> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let broker = Broker::start(
        Realm::host(),
        BrokerOptions {
            broker: format!("[node_link]\nlisten = \"{address}\"\nnames = [\"127.0.0.1\"]"),
            ..BrokerOptions::default()
        },
    )?;
    Ok((broker, address))
}

impl Node {
    /// Adds a node of this name to the broker and starts it.
    pub fn start(broker: &Broker, address: &str, name: &str) -> Result<Self> {
        let dir = TempDir::new()?;
        let keys = dir.join("keys");
        let keys_text = keys.to_str().context("a path that is no text")?;
        broker.cli(&["node", "add", name, "--out", keys_text])?;
        let config = format!(
            "[node]\nname = {name:?}\nworkload_socket = {:?}\nengine_sockets = []\n\
             [broker]\naddresses = [{address:?}]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            dir.join("run/workload.sock"),
            keys.join("ca.crt"),
            keys.join("node.crt"),
            keys.join("node.key"),
        );
        std::fs::write(dir.join("node.toml"), config)?;
        let log = log_path(&format!("node-{}", random_text(6)?))?;
        let mut node = Self {
            dir,
            log,
            process: None,
        };
        node.restart()?;
        Ok(node)
    }

    /// Starts it again, after [`Node::kill`].
    pub fn restart(&mut self) -> Result<()> {
        self.process = None;
        let mut command = Realm::host().command(binary("mayfly-node")?);
        command.arg("--config").arg(self.dir.join("node.toml"));
        let mut process = Guard::spawn(&command, &self.log, Signal::SIGTERM, 5)?;
        let socket = self.workload_dir().join("workload.sock");
        wait_until(Duration::from_secs(60), "the node's socket", || {
            if process.exited()?.is_some() {
                return Ok(Some(Err(process.failure("a node that stays up"))));
            }
            std::os::unix::net::UnixStream::connect(&socket)?;
            Ok(Some(Ok(())))
        })??;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the node does not run")?;
        process.signal(Signal::SIGKILL)?;
        process.wait(Duration::from_secs(30)).map(drop)
    }

    pub fn pid(&self) -> Result<i32> {
        Ok(self
            .process
            .as_ref()
            .context("the node does not run")?
            .pid())
    }

    pub fn workload_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
