//! Every way that the kernel has into another process.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{output, wait_until};
use serde_json::Value;

use super::scene::{SOON, Scene, Users};

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

const DENIED: [i32; 2] = [nix::libc::EPERM, nix::libc::EACCES];
/// What the shim's filter says of the keyrings' calls.
const ENOSYS: i32 = nix::libc::ENOSYS;
/// Nobody has that pid.
const NOBODY: [i32; 2] = [nix::libc::ESRCH, nix::libc::ENOENT];

/// And not of a socket or the keyrings.
fn is_of_a_process(report: &Value) -> bool {
    !report["program"].is_null()
}

pub fn of_the_application(scene: &Scene) -> Result<()> {
    let seen = scene.attack_of_the_application()?;
    is_open(of(&seen, "sh")?).context("the application's own shell")?;
    for program in ["mayfly-sidecar", "mayfly-shim"] {
        is_closed(of(&seen, program)?, &DENIED)?;
    }
    // In its network namespace nobody listens under a name of no path; and for the shim's children the
    // kernel has no keyrings, which for others in this container it has.
    let (joined, control) = ("join_session", ["keyring_attack", "leave", "x", "y"]);
    let control = scene.victim.exec(&control)?;
    ensure!(
        control.contains("\"join_session\":\"ok\""),
        "the attack does not work here: {control}"
    );
    let others: Vec<_> = (seen.iter().filter(|report| !is_of_a_process(report))).collect();
    ensure!(others.len() == 2, "left and taken: {others:#?}");
    for report in others {
        let steps = report.as_object().context("no object")?;
        ensure!(steps.contains_key(joined), "a socket is seen: {report}");
        for (step, result) in steps {
            // Nothing was found that could be read.
            let denied = *result == ENOSYS || (step == "read" && *result == 0);
            ensure!(denied, "{step} gives {result}: {report}");
        }
    }
    // Nor into a sidecar that was started again.
    let sidecar = scene.pids("mayfly-sidecar")?;
    let mut kill = std::process::Command::new("kill");
    output(kill.args(["-KILL", &sidecar[0].to_string()]))?;
    wait_until(SOON, "another sidecar", || {
        Ok((scene.pids("mayfly-sidecar")? != sidecar).then_some(()))
    })?;
    let seen = scene.attack_of_the_application()?;
    is_closed(of(&seen, "mayfly-sidecar")?, &DENIED)
}

/// A second container whose user is the application's, and one whose user is the sidecar's.
pub fn of_a_second_container(scene: &Scene) -> Result<()> {
    let sidecars = scene.users.sidecar();
    let users = BTreeSet::from([Users::APPLICATION, sidecars]);
    for user in users {
        second_container(scene, user).with_context(|| format!("as {user}"))?;
    }
    Ok(())
}

fn second_container(scene: &Scene, user: &str) -> Result<()> {
    let alone = ["--network=none"];
    // In a PID namespace of its own it has no name for any of them, not even one that it was told.
    let mut pids = Vec::new();
    for program in ["mayfly-sidecar", "mayfly-shim", "sh"] {
        let found = scene.pids(program)?;
        pids.extend(found.iter().map(i32::to_string));
    }
    let each = [
        "sh",
        "-c",
        "for pid; do isolation_attack at $pid; done",
        "sh",
    ];
    let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
    let seen = scene.attack_of_another(user, &alone, &[&each, &pids[..]].concat())?;
    ensure!(seen.len() == pids.len(), "{seen:#?}");
    for report in &seen {
        is_closed(report, &NOBODY)?;
    }
    let all = ["isolation_attack", "all"];
    let seen = scene.attack_of_another(user, &alone, &all)?;
    ensure!(seen.is_empty(), "it sees others: {seen:#?}");
    // One that joins the victim's PID namespace, as a companion does, has whom it shares its user with in
    // its hands, but not sidecar and shim.
    let join = format!("--pid=container:{}", scene.victim.id());
    let seen = scene.attack_of_another(user, &["--network=none", &join], &all)?;
    match user == Users::APPLICATION {
        true => is_open(of(&seen, "sh")?)?,
        false => is_closed(of(&seen, "sh")?, &DENIED)?,
    }
    for program in ["mayfly-sidecar", "mayfly-shim"] {
        is_closed(of(&seen, program)?, &DENIED)?;
    }
    Ok(())
}
