//! What the benches run inside their containers, as the first process: `bench inside JOB`.
//!
//! - `sidecar NAMES` starts a sidecar that asks for these, and prints `took MICROSECONDS` until the
//!   first of the files was there.
//! - `start PROGRAM ARGS…` starts that, and prints `took MICROSECONDS` until a line of its output began
//!   with `running with `.
//! - `connect SOCKET COUNT` makes that many connections, one after the other, and waits on each until
//!   the other side closes it.
//! - `roles COUNT` asks for all credentials, and prints `took MICROSECONDS` until it had that many.
//! - `crowd COUNT` starts that many processes, each in a pid namespace of its own, and tells their pids.
//! - `sessions THREADS SECONDS GO` waits for the file GO, opens sessions one after the other in each
//!   thread, and prints `counts CPU_MICROSECONDS COUNT…`: how many were served in each quarter of a
//!   second.

use std::io::{BufRead as _, BufReader, Read, Write, stdout};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mayfly_wire::session::ServerMessage;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::place::{CREDENTIAL, LIMIT, spin};
use crate::harness::Session;

/// A window of the counts.
pub const WINDOW: Duration = Duration::from_millis(250);
const SOCKET: &str = "/run/mayfly/workload.sock";

/// Does a job.
///
/// # Errors
/// When it cannot be done, or is not known.
pub fn run(job: &[&str]) -> Result<()> {
    // The baseline forbids containers without a seccomp filter; the shim would bring this one.
    mayfly_kernel::seccomp::refuse_keyrings().context("loading the shim's seccomp filter")?;
    match *job {
        ["sidecar", names] => sidecar(names),
        ["start", program, ref arguments @ ..] => start(program, arguments),
        ["connect", socket, count] => connect(socket, count.parse()?),
        ["roles", count] => roles(count.parse()?),
        ["crowd", count] => super::beats::start(count.parse()?),
        ["sessions", threads, seconds, go] => {
            sessions(threads.parse()?, seconds.parse()?, Path::new(go))
        }
        _ => bail!("no such job: {job:?}; see the head of inside.rs"),
    }
}

fn sidecar(names: &str) -> Result<()> {
    let first = names.split(',').next().unwrap_or_default();
    let file = Path::new("/run/secrets").join(first);
    let mut command = Command::new("/opt/mayfly-sidecar");
    command.args(["--want", names]).stdin(Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn().context("starting the sidecar")?;
    let there = spin("the first file", || file.exists())?;
    print(&format!("took {}", (there - begun).as_micros()))?;
    bail!("the sidecar ended: {}", child.wait()?)
}

fn start(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let begun = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let output = child.stdout.take().context("no output")?;
    for line in BufReader::new(output).lines() {
        // 48 characters, and a full stop.
        if line?
            .strip_prefix("running with ")
            .is_some_and(|value| value.len() == 49)
        {
            print(&format!("took {}", begun.elapsed().as_micros()))?;
            return park();
        }
    }
    bail!("it ended before its application ran: {}", child.wait()?)
}

fn connect(socket: &str, count: usize) -> Result<()> {
    for _ in 0..count {
        let mut stream = UnixStream::connect(socket).context("connecting")?;
        // Ended by the other side, which has no more to do with it.
        let _ = stream.read(&mut [0]);
    }
    park()
}

fn roles(count: usize) -> Result<()> {
    let begun = Instant::now();
    let mut session = Session::open(Path::new(SOCKET), &[], LIMIT)?;
    loop {
        let values = session.bundle(LIMIT)?;
        let have = values
            .iter()
            .filter(|value| value.field.as_str() == "password");
        if have.count() == count {
            break;
        }
    }
    print(&format!("took {}", begun.elapsed().as_micros()))?;
    // Its end is what ends the leases, not its silence.
    while session.next(Duration::from_secs(60))?.is_some() {}
    bail!("the session ended")
}

fn sessions(threads: usize, seconds: u64, go: &Path) -> Result<()> {
    let windows = Duration::from_secs(seconds).as_millis() / WINDOW.as_millis();
    let counts: Vec<AtomicU64> = (0..windows).map(|_| AtomicU64::new(0)).collect();
    print("ready ")?;
    while !go.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (begun, before) = (Instant::now(), cpu()?);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work(begun, &counts)))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(done) => done,
                Err(_) => bail!("a thread of sessions ended"),
            })
    })?;
    let spent = cpu()?.saturating_sub(before);
    let counts = counts
        .iter()
        .map(|count| count.load(Ordering::Relaxed).to_string());
    print(&format!(
        "counts {} {}",
        spent.as_micros(),
        counts.collect::<Vec<_>>().join(" ")
    ))?;
    park()
}

fn work(begun: Instant, counts: &[AtomicU64]) -> Result<()> {
    loop {
        served_one()?;
        let window = begun.elapsed().as_millis() / WINDOW.as_millis();
        match counts.get(usize::try_from(window)?) {
            Some(count) => count.fetch_add(1, Ordering::Relaxed),
            None => return Ok(()),
        };
    }
}

/// One session, from the connect to the opened value.
fn served_one() -> Result<()> {
    let mut session = Session::open(Path::new(SOCKET), &[CREDENTIAL], LIMIT)?;
    match session.next(LIMIT)? {
        Some(ServerMessage::Bundle(bundle)) => {
            let values = session.open_bundle(&bundle)?;
            ensure!(
                values.len() == 1,
                "expected one value, found {}",
                values.len()
            );
            Ok(())
        }
        other => bail!("expected a bundle, found {other:?}"),
    }
}

/// What this process has spent of the processors.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("getrusage")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

fn park() -> Result<()> {
    loop {
        std::thread::park();
    }
}

fn print(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
