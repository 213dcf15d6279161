//! Garbage on every socket: the others are served meanwhile, nothing grows, and nothing is kept.

#![expect(clippy::print_stdout, reason = "figures for whoever reads the run")]

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use mayfly_tests::harness::{
    Bare, BareOptions, Broker, BrokerOptions, Guard, Realm, TempDir, log_path, output, random_text,
    wait_until,
};
use nix::sys::signal::Signal;

use super::app::{self, App, SOON};
use super::node::{Node, broker_for_nodes};

const FLOOD: &str = include_str!("flood.py");
const NONSENSE: &str = include_str!("nonsense.py");
const SECONDS: &str = "6";
/// Of a flood that is told when to end.
const LONG: &str = "120";
/// What nobody may wait for longer while others flood, also on a busy machine of two cores.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a process may grow by, in KiB.
const GROWTH: u64 = 96 * 1024;

/// A process of ours before a flood.
struct Before {
    pid: i32,
    what: &'static str,
    descriptors: usize,
    resident: u64,
}

impl Before {
    fn of(what: &'static str, pid: i32) -> Result<Self> {
        Ok(Self {
            pid,
            what,
            descriptors: descriptors(pid)?,
            resident: resident(pid)?,
        })
    }

    /// It lives, has not grown, and gives its descriptors back.
    fn after(&self) -> Result<()> {
        let resident = resident(self.pid).with_context(|| format!("{} is gone", self.what))?;
        println!("{}: {} to {resident} KiB", self.what, self.resident);
        ensure!(
            resident < self.resident + GROWTH,
            "{} grew from {} to {resident} KiB",
            self.what,
            self.resident
        );
        let most = self.descriptors + 8;
        wait_until(
            Duration::from_secs(20),
            "descriptors to be given back",
            || {
                let now = descriptors(self.pid)?;
                ensure!(
                    now <= most,
                    "{} has {now} descriptors, {} before",
                    self.what,
                    self.descriptors
                );
                Ok(Some(()))
            },
        )
    }
}

fn descriptors(pid: i32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// In KiB.
fn resident(pid: i32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// The most that it ever was, in KiB.
fn peak(pid: i32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

fn memory(pid: i32, field: &'static str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.context(field)?.parse().context(field)
}

/// A flood from the host, as root.
fn flood(kind: &str, target: &str, seconds: &str, half_open: &str) -> Result<Guard> {
    let mut python = Command::new("python3");
    python.args(["-c", FLOOD, kind, target, seconds, half_open]);
    let log = log_path(&format!("flood-{}", random_text(6)?))?;
    let flood = Guard::spawn(&python, &log, Signal::SIGKILL, 0)?;
    wait_until(SOON, "the flood", || {
        Ok(flood.log().contains("flooding").then_some(()))
    })?;
    Ok(flood)
}

fn flooded(mut flood: Guard) -> Result<()> {
    flood.wait(Duration::from_secs(60))?;
    let log = flood.log();
    println!("{}", log.trim_end());
    ensure!(log.contains("flooded"), "{log}");
    Ok(())
}

/// The longest and the middle one of repeated waits. Whatever else runs may be in the way of one.
fn told(what: &str, mut waits: Vec<Duration>) -> Result<()> {
    waits.sort();
    let (middle, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!(
        "{what}: {} times, median {middle:?}, longest {longest:?}",
        waits.len()
    );
    let most = waits[waits.len().saturating_sub(2)];
    ensure!(
        most < PATIENCE,
        "{what} took {most:?} and {longest:?}, median {middle:?}"
    );
    Ok(())
}

fn timed(mut act: impl FnMut() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed())
}

fn records(broker: &Broker) -> Result<usize> {
    let text = std::fs::read_to_string(broker.state_dir().join("audit.jsonl"))?;
    Ok(text.lines().count())
}

/// Fetches once, opens a session, and waits for a push, again and again.
fn victim(broker: &Broker, app: &App, until: impl Fn() -> bool) -> Result<u32> {
    let fetch =
        "curl -s --unix-socket /run/mayfly/workload.sock http://m/v1/credentials/first/value";
    let (mut fetches, mut pushes, mut number) = (Vec::new(), Vec::new(), 0);
    while until() {
        number += 1;
        let value = format!("value {number}");
        pushes.push(timed(|| {
            app::put(broker, "first", value.as_bytes())?;
            app.wait_for_secret("first", value.as_bytes(), SOON)
        })?);
        fetches.push(timed(|| {
            let said = app.tell(fetch)?;
            ensure!(said == value, "the victim got {said:?}");
            Ok(())
        })?);
        // It is no flood itself: it stays within the pace of one container.
        std::thread::sleep(Duration::from_millis(50));
    }
    told("a push", pushes)?;
    told("a one-shot fetch", fetches)?;
    Ok(number)
}

#[test]
fn one_container_that_floods_the_workload_socket_does_not_harm_another() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    app::kv_credentials(&broker, &["first".into()], "")?;
    app::put(&broker, "first", b"value 0")?;
    let app = App::start(&broker.workload_dir(), "")?;
    let before = Before::of("the broker with its node", broker.pid()?)?;
    let recorded = records(&broker)?;
    let options = BareOptions::default().bind(&broker.workload_dir(), "run/mayfly");
    let target = "/run/mayfly/workload.sock";
    let mut attacker = Bare::run(
        Realm::host(),
        &options,
        &["python3", "-c", FLOOD, "unix", target, SECONDS, "2000"],
    )?;
    attacker.wait_for_log("flooding", SOON)?;
    let puts = victim(&broker, &app, || !attacker.logs().contains("flooded"))?;
    attacker.wait(SOON)?;
    println!("{}", attacker.logs().trim_end());
    ensure!(puts > 5, "the victim was served {puts} times only");
    before.after()?;
    // Each put and fetch makes at most five records; what the flood made is counted, not written.
    let grown = records(&broker)? - recorded;
    println!("{grown} records, {puts} puts and fetches");
    ensure!(
        grown < 6 * puts as usize + 60,
        "the flood made records: {grown} for {puts} puts"
    );
    let text = std::fs::read_to_string(broker.state_dir().join("audit.jsonl"))?;
    ensure!(
        text.contains("node_refused") && !text.lines().all(|line| line.contains("\"count\":1")),
        "no record that counts refusals"
    );
    broker.cli(&["audit", "verify"]).map(drop)
}

#[test]
fn garbage_on_the_admin_socket_does_not_keep_the_operator_out() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let before = Before::of("the broker", broker.pid()?)?;
    let socket = broker.admin_socket();
    // Only root can, so this is a mistake and no attack.
    let flood = flood("unix", socket.to_str().context("no text")?, SECONDS, "40")?;
    let mut waits = Vec::new();
    while !flood.log().contains("flooded") {
        waits.push(timed(|| broker.cli(&["status"]).map(drop))?);
    }
    told("mayfly status", waits)?;
    flooded(flood)?;
    before.after()?;
    let mut other = Command::new("setpriv");
    other.args([
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "curl",
        "-s",
        "--unix-socket",
    ]);
    let other = output(other.arg(&socket).arg("http://m/v1/status"));
    ensure!(
        other.is_err(),
        "another user reaches the admin socket: {other:?}"
    );
    Ok(())
}

/// The key set over HTTPS, from an address of the caller's own.
fn key_set(broker: &Broker) -> Result<()> {
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "--fail",
        "--interface",
        "127.0.0.2",
        "--max-time",
        "20",
        "--cacert",
    ]);
    curl.arg(broker.state_dir().join("ca.pem"));
    let port = broker.oidc_address();
    let port = port.rsplit(':').next().context("no port")?;
    // The certificate is for the issuer's host.
    let url = format!("https://localhost:{port}/.well-known/jwks.json");
    let keys = output(
        curl.args(["--resolve", &format!("localhost:{port}:127.0.0.1")])
            .arg(url),
    )?;
    ensure!(keys.contains("\"keys\""), "{keys}");
    Ok(())
}

#[test]
fn garbage_on_the_openid_server_does_not_keep_others_from_the_keys() -> Result<()> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    key_set(&broker)?;
    let before = Before::of("the broker", broker.pid()?)?;
    let floods = [
        flood("tcp", &broker.oidc_address(), SECONDS, "1500")?,
        flood("tls", &broker.oidc_address(), SECONDS, "100")?,
    ];
    let mut waits = Vec::new();
    while !floods.iter().all(|flood| flood.log().contains("flooded")) {
        waits.push(timed(|| key_set(&broker))?);
    }
    told("the key set", waits)?;
    floods.into_iter().try_for_each(flooded)?;
    before.after()
}

#[test]
fn garbage_on_the_node_link_does_not_keep_nodes_out() -> Result<()> {
    let (broker, address) = broker_for_nodes()?;
    let mut node = Node::start(&broker, &address, "resilience-node-3")?;
    app::kv_credentials(&broker, &["first".into()], "")?;
    app::put(&broker, "first", b"value 0")?;
    let app = App::start(&node.workload_dir(), "")?;
    let before = Before::of("the broker", broker.pid()?)?;
    let flood = flood("tcp", &address, LONG, "6000")?;
    let for_a_while = || {
        let start = Instant::now();
        victim(&broker, &app, || start.elapsed() < Duration::from_secs(2))
    };
    for_a_while()?;
    // One that must connect anew comes in too.
    node.kill()?;
    node.restart()?;
    app::put(&broker, "first", b"after a restart")?;
    app.wait_for_secret("first", b"after a restart", SOON)?;
    for_a_while()?;
    ensure!(
        !flood.log().contains("flooded"),
        "the flood was over before"
    );
    flood.signal(Signal::SIGTERM)?;
    flooded(flood)?;
    before.after()?;
    let lines = broker.log().lines().count();
    ensure!(lines < 500, "the flood made {lines} lines of log");
    Ok(())
}

#[test]
fn a_node_that_asks_for_nonsense_and_reads_nothing_is_cut_off() -> Result<()> {
    let (broker, address) = broker_for_nodes()?;
    let node = Node::start(&broker, &address, "resilience-node-4")?;
    app::kv_credentials(&broker, &["first".into()], "")?;
    app::put(&broker, "first", b"value 0")?;
    let app = App::start(&node.workload_dir(), "")?;
    let before = Before::of("the broker", broker.pid()?)?;
    let dir = TempDir::new()?;
    let keys = dir.join("keys");
    let keys = keys.to_str().context("no text")?;
    broker.cli(&["node", "add", "resilience-node-5", "--out", keys])?;
    let mut hostile = Command::new("python3");
    hostile.args(["-c", NONSENSE, &address, keys, SECONDS]);
    let hostile = std::thread::spawn(move || output(&mut hostile));
    victim(&broker, &app, || !hostile.is_finished())?;
    let said = hostile.join().map_err(|_| anyhow!("a panic"))??;
    let peak = peak(before.pid)?;
    println!("{}; at most {peak} KiB", said.trim_end());
    ensure!(said.contains("cut off"), "{said}");
    ensure!(peak < before.resident + GROWTH, "{peak} KiB");
    before.after()
}
