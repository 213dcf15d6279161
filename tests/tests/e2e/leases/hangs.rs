//! A database server that accepts and never answers, because all its processes are stopped.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, wait_until};
use mayfly_wire::connection::MAX_CONNECTIONS;
use serde_json::Value;

use super::scene::{LONG, SOON, Scene};
use super::server::Server;

/// How long a container may wait for what does not hang.
const PROMPT: Duration = Duration::from_secs(4);
/// So many containers make so many attempts each, within their pace.
const ATTEMPTS: (usize, usize) = (20, 50);
/// What may be there at one moment and not at another: files, and threads of the pool for what blocks,
/// whose number follows what comes at once.
const MORE: (usize, usize) = (10, 60);
/// How long until everything is as it should be, once the server answers again.
const BACK: Duration = Duration::from_secs(90);

/// Open files and threads.
fn size(broker: &Broker) -> Result<(usize, usize)> {
    let count = |what: &str| -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/{what}", broker.pid()?))?.count())
    };
    Ok((count("fd")?, count("task")?))
}

/// Connections to the server, by the kernel's table (proc(5), /proc/net/tcp).
fn connections(server: &Server) -> Result<usize> {
    let port = format!(":{:04X}", server.0.port());
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let is_to = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|to| to.ends_with(&port)) && fields.next() == Some("01")
    };
    Ok(table.lines().filter(is_to).count())
}

#[test]
fn a_server_that_hangs_delays_nobody_else_and_leaves_nothing_behind() -> Result<()> {
    let mut scene = Scene::start(LONG, 3)?;
    scene.server.freeze()?;
    let hung = hang(&mut scene);
    scene.server.thaw()?;
    hung?;
    let took = scene.settled(BACK)?;
    say!("settled {took:?} after the server went on");
    scene.all_get_in()?;
    ensure!(stuck(&scene)? == 0, "something is still stuck");
    scene.verified()
}

fn stuck(scene: &Scene) -> Result<usize> {
    let stuck = scene.broker.cli_json(&["leases", "--stuck"])?;
    Ok(stuck.as_array().context("no list")?.len())
}

fn hang(scene: &mut Scene) -> Result<()> {
    // One that dies: its roles cannot be dropped.
    let dead = scene.crowd.members[0].small.id();
    scene.crowd.kill(0)?;
    // One that comes, and more when it is known that the server is down.
    let mut took = Vec::new();
    for number in 0..4 {
        let begun = Instant::now();
        let member = scene.crowd.join()?;
        wait_until(SOON, "what does not hang", || {
            Ok(member.held().contains_key("plain").then_some(()))
        })
        .with_context(|| format!("container {number}"))?;
        let missing = member.missing();
        for name in ["orders-db", "reports-db"] {
            let said = missing.get(name).map(Vec::as_slice);
            ensure!(
                said.is_some_and(|code| code == ["unavailable"]),
                "{name}: {said:?}"
            );
        }
        say!("container {number}: {:?}", begun.elapsed());
        took.push(begun.elapsed());
    }
    // Whatever else runs may be in the way of one.
    took.sort();
    ensure!(took[2] < PROMPT, "{took:?}");
    // Time-outs are told: to the operator, in the log, on record.
    wait_until(SOON, "two roles that are stuck", || {
        let stuck = scene.broker.cli_json(&["leases", "--stuck"])?;
        let stuck = stuck.as_array().context("no list")?;
        // Stuck is also what was not tried, because the server is down by then.
        let was_tried = |lease: &Value| lease["attempts"].as_u64() > Some(0);
        let of_the_dead =
            |lease: &&Value| lease["workload"]["cgroup_id"] == dead && was_tried(lease);
        Ok((stuck.iter().filter(of_the_dead).count() == 2).then_some(()))
    })?;
    let told = scene.broker.cli(&["leases", "--stuck"])?;
    ensure!(told.contains("revoking"), "{told}");
    let log = scene.broker.log();
    ensure!(log.contains("a target is down") && log.contains("a lease cannot be ended yet"));
    scene.record.read_on(&scene.broker)?;
    ensure!(scene.record.not_ended >= 2, "{}", scene.record.not_ended);

    let (containers, times) = ATTEMPTS;
    let limit = Duration::from_secs(120);
    // Threads for what blocks stay for a while: it has as many as it needs after these.
    scene.crowd.ask(containers, times / 4, limit)?;
    std::thread::sleep(Duration::from_secs(2));
    let before = size(&scene.broker)?;
    let begun = Instant::now();
    scene.crowd.ask(containers, times, limit)?;
    let took = begun.elapsed();
    // What was asked last may still be under way.
    let now = wait_until(SOON, "no more open files and threads than before", || {
        let now = size(&scene.broker)?;
        ensure!(
            now.0 <= before.0 + MORE.0 && now.1 <= before.1 + MORE.1,
            "files and threads were {before:?}, and are {now:?}"
        );
        Ok(Some(now))
    })?;
    let open = connections(&scene.server)?;
    say!(
        "{} attempts in {took:?}; files and threads: {before:?}, then {now:?}; connections: {open}",
        containers * times
    );
    ensure!(
        open <= usize::from(MAX_CONNECTIONS),
        "{open} connections to a server that hangs"
    );
    Ok(())
}
