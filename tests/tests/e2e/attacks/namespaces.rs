//! Namespaces that an attacker leaves, and numbers of theirs that come again.

use anyhow::{Result, ensure};
use mayfly_tests::harness::Agent;
use mayfly_wire::Facility;

use super::world::World;

/// Lifts every rule that a process breaks by leaving, but the one that says so: in its own user
/// namespace it has all capabilities.
const ALL_BUT_THAT: &str = "--label=lift=seccomp privileged sys-admin sys-ptrace engine-socket";

/// unshare(2) after the connection was made.
pub fn left(world: &World) -> Result<()> {
    // With its filter off, the baseline refuses it anyway; with that lifted, its leaving alone does.
    // With that lifted too, it is still nobody but itself.
    let cases: [(&[&str], &[&str]); 2] = [
        (
            &["--security-opt=seccomp=unconfined"],
            &["baseline-seccomp", "baseline-namespaces"],
        ),
        (
            &["--security-opt=seccomp=unconfined", ALL_BUT_THAT],
            &["baseline-namespaces"],
        ),
    ];
    for (options, policies) in cases {
        let attackers = world.attacker(options)?;
        let mark = world.mark()?;
        let mut attacker = world.agent(&attackers)?;
        attacker.connect()?;
        attacker.tell("unshare user mount")?;
        for credential in ["attacker-key", "victim-key"] {
            world.is_refused(attacker.get(credential)?)?;
        }
        world.denial_on_record(mark, &attackers, policies)?;
        ensure!(world.evidence(&attackers)?["own_namespaces"] == false);
    }
    let attackers = world.attacker(&[
        "--security-opt=seccomp=unconfined",
        &format!("{ALL_BUT_THAT} namespaces"),
    ])?;
    let mut attacker = world.agent(&attackers)?;
    attacker.tell("unshare user mount")?;
    world.gets_its_own_at_most(&mut attacker)
}

/// The first process of a container makes mount namespaces until one has the number of that which it
/// began with.
pub fn recycled(world: &World) -> Result<()> {
    let options = [
        "--cap-add=SYS_ADMIN",
        "--user=0:0",
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--label=lift=sys-admin seccomp engine-socket",
    ];
    let mark = world.mark()?;
    let (mut attacker, name) = world.first_process(&options)?;
    let own = attacker.ask("attacker-key")?;
    ensure!(own == format!("200 {}", world.attacker_secret), "{own}");
    attacker.connect()?;
    attacker.whoami()?;
    let forged = forge(&mut attacker)?;
    // Where the node has nothing but the number, it keeps it from being used again.
    ensure!(
        forged != world.forbidden().contains(&Facility::NsGetId),
        "a number that was used again: {forged}"
    );
    for credential in ["attacker-key", "victim-key"] {
        world.is_refused(attacker.get(credential)?)?;
    }
    world.on_record(mark, "its denial", |event| {
        event["type"] == "denied"
            && event["who"]["name"] == name.as_str()
            && event["policies"]
                .as_array()
                .is_some_and(|p| p.iter().any(|p| p == "baseline-namespaces"))
    })?;
    Ok(())
}

fn forge(attacker: &mut Agent) -> Result<bool> {
    Ok(attacker.tell("recycle 300")? == "forged")
}
