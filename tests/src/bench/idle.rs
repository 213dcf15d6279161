//! What a container's sidecar and shim cost while nothing happens, and after a day's rotations.

use std::time::Duration;

use anyhow::{Context, Result};

use super::place::{Place, file_in, spin};
use super::report::Better;
use super::size::child;
use super::{Options, Report};
use crate::harness::{Bare, BrokerOptions, IdleCost, Realm, idle_cost, resident, rotate};

const CREDENTIALS: usize = 20;
/// Each credential every 15 minutes, for a day.
const GENERATIONS: usize = CREDENTIALS * 24 * 4;

pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let names: Vec<String> = (1..=CREDENTIALS).map(|n| format!("bench-{n}")).collect();
    let place = Place::new(BrokerOptions::default(), &names)?;
    let mut containers = Vec::new();
    for _ in 0..options.samples(10, 3) {
        containers.push(container(&place, &names)?);
    }
    // What was needed only to get there is let go of.
    std::thread::sleep(Duration::from_secs(2));
    let begin = |pid: fn(&Bare) -> Result<i32>| -> Result<Vec<IdleCost>> {
        containers.iter().map(|one| idle_cost(pid(one)?)).collect()
    };
    let sidecars = begin(|one| child(one.pid(), "mayfly-sidecar"))?;
    let shims = begin(|one| Ok(one.pid()))?;
    // Whole intervals of the node's pings, of 20 seconds.
    std::thread::sleep(Duration::from_secs(if options.quick { 20 } else { 60 }));
    for (figure, costs) in [("idle.sidecar", sidecars), ("idle.shim", shims)] {
        let minute = |cost: &IdleCost| Ok(cost.a_minute()?.as_secs_f64() * 1e6);
        let samples = costs.iter().map(minute).collect::<Result<_>>()?;
        report.add(figure, samples, "us", Better::Less)?;
    }
    let one = containers.pop().context("no container")?;
    drop(containers);
    let dir = file_in(&one, "");
    rotate(
        &place.broker,
        &dir,
        "bench",
        &names,
        options.samples(GENERATIONS, 200),
    )?;
    let sidecar = resident(child(one.pid(), "mayfly-sidecar")?)?;
    report.add(
        "rss.sidecar_after_rotations",
        vec![sidecar],
        "KiB",
        Better::Less,
    )?;
    let shim = resident(one.pid())?;
    report.add("rss.shim_after_rotations", vec![shim], "KiB", Better::Less)
}

fn container(place: &Place, names: &[String]) -> Result<Bare> {
    let want = names.join(",");
    let command = [
        "/opt/mayfly-shim",
        "run",
        "--sidecar",
        "--sidecar-arg",
        "--want",
        "--sidecar-arg",
        &want,
        "--",
        "sleep",
        "3600",
    ];
    let container = Bare::run(Realm::host(), &place.options()?, &command)?;
    let last = names.last().context("no names")?;
    spin("the last file", || file_in(&container, last).exists())?;
    Ok(container)
}
