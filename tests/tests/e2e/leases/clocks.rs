//! The time of day is set by a million seconds and set back, and the broker stands still.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use mayfly_tests::harness::{BrokerOptions, TempDir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::scene::{SOON, Scene, Times};

/// A third of it is how late a renewal may be.
const TIMES: Times = Times {
    ttl: "9s",
    grace: "1s",
};
const TTL: Duration = Duration::from_secs(9);
/// For how much longer than that a role is good at the server.
const SLACK: Duration = Duration::from_secs(5);

/// How far the broker's time of day is off, as a file says.
struct Offset(PathBuf);

impl Offset {
    fn set(&self, seconds: i64) -> Result<()> {
        Ok(std::fs::write(&self.0, seconds.to_string())?)
    }
}

fn scene(dir: &Path, members: usize) -> Result<(Scene, Offset)> {
    let offset = Offset(dir.join("offset"));
    offset.set(0)?;
    let options = BrokerOptions {
        broker: format!("[test]\nclock_offset_file = {:?}\n", offset.0),
        ..BrokerOptions::default()
    };
    Ok((Scene::with(TIMES, members, options)?, offset))
}

/// Lets time pass, while everybody must get in with what they were given last.
fn time_passes(scene: &Scene, how_long: Duration) -> Result<()> {
    let until = Instant::now() + how_long;
    while Instant::now() < until {
        scene.all_get_in()?;
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

fn ids(scene: &Scene) -> Result<BTreeSet<String>> {
    let leases = scene.leases()?;
    let ids = leases.iter().filter_map(|lease| lease["lease"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

const FORWARD_AND_BACK: [i64; 2] = [1_000_000, 0];

/// All take their time, and nearly all of it is waiting.
#[test]
fn clocks_are_set_and_the_broker_stands_still_and_leases_last_as_long_as_they_should() -> Result<()>
{
    std::thread::scope(|scope| {
        let still = scope.spawn(what_expired_while_the_broker_stood_still_ends);
        let down = scope.spawn(a_clock_that_is_set_while_the_broker_is_down_cuts_nobody_short);
        a_clock_that_is_set_while_the_broker_runs_cuts_nobody_short()?;
        for other in [still, down] {
            let ended = other.join();
            ended.map_err(|_| anyhow!("another one panicked"))??;
        }
        Ok(())
    })
}

fn a_clock_that_is_set_while_the_broker_runs_cuts_nobody_short() -> Result<()> {
    let dir = TempDir::new()?;
    let (mut scene, offset) = scene(dir.path(), 3)?;
    let before = ids(&scene)?;
    for seconds in FORWARD_AND_BACK {
        offset.set(seconds)?;
        // Longer than a lease, and what the server adds to it.
        time_passes(&scene, TTL + SLACK + Duration::from_secs(1))?;
        are_still(&scene, &before)?;
    }
    deaths_count_as_ever(&mut scene)
}

fn a_clock_that_is_set_while_the_broker_is_down_cuts_nobody_short() -> Result<()> {
    let dir = TempDir::new()?;
    let (mut scene, offset) = scene(dir.path(), 3)?;
    let before = ids(&scene)?;
    for seconds in FORWARD_AND_BACK {
        scene.broker.kill()?;
        offset.set(seconds)?;
        scene.broker.restart()?;
        scene.settled(SOON)?;
        time_passes(&scene, TTL)?;
        are_still(&scene, &before)?;
    }
    deaths_count_as_ever(&mut scene)
}

fn are_still(scene: &Scene, before: &BTreeSet<String>) -> Result<()> {
    let now = ids(scene)?;
    ensure!(now == *before, "{now:?} instead of {before:?}");
    Ok(())
}

fn deaths_count_as_ever(scene: &mut Scene) -> Result<()> {
    scene.crowd.kill(0)?;
    scene.settled(SOON)?;
    scene.verified()
}

/// What had expired has another lease now, and nothing goes on.
fn all_anew(scene: &Scene, before: &BTreeSet<String>) -> Result<()> {
    let after = ids(scene)?;
    let longer: Vec<_> = after.intersection(before).collect();
    ensure!(longer.is_empty(), "these had ended, and go on: {longer:?}");
    scene.all_get_in()?;
    scene.verified()
}

fn what_expired_while_the_broker_stood_still_ends() -> Result<()> {
    let dir = TempDir::new()?;
    let (mut scene, offset) = scene(dir.path(), 4)?;
    let before = ids(&scene)?;
    let broker = Pid::from_raw(scene.broker.pid()?);
    kill(broker, Signal::SIGSTOP)?;
    // One of them dies meanwhile.
    let died = scene.crowd.kill(0);
    std::thread::sleep(TTL + Duration::from_secs(2));
    kill(broker, Signal::SIGCONT)?;
    died?;
    scene.settled(SOON)?;
    all_anew(&scene, &before)?;
    let reasons = &scene.record.reasons;
    let ended = ["died", "expired"].map(|reason| reasons.get(reason).copied().unwrap_or(0));
    ensure!(ended.iter().sum::<u32>() >= 12, "{reasons:?}");

    // And while it was down, by a clock that was set back meanwhile.
    let before = ids(&scene)?;
    scene.broker.kill()?;
    offset.set(-1_000_000)?;
    std::thread::sleep(TTL + Duration::from_secs(2));
    scene.broker.restart()?;
    scene.settled(SOON)?;
    all_anew(&scene, &before)
}
