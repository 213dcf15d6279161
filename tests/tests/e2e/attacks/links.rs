//! Symlinks that an application plants where its sidecar publishes: never followed, and each on record.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Guard, log_path, random_text, wait_until};
use nix::sys::signal::Signal;

use super::world::World;

const SOON: Duration = Duration::from_secs(30);
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
    // The record says who, which generation, and what stood where.
    let on_record = |mark: usize, generation: u64, name: &str| -> Result<()> {
        let what = format!("a symlink at {name}, generation {generation}");
        let event = world.on_record(mark, &what, |event| {
            event["type"] == "publish_failed" && event["failure"]["generation"] == generation
        })?;
        let failure = &event["failure"];
        let detail = failure["detail"].as_str().unwrap_or_default();
        ensure!(
            failure["code"] == "symlink"
                && detail.contains(&format!("at `{name}`"))
                && detail.contains(&outside),
            "{event}"
        );
        let evidence = world.evidence(&container)?;
        ensure!(event["who"]["workload"] == evidence["workload"], "{event}");
        Ok(())
    };
    // Where its generations are linked, and where a file will be.
    for (generation, link, name) in [
        (0, format!("/shared/{outside}"), "..data"),
        (1, format!("/shared/{outside}/file"), "attacker-key"),
    ] {
        let path = format!("/run/secrets/{name}");
        application.tell(&format!("symlink {link} {path}"))?;
        let mark = world.mark()?;
        let complaint = format!("at `{name}`");
        // One that had no answer in its time is started once more.
        wait_until(SOON, &complaint, || {
            let mut sidecar = run(&["--once", "--timeout", "3"])?;
            let (status, log) = (sidecar.wait(SOON)?, sidecar.log());
            ensure!(
                !status.success() && log.contains(&complaint),
                "{status}: {log}"
            );
            Ok(Some(()))
        })?;
        untouched()?;
        on_record(mark, generation, name)?;
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
    let mark = world.mark()?;
    world
        .broker
        .cli_with_input(&["kv", "put", "attacks/attacker", "-"], &rotated)?;
    wait_until(SOON, "the sidecar's complaint", || {
        ensure!(sidecar.log().contains("at `..data`"), "{}", sidecar.log());
        Ok(Some(()))
    })?;
    untouched()?;
    on_record(mark, 2, "..data")?;
    let told = world.broker.cli(&["workloads"])?;
    ensure!(
        told.contains("cannot publish: a symlink stands where it publishes"),
        "{told}"
    );
    let told = world.broker.cli(&["audit", "tail"])?;
    ensure!(
        told.contains("cannot publish generation 2: a symlink stands where it publishes"),
        "{told}"
    );
    // It is tried again by itself, and no longer told as failing.
    application.tell("remove /run/secrets/..data")?;
    holds(&rotated)?;
    wait_until(SOON, "the end of the complaint", || {
        let told = world.broker.cli(&["workloads"])?;
        Ok((!told.contains("cannot publish")).then_some(()))
    })
}
