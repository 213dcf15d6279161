//! The kernel's keyrings, which containers of one uid share.

use anyhow::{Result, ensure};
use mayfly_tests::harness::{Container, random_text};
use serde_json::Value;

use super::links::SECRETS;
use super::world::World;

/// The shim takes the calls away, with seccomp otherwise off.
pub fn shared(world: &World) -> Result<()> {
    let options = ["--security-opt=seccomp=unconfined", "--label=lift=seccomp"];
    let container = |number| world.attacker(&[&options[..], &[SECRETS, number]].concat());
    let (one, other) = (
        container("--label=number=1")?,
        container("--label=number=2")?,
    );
    let attack = |container: &Container<'_>, shim: bool, words: &[&str]| -> Result<Value> {
        let shim = if shim { &SHIM[..] } else { &[] };
        let said = container.exec(&[shim, &["/bin/keyring_attack"], words].concat())?;
        Ok(serde_json::from_str(
            said.lines().last().unwrap_or_default(),
        )?)
    };
    // Without the shim the attack works, else what follows says nothing.
    let (name, value) = (random_text(8)?, random_text(8)?);
    attack(&one, false, &["leave", &name, &value])?;
    let taken = attack(&other, false, &["take", &name])?;
    ensure!(
        taken["payload"] == value.as_str(),
        "the attack does not work here: {taken}"
    );
    // One that was left without the shim cannot be taken under it, nor is one left under it.
    let taken = attack(&other, true, &["take", &name])?;
    refused(&taken)?;
    let (name, value) = (random_text(8)?, random_text(8)?);
    let left = attack(&one, true, &["leave", &name, &value])?;
    refused(&left)?;
    for shim in [false, true] {
        let taken = attack(&other, shim, &["take", &name])?;
        ensure!(taken["payload"].is_null(), "a key was taken: {taken}");
    }
    Ok(())
}

const SHIM: [&str; 4] = ["/bin/mayfly-shim", "run", "--sidecar", "--"];

/// Every step fails, as if the kernel had no keyrings.
fn refused(report: &Value) -> Result<()> {
    for (step, result) in report.as_object().into_iter().flatten() {
        ensure!(result != "ok", "{step} works: {report}");
    }
    ensure!(report["payload"].is_null(), "{report}");
    Ok(())
}
