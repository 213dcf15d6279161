//! Images under another's name.

use anyhow::{Result, ensure};
use mayfly_tests::harness::Image;

use super::world::World;

/// The name of the image that the policy means is given to another. The policy is of the digest.
pub fn retagged(world: &World) -> Result<()> {
    let tag = "attacks:pinned";
    let image = |version: &str| -> Result<String> {
        let image = Image::with_sidecar()?.setting(&format!("LABEL version={version}"));
        image.load(world.docker, tag)
    };
    let good = image("good")?;
    let policy = format!(
        "@id(\"pinned\") permit (principal is Mayfly::Workload, action == \
         Mayfly::Action::\"issue\", resource == Mayfly::Credential::\"victim-key\") when \
         {{ principal has container && principal.container.image has config_digest && \
         principal.container.image.config_digest == \"{good}\" }};"
    );
    world.apply(&policy)?;
    let first = world.of_image(tag)?;
    let evil = image("evil")?;
    ensure!(good != evil);
    let second = world.of_image(tag)?;
    // The one that was started by the good image, asked after the tag has moved, and the other.
    let mut honest = mayfly_tests::harness::Agent::exec(&first, &[])?;
    ensure!(honest.ask("victim-key")? == format!("200 {}", world.victim_secret));
    let mark = world.mark()?;
    let mut attacker = world.agent(&second)?;
    world.is_refused(attacker.ask("victim-key")?)?;
    world.denial_on_record(mark, &second, &[])?;
    let (first, second) = (world.evidence(&first)?, world.evidence(&second)?);
    for (evidence, digest) in [(&first, &good), (&second, &evil)] {
        let image = &evidence["container"]["image"];
        ensure!(
            image["config_digest"] == digest.as_str() && image["reference"] == tag,
            "{image}"
        );
    }
    Ok(())
}
