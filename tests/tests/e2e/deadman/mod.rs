//! Sidecars that are frozen, killed or left alone: files behave as configured, and it is on record.

mod hostile;
mod scene;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::wait_until;

use scene::{App, REMOVE_AND_KEEP, SOON, Scene, stop};

const VOLUMES: [&str; 6] = [
    "frozen",
    "stopped",
    "killed",
    "down",
    "down-stop",
    "hostile",
];

/// What was held open reads as zeros.
fn is_overwritten(mut held: &File) -> Result<()> {
    let mut content = Vec::new();
    held.rewind()?;
    held.read_to_end(&mut content)?;
    ensure!(
        !content.is_empty() && content.iter().all(|byte| *byte == 0),
        "{} bytes, not all zero",
        content.len()
    );
    Ok(())
}

/// What does not end yet, and what is kept stale, is as it was.
fn rest_stays(scene: &Scene, app: &App) -> Result<()> {
    for file in ["conf/kept", "long"] {
        let found = fs::read_to_string(app.path(file)?).with_context(|| file.to_owned())?;
        ensure!(found == scene.secret, "{file} has changed");
    }
    Ok(())
}

#[test]
fn whatever_happens_to_a_sidecar_files_behave_as_configured_and_it_is_on_record() -> Result<()> {
    let mut scene = Scene::new(&VOLUMES)?;
    sidecars_fail(&scene)?;
    node_and_broker_are_away(&mut scene)?;
    volumes_are_kept_or_refused(&mut scene)
}

fn sidecars_fail(scene: &Scene) -> Result<()> {
    // Watched over by the shim, on a tmpfs of the container's own.
    let shim_frozen = scene.inside("shim-frozen", REMOVE_AND_KEEP)?;
    let shim_killed = scene.inside("shim-killed", REMOVE_AND_KEEP)?;
    let shim_stops = scene.inside("shim-stops", &stop("parent"))?;
    // Watched over by the node, in its volumes.
    let frozen = scene.beside("frozen", REMOVE_AND_KEEP)?;
    let killed = scene.beside("killed", REMOVE_AND_KEEP)?;
    let stopped = scene.beside("stopped", &stop("init"))?;
    let attacked = hostile::plant(scene)?;

    // Held before, so that it does not matter how long it takes to get hold of all of them.
    let live = [&shim_frozen, &shim_killed, &frozen, &killed];
    let held = live.map(|app| app.hold("short"));
    for app in [&shim_frozen, &shim_stops, &frozen, &stopped] {
        app.freeze()?;
    }
    scene.break_config("shim-killed")?;
    for app in [&shim_killed, &killed] {
        app.kill_sidecar()?;
    }
    for app in live {
        app.gone("short")?;
        rest_stays(scene, app).with_context(|| app.logs())?;
    }
    for held in held {
        is_overwritten(&held?)?;
    }
    for app in [&shim_frozen, &shim_killed] {
        scene.workload_said("expired_removed", app, "by the shim")?;
        let kept = scene.workload_said("kept_stale", app, "conf/kept")?;
        ensure!(
            kept["failure"]["detail"]
                .as_str()
                .is_some_and(|d| d.contains("by the shim"))
        );
    }
    for volume in ["frozen", "killed"] {
        let removed = scene.node_did("expired_removed", volume, "short")?;
        ensure!(
            removed["report"]["workloads"].as_array().map(Vec::len) == Some(1),
            "{removed}"
        );
        scene.node_did("kept_stale", volume, "conf/kept")?;
    }

    // Those that are not to run without it have ended, and not by force.
    for app in [&shim_stops, &stopped] {
        ensure!(app.container.wait()? == 7, "{}", app.logs());
    }
    scene.on_record("the shim's application is stopped", |event| {
        event["type"] == "publish_failed" && event["failure"]["code"] == "stopped_stale"
    })?;
    let stop = scene.node_did("stopped_stale", "stopped", "short")?;
    ensure!(
        stop["report"]["workloads"][0]["cgroup_id"].is_u64(),
        "{stop}"
    );
    is_empty(scene, "stopped")?;

    // A frozen sidecar that goes on finds its way.
    shim_frozen.thaw()?;
    wait_until(SOON, "the thawed sidecar to publish", || {
        let found = fs::read_to_string(shim_frozen.path("short")?)?;
        Ok((found == scene.secret).then_some(()))
    })
    .with_context(|| shim_frozen.logs())?;

    hostile::check(scene, &attacked)?;
    // What the last one leaves is cleared.
    drop(killed);
    scene.node_did("cleared", "killed", "conf/kept")?;
    is_empty(scene, "killed")
}

fn is_empty(scene: &Scene, volume: &str) -> Result<()> {
    let path = scene.volume(volume);
    wait_until(SOON, &format!("the volume {volume} to be empty"), || {
        let names: Vec<_> = fs::read_dir(&path)?
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        ensure!(names.is_empty(), "{names:?}");
        Ok(Some(()))
    })
}

/// The node is the broker's own, so that both are away together; for an hour, by the broker's clock.
fn node_and_broker_are_away(scene: &mut Scene) -> Result<()> {
    let down = scene.beside("down", REMOVE_AND_KEEP)?;
    let down_stop = scene.beside("down-stop", &stop("init"))?;
    let alive = scene.inside("alive", REMOVE_AND_KEEP)?;
    let alive_stops = scene.inside("alive-stops", &stop("parent"))?;
    let held = down.hold("short")?;
    down.freeze()?;
    down_stop.freeze()?;
    scene.broker.kill()?;
    scene.ahead(3600)?;

    // A sidecar that lives does it all by itself.
    alive.gone("short")?;
    rest_stays(scene, &alive)?;
    ensure!(alive_stops.container.wait()? == 7, "{}", alive_stops.logs());
    // Without node and sidecar nobody does.
    let there = fs::read_to_string(down.path("short")?)?;
    ensure!(there == scene.secret, "who has removed it?");

    scene.broker.restart()?;
    down.gone("short")?;
    rest_stays(scene, &down)?;
    is_overwritten(&held)?;
    ensure!(down_stop.container.wait()? == 7, "{}", down_stop.logs());
    for (act, volume, item) in [
        ("expired_removed", "down", "short"),
        ("kept_stale", "down", "conf/kept"),
        ("expired_removed", "down-stop", "short"),
        ("stopped_stale", "down-stop", "short"),
    ] {
        scene.node_did(act, volume, item)?;
    }
    // And the broker hears what happened while it was away.
    for (code, item) in [("expired_removed", "short"), ("kept_stale", "conf/kept")] {
        let said = scene.workload_said(code, &alive, item)?;
        let by_shim = said["failure"]["detail"]
            .as_str()
            .is_some_and(|d| d.contains("shim"));
        ensure!(!by_shim, "the sidecar lived: {said}");
    }
    scene.on_record("the end of who had to stop", |event| {
        event["type"] == "died"
    })?;
    wait_until(SOON, "the file to come back", || {
        let found = fs::read_to_string(alive.path("short")?)?;
        Ok((found == scene.secret).then_some(()))
    })
    .with_context(|| alive.logs())
}

fn volumes_are_kept_or_refused(scene: &mut Scene) -> Result<()> {
    // What is in a volume outlives the node, and is cleared by the next one because nobody has it.
    let left = scene.volume("frozen").join("left");
    scene.broker.stop()?;
    fs::write(&left, "x")?;
    scene.resize(&VOLUMES, "2m")?;
    let refused = scene
        .broker
        .restart()
        .err()
        .context("a wrong volume was taken")?;
    let said = format!("{refused:#}{}", scene.broker.log());
    ensure!(
        said.contains("size=2048k") && said.contains("size=1024k"),
        "{said}"
    );
    ensure!(left.exists(), "a refused start has touched a volume");
    scene.resize(&VOLUMES, "1m")?;
    scene.broker.restart()?;
    is_empty(scene, "frozen")
}
