//! Every way that the kernel has into another process.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scene::Scene;

/// How many ways there are; a report with fewer says nothing.
const WAYS: usize = 18;

fn ways(report: &Value) -> Result<Vec<(&str, &Value)>> {
    let entries = report.as_object().context("no object")?.iter();
    let found: Vec<_> = entries
        .filter(|(name, _)| *name != "pid" && *name != "program")
        .map(|(name, result)| (name.as_str(), result))
        .collect();
    ensure!(found.len() == WAYS, "{} ways: {report}", found.len());
    Ok(found)
}

/// Every way is closed, by a denial or because there is nobody.
fn is_closed(report: &Value, errors: &[i32]) -> Result<()> {
    for (way, result) in ways(report)? {
        let denied = errors.iter().any(|error| *result == *error);
        ensure!(
            denied,
            "{way} gives {result}, expected one of {errors:?}: {report}"
        );
    }
    Ok(())
}

/// Every way leads in: into a process that nobody protects, or the attack says nothing.
fn is_open(report: &Value) -> Result<()> {
    for (way, result) in ways(report)? {
        ensure!(result == "in", "{way} does not work here: {report}");
    }
    Ok(())
}

fn of<'a>(reports: &'a [Value], program: &str) -> Result<&'a Value> {
    let found = reports.iter().find(|report| report["program"] == program);
    found.with_context(|| format!("{program} is not seen: {reports:#?}"))
}

const EPERM: i32 = nix::libc::EPERM;
const EACCES: i32 = nix::libc::EACCES;
/// Nobody has that pid.
const NOBODY: [i32; 2] = [nix::libc::ESRCH, nix::libc::ENOENT];

#[test]
fn the_application_gets_into_neither_sidecar_nor_shim() -> Result<()> {
    let scene = Scene::new()?;
    let seen = scene.attack_of_the_application()?;
    is_open(of(&seen, "sh")?).context("the application's own shell")?;
    for program in ["mayfly-sidecar", "mayfly-shim"] {
        is_closed(of(&seen, program)?, &[EPERM, EACCES])?;
    }
    // Nor into a sidecar that was started again.
    let sidecar = scene.pids("mayfly-sidecar")?;
    let mut kill = std::process::Command::new("kill");
    mayfly_tests::harness::output(kill.args(["-KILL", &sidecar[0].to_string()]))?;
    mayfly_tests::harness::wait_until(super::scene::SOON, "another sidecar", || {
        Ok((scene.pids("mayfly-sidecar")? != sidecar).then_some(()))
    })?;
    is_closed(
        of(&scene.attack_of_the_application()?, "mayfly-sidecar")?,
        &[EPERM, EACCES],
    )
}

#[test]
fn a_second_container_of_the_same_uid_gets_into_nothing() -> Result<()> {
    let scene = Scene::new()?;
    // In a PID namespace of its own it has no name for any of them, not even one that it was told.
    for program in ["mayfly-sidecar", "mayfly-shim", "sh"] {
        for pid in scene.pids(program)? {
            let seen = scene.attack_of_another(&["--network=none"], &["at", &pid.to_string()])?;
            is_closed(seen.first().context("no report")?, &NOBODY)?;
        }
    }
    let seen = scene.attack_of_another(&["--network=none"], &["all"])?;
    ensure!(seen.is_empty(), "it sees others: {seen:#?}");
    // One that joins the victim's PID namespace, as a companion does, has the application in its hands,
    // and sidecar and shim not.
    let join = format!("--pid=container:{}", scene.victim.id());
    let seen = scene.attack_of_another(&["--network=none", &join], &["all"])?;
    is_open(of(&seen, "sh")?)?;
    for program in ["mayfly-sidecar", "mayfly-shim"] {
        is_closed(of(&seen, program)?, &[EPERM, EACCES])?;
    }
    Ok(())
}
