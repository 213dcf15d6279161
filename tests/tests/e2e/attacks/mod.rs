//! The attacks of docs/design.md section 10, run for real against a broker beside a real engine, each
//! failing and each on record. And the same once more for each newer facility of the kernel that the
//! node is told to do without.
//!
//! | | host's cgroups | pure v2 |
//! |---|---|---|
//! | all attacks, all facilities | yes | yes |
//! | attacks on identity, each facility forbidden in turn | yes | yes, but `cgroup_v2` |
//! | symlinks, keyrings (neither node nor cgroups have a part in them) | yes | |
//! | weak containers, each facility forbidden in turn | yes | |

mod descriptors;
mod groups;
mod images;
mod keyrings;
mod links;
mod namespaces;
mod pids;
mod weak;
mod world;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::Docker;
use mayfly_wire::Facility;

pub use links::SECRETS;
use world::World;

/// One attack, which gives an error if it succeeds or is not on record.
type Attack = fn(&World) -> Result<()>;

/// Everything that tries to be somebody else.
fn steal_identity(world: &World) -> Result<()> {
    let attacks: [(&str, Attack); 9] = [
        ("descriptors", descriptors::passed_between_containers),
        ("descriptors left behind", descriptors::left_by_the_dead),
        ("session left behind", descriptors::session_of_the_dead),
        ("nonce of another", descriptors::used_by_a_sibling),
        ("pid reuse", pids::used_again),
        ("cgroup names", groups::named_after_the_victim),
        ("cgroup entered", groups::the_victims_own),
        ("namespaces left", namespaces::left),
        ("namespaces recycled", namespaces::recycled),
    ];
    let on = world.docker.realm().name();
    let without = world.forbidden();
    // All are run, so that one defect does not hide another.
    let failed: Vec<String> = attacks
        .into_iter()
        .filter_map(|(name, attack)| Some((name, attack(world).err()?)))
        .map(|(name, error)| format!("{name}, on {on}, without {without:?}: {error:#}"))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(())
}

#[test]
fn nobody_becomes_another_on_the_hosts_cgroups() -> Result<()> {
    let mut world = World::new(Docker::host()?)?;
    steal_identity(&world)?;
    for facility in Facility::ALL {
        world.forbid(&[facility])?;
        world.the_evidence_says_so()?;
        steal_identity(&world)?;
        weak::all(&world).with_context(|| format!("weak containers without {facility}"))?;
    }
    Ok(())
}

#[test]
fn nobody_becomes_another_on_pure_v2() -> Result<()> {
    let mut world = World::new(Docker::pure_v2()?)?;
    steal_identity(&world)?;
    // Without v2, nothing there tells containers apart, and the node does not start.
    let facilities = Facility::ALL
        .into_iter()
        .filter(|f| *f != Facility::CgroupV2);
    for facility in facilities {
        world.forbid(&[facility])?;
        world.the_evidence_says_so()?;
        steal_identity(&world)?;
    }
    Ok(())
}

#[test]
fn weak_containers_get_nothing() -> Result<()> {
    for docker in Docker::both()? {
        let world = World::new(docker)?;
        weak::all(&world)?;
        weak::given_up(&world)?;
    }
    Ok(())
}

#[test]
fn a_retagged_image_gets_nothing() -> Result<()> {
    for docker in Docker::both()? {
        images::retagged(&World::new(docker)?)?;
    }
    Ok(())
}

#[test]
fn a_planted_symlink_leads_nowhere() -> Result<()> {
    links::planted(&World::new(Docker::host()?)?)
}

#[test]
fn no_keyring_is_shared_under_the_shim() -> Result<()> {
    keyrings::shared(&World::new(Docker::host()?)?)
}
