//! A container that starts as root: the sidecar gets a user of its own, and policy can demand it.

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::wait_until;
use serde_json::Value;

use super::place::{SHELL_IMAGE, SOON, broker, engine, put, run};

/// For whoever runs as the shim's default user of the sidecar.
const POLICY: &str = r#"@id("the-sidecar-alone")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue", resource)
when { principal.peer has uid && principal.peer.uid == 65529 };
"#;

/// An application that reads what it was given, and tries to get it by itself.
const APPLICATION: &str = r#"
tried() { "$@" 2>/dev/null && echo "could: $*"; }
sidecar=$(for p in /proc/[0-9]*; do grep -qs '^mayfly-sidecar' $p/comm && echo ${p#/proc/}; done)
cat /run/secrets/pair/left && echo
echo as $(id -u):$(id -g) $(grep CapEff /proc/self/status)
/bin/mayfly-probe http /run/mayfly/workload.sock GET /v1/credentials/pair/left; echo
/bin/mayfly-probe session /run/mayfly/workload.sock pair; echo
tried touch /run/secrets/planted
tried rm /run/secrets/..data
tried cp /etc/passwd /run/secrets/..data/pair/left
tried chmod 0644 /run/secrets/..data/pair/left
tried kill -STOP $sidecar
tried ls /proc/$sidecar/fd
tried cat /proc/1/environ
echo asked
trap 'echo HUP; cat /run/secrets/pair/left; echo' HUP
while :; do sleep 0.05; done
"#;

#[test]
fn the_sidecar_is_granted_what_its_application_is_denied() -> Result<()> {
    let docker = engine()?;
    let broker = broker(Some(docker), POLICY)?;
    let value = put(&broker)?;
    let shim = [
        "--user=1000:1000",
        "--drop-caps",
        "--",
        "sh",
        "-c",
        APPLICATION,
    ];
    let container = run(docker, &broker, &[], SHELL_IMAGE, &shim)?;
    let logs = container.wait_for_log("asked", SOON)?;
    ensure!(
        logs.contains(&format!("{value}\nas 1000:1000 CapEff: 0000000000000000\n")),
        "{logs}"
    );
    ensure!(
        logs.contains("\n403\n") && logs.contains("\nrefused denied\n"),
        "{logs}"
    );
    ensure!(
        logs.matches(&value).count() == 1 && !logs.contains("could: "),
        "{logs}"
    );

    // Whom the node saw, and what is left to whom.
    let workloads = broker.cli_json(&["workloads"])?;
    let evidence = &workloads[0]["evidence"];
    ensure!(evidence["init"]["uid"] == 65_529, "{evidence}");
    let expected = serde_json::json!(["kill", "setgid", "setuid"]);
    ensure!(
        sorted(&evidence["init"]["permitted_capabilities"])? == expected,
        "{evidence}"
    );
    ensure!(sorted(&evidence["init"]["bounding_capabilities"])? == serde_json::json!([]));

    // It is told, and reads the next value.
    let fresh = put(&broker)?;
    let file = format!("/proc/{}/root/run/secrets/pair/left", container.pid()?);
    wait_until(SOON, "the new value", || {
        Ok((std::fs::read_to_string(&file)? == fresh).then_some(()))
    })?;
    docker.cli(["kill", "--signal", "HUP", container.id()])?;
    container.wait_for_log(&format!("HUP\n{fresh}"), SOON)?;
    docker.cli(["stop", "--time", "10", container.id()])?;
    ensure!(container.wait()? == 143, "{:?}", container.logs());
    Ok(())
}

fn sorted(set: &Value) -> Result<Value> {
    let mut all = set.as_array().context("no list")?.clone();
    all.sort_by_key(Value::to_string);
    Ok(all.into())
}
