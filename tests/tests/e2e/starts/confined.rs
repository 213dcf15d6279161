//! With nothing at all: no root, no capability, no writable file, no shell, no library. And with
//! `--landlock`.

use anyhow::{Result, ensure};
use mayfly_tests::harness::{Bare, BareOptions, Realm, binary, wait_until};

use super::place::{IMAGE, MODEST, SOON, broker, engine, put, run};

#[test]
fn an_empty_image_without_privileges_has_files_for_its_application_alone() -> Result<()> {
    let docker = engine()?;
    let broker = broker(Some(docker), "")?;
    let value = put(&broker)?;
    let application = ["--drop-caps", "--", "/bin/mayfly-probe", "say", "up"];
    let container = run(docker, &broker, &MODEST, IMAGE, &application)?;
    container.wait_for_log("up", SOON)?;
    // The application's user reads its file; another one in the same container does not get at it.
    let file = "/run/secrets/pair/left";
    let read = |user: &str| {
        let hold = [
            "/bin/mayfly-probe",
            "reads",
            "/run/secrets",
            "0",
            "1",
            "/dev/null",
        ];
        docker.cli([&["exec", "--user", user, container.id()], &hold[..]].concat())
    };
    read("1000:1000")?;
    for user in ["2000:2000", "2000:1000"] {
        let refused = read(user).unwrap_err();
        ensure!(
            format!("{refused:#}").contains("EACCES"),
            "{user}: {refused:#}"
        );
    }
    let root = format!("/proc/{}/root", container.pid()?);
    let found = std::fs::metadata(format!("{root}{file}"))?;
    use std::os::unix::fs::MetadataExt as _;
    let seen = (found.uid(), found.gid(), found.mode() & 0o7777);
    ensure!(seen == (1000, 1000, 0o400), "{seen:?}");
    ensure!(std::fs::read_to_string(format!("{root}{file}"))? == value);
    // A rotation arrives as well.
    let value = put(&broker)?;
    wait_until(SOON, "the new value", || {
        Ok((std::fs::read_to_string(format!("{root}{file}"))? == value).then_some(()))
    })?;
    Ok(())
}

/// Of one user with its sidecar, and with its own files: an application that attacks both.
const ATTACKS: &str = r#"
tried() { "$@" 2>/dev/null && echo "could: $*"; }
sidecar=$(for p in /proc/[0-9]*; do grep -qs '^mayfly-sidecar' $p/comm && echo ${p#/proc/}; done)
tried chmod u+w /run/secrets/..data/pair/left && tried cp /etc/passwd /run/secrets/..data/pair/left
tried rm -r /run/secrets/..data/pair
tried mkdir /run/secrets/planted
tried ln -sfn /etc /run/secrets/..data
tried kill -STOP $sidecar
tried kill -KILL $sidecar
tried kill -STOP 1
tried cat /proc/$sidecar/environ
tried ls /proc/$sidecar/fd
cat /run/secrets/pair/left && echo
/opt/mayfly-probe http /run/mayfly/workload.sock GET /v1/credentials/pair/left | head -n 1
echo done
exec sleep 60
"#;

#[test]
fn a_confined_application_can_harm_neither_its_files_nor_its_sidecar() -> Result<()> {
    let broker = broker(None, "")?;
    let value = put(&broker)?;
    for landlock in [true, false] {
        let mut options = BareOptions::default().bind(&broker.workload_dir(), "run/mayfly");
        for name in ["mayfly-shim", "mayfly-sidecar", "mayfly-probe"] {
            options = options.bind(&binary(name)?, &format!("opt/{name}"));
        }
        let mut command = vec!["/opt/mayfly-shim", "run", "--sidecar", "--wait", "pair"];
        command.extend(landlock.then_some("--landlock"));
        command.extend(["--", "sh", "-c", ATTACKS]);
        let bare = Bare::run(Realm::host(), &options, &command)?;
        if landlock {
            let logs = bare.wait_for_log("done\n", SOON)?;
            let said: Vec<&str> = logs
                .lines()
                .filter(|line| line.starts_with("could: "))
                .collect();
            // Landlock does not cover modes, and the next attack needs more than a mode.
            let expected = ["could: chmod u+w /run/secrets/..data/pair/left"];
            ensure!(said == expected, "{logs}");
            // What it is for still works.
            ensure!(logs.contains(&format!("{value}\n200\n")), "{logs}");
            let fresh = put(&broker)?;
            let file = format!("/proc/{}/root/run/secrets/pair/left", bare.pid());
            wait_until(SOON, "the new value", || {
                Ok((std::fs::read_to_string(&file)? == fresh).then_some(()))
            })?;
        } else {
            // The attacks are real.
            for part in ["could: mkdir", "could: kill -STOP"] {
                bare.wait_for_log(part, SOON)?;
            }
        }
    }
    Ok(())
}
