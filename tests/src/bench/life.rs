//! From a sidecar's start to its first file, and from the death of its container to the end of the
//! lease. Each container is a new workload with a new lease.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::place::{CREDENTIAL, LIMIT, Place, said};
use super::report::Better;
use super::{Options, Report};
use crate::harness::Stream;

pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let place = Place::of_one()?;
    let mut audit = place
        .broker
        .admin()
        .stream("GET", "/v1/audit?last=0&follow=true", "")?;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..options.samples(60, 10) {
        let container = place.container(&["sidecar", CREDENTIAL])?;
        let micros: f64 = said(&container, "took")?.parse().context("a time")?;
        starts.push(micros / 1000.0);
        // So that nothing of the start is still on its way.
        std::thread::sleep(Duration::from_millis(30));
        let workload = container.cgroup().id()?;
        let begun = Instant::now();
        container.kill()?;
        lease_ended(&mut audit, workload)?;
        // The store is written beside the log: it must be gone there too.
        let ended = loop {
            let leases = place.broker.admin().get("/v1/leases")?;
            let leases: Vec<Value> = serde_json::from_slice(&leases.body)?;
            if leases.is_empty() {
                break Instant::now();
            }
            ensure!(begun.elapsed() < LIMIT, "a lease that ended is still there");
        };
        ends.push((ended - begun).as_secs_f64() * 1000.0);
    }
    report.add("sidecar_start_to_file", starts, "ms", Better::Less)?;
    report.add("death_to_lease_end", ends, "ms", Better::Less)
}

/// Waits for the record that the lease of a workload ended. The stream shows a record once it is on
/// disk.
fn lease_ended(audit: &mut Stream, cgroup: u64) -> Result<()> {
    loop {
        let record = audit.json(LIMIT)?;
        let event = &record["event"];
        if event["type"] == "ended" && event["workload"]["cgroup_id"] == cgroup {
            ensure!(event["reason"] == "died", "it ended otherwise: {event}");
            return Ok(());
        }
    }
}
