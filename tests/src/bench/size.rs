//! What is resident after twenty credentials were delivered, and how large the programs are.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::place::{LIMIT, Place, file_in, options_with, spin};
use super::report::Better;
use super::{Options, Report};
use crate::harness::{
    Bare, BrokerOptions, Guard, Realm, TempDir, binary, free_port, log_path, output, wait_until,
};

const PROGRAMS: [&str; 5] = [
    "mayfly",
    "mayfly-broker",
    "mayfly-node",
    "mayfly-sidecar",
    "mayfly-shim",
];
const CREDENTIALS: usize = 20;

/// The containers are those of a separate `mayfly-node`, so that what they cost stands where it
/// belongs; the broker has its embedded node too, idle.
pub fn measure_memory(options: &Options, report: &mut Report) -> Result<()> {
    let names: Vec<String> = (1..=CREDENTIALS).map(|n| format!("bench-{n}")).collect();
    let port = free_port()?;
    let link = format!("[node_link]\nlisten = \"127.0.0.1:{port}\"\nnames = [\"127.0.0.1\"]\n");
    let settings = BrokerOptions {
        broker: link,
        ..BrokerOptions::default()
    };
    let place = Place::new(settings, &names)?;
    let dir = TempDir::new()?;
    let node = node(&place, &dir, port)?;
    let last = names.last().context("no names")?;
    let (mut broker, mut relay, mut sidecar, mut shim) = (vec![], vec![], vec![], vec![]);
    for _ in 0..options.samples(10, 3) {
        let container = Bare::run(
            Realm::host(),
            &options_with(&dir.join("own"))?,
            &[
                "/opt/mayfly-shim",
                "run",
                "--sidecar",
                "--sidecar-arg",
                "--want",
                "--sidecar-arg",
                &names.join(","),
                "--",
                "sleep",
                "3600",
            ],
        )?;
        spin("the last file", || file_in(&container, last).exists())?;
        // What was needed only to get there is let go of.
        std::thread::sleep(Duration::from_millis(200));
        broker.push(resident(place.broker.pid()?)?);
        relay.push(resident(node.pid())?);
        sidecar.push(resident(child(container.pid(), "mayfly-sidecar")?)?);
        shim.push(resident(container.pid())?);
    }
    report.add("rss.broker", broker, "KiB", Better::Less)?;
    report.add("rss.node", relay, "KiB", Better::Less)?;
    report.add("rss.sidecar", sidecar, "KiB", Better::Less)?;
    report.add("rss.shim", shim, "KiB", Better::Less)
}

/// A node of its own, linked to the broker.
fn node(place: &Place, dir: &TempDir, port: u16) -> Result<Guard> {
    let keys = dir.join("keys");
    let mut add = place.broker.mayfly()?;
    output(add.args(["node", "add", "bench-node", "--out"]).arg(&keys))?;
    let (config, socket) = (dir.join("node.toml"), dir.join("own/workload.sock"));
    let text = format!(
        "[node]\nname = \"bench-node\"\nworkload_socket = {socket:?}\nengine_sockets = []\n\
         [broker]\naddresses = [\"127.0.0.1:{port}\"]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        keys.join("ca.crt"),
        keys.join("node.crt"),
        keys.join("node.key"),
    );
    std::fs::write(&config, text)?;
    let mut command = Command::new(binary("mayfly-node")?);
    command.arg("--config").arg(&config);
    let mut node = Guard::spawn(&command, &log_path("bench-node")?, Signal::SIGTERM, 5)?;
    wait_until(LIMIT, "the node's socket", || {
        if node.exited()?.is_some() {
            return Ok(Some(Err(node.failure("a node that stays up"))));
        }
        Ok(socket.exists().then_some(Ok(())))
    })??;
    Ok(node)
}

/// Resident memory in KiB (proc_pid_status(5)).
fn resident(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let size = line.and_then(|line| line.trim().strip_suffix("kB"));
    let size = size.with_context(|| format!("pid {pid} has no memory"))?;
    Ok(size.trim().parse()?)
}

/// The child of a process that runs a program.
fn child(pid: i32, name: &str) -> Result<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_ascii_whitespace() {
        let program = std::fs::read_link(format!("/proc/{child}/exe"))?;
        if program.ends_with(name) {
            return Ok(child.parse()?);
        }
    }
    anyhow::bail!("pid {pid} has no child that runs {name}: {children:?}")
}

pub fn measure_files(_: &Options, report: &mut Report) -> Result<()> {
    for name in PROGRAMS {
        // No program has so many bytes that a double would not hold their number.
        let size = std::fs::metadata(binary(name)?)?.len() as f64;
        report.add(&format!("binary.{name}"), vec![size], "bytes", Better::Less)?;
    }
    Ok(())
}
