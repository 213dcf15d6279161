//! Sessions opened and served one credential, with the audit record on disk: how many in a second, by
//! as many containers as it takes to keep the broker busy.

use anyhow::{Context, Result};

use super::inside::WINDOW;
use super::place::{Place, said};
use super::report::Better;
use super::{Options, Report};
use crate::harness::{Bare, TempDir};

const CONTAINERS: usize = 32;
const THREADS: usize = 1;
/// What the kernel counts processor time in for user space, in microseconds (times(2)).
const TICK: f64 = 10_000.0;

pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let place = Place::of_one()?;
    let sign = TempDir::new()?;
    let seconds = options.samples(10, 3).to_string();
    let threads = THREADS.to_string();
    let settings = place.options()?.bind(sign.path(), "run/go");
    let job = ["sessions", &threads, &seconds, "/run/go/now"];
    let mut containers = Vec::new();
    for _ in 0..CONTAINERS {
        let container = super::place::run_inside(&settings, &job)?;
        said(&container, "ready")?;
        containers.push(container);
    }
    let before = ticks(place.broker.pid()?)?;
    std::fs::write(sign.join("now"), "")?;
    let said: Vec<Said> = containers.iter().map(counts).collect::<Result<_>>()?;
    let broker = (ticks(place.broker.pid()?)? - before) * TICK;

    let windows = said.iter().map(|said| said.counts.len()).min().unwrap_or(0);
    let total: f64 = said.iter().flat_map(|said| &said.counts).sum();
    // The first second warms up: every container's lease begins in it.
    let rates = (4..windows).map(|window| {
        let served: f64 = said.iter().filter_map(|said| said.counts.get(window)).sum();
        served / WINDOW.as_secs_f64()
    });
    let rates: Vec<f64> = rates.collect();
    let clients: f64 = said.iter().map(|said| said.cpu).sum();
    report.add("sessions", rates, "1/s", Better::More)?;
    for (name, spent) in [
        ("sessions.cpu", broker + clients),
        ("sessions.cpu.broker", broker),
        ("sessions.cpu.client", clients),
    ] {
        report.add(name, vec![spent / total], "us", Better::Less)?;
    }
    Ok(())
}

struct Said {
    /// Microseconds of processor time.
    cpu: f64,
    /// Sessions in each window.
    counts: Vec<f64>,
}

fn counts(container: &Bare) -> Result<Said> {
    let line = said(container, "counts")?;
    let mut numbers = line.split(' ').map(str::parse);
    let cpu = numbers.next().context("no counts")??;
    Ok(Said {
        cpu,
        counts: numbers.collect::<Result<_, _>>()?,
    })
}

/// User and system time of a process in clock ticks (proc_pid_stat(5), fields 14 and 15).
fn ticks(pid: i32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name in a stat")?;
    let fields: Vec<f64> = fields
        .split_ascii_whitespace()
        .skip(12)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(fields.iter().sum())
}
