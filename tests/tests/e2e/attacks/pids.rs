//! The pid of a dead connector, used again by the victim.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Agent, Guard, log_path, random_text, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::descriptors::give;
use super::world::World;

const SOON: Duration = Duration::from_secs(30);

/// The attacker connects and dies, the victim gets its pid, and a request comes on the old connection:
/// after the node has taken the connection, and before.
pub fn used_again(world: &World) -> Result<()> {
    let attackers = world.attacker(&[])?;
    for node_sleeps in [false, true] {
        let mark = world.mark()?;
        let mut connector = world.agent(&attackers)?;
        let mut heir = world.agent(&attackers)?;
        let broker = Pid::from_raw(world.broker.pid()?);
        if node_sleeps {
            // As if it were slow: what it takes from the backlog is older than it looks.
            kill(broker, Signal::SIGSTOP)?;
        }
        let handed = reuse(world, &mut connector, &mut heir, node_sleeps);
        if node_sleeps {
            kill(broker, Signal::SIGCONT)?;
        }
        let (pid, reused) = handed?;
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        ensure!(
            cgroup.contains(world.victim.id()),
            "pid {pid} is not the victim's: {cgroup}"
        );
        for credential in ["victim-key", "attacker-key"] {
            world.is_refused(heir.get(credential)?)?;
        }
        let event = world.refusal_on_record(
            mark,
            &[
                "peer_exited",
                "peer_unproven",
                "sender_in_other_container",
                "sender_unknown",
                "unreadable",
            ],
        )?;
        drop(reused);
        ensure!(
            event["refusal"]["pid"] == pid || node_sleeps,
            "another was refused: {event}"
        );
        world.gets_its_own_at_most(&mut heir)?;
    }
    Ok(())
}

/// Connects, hands the connection on, dies, and has a process of the victim's get the pid.
fn reuse(
    world: &World,
    connector: &mut Agent,
    heir: &mut Agent,
    node_sleeps: bool,
) -> Result<(i32, Guard)> {
    connector.connect()?;
    if !node_sleeps {
        // So that the node has surely taken it.
        connector.whoami()?;
    }
    give(connector, heir, world)?;
    let pid = connector.pid()?;
    connector.exit()?;
    Ok((pid, victim_with_pid(world, pid)?))
}

/// Starts a process in the victim's container whose pid on the host is given.
fn victim_with_pid(world: &World, pid: i32) -> Result<Guard> {
    let victim = world.victim.pid()?;
    let text = std::fs::read_to_string(format!("/proc/{victim}/cgroup"))?;
    let realm = world.docker.realm();
    let mut groups = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (
            fields.next().unwrap_or_default(),
            fields.next().unwrap_or_default(),
        );
        let root = match controllers {
            "" => Some(realm.cgroup_v2()?),
            "pids" | "memory" => realm.cgroup_v1(controllers)?,
            _ => None,
        };
        groups.extend(root.map(|root| {
            root.join(path.trim_start_matches('/'))
                .display()
                .to_string()
        }));
    }
    ensure!(!groups.is_empty(), "the victim has no cgroup: {text}");
    // Only in the namespace of the victim's pids is the first number looked for.
    let inside = 20_000 + pid % 10_000;
    let enter = r#"
        while read -r group; do echo 0 >"$group/cgroup.procs"; done <<<"$1"
        exec nsenter --target "$2" --mount --pid --uts --ipc --net --cgroup --no-fork -- \
            /bin/with_pid "$3" /bin/mayfly-probe say reused
    "#;
    let mut command = Command::new("bash");
    command.args(["-c", enter, "enter", &groups.join("\n")]);
    command.args([victim.to_string(), format!("{inside},{pid}")]);
    let log = log_path(&format!("reused-{}", random_text(6)?))?;
    let mut guard = Guard::spawn(&command, &log, Signal::SIGKILL, 0)?;
    wait_until(SOON, "a process with the old pid", || {
        if guard.exited()?.is_some() {
            return Err(guard.failure("a process with a forced pid"));
        }
        Ok(guard.log().contains("reused").then_some(()))
    })
    .context("forcing a pid")?;
    // The end of its parent does not end it, so its own end is seen to.
    Ok(guard)
}
