//! An old credential goes once the application has said that it uses the new one, or at the end of its
//! grace: never because somebody spoke for the application.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, PostgresServer, Realm, TempDir, wait_until};
use serde_json::Value;

use super::{configure, connection, has_role, role};
use crate::e2e::resilience::app::{ALL, App, SOON};

/// Of the application that says nothing.
const GRACE: Duration = Duration::from_secs(8);
/// How long a role is good after its application has said so: `LAST_READERS` in the broker.
const LAST_READERS: Duration = Duration::from_secs(2);
const CONFIG: &str = "[acknowledge]\nfile = \"/out/loaded\"\ntimeout = \"1s\"\n";

/// An application that says which generation it uses when it is told to.
struct Speaker {
    credential: &'static str,
    app: App,
    _out: TempDir,
}

impl Speaker {
    fn start(broker: &Broker, credential: &'static str) -> Result<Self> {
        let out = TempDir::new()?;
        std::fs::set_permissions(out.path(), Permissions::from_mode(0o777))?;
        let config = out.join("sidecar.toml");
        std::fs::write(&config, CONFIG)?;
        let binds = [(out.path(), "out"), (&config, "etc/mayfly/sidecar.toml")];
        let app = App::wanting_beside(&broker.workload_dir(), credential, &binds)?;
        Ok(Self {
            credential,
            app,
            _out: out,
        })
    }

    fn user(&self) -> Result<String> {
        let user = self.app.secret(&format!("{}/username", self.credential))?;
        Ok(String::from_utf8(user)?)
    }

    fn speak(&self) -> Result<()> {
        let said = self
            .app
            .tell("printf %s \"$(readlink /run/secrets/..data)\" >/out/loaded")?;
        ensure!(said.is_empty(), "{said}");
        Ok(())
    }

    fn health(&self) -> Result<String> {
        self.app.tell("/mf/mayfly-sidecar health")
    }
}

#[test]
fn an_old_role_goes_when_the_application_says_so_or_at_the_end_of_its_grace() -> Result<()> {
    let server = PostgresServer::start(&["fsync=off"])?;
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let grace = format!("{}s", GRACE.as_secs());
    let config = [
        connection(&server),
        role("late-db", "5m"),
        role("never-db", &grace),
    ];
    configure(&broker, ALL, &config.concat())?;
    let late = Speaker::start(&broker, "late-db")?;
    let never = Speaker::start(&broker, "never-db")?;
    let mut old = Vec::new();
    for one in [&late, &never] {
        old.push(wait_until(SOON, one.credential, || one.user().map(Some))?);
    }

    let begun = Instant::now();
    for (one, old) in [&late, &never].iter().zip(&old) {
        broker.cli(&["rotate", one.credential])?;
        wait_until(SOON, "the next role", || {
            Ok((one.user()? != *old).then_some(()))
        })?;
    }
    // Longer than a role is good whose application has said so.
    std::thread::sleep(
        (LAST_READERS + Duration::from_millis(1500)).saturating_sub(begun.elapsed()),
    );
    for (one, old) in [&late, &never].iter().zip(&old) {
        ensure!(
            has_role(&server, old)?,
            "{}: nobody has acknowledged",
            one.credential
        );
        let health = one.health()?;
        ensure!(
            health.contains("not acknowledged"),
            "{}: {health}",
            one.credential
        );
    }

    let spoken = Instant::now();
    late.speak()?;
    wait_until(SOON, "the old role to go", || {
        Ok((!has_role(&server, &old[0])?).then_some(()))
    })?;
    // Whoever has just read the old files still gets in.
    let took = spoken.elapsed();
    ensure!(
        took > LAST_READERS - Duration::from_millis(500),
        "gone after {took:?}"
    );
    ensure!(late.health()? == "ok\n", "{}", late.health()?);

    wait_until(SOON, "the end of the grace", || {
        Ok((!has_role(&server, &old[1])?).then_some(()))
    })?;
    let took = begun.elapsed();
    ensure!(
        took > GRACE - Duration::from_millis(500),
        "gone after {took:?}"
    );
    ensure!(never.health()?.contains("not acknowledged"));
    on_record(&broker)
}

/// Both were late, and that is on record; the one that spoke is there with its word.
fn on_record(broker: &Broker) -> Result<()> {
    let audit = broker.cli(&["--output", "json", "audit", "tail", "-n", "1000"])?;
    let records: Vec<Value> = audit
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let events: Vec<&Value> = records.iter().map(|record| &record["event"]).collect();
    let late = events.iter().filter(|event| {
        event["type"] == "publish_failed" && event["failure"]["code"] == "not_acknowledged"
    });
    let late: Vec<_> = late.map(|event| &event["who"]["workload"]).collect();
    ensure!(late.len() == 2 && late[0] != late[1], "{late:?} in {audit}");
    // The first set of each, and the second of one.
    let words = events
        .iter()
        .filter(|event| event["type"] == "acknowledged");
    let words: Vec<_> = words.map(|event| &event["workload"]).collect();
    let twice = words
        .iter()
        .filter(|one| words.iter().filter(|other| other == one).count() == 2);
    ensure!(
        words.len() == 3 && twice.count() == 2,
        "{words:?} in {audit}"
    );
    let ended = events.iter().filter(|event| event["type"] == "ended");
    let reasons: Vec<_> = ended
        .map(|event| event["reason"].as_str().context("a reason"))
        .collect::<Result<_>>()?;
    ensure!(reasons == ["replaced", "replaced"], "{reasons:?}");
    Ok(())
}
