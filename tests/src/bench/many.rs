//! A broker with 100,000 live leases, each of a workload of its own: what it needs, how long it takes to
//! be there again, and whether anybody who asks for one more notices.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mayfly_wire::CredentialName;

use super::fleet::Fleet;
use super::linked::Linked;
use super::place::CREDENTIAL;
use super::report::Better;
use super::{Options, Report};
use crate::harness::resident;

const MANY: u64 = 100_000;
const FEW: u64 = 100;
/// Workloads that ask at once while the leases are made: enough that they share each fsync.
const AT_ONCE: usize = 128;
/// Leases of each broker in one block: of so many, five are beyond the 99th percentile.
const BLOCK: u64 = 500;

pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let (mut many, few) = (with_leases(report, MANY)?, with_leases(report, FEW)?);
    issue(options, report, &many, &few)?;
    // Of the broker that issued all of them.
    let size = resident(many.place.broker.pid()?)?;
    report.add("rss.broker_100k_leases", vec![size], "KiB", Better::Less)?;
    let (mut sizes, mut restarts) = (Vec::new(), Vec::new());
    for _ in 0..options.samples(5, 2) {
        many.place.broker.kill()?;
        let begun = Instant::now();
        many.place.broker.restart()?;
        restarts.push(begun.elapsed().as_secs_f64());
        ensure!(leases(&many)? >= MANY, "leases were lost");
        // What was needed only to get there is let go of.
        std::thread::sleep(Duration::from_millis(500));
        sizes.push(resident(many.place.broker.pid()?)?);
    }
    report.add("restart_100k", restarts, "s", Better::Less)?;
    report.add(
        "rss.broker_100k_leases.restarted",
        sizes,
        "KiB",
        Better::Less,
    )
}

/// A broker, and so many leases that it issued as it issues any.
fn with_leases(report: &Report, count: u64) -> Result<Linked> {
    let linked = Linked::new(&[CREDENTIAL.to_string()])?;
    let fleet = linked.fleet()?;
    let begun = Instant::now();
    let who = (0..count).map(|number| fleet.nobody(number));
    fleet.take_all(who, &CREDENTIAL.parse()?, AT_ONCE)?;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    report.progress(&format!("{count} leases issued, {rate:.0} a second"))?;
    Ok(linked)
}

/// One more lease, of each broker in turn, so that both have the same of whatever else goes on. Each
/// ends before the next. What else goes on differs from minute to minute by more than the brokers do, so
/// they are compared block by block.
fn issue(options: &Options, report: &mut Report, many: &Linked, few: &Linked) -> Result<()> {
    let name: CredentialName = CREDENTIAL.parse()?;
    let fleets = [few.fleet()?, many.fleet()?];
    let mut samples = [Vec::new(), Vec::new()];
    let one = |fleet: &Fleet, number: u64| -> Result<f64> {
        let evidence = fleet.nobody(MANY + number);
        let workload = evidence.workload.clone();
        let micros = fleet.take(evidence, &name)?;
        fleet.died(workload)?;
        Ok(micros)
    };
    let mut ratios = [Vec::new(), Vec::new()];
    for block in 0..options.samples(20, 3) as u64 {
        let mut blocks = [Vec::new(), Vec::new()];
        for number in block * BLOCK..(block + 1) * BLOCK {
            let mut turns: Vec<_> = fleets.iter().zip(&mut blocks).collect();
            // What the first of a pair leaves behind, the second does not always find.
            if number % 2 == 1 {
                turns.reverse();
            }
            for (fleet, samples) in turns {
                samples.push(one(fleet, number)?);
            }
        }
        for (ratios, percent) in ratios.iter_mut().zip([50, 99]) {
            let [few, many] = [0, 1].map(|which| percentile(&mut blocks[which], percent));
            ratios.push(many / few);
        }
        for (samples, block) in samples.iter_mut().zip(blocks) {
            samples.extend(block);
        }
    }
    let [few, many] = samples;
    report.add("issue_100", few, "us", Better::Less)?;
    report.add("issue_100k", many, "us", Better::Less)?;
    let [p50, p99] = ratios;
    report.add("issue_100k_ratio.p50", p50, "", Better::Less)?;
    report.add("issue_100k_ratio.p99", p99, "", Better::Less)
}

/// What so many of a hundred samples keep.
fn percentile(samples: &mut [f64], percent: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() * percent).div_ceil(100).max(1) - 1;
    samples.get(rank).copied().unwrap_or(f64::NAN)
}

/// How many leases live.
fn leases(linked: &Linked) -> Result<u64> {
    let status = linked.place.broker.admin().get("/v1/status")?.json()?;
    Ok(status["leases"].as_u64().unwrap_or(0))
}
