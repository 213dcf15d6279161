//! Connections that change hands.

use anyhow::{Result, ensure};
use mayfly_wire::Facility;

use super::world::World;

/// A connection of one container, used by another.
pub fn passed_between_containers(world: &World) -> Result<()> {
    let attackers = world.attacker(&[])?;
    let mut victim = world.victims_agent()?;
    let mut attacker = world.agent(&attackers)?;
    // Without SCM_PIDFD, a sender other than the peer is nobody.
    let reason = match world.forbidden().contains(&Facility::ScmPidfd) {
        true => "sender_unknown",
        false => "sender_in_other_container",
    };

    // The victim's, used by the attacker: before a first request, and after one of the victim's own.
    for used in [false, true] {
        let mark = world.mark()?;
        victim.connect()?;
        if used {
            victim.whoami()?;
        }
        give(&mut victim, &mut attacker, world)?;
        world.is_refused(attacker.get("victim-key")?)?;
        world.refusal_on_record(mark, &[reason])?;
    }
    // The attacker's, used by the victim: it neither gets what is the attacker's, nor is its own sent
    // to where the attacker reads.
    let mark = world.mark()?;
    attacker.connect()?;
    give(&mut attacker, &mut victim, world)?;
    world.is_refused(victim.get("victim-key")?)?;
    world.refusal_on_record(mark, &[reason])?;

    // A message that carries a descriptor.
    let mark = world.mark()?;
    attacker.connect()?;
    let answer = attacker.tell("get-with-descriptor /v1/credentials/attacker-key/value")?;
    world.is_refused(answer)?;
    world.refusal_on_record(mark, &["descriptors_passed"])?;
    world.gets_its_own_at_most(&mut attacker)
}

/// A connection whose maker has exited, used by another process of the same container.
pub fn left_by_the_dead(world: &World) -> Result<()> {
    let mark = world.mark()?;
    let mut connector = world.victims_agent()?;
    let mut heir = world.victims_agent()?;
    connector.connect()?;
    give(&mut connector, &mut heir, world)?;
    connector.exit()?;
    world.is_refused(heir.get("victim-key")?)?;
    world.refusal_on_record(mark, &["peer_exited"])?;
    Ok(())
}

/// A session whose maker has exited, read by another process of the same container.
pub fn session_of_the_dead(world: &World) -> Result<()> {
    let mark = world.mark()?;
    let mut connector = world.victims_agent()?;
    let mut heir = world.victims_agent()?;
    connector.tell("session victim-key")?;
    give(&mut connector, &mut heir, world)?;
    connector.exit()?;
    // Another version of it, which is pushed down every session.
    let put = ["kv", "put", "attacks/victim", "-"];
    world.broker.cli_with_input(&put, &world.victim_secret)?;
    let read = heir.tell("drain")?;
    ensure!(
        read.contains("refused") && !read.contains("encapsulated"),
        "expected a refusal, found {read}"
    );
    world.refusal_on_record(mark, &["peer_exited"])?;
    Ok(())
}

/// A connection used by another process of the same container. Where the kernel does not name the
/// peer, who connected must send the nonce back itself.
pub fn used_by_a_sibling(world: &World) -> Result<()> {
    let mark = world.mark()?;
    let mut connector = world.victims_agent()?;
    let mut sibling = world.victims_agent()?;
    connector.connect()?;
    give(&mut connector, &mut sibling, world)?;
    let answer = sibling.get("victim-key")?;
    let without = |facility| world.forbidden().contains(&facility);
    let reason = match (without(Facility::SoPeerpidfd), without(Facility::ScmPidfd)) {
        (true, _) => "peer_unproven",
        (_, true) => "sender_unknown",
        _ => {
            let own = format!("200 {}", world.victim_secret);
            ensure!(answer == own, "expected its own, found {answer}");
            return Ok(());
        }
    };
    world.is_refused(answer)?;
    world.refusal_on_record(mark, &[reason])?;
    Ok(())
}

/// Passes a connection on.
pub fn give(
    from: &mut mayfly_tests::harness::Agent,
    to: &mut mayfly_tests::harness::Agent,
    world: &World,
) -> Result<()> {
    let name = mayfly_tests::harness::random_text(8)?;
    to.tell(&format!("listen /shared/{name}"))?;
    from.tell(&format!("give /shared/{name}"))?;
    to.tell("take")?;
    Ok(std::fs::remove_file(world.shared.join(name))?)
}
