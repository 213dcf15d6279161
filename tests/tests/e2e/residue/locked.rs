//! Memory that does not reach a swap device, under every limit that a container may have.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, Realm, output, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::resilience::app::{self, App, SOON};
use super::super::resilience::node::Node;

/// Locked memory of a process, in KiB (proc_pid_status(5)).
fn locked(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(size.context("no VmLck")?.trim().parse()?)
}

/// Sets what the sidecar may lock, and has another one started under it. Gives its pid.
fn under_limit(app: &App, bytes: u64) -> Result<i32> {
    let before = app.sidecar()?;
    // As the container's own user, who alone may without CAP_SYS_RESOURCE.
    let mut limit = Command::new("setpriv");
    limit.args(["--reuid=1000", "--regid=1000", "--clear-groups", "prlimit"]);
    limit.args(["--pid", &app.bare().pid().to_string()]);
    output(limit.arg(format!("--memlock={bytes}:{bytes}")))?;
    kill(Pid::from_raw(before), Signal::SIGKILL)?;
    wait_until(SOON, "another sidecar", || {
        let pid = app.sidecar()?;
        Ok((pid != before).then_some(pid))
    })
}

#[test]
fn the_sidecar_locks_what_it_may_and_outlives_every_limit() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let names: Vec<String> = (0..4)
        .map(|number| format!("credential-{number}"))
        .collect();
    app::kv_credentials(&broker, &names, "")?;
    let app = App::start(&broker.workload_dir(), "")?;
    let published = |number: usize, value: &[u8]| -> Result<()> {
        app::put(&broker, &names[number], value)?;
        app.wait_for_secret(&names[number], value, SOON)
    };
    let told = |what: &str, count: usize| {
        wait_until(SOON, what, || {
            Ok((app.bare().logs().matches(what).count() >= count).then_some(()))
        })
        .with_context(|| app.bare().logs())
    };

    // Enough for what it is, and not for what it needs with three large values.
    let sidecar = under_limit(&app, 4 << 20)?;
    told("memory_locked=true", 1)?;
    published(3, b"small")?;
    ensure!(
        locked(sidecar)? > 1024,
        "{} KiB are locked",
        locked(sidecar)?
    );
    for (number, letter) in [b'a', b'b', b'c'].into_iter().enumerate() {
        published(number, &vec![letter; 250_000])?;
    }
    // All three once more, in one bundle.
    let again = under_limit(&app, 4 << 20)?;
    published(3, b"after the large ones")?;
    ensure!(app.sidecar()? == again, "the limit ended the sidecar");

    let sidecar = under_limit(&app, 64 << 10)?;
    told("memory_locked=false", 1)?;
    published(3, b"without")?;
    ensure!(locked(sidecar)? == 0);
    Ok(())
}

#[test]
fn broker_node_and_the_admin_program_lock_all_that_they_have() -> Result<()> {
    let (broker, address) = super::super::resilience::node::broker_for_nodes()?;
    let node = Node::start(&broker, &address, "locked-node-1")?;
    for (what, pid) in [("broker", broker.pid()?), ("node", node.pid()?)] {
        let locked = locked(pid)?;
        ensure!(locked > 4096, "{what}: {locked} KiB are locked");
    }
    let mut admin = super::cores::mayfly(&broker)?;
    let pid = admin.id().cast_signed();
    let locks = wait_until(SOON, "the admin program to lock its memory", || {
        Ok((locked(pid)? > 1024).then_some(()))
    });
    admin.kill()?;
    admin.wait()?;
    locks
}
