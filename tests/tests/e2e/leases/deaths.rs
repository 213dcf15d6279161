//! A container dies, in whatever way: its role is gone, and whoever is logged in as it is cut off.
//!
//! A lease ends with its *container*. Where the sidecar is the container's first process, its death is
//! the container's. A sidecar that the shim started is started again, and finds the same lease; if it
//! cannot be, the lease is still there to end with the container.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{
    Broker, BrokerOptions, Compose, Container, Docker, Image, PostgresServer, Realm, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::scene::{LONG, SOON, Scene, configure};
use super::server::Server;
use crate::e2e::resilience::app::App;

/// How long a role may outlive its container on a machine that does other things as well.
const BOUND: Duration = Duration::from_secs(30);
/// And how long at the median of so many.
const MEDIAN: Duration = Duration::from_millis(50);
const RUNS: usize = 50;

const SERVICES: &str = r#"
  removed: &app
    image: leases:app
    user: "1000:1000"
    network_mode: none
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    mem_limit: 48m
    pids_limit: 32
    entrypoint: [/bin/mayfly-shim, run, --sidecar, --sidecar-arg, --want, --sidecar-arg, orders-db, --wait, orders-db, --]
    command: [sleep, "600"]
    volumes: ["SOCKET:/run/mayfly:ro", "removed:/run/secrets"]
  killed:
    <<: *app
    volumes: ["SOCKET:/run/mayfly:ro", "killed:/run/secrets"]
  hungry:
    <<: *app
    command: [sh, -c, 'trap "exec tail /dev/zero" USR1; while :; do sleep 0.1; done']
    volumes: ["SOCKET:/run/mayfly:ro", "hungry:/run/secrets"]
  alone:
    <<: *app
    entrypoint: [/bin/mayfly-sidecar, --want, orders-db]
    command: []
    volumes: ["SOCKET:/run/mayfly:ro", "alone:/run/secrets:nocopy"]
"#;

/// A role with somebody logged in.
struct Login<'a> {
    server: &'a Server,
    user: String,
    session: Child,
}

impl<'a> Login<'a> {
    fn new(server: &'a Server, user: String, password: &str) -> Result<Self> {
        let mut client = server.0.client(&user, password)?;
        client.args(["-c", "SELECT 'in'", "-c", "SELECT pg_sleep(600)"]);
        let mut session = client
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(session.stdout.take().context("no output")?).read_line(&mut line)?;
        let login = Self {
            server,
            user,
            session,
        };
        ensure!(line.trim() == "in", "{} is not let in", login.user);
        ensure!(login.server.roles()?.contains(&login.user));
        Ok(login)
    }

    /// Waits until the role is gone and its session has ended.
    fn ends(mut self, died: Instant) -> Result<()> {
        wait_until(BOUND, "the role to go", || {
            Ok((!self.server.roles()?.contains(&self.user)).then_some(()))
        })?;
        let took = died.elapsed();
        let end = wait_until(BOUND, "the end of its session", || {
            Ok(self.session.try_wait()?)
        })?;
        ensure!(!end.success(), "its session went on to its own end");
        say!("{}: gone after at most {took:?}", self.user);
        Ok(())
    }
}

impl Drop for Login<'_> {
    fn drop(&mut self) {
        let _ = self.session.kill();
        let _ = self.session.wait();
    }
}

fn login<'a>(server: &'a Server, container: &Container<'_>) -> Result<Login<'a>> {
    let read = |field: &str| {
        let path = format!("/run/secrets/orders-db/{field}");
        wait_until(SOON, &path, || container.exec(&["cat", &path]).map(Some))
            .with_context(|| format!("{:?}", container.logs()))
    };
    Login::new(server, read("username")?, &read("password")?)
}

#[test]
fn however_a_container_dies_its_role_is_gone() -> Result<()> {
    let docker = Docker::host()?;
    Image::with_sidecar()?
        .busybox()?
        .load(docker, "leases:app")?;
    let server = Server::start()?;
    let broker = Broker::beside(docker)?;
    configure(&broker, &server, LONG)?;
    let services = SERVICES.replace("SOCKET", &broker.workload_dir().display().to_string());
    let names = ["removed", "killed", "hungry", "alone"];
    let compose = Compose::up(docker, &services, &names)?;
    let [removed, killed, hungry, alone] = names.map(|name| compose.service(name));
    let (removed, killed, hungry, alone) = (removed?, killed?, hungry?, alone?);

    let role = login(&server, &removed)?;
    let died = Instant::now();
    docker.cli(["rm", "-f", removed.id()])?;
    role.ends(died).context("docker rm -f")?;

    let role = login(&server, &killed)?;
    kill(Pid::from_raw(killed.pid()?), Signal::SIGKILL)?;
    role.ends(Instant::now()).context("kill -9")?;

    let role = login(&server, &hungry)?;
    docker.cli(["kill", "--signal", "USR1", hungry.id()])?;
    role.ends(Instant::now()).context("out of memory")?;
    let state = hungry.inspect()?["State"].clone();
    ensure!(
        state["OOMKilled"] == true || state["ExitCode"] == 137,
        "it did not run out of memory: {state}"
    );

    let role = login(&server, &alone)?;
    kill(Pid::from_raw(alone.pid()?), Signal::SIGKILL)?;
    role.ends(Instant::now()).context("a sidecar alone")?;
    ensure!(server.roles()?.is_empty());
    broker.cli(&["audit", "verify"]).map(drop)
}

#[test]
fn a_killed_sidecar_comes_back_to_its_lease_and_a_dead_one_outlives_no_container() -> Result<()> {
    let server = Server::start()?;
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    configure(&broker, &server, LONG)?;
    let mut app = App::wanting(&broker.workload_dir(), "orders-db")?;
    let read = |app: &App, field: &str| -> Result<String> {
        let bytes = wait_until(SOON, field, || {
            app.secret(&format!("orders-db/{field}")).map(Some)
        })?;
        Ok(String::from_utf8(bytes)?)
    };
    let user = read(&app, "username")?;
    let leases = || broker.cli_json(&["leases"]);
    let before = leases()?;
    let first = app.sidecar()?;
    kill(Pid::from_raw(first), Signal::SIGKILL)?;
    wait_until(SOON, "another sidecar with a session", || {
        let workloads = broker.cli_json(&["workloads"])?;
        let sessions = workloads[0]["sessions"].as_u64();
        Ok((app.sidecar()? != first && sessions == Some(1)).then_some(()))
    })?;
    ensure!(leases()?[0]["lease"] == before[0]["lease"] && read(&app, "username")? == user);
    let role = Login::new(&server, user, &read(&app, "password")?)?;

    // Once more, and the container is dead before the shim could start the next one.
    kill(Pid::from_raw(app.sidecar()?), Signal::SIGKILL)?;
    app.end()?;
    role.ends(Instant::now())?;
    ensure!(server.roles()?.is_empty());
    Ok(())
}

#[test]
fn from_death_to_no_role_50_times() -> Result<()> {
    let mut scene = Scene::start(LONG, 3)?;
    let mut medians = Vec::new();
    // Whatever else runs may be in the way of one attempt; three in a row are the broker's own.
    while !medians.iter().any(|median| *median < MEDIAN) {
        ensure!(medians.len() < 3, "the medians are {medians:?}");
        let mut times: Vec<Duration> =
            (0..RUNS).map(|_| dies(&mut scene)).collect::<Result<_>>()?;
        times.sort();
        say!(
            "death to no role: median {:?}, from {:?} to {:?}",
            times[RUNS / 2],
            times[0],
            times[RUNS - 1]
        );
        medians.push(times[RUNS / 2]);
    }
    scene.settled(SOON).map(drop)
}

/// Kills one, and gives how long the server had its role after that; another takes its place.
fn dies(scene: &mut Scene) -> Result<Duration> {
    let member = scene.crowd.members.first().context("nobody")?;
    let held = wait_until(SOON, "its role", || Ok(member.held().remove("orders-db")))?;
    // The server itself looks when it is gone.
    let gone = format!(
        "DO $$ BEGIN WHILE EXISTS (SELECT FROM pg_authid WHERE rolname = '{}') LOOP \
         PERFORM pg_sleep(0.001); END LOOP; END $$",
        held[0]
    );
    let mut client = (scene.server.0).client(PostgresServer::ROOT, PostgresServer::PASSWORD)?;
    client.args(["-c", "SELECT 'looks'", "-c", &gone]);
    let mut client = client.stdout(Stdio::piped()).spawn()?;
    let output = client.stdout.take().context("no output")?;
    let mut said = String::new();
    BufReader::new(output).read_line(&mut said)?;
    ensure!(said.trim() == "looks" && scene.server.roles()?.contains(&held[0]));
    let died = Instant::now();
    member.small.kill()?;
    ensure!(client.wait()?.success());
    let took = died.elapsed();
    drop(scene.crowd.members.remove(0));
    scene.crowd.join()?;
    Ok(took)
}
