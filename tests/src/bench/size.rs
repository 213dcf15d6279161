//! What is resident after twenty credentials were delivered, and how large the programs are.

use std::time::Duration;

use anyhow::{Context, Result};

use super::linked::Linked;
use super::place::{file_in, options_with, spin};
use super::report::Better;
use super::{Options, Report};
use crate::harness::{Bare, Realm, binary, resident};

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
    let linked = Linked::new(&names)?;
    let node = linked.node()?;
    let last = names.last().context("no names")?;
    let (mut broker, mut relay, mut sidecar, mut shim) = (vec![], vec![], vec![], vec![]);
    for _ in 0..options.samples(10, 3) {
        let container = Bare::run(
            Realm::host(),
            &options_with(&linked.sockets())?,
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
        broker.push(resident(linked.place.broker.pid()?)?);
        relay.push(resident(node.pid())?);
        sidecar.push(resident(child(container.pid(), "mayfly-sidecar")?)?);
        shim.push(resident(container.pid())?);
    }
    report.add("rss.broker", broker, "KiB", Better::Less)?;
    report.add("rss.node", relay, "KiB", Better::Less)?;
    report.add("rss.sidecar", sidecar, "KiB", Better::Less)?;
    report.add("rss.shim", shim, "KiB", Better::Less)
}

/// The child of a process that runs a program.
pub fn child(pid: i32, name: &str) -> Result<i32> {
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
