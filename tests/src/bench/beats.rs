//! What it costs to keep 10,000 workloads of one node alive: processor time of `mayfly-node`, which
//! watches 10,000 real processes, each the first of a pid namespace of its own, and of the broker, which
//! hears from the node every five seconds.

use std::fs::File;
use std::io::{Write as _, stdout};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_kernel::ns::Namespace;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::fleet::Init;
use super::linked::Linked;
use super::place::{CREDENTIAL, LIMIT};
use super::report::Better;
use super::{Options, Report};
use crate::harness::{Cgroup, Guard, Realm, log_path, random_text, wait_until};

const WORKLOADS: usize = 10_000;
const AT_ONCE: usize = 128;
/// How long ten thousand processes may take to start.
const START: Duration = Duration::from_secs(180);

pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let linked = Linked::new(&[CREDENTIAL.to_string()])?;
    let crowd = Crowd::new(WORKLOADS)?;
    let inits = crowd.inits()?;
    let fleet = linked.fleet()?;
    let who = inits.iter().map(|init| fleet.evidence(init));
    fleet.take_all(who, &CREDENTIAL.parse()?, AT_ONCE)?;
    drop(fleet);
    let node = linked.node()?;
    wait_until(LIMIT, "the node to be told whom to watch", || {
        let log = linked.place.broker.log();
        Ok(log.contains(&format!("watched={WORKLOADS}")).then_some(()))
    })?;
    // It is told, and looks at each.
    std::thread::sleep(Duration::from_secs(10));
    ensure!(leases(&linked)? == WORKLOADS, "some were told dead");

    let (broker, own) = (linked.place.broker.pid()?, node.pid());
    let window = Duration::from_secs(options.samples(30, 15) as u64);
    let mut spent = [Vec::new(), Vec::new()];
    for _ in 0..options.samples(3, 1) {
        let begun = Instant::now();
        let before = [busy(broker)?, busy(own)?];
        std::thread::sleep(window);
        let per_minute = 60.0 / begun.elapsed().as_secs_f64();
        let after = [busy(broker)?, busy(own)?];
        for ((spent, before), after) in spent.iter_mut().zip(before).zip(after) {
            spent.push((after - before) * 1000.0 * per_minute);
        }
    }
    ensure!(leases(&linked)? == WORKLOADS, "some were told dead");
    // They were really watched.
    let victim = inits.first().context("nobody")?;
    kill(Pid::from_raw(victim.pid.try_into()?), Signal::SIGKILL)?;
    wait_until(LIMIT, "the end of one lease", || {
        Ok((leases(&linked)? == WORKLOADS - 1).then_some(()))
    })?;
    let log = node.log();
    ensure!(
        !log.contains("did not take"),
        "a death was told in vain: {log}"
    );
    let [broker, node] = spent;
    report.add("heartbeat.broker", broker, "ms/min", Better::Less)?;
    report.add("heartbeat.node", node, "ms/min", Better::Less)
}

fn leases(linked: &Linked) -> Result<usize> {
    let status: Value = linked.place.broker.admin().get("/v1/status")?.json()?;
    let count = status["leases"].as_u64().context("no count of leases")?;
    Ok(count.try_into()?)
}

/// Seconds that the threads of a process have run, by the scheduler's own count (its first field; see
/// the kernel's sched-stats.rst). All of them live as long as their process.
fn busy(pid: i32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let first = stat.split(' ').next().context("an empty schedstat")?;
        nanoseconds += first.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}

/// Processes that sleep, all in one cgroup, each the first in its pid namespace.
struct Crowd {
    starter: Guard,
    cgroup: Cgroup,
}

impl Crowd {
    fn new(count: usize) -> Result<Self> {
        let cgroup = Cgroup::new(Realm::host(), &format!("mayfly-crowd-{}", random_text(6)?))?;
        let own = std::env::current_exe()?;
        let mut command = Command::new("bash");
        let join =
            r#"while read -r dir; do echo $$ >"$dir/cgroup.procs"; done <<<"$1"; shift; exec "$@""#;
        let dirs = (cgroup.dirs().iter()).map(|dir| dir.display().to_string());
        command.args(["-c", join, "join", &dirs.collect::<Vec<_>>().join("\n")]);
        command
            .arg(own)
            .args(["inside", "crowd", &count.to_string()]);
        let mut starter = Guard::spawn(&command, &log_path("bench-crowd")?, Signal::SIGKILL, 0)?;
        wait_until(START, "a crowd of processes", || {
            if starter.exited()?.is_some() {
                return Ok(Some(Err(starter.failure("a crowd of processes"))));
            }
            let last = starter.log().ends_with("ready\n");
            Ok(last.then_some(Ok(())))
        })??;
        Ok(Self { starter, cgroup })
    }

    fn inits(&self) -> Result<Vec<Init>> {
        let cgroup = self.cgroup.id()?;
        let log = self.starter.log();
        let pids = log.lines().filter_map(|line| line.strip_prefix("pid "));
        pids.map(|pid| init(pid.parse()?, cgroup)).collect()
    }
}

fn init(pid: u32, cgroup: u64) -> Result<Init> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name in a stat")?;
    // Field 22 of all; the name was the second.
    let start = fields.split(' ').nth(19).context("a short stat")?;
    let namespace = File::open(Path::new("/proc").join(pid.to_string()).join("ns/pid"))?;
    Ok(Init {
        pid,
        start_time: start.parse()?,
        cgroup,
        namespace: Namespace::from(OwnedFd::from(namespace)).id()?,
    })
}

/// Starts the crowd, and stays: the processes die with the one that started them.
pub fn start(count: usize) -> Result<()> {
    let own = File::open("/proc/self/ns/pid")?;
    let mut crowd = Vec::with_capacity(count);
    for _ in 0..count {
        // Concerns the next child alone.
        unshare(CloneFlags::CLONE_NEWPID).context("a new pid namespace")?;
        let mut sleep = Command::new("setpriv");
        sleep.args(["--pdeathsig", "KILL", "sleep", "infinity"]);
        let child = sleep.stdin(Stdio::null()).spawn().context("sleep")?;
        setns(&own, CloneFlags::CLONE_NEWPID).context("back to the own pid namespace")?;
        writeln!(stdout(), "pid {}", child.id())?;
        crowd.push(child);
    }
    // They have all become what they are to be: a process that was just started is not yet.
    std::thread::sleep(Duration::from_secs(1));
    writeln!(stdout(), "ready")?;
    stdout().flush()?;
    loop {
        std::thread::park();
    }
}
