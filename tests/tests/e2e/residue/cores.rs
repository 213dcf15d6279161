//! Core dumps.

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{
    Broker, BrokerOptions, CoreKind, Cores, Needle, Realm, Traced, output, root_keys, scan_bytes,
    wait_until,
};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Command, Stdio};

use super::super::resilience::app::{self, App, SOON};
use super::super::resilience::node::{Node, broker_for_nodes};
use super::search::{Search, values};

/// How a process is made to crash.
type Crash = fn(i32) -> Result<()>;

fn abort(pid: i32) -> Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGABRT)?)
}

/// What blocks SIGABRT, or is the first of its namespace, crashes so.
fn jump_to_nowhere(pid: i32) -> Result<()> {
    Traced::seize(pid)?.crash()
}

/// Whether it is there, and no zombie.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Crashes a process, and looks whether that left a dump.
fn leaves_none(cores: &Cores, what: &str, pid: i32, crash: Crash) -> Result<()> {
    crash(pid).with_context(|| format!("crashing the {what}"))?;
    wait_until(SOON, &format!("the end of the {what}"), || {
        Ok((!lives(pid)).then_some(()))
    })?;
    ensure!(cores.of(pid)?.is_none(), "the {what} dumped core");
    Ok(())
}

/// The admin program, waiting for a value.
pub fn mayfly(broker: &Broker) -> Result<Child> {
    let mut command = broker.mayfly()?;
    command.args(["kv", "put", "e2e/never", "-"]);
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let limits = format!("/proc/{}/limits", child.id());
    wait_until(SOON, "the admin program", || {
        let text = std::fs::read_to_string(&limits)?;
        let line = text.lines().find(|line| line.starts_with("Max core"));
        Ok(line.filter(|line| line.contains(" 1 ")).map(drop))
    })?;
    Ok(child)
}

#[test]
fn nothing_of_ours_and_nothing_under_the_shim_dumps_core() -> Result<()> {
    let (mut broker, address) = broker_for_nodes()?;
    let mut node = Node::start(&broker, &address, "cores-node-1")?;
    let values = values(2)?;
    let names: Vec<String> = values.iter().map(|(name, _)| name.clone()).collect();
    app::kv_credentials(&broker, &names, "")?;
    for (name, value) in &values {
        app::put(&broker, name, value)?;
    }
    for kind in [CoreKind::File, CoreKind::Program] {
        let start = || -> Result<App> {
            let app = App::start(&node.workload_dir(), "")?;
            app.wait_for_secret(&names[0], &values[0].1, SOON)?;
            Ok(app)
        };
        let (app, other) = (start()?, start()?);
        let cores = Cores::take(kind)?;
        leaves_none(&cores, "sidecar", app.sidecar()?, abort)?;
        // It has a secret by right, and no dump may take that elsewhere.
        let shell = app.pids("bash")?.pop().context("no application")?;
        leaves_none(&cores, "application", shell, jump_to_nowhere)?;
        leaves_none(&cores, "shim", other.bare().pid(), jump_to_nowhere)?;
        let mut admin = mayfly(&broker)?;
        leaves_none(&cores, "admin program", admin.id().cast_signed(), abort)?;
        admin.wait()?;
        leaves_none(&cores, "node", node.pid()?, abort)?;
        leaves_none(&cores, "broker", broker.pid()?, abort)?;
        drop(cores);
        broker.restart()?;
        node.restart()?;
    }
    Ok(())
}

/// Root takes off what keeps the broker from being dumped, and has it dumped.
#[test]
fn a_core_of_a_broker_that_root_laid_open_holds_neither_root_key_nor_value() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let values = values(4)?;
    let names: Vec<String> = values.iter().map(|(name, _)| name.clone()).collect();
    app::kv_credentials(&broker, &names, "")?;
    for (name, value) in &values {
        app::put(&broker, name, value)?;
    }
    let app = App::start(&broker.workload_dir(), "")?;
    for (name, value) in &values {
        app.wait_for_secret(name, value, SOON)?;
    }
    let mut search = Search::of(&values);
    let (key_file, keys) = root_keys(&broker.state_dir())?;
    search.add("key file", &key_file);
    for key in &keys {
        search.add("root key", key);
    }
    let pid = broker.pid()?;
    let cores = Cores::take(CoreKind::Program)?;
    Traced::seize(pid)?.call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1])?;
    // A program is handed what is beyond any limit but this one's 1.
    output(Command::new("prlimit").args(["--pid", &pid.to_string(), "--core=0"]))?;
    abort(pid)?;
    let core = cores.wait_for(pid)?;
    let control = Needle::new("control", b"credential-number-3");
    let found = scan_bytes(&core, "core", &[control])?;
    ensure!(
        core.len() > 1 << 20 && found.iter().any(|hit| hit.offset == 0),
        "this is no core of the broker: {} bytes, {found:?}",
        core.len()
    );
    let leaks = scan_bytes(&core, "core", search.secrets())?;
    ensure!(leaks.is_empty(), "the core holds secrets: {leaks:#?}");
    Ok(())
}
