//! A broker with a node link, and one node's certificate: for `mayfly-node`, or for a [`Fleet`].

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use mayfly_node::remote::BrokerConfig;
use nix::sys::signal::Signal;

use super::fleet::Fleet;
use super::place::{LIMIT, Place};
use crate::harness::{
    BrokerOptions, Guard, TempDir, binary, free_port, log_path, output, wait_until,
};

/// The node's name.
pub const NODE: &str = "bench-node";

/// A configured broker that a node can reach. It has its embedded node too, idle.
pub struct Linked {
    /// The broker.
    pub place: Place,
    port: u16,
    dir: TempDir,
}

impl Linked {
    /// Starts one with these credentials, each with a value.
    pub fn new(names: &[String]) -> Result<Self> {
        let port = free_port()?;
        let link = format!("[node_link]\nlisten = \"127.0.0.1:{port}\"\nnames = [\"127.0.0.1\"]\n");
        let settings = BrokerOptions {
            broker: link,
            ..BrokerOptions::default()
        };
        let place = Place::new(settings, names)?;
        let dir = TempDir::new()?;
        let mut add = place.broker.mayfly()?;
        output(
            add.args(["node", "add", NODE, "--out"])
                .arg(dir.join("keys")),
        )?;
        Ok(Self { place, port, dir })
    }

    /// Where the node's workload socket is.
    pub fn sockets(&self) -> PathBuf {
        self.dir.join("own")
    }

    /// How the node reaches the broker.
    fn broker(&self) -> BrokerConfig {
        let keys = self.dir.join("keys");
        BrokerConfig {
            addresses: vec![format!("127.0.0.1:{}", self.port)],
            ca: keys.join("ca.crt"),
            certificate: keys.join("node.crt"),
            key: keys.join("node.key"),
        }
    }

    /// Workloads of this node that stand nowhere.
    pub fn fleet(&self) -> Result<Fleet> {
        Fleet::new(self.broker())
    }

    /// The node itself, a process of its own.
    pub fn node(&self) -> Result<Guard> {
        let (config, socket) = (
            self.dir.join("node.toml"),
            self.sockets().join("workload.sock"),
        );
        let broker = self.broker();
        let text = format!(
            "[node]\nname = {NODE:?}\nworkload_socket = {socket:?}\nengine_sockets = []\n\
             [broker]\naddresses = {:?}\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            broker.addresses, broker.ca, broker.certificate, broker.key,
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(binary("mayfly-node")?);
        command.arg("--config").arg(&config);
        let mut node = Guard::spawn(&command, &log_path(NODE)?, Signal::SIGTERM, 5)?;
        wait_until(LIMIT, "the node's socket", || {
            if node.exited()?.is_some() {
                return Ok(Some(Err(node.failure("a node that stays up"))));
            }
            Ok(socket.exists().then_some(Ok(())))
        })??;
        Ok(node)
    }
}
