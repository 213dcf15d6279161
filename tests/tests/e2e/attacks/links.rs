//! Symlinks that an application plants where its sidecar publishes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Guard, log_path, random_text, wait_until};
use nix::sys::signal::Signal;

use super::world::World;

const SOON: Duration = Duration::from_secs(10);
/// A tmpfs as the sidecar wants it.
pub const SECRETS: &str = "--mount=type=volume,dst=/run/secrets,volume-driver=local,\
    volume-opt=type=tmpfs,volume-opt=device=tmpfs,\
    \"volume-opt=o=size=1m,uid=1000,gid=1000,mode=0700,noexec,nosuid,nodev,noswap\"";

/// Before the sidecar starts, and in the place of what it made.
pub fn planted(world: &World) -> Result<()> {
    let container = world.attacker(&[SECRETS])?;
    let mut application = world.agent(&container)?;
    let outside = random_text(8)?;
    application.tell(&format!("mkdir /shared/{outside}"))?;
    application.tell(&format!("write /shared/{outside}/file untouched"))?;
    let untouched = || -> Result<()> {
        let dir = world.shared.join(&outside);
        let names = std::fs::read_dir(&dir)?.count();
        let file = std::fs::read_to_string(dir.join("file"))?;
        ensure!(names == 1 && file == "untouched", "{names} names, {file:?}");
        Ok(())
    };

    let run = |options: &[&str]| -> Result<Guard> {
        let mut sidecar = world.docker.client();
        sidecar
            .args(["exec", container.id(), "/bin/mayfly-sidecar"])
            .args(options);
        Guard::spawn(
            &sidecar,
            &log_path(&format!("planted-{}", random_text(6)?))?,
            Signal::SIGKILL,
            0,
        )
    };
    // Where its generations are linked, and where a file will be.
    for (link, name) in [
        (format!("/shared/{outside}"), "..data"),
        (format!("/shared/{outside}/file"), "attacker-key"),
    ] {
        let path = format!("/run/secrets/{name}");
        application.tell(&format!("symlink {link} {path}"))?;
        let mut sidecar = run(&["--once", "--timeout", "3"])?;
        let status = sidecar.wait(SOON)?;
        ensure!(
            !status.success() && sidecar.log().contains(&format!("at `{name}`")),
            "{status}: {}",
            sidecar.log()
        );
        untouched()?;
        application.tell(&format!("remove {path}"))?;
    }

    let sidecar = run(&[])?;
    let holds = |secret: &str| {
        wait_until(SOON, "the application's file", || {
            let found = container.exec(&["cat", "/run/secrets/attacker-key"])?;
            Ok((found == secret).then_some(()))
        })
        .with_context(|| sidecar.log())
    };
    holds(&world.attacker_secret)?;
    application.tell("remove /run/secrets/..data")?;
    application.tell(&format!("symlink /shared/{outside} /run/secrets/..data"))?;
    let rotated = random_text(24)?;
    world
        .broker
        .cli_with_input(&["kv", "put", "attacks/attacker", "-"], &rotated)?;
    wait_until(SOON, "the sidecar's complaint", || {
        ensure!(sidecar.log().contains("at `..data`"), "{}", sidecar.log());
        Ok(Some(()))
    })?;
    untouched()
}
