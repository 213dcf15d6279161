//! SIGKILL at random moments, of the broker, of the database server, and of both, while containers come
//! and go: after each the roles are those of the leases, exactly.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use mayfly_tests::harness::Broker;

use super::scene::{Crowd, LONG, Scene};
use super::server::Server;

/// How many containers there are, more or less.
const MEMBERS: usize = 20;
/// How long what was killed may take to be as before.
const BACK: Duration = Duration::from_secs(60);
/// How long each may take, of many.
const LONGEST: Duration = Duration::from_secs(10);
/// Longest time between a restart and the next kill.
const WINDOW: u64 = 150;

/// Random numbers that a seed repeats (xorshift64*; G. Marsaglia, 2003; S. Vigna, 2016).
struct Chance(u64);

impl Chance {
    /// By `MAYFLY_SEED`, or a new one.
    fn new() -> Result<Self> {
        let seed = match std::env::var("MAYFLY_SEED") {
            Ok(seed) => seed.parse().context("MAYFLY_SEED is a number")?,
            Err(_) => {
                let mut bytes = [0; 8];
                getrandom::fill(&mut bytes).map_err(|error| anyhow!("no randomness: {error}"))?;
                u64::from_le_bytes(bytes)
            }
        };
        say!("MAYFLY_SEED={seed}");
        Ok(Self(seed | 1))
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % most
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.below(most))
    }

    /// Another, for another thread.
    fn other(&mut self) -> Self {
        Self(self.below(u64::from(u32::MAX)) << 16 | 1)
    }
}

/// What is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Broker,
    Server,
    Both,
}

/// Some come, some go, at random moments.
fn come_and_go(crowd: &mut Crowd, chance: &mut Chance) -> Result<u32> {
    let mut changes = 0;
    for _ in 0..chance.below(6) {
        std::thread::sleep(chance.millis(40));
        let many = crowd.members.len();
        if many > MEMBERS / 2 && (many > MEMBERS || chance.below(2) == 0) {
            crowd.kill(usize::try_from(chance.below(1000))?)?;
        } else {
            crowd.join()?;
        }
        changes += 1;
    }
    Ok(changes)
}

/// Kills at a random moment, once or more than once, and starts again.
fn kill(
    victim: Victim,
    broker: &mut Broker,
    server: &mut Server,
    chance: &mut Chance,
) -> Result<u32> {
    let mut kills = 0;
    std::thread::sleep(chance.millis(WINDOW));
    if victim != Victim::Server {
        broker.kill()?;
        kills += 1;
        // Sometimes again in the middle of its start.
        while chance.below(6) == 0 {
            broker.launch()?;
            std::thread::sleep(chance.millis(WINDOW));
            broker.kill()?;
            kills += 1;
        }
    }
    if victim != Victim::Broker {
        server.kill()?;
        kills += 1;
    }
    // In either order.
    let broker_first = chance.below(2) == 0;
    if victim != Victim::Server && broker_first {
        broker.restart()?;
    }
    if victim != Victim::Broker {
        server.restart()?;
    }
    if victim != Victim::Server && !broker_first {
        broker.restart()?;
    }
    Ok(kills)
}

fn kills(victim: Victim, at_least: u32) -> Result<()> {
    let limit = LONGEST * at_least;
    let mut chance = Chance::new()?;
    let mut scene = Scene::start(LONG, MEMBERS)?;
    let begun = Instant::now();
    let (mut kills, mut changes, mut settling) = (0, 0, Duration::ZERO);
    while kills < at_least {
        ensure!(begun.elapsed() < limit, "only {kills} kills in {limit:?}");
        let mut others = chance.other();
        let Scene {
            crowd,
            broker,
            server,
            ..
        } = &mut scene;
        let (killed, changed) = std::thread::scope(|scope| {
            let changing = scope.spawn(|| come_and_go(crowd, &mut others));
            // Now and then everything is made anew meanwhile; it may meet a dead broker.
            if chance.below(16) == 0 {
                let rotating = broker.mayfly();
                scope.spawn(move || rotating.map(|mut it| it.args(["rotate", "--all"]).output()));
            }
            let killed = kill(victim, broker, server, &mut chance);
            let changed = changing.join().map_err(|_| anyhow!("a thread panicked"));
            (killed, changed)
        });
        kills += killed?;
        changes += changed??;
        settling += scene
            .settled(BACK)
            .with_context(|| format!("after {kills} kills"))?;
    }
    // Nothing comes late.
    std::thread::sleep(Duration::from_secs(1));
    scene.settled(Duration::from_secs(1))?;
    scene.all_get_in()?;
    scene.verified()?;
    say!(
        "{kills} kills, {changes} containers came or went, {} leases, {:?}, of it settling {settling:?}; ends: {:?}",
        scene.record.begun(),
        begun.elapsed(),
        scene.record.reasons
    );
    ensure!(
        changes > kills / 4,
        "hardly anybody came and went: {changes}"
    );
    while !scene.crowd.members.is_empty() {
        scene.crowd.kill(0)?;
    }
    scene.settled(BACK).map(drop)
}

/// `MAYFLY_KILLS` says another number: the server takes its time to start, and 300 of it take six
/// minutes.
fn so_often(usually: u32) -> Result<u32> {
    match std::env::var("MAYFLY_KILLS") {
        Ok(number) => number.parse().context("MAYFLY_KILLS is a number"),
        Err(_) => Ok(usually),
    }
}

#[test]
fn the_broker_is_killed_300_times_and_roles_are_those_of_leases() -> Result<()> {
    kills(Victim::Broker, so_often(300)?)
}

#[test]
fn the_database_server_is_killed_and_roles_are_those_of_leases() -> Result<()> {
    kills(Victim::Server, so_often(20)?)
}

#[test]
fn both_are_killed_and_roles_are_those_of_leases() -> Result<()> {
    kills(Victim::Both, so_often(30)?)
}
