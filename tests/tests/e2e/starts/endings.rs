//! However an application ends: its container has its exit status, and nothing of it is left soon after.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_kernel::pidfd::Pidfd;
use mayfly_tests::harness::{Broker, Container, Docker, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::place::{MODEST, SHELL_IMAGE, SOON, broker, engine, put, run};

/// How soon after the application's end everything else has ended.
const LIMIT: Duration = Duration::from_millis(100);
/// Whatever else runs may be in the way of one attempt; so many in a row are our own.
const ATTEMPTS: usize = 5;
/// What no attempt may take, on a machine that does other things as well.
const BOUND: Duration = Duration::from_secs(30);

/// How an application ends.
struct Case {
    name: &'static str,
    /// Options of the shim.
    shim: &'static [&'static str],
    /// What its shell does before it waits.
    script: &'static str,
    /// What the container is sent.
    signal: Signal,
    /// The container's exit status.
    status: i32,
}

const CASES: [Case; 8] = [
    case("exit 0", "trap 'exit 0' USR1", Signal::SIGUSR1, 0),
    case("exit 1", "trap 'exit 1' USR1", Signal::SIGUSR1, 1),
    case("exit 42", "trap 'exit 42' USR1", Signal::SIGUSR1, 42),
    case("SIGSEGV", "trap 'kill -SEGV $$' USR1", Signal::SIGUSR1, 139),
    case(
        "SIGKILL by itself",
        "trap 'kill -KILL $$' USR1",
        Signal::SIGUSR1,
        137,
    ),
    case("SIGTERM", "", Signal::SIGTERM, 143),
    case(
        "an orderly end at SIGTERM",
        "trap 'sleep 0.2; exit 5' TERM",
        Signal::SIGTERM,
        5,
    ),
    Case {
        shim: &["--grace=500ms"],
        ..case(
            "SIGKILL after its grace",
            "trap '' TERM",
            Signal::SIGTERM,
            137,
        )
    },
];

const fn case(name: &'static str, script: &'static str, signal: Signal, status: i32) -> Case {
    Case {
        name,
        shim: &[],
        script,
        signal,
        status,
    }
}

/// What is watched of a container from outside, all of it held before the end.
struct Watched {
    application: Pidfd,
    shim: Pidfd,
    sidecar: Pidfd,
    file: File,
    directory: PathBuf,
    _held: File,
}

impl Watched {
    fn new(container: &Container<'_>) -> Result<Self> {
        let shim = u32::try_from(container.pid()?)?;
        let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
        let (mut sidecar, mut application) = (None, None);
        for pid in children.split_whitespace() {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))?;
            let pidfd = Pidfd::open(pid.parse()?)?;
            match name.starts_with("mayfly-sidecar") {
                true => sidecar = Some(pidfd),
                false => application = Some(pidfd),
            }
        }
        let secrets = format!("/proc/{shim}/root/run/secrets");
        let held = File::open(&secrets)?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&held);
        Ok(Self {
            application: application.context("no application")?,
            shim: Pidfd::open(shim)?,
            sidecar: sidecar.context("no sidecar")?,
            file: File::open(format!("{secrets}/pair/left"))?,
            directory: format!("/proc/self/fd/{number}").into(),
            _held: held,
        })
    }

    fn bytes(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.rewind()?;
        self.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[test]
fn the_container_ends_as_the_application_does_and_nothing_is_left() -> Result<()> {
    let docker = engine()?;
    let broker = broker(Some(docker), "")?;
    let value = put(&broker)?;
    for case in &CASES {
        let mut attempts: Vec<[Duration; 2]> = Vec::new();
        while !(attempts.iter()).any(|took| took.iter().all(|took| *took < LIMIT)) {
            ensure!(
                attempts.len() < ATTEMPTS,
                "{}: container and lease ended after {attempts:?}",
                case.name
            );
            attempts.push(end(docker, &broker, case, &value).with_context(|| case.name)?);
        }
        say!("{}: container and lease {attempts:?}", case.name);
    }
    broker.cli(&["audit", "verify"]).map(drop)
}

/// How long after the application's end the container was gone, its files with it, and how long after it
/// the lease.
fn end(docker: &Docker, broker: &Broker, case: &Case, value: &str) -> Result<[Duration; 2]> {
    let script = format!("{}\necho up\nwhile :; do sleep 0.02; done", case.script);
    let shim = [case.shim, &["--", "sh", "-c", &script]].concat();
    let container = run(docker, broker, &MODEST, SHELL_IMAGE, &shim)?;
    container.wait_for_log("up", SOON)?;
    let mut watched = Watched::new(&container)?;
    ensure!(
        watched.bytes()? == value.as_bytes(),
        "something else is published"
    );
    ensure!(leases(broker)? == 1);

    kill(Pid::from_raw(container.pid()?), case.signal)?;
    gone("the application", &watched.application)?;
    let ended = Instant::now();
    gone("the sidecar", &watched.sidecar)?;
    gone("the shim", &watched.shim)?;
    let all = ended.elapsed();
    ensure!(
        watched.bytes()?.iter().all(|byte| *byte == 0),
        "the file was not overwritten"
    );
    let left = std::fs::read_dir(&watched.directory)?.count();
    ensure!(left == 0, "{left} names are left");
    wait_until(BOUND, "the end of the lease", || {
        Ok((leases(broker)? == 0).then_some(()))
    })?;
    let lease = ended.elapsed();
    let status = container.wait()?;
    ensure!(
        status == case.status,
        "expected {}, found {status}: {:?}",
        case.status,
        container.logs()
    );
    Ok([all, lease])
}

fn gone(what: &str, process: &Pidfd) -> Result<()> {
    let begun = Instant::now();
    while process.alive()? {
        ensure!(begun.elapsed() < BOUND, "{what} did not end");
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn leases(broker: &Broker) -> Result<usize> {
    let all = broker.admin().get("/v1/leases")?.json()?;
    Ok(all.as_array().context("no list of leases")?.len())
}
