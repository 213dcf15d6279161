//! SIGKILL at any moment: the same leases, the same files, no second lease, every lease on record.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, output_with_input, random_text, wait_until};
use mayfly_wire::audit::{Chain, Event};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::app::{self, App, Leases, leases};
use super::node::{Node, broker_for_nodes};

/// A sidecar waits between its attempts, up to some seconds.
const BACK: Duration = Duration::from_secs(40);
/// How many kills, and within what time.
const KILLS: usize = 24;
const MOST: Duration = Duration::from_secs(90);

struct Scene {
    broker: Broker,
    node: Node,
    apps: Vec<App>,
}

impl Scene {
    /// A broker with its own node and one beside it; a container on each.
    fn start() -> Result<Self> {
        let (broker, address) = broker_for_nodes()?;
        let node = Node::start(&broker, &address, "resilience-node-2")?;
        app::kv_credentials(&broker, &["still".into(), "moving".into()], app::TOKENS)?;
        app::put(&broker, "still", b"never changes")?;
        app::put(&broker, "moving", b"first")?;
        let apps = vec![
            App::start(&broker.workload_dir(), "")?,
            App::start(&node.workload_dir(), "")?,
        ];
        let scene = Self { broker, node, apps };
        scene.same_value()?;
        Ok(scene)
    }

    /// Waits until every container has the value that the broker has.
    fn same_value(&self) -> Result<()> {
        let value = self
            .broker
            .cli(&["kv", "get", "e2e/moving", "--field", "value"])?;
        for app in &self.apps {
            app.wait_for_secret("moving", value.as_bytes(), BACK)?;
            ensure!(app.secret("still")? == b"never changes");
        }
        Ok(())
    }

    /// Which file the value that never changes is, and which token each container has.
    fn files(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let file = |app: &App| {
            let still = std::fs::metadata(app.path("run/secrets/still"))?;
            Ok((still.ino(), app.secret("token-ed")?))
        };
        self.apps.iter().map(file).collect()
    }

    fn kill_one(&mut self, which: usize) -> Result<()> {
        match which % 4 {
            0 | 1 => {
                self.broker.kill()?;
                self.broker.restart()
            }
            2 => {
                self.node.kill()?;
                self.node.restart()
            }
            _ => {
                let app = &self.apps[which / 4 % 2];
                Ok(kill(Pid::from_raw(app.sidecar()?), Signal::SIGKILL)?)
            }
        }
    }
}

/// The records, whose chain must hold: how often each lease began and ended.
pub fn on_record(broker: &Broker) -> Result<BTreeMap<String, (u32, u32)>> {
    let text = std::fs::read_to_string(broker.state_dir().join("audit.jsonl"))?;
    let mut chain = Chain::default();
    let mut found: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for line in text.lines() {
        match chain.follow(line)?.event {
            Event::Issued {
                lease,
                again: false,
                ..
            } => found.entry(lease.to_string()).or_default().0 += 1,
            Event::Ended { lease, .. } => found.entry(lease.to_string()).or_default().1 += 1,
            _ => {}
        }
    }
    Ok(found)
}

fn each_on_record(broker: &Broker, held: &Leases) -> Result<()> {
    let record = on_record(broker)?;
    for lease in held.values() {
        ensure!(
            record.get(lease) == Some(&(1, 0)),
            "{lease} is held, and on record it began and ended so often: {:?}",
            record.get(lease)
        );
    }
    Ok(())
}

pub fn random_number() -> Result<usize> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(usize::from_le_bytes(bytes))
}

#[test]
fn kills_at_any_moment_change_no_lease_and_no_file() -> Result<()> {
    let mut scene = Scene::start()?;
    let (held, files) = (leases(&scene.broker)?, scene.files()?);
    ensure!(
        held.len() == 8,
        "expected four leases for each of two: {held:?}"
    );
    let start = Instant::now();
    let mut kills = 0;
    while kills < KILLS && start.elapsed() < MOST {
        let (stop, stored) = (AtomicBool::new(false), AtomicUsize::new(0));
        let mut putting = scene.broker.mayfly()?;
        let killed = std::thread::scope(|scope| {
            // Values are put all the while; those that meet a dead broker fail, and that is well.
            let (stop, stored) = (&stop, &stored);
            let puts = scope.spawn(move || -> Result<()> {
                putting.args(["kv", "put", "e2e/moving", "-"]);
                while !stop.load(Ordering::Relaxed) {
                    let value = random_text(20)?;
                    let put = output_with_input(&mut putting, value.as_bytes());
                    stored.fetch_add(usize::from(put.is_ok()), Ordering::Relaxed);
                }
                Ok(())
            });
            let killed = (|| {
                for _ in 0..4 {
                    std::thread::sleep(Duration::from_millis(u64::try_from(
                        random_number()? % 150,
                    )?));
                    scene.kill_one(random_number()?)?;
                    kills += 1;
                }
                // On a busy machine every put may have met a dead one.
                wait_until(BACK, "a value to be stored meanwhile", || {
                    Ok((stored.load(Ordering::Relaxed) > 0).then_some(()))
                })
            })();
            stop.store(true, Ordering::Relaxed);
            let putter = puts.join();
            putter.map_err(|_| anyhow::anyhow!("the putter panicked"))??;
            killed
        });
        killed?;
        scene
            .same_value()
            .with_context(|| format!("after {kills} kills"))?;
        ensure!(
            leases(&scene.broker)? == held,
            "after {kills} kills the leases are others"
        );
        ensure!(
            scene.files()? == files,
            "after {kills} kills the files are others"
        );
    }
    println!("{kills} kills in {:?}", start.elapsed());
    ensure!(kills >= KILLS / 2, "only {kills} kills in {MOST:?}");
    scene.broker.cli(&["audit", "verify"])?;
    each_on_record(&scene.broker, &held)?;
    ensure!(
        on_record(&scene.broker)?.len() == held.len(),
        "leases were made that nobody holds"
    );
    Ok(())
}

#[test]
fn one_that_dies_while_broker_or_node_is_down_loses_its_leases_after_restart() -> Result<()> {
    let mut scene = Scene::start()?;
    let held = leases(&scene.broker)?;
    ensure!(held.len() == 8);
    let gone = |scene: &Scene, left: usize| {
        wait_until(BACK, &format!("{left} leases left"), || {
            let now = leases(&scene.broker)?;
            ensure!(
                now.iter().all(|(key, lease)| held.get(key) == Some(lease)),
                "others: {now:?}"
            );
            Ok((now.len() == left).then_some(()))
        })
    };
    let mut on_the_node = scene.apps.pop().context("no container")?;
    scene.node.kill()?;
    on_the_node.end()?;
    scene.node.restart()?;
    gone(&scene, 4)?;
    let mut on_the_broker = scene.apps.pop().context("no container")?;
    scene.broker.kill()?;
    on_the_broker.end()?;
    scene.broker.restart()?;
    gone(&scene, 0)?;
    let record = on_record(&scene.broker)?;
    ensure!(
        record.values().all(|counts| *counts == (1, 1)),
        "{record:?}"
    );
    scene.broker.cli(&["audit", "verify"]).map(drop)
}
