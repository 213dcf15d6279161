//! Cgroups that an attacker with CAP_SYS_ADMIN makes or enters.

use anyhow::Result;
use mayfly_tests::harness::{Agent, Container};

use super::world::World;

/// What lets one write to cgroups, and the rules lifted that it breaks: with CAP_SYS_ADMIN, what it
/// shows of its mounts could be forged, so that nobody can say that no engine is among them.
const STRONG: [&str; 5] = [
    "--cap-add=SYS_ADMIN",
    "--user=0:0",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--label=lift=sys-admin seccomp engine-socket",
];

/// A child cgroup of the attacker's own, named after the victim's container.
pub fn named_after_the_victim(world: &World) -> Result<()> {
    let attackers = world.attacker(&[&STRONG[..], &["--cgroupns=private"]].concat())?;
    let mark = world.mark()?;
    let mut attacker = world.agent(&attackers)?;
    for (tree, kind, options) in trees(world)? {
        let mounted = mount_once(&mut attacker, tree, kind, options)?;
        let group = format!("{mounted}/{}", world.victim.id());
        // It is there from the last time.
        let _ = attacker.tell(&format!("mkdir {group}"));
        attacker.tell(&format!("write {group}/cgroup.procs 0"))?;
    }
    let seen = std::fs::read_to_string(format!("/proc/{}/cgroup", attacker.pid()?))?;
    anyhow::ensure!(
        seen.contains(&format!("{}/{}", attackers.id(), world.victim.id())),
        "the attacker is not where it should be: {seen}"
    );
    world.gets_its_own_at_most(&mut attacker)?;
    denied(world, mark, &attackers)
}

/// The victim's own cgroup, which one who sees all of the hierarchy can enter. It then is not in the
/// namespaces that the container of that cgroup began with; with that rule lifted too, it is still
/// nobody but itself.
pub fn the_victims_own(world: &World) -> Result<()> {
    for lifted in [false, true] {
        let mut options = [&STRONG[..], &["--cgroupns=host"]].concat();
        if lifted {
            options[4] = "--label=lift=sys-admin seccomp engine-socket namespaces";
        }
        let attackers = world.attacker(&options)?;
        let mark = world.mark()?;
        let mut attacker = world.agent(&attackers)?;
        let (path, _) = world.victim.cgroup()?;
        for (tree, kind, options) in trees(world)? {
            let mounted = mount_once(&mut attacker, tree, kind, options)?;
            attacker.tell(&format!("write {mounted}{path}/cgroup.procs 0"))?;
        }
        let seen = std::fs::read_to_string(format!("/proc/{}/cgroup", attacker.pid()?))?;
        anyhow::ensure!(
            seen.contains(world.victim.id()),
            "it is not the victim's: {seen}"
        );
        if lifted {
            world.gets_its_own_at_most(&mut attacker)?;
            denied(world, mark, &attackers)?;
        } else {
            for credential in ["attacker-key", "victim-key"] {
                world.is_refused(attacker.ask(credential)?)?;
            }
            world.denial_on_record(mark, &attackers, &["baseline-namespaces"])?;
        }
    }
    Ok(())
}

/// The hierarchies that name containers.
fn trees(world: &World) -> Result<Vec<(&'static str, &'static str, &'static str)>> {
    let mut trees = vec![("v2", "cgroup2", "")];
    for controller in ["pids", "memory"] {
        if world.docker.realm().cgroup_v1(controller)?.is_some() {
            trees.push((controller, "cgroup", controller));
        }
    }
    Ok(trees)
}

fn mount_once(attacker: &mut Agent, tree: &str, kind: &str, options: &str) -> Result<String> {
    let path = format!("/tmp/{tree}");
    if attacker.tell(&format!("mkdir {path}")).is_ok() {
        attacker.tell(&format!("mount {kind} {options} {path}"))?;
    }
    Ok(path)
}

fn denied(world: &World, mark: usize, attackers: &Container<'_>) -> Result<()> {
    // Nothing forbids it; there is nothing that permits it.
    world.denial_on_record(mark, attackers, &[])
}
