//! A day's worth of rotations: 20 credentials, each every 15 minutes, are 1,920 generations. And what
//! those do meanwhile that nothing happens to.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mayfly_tests::harness::{
    Broker, BrokerOptions, Realm, binary, idle_cost, open_files, resident, rotate,
};

use super::super::resilience::app::{self, App, SOON};

const CREDENTIALS: usize = 20;
const GENERATIONS: usize = CREDENTIALS * 24 * 4;
/// The shortest time in which it shows what wakes those who have nothing to do: the node asks every 20
/// seconds.
const IDLE: Duration = Duration::from_secs(20);
/// How often either may wake up in that time. What the node's question costs the sidecar, once its pages
/// are at hand, its own suite says; here a host that takes memory from its machines, and brings it back
/// page by page, makes it what it likes.
const WAKES: [u64; 2] = [3, 1];
/// Of how many the least is taken.
const ALONE: usize = 3;
/// The most memory of its own that either may have, in KiB. The pages of its file, which the sidecar's
/// budget of 3 MB has too, come and go with the page cache, and all containers share them.
const OWN: f64 = 1024.0;
/// The sidecar's budget of memory, in KiB; and of what each is on the disk, in bytes.
const RESIDENT: f64 = 3.0 * 1024.0;
const SIZES: [(&str, u64); 2] = [("mayfly-sidecar", 3_000_000), ("mayfly-shim", 1_000_000)];
/// What the heap may have grown by: a page here and there.
const GROWTH: f64 = 128.0;

/// Memory that a process shares with nobody, in KiB (proc_pid_status(5)).
fn own(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let size = line.and_then(|line| line.trim().strip_suffix("kB"));
    Ok(size.context("no RssAnon")?.trim().parse()?)
}

#[test]
fn a_day_of_rotations_leaves_sidecar_and_shim_as_they_were() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let names: Vec<String> = (0..CREDENTIALS)
        .map(|n| format!("credential-{n}"))
        .collect();
    app::kv_credentials(&broker, &names, "")?;
    for name in &names {
        app::put(&broker, name, b"the first")?;
    }
    let start = |want: &str| -> Result<(App, i32)> {
        let app = App::wanting(&broker.workload_dir(), want)?;
        app.wait_for_secret(
            want.split(',').next().context("no name")?,
            b"the first",
            SOON,
        )?;
        let sidecar = app.sidecar()?;
        Ok((app, sidecar))
    };
    // Some that are left alone, meanwhile.
    let idle = (0..ALONE).map(|_| start("credential-0"));
    let idle = idle.collect::<Result<Vec<_>>>()?;
    let (app, sidecar) = start(&names[1..].join(","))?;
    let shim = app.bare().pid();
    let state = || -> Result<[(f64, usize); 2]> {
        // Replaced generations are kept, and held open, for a second.
        std::thread::sleep(Duration::from_millis(1500));
        let of = |pid| -> Result<(f64, usize)> { Ok((own(pid)?, open_files(pid)?)) };
        Ok([of(sidecar)?, of(shim)?])
    };
    let dir = app.path("run/secrets");
    rotate(&broker, &dir, "e2e", &names[1..], 200)?;
    let before = state()?;
    let wakes = std::thread::scope(|scope| {
        let wakes = scope.spawn(|| least(&idle));
        rotate(&broker, &dir, "e2e", &names[1..], GENERATIONS)?;
        let wakes = wakes.join();
        wakes.map_err(|_| anyhow!("the other one panicked"))?
    })?;
    let mut after = state()?;
    // What was kept from running closes them later.
    for _ in 0..10 {
        if [0, 1]
            .iter()
            .all(|one: &usize| after[*one].1 <= before[*one].1)
        {
            break;
        }
        after = state()?;
    }
    println!("KiB and descriptors: {before:?}, after {GENERATIONS} generations {after:?}");
    for (what, before, after) in [
        ("sidecar", before[0], after[0]),
        ("shim", before[1], after[1]),
    ] {
        ensure!(
            after.1 <= before.1,
            "the {what} leaks descriptors: {before:?} {after:?}"
        );
        ensure!(
            after.0 <= before.0 + GROWTH && after.0 <= OWN,
            "the {what} grows: {before:?} KiB and descriptors, then {after:?}, of {OWN}"
        );
    }
    ensure!(app.sidecar()? == sidecar, "the sidecar was started again");
    let all = resident(sidecar)?;
    ensure!(all <= RESIDENT, "{all} KiB of the sidecar are resident");
    for (program, most) in SIZES {
        let size = std::fs::metadata(binary(program)?)?.len();
        ensure!(size <= most, "{program} has {size} bytes, at most {most}");
    }
    let wakes = ["sidecar", "shim"].into_iter().zip(wakes);
    for ((what, wakes), most) in wakes.zip(WAKES) {
        println!("{what}: awake {wakes} times in {IDLE:?} without work");
        ensure!(
            wakes <= most,
            "the {what} wakes up {wakes} times in {IDLE:?} without work, at most {most}"
        );
    }
    Ok(())
}

/// How often the sidecar and the shim of whoever was disturbed least woke up: what else runs can make it
/// more, and not less.
fn least(idle: &[(App, i32)]) -> Result<[u64; 2]> {
    let of = |(app, sidecar): &(App, i32)| [*sidecar, app.bare().pid()].map(idle_cost);
    let begun: Vec<_> = idle.iter().map(of).collect();
    std::thread::sleep(IDLE);
    let mut least = [u64::MAX; 2];
    for costs in begun {
        for (least, cost) in least.iter_mut().zip(costs) {
            *least = cost?.wakes()?.min(*least);
        }
    }
    Ok(least)
}
