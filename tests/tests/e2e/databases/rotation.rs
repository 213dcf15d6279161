//! Rotations under the hands of a client that logs in 200 times a second with whatever its files say.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, PostgresServer, Realm, TempDir, wait_until};

use crate::e2e::resilience::app::{ALL, App, SOON};

/// How often each credential is rotated.
const ROTATIONS: usize = 100;

/// A failed login: when it read its files and when it failed, in milliseconds since the Unix epoch, and why.
type Failed = (u128, u128, String);

/// What a client told.
struct Told {
    logins: u64,
    failed: Vec<Failed>,
}

impl Told {
    /// No login failed, but for a few that came too late by what they had read: on a busy machine one can be
    /// kept from running between its files and the server.
    fn none_failed(&self, came_too_late: impl Fn(&Failed) -> bool) -> Result<()> {
        let (late, failed): (Vec<_>, Vec<_>) =
            self.failed.iter().partition(|failed| came_too_late(failed));
        ensure!(failed.is_empty(), "of {}: {failed:?}", self.logins);
        ensure!((late.len() as u64) < self.logins / 20, "{late:?}");
        Ok(())
    }
}

/// Rotates a credential again and again, each time once the last password has come, while a client logs
/// in. Gives what it told, and when each new password was seen in its files.
fn under_load(credential: &str, settings: &str) -> Result<(Told, Vec<(u128, u128)>)> {
    let server = PostgresServer::start(&["fsync=off", "max_connections=200"])?;
    server.psql("CREATE ROLE one LOGIN; CREATE ROLE turn_a LOGIN; CREATE ROLE turn_b LOGIN")?;
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let port = server.port();
    let config = format!(
        "[connection.shop]\nengine = \"postgres\"\nhost = \"127.0.0.1\"\nport = {port}\n\
         username = \"postgres\"\ntls = \"off\"\nscram_iterations = 1\n\
         [credential.{credential}]\nengine = \"postgres\"\nconnection = \"shop\"\nttl = \"5m\"\n\
         {settings}\n"
    );
    broker.apply(&[("shop.toml", &config), ("all.cedar", ALL)])?;
    broker.cli_with_input(&["connection", "set", "shop"], PostgresServer::PASSWORD)?;
    let out = TempDir::new()?;
    std::fs::set_permissions(out.path(), Permissions::from_mode(0o777))?;
    std::fs::set_permissions(server.socket_dir(), Permissions::from_mode(0o755))?;
    let binds = [(server.socket_dir(), "pg"), (out.path(), "out")];
    let app = App::wanting_beside(&broker.workload_dir(), credential, &binds)?;
    let password = || app.secret(&format!("{credential}/password"));
    let first = wait_until(SOON, "the first password", || password().map(Some))?;
    app.tell(&format!(
        "/mf/mayfly-probe logins /pg {port} /run/secrets/{credential} /out/stop \
         >/out/told 2>&1 & echo begun"
    ))?;
    let told = out.join("told");
    let mut last = first;
    let mut rotations = Vec::with_capacity(ROTATIONS);
    for _ in 0..ROTATIONS {
        let begun = now()?;
        broker.cli(&["rotate", credential])?;
        last = wait_until(SOON, "the next password", || {
            let next = password()?;
            Ok((next != last).then_some(next))
        })?;
        let seen = now()?;
        rotations.push((begun, seen));
        // A reader that was in the middle of it is done. On a slow machine it takes longer, too.
        let took = Duration::from_millis(u64::try_from(seen - begun)?);
        std::thread::sleep(took.max(Duration::from_millis(50)));
    }
    std::fs::write(out.join("stop"), "")?;
    let text = wait_until(SOON * 3, "the client's account", || {
        let text = std::fs::read_to_string(&told)?;
        Ok(text.contains("logins ").then_some(text))
    })?;
    ensure!(!text.contains("Error"), "the client ended early: {text}");
    let end = text.lines().find_map(|line| line.strip_prefix("logins "));
    let (logins, _) = end
        .and_then(|end| end.split_once(' '))
        .context("no count")?;
    let failed = text.lines().filter_map(|line| line.strip_prefix("failed "));
    let failed = failed.map(|line| {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().context("a word is missing");
        Ok((word()?.parse()?, word()?.parse()?, word()?.to_string()))
    });
    let told = Told {
        logins: logins.parse()?,
        failed: failed.collect::<Result<_>>()?,
    };
    // It was there all the time, and at work.
    ensure!(
        told.logins > 10 * ROTATIONS as u64,
        "{} logins",
        told.logins
    );
    Ok((told, rotations))
}

fn now() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())
}

#[test]
fn a_hundred_rotations_of_a_role_of_its_own_break_no_login() -> Result<()> {
    let create = "create = [\"CREATE ROLE {{name}} LOGIN PASSWORD {{password}} VALID UNTIL \
                  {{expiration}}\"]\ngrace = \"1m\"";
    let (told, _) = under_load("orders-db", create)?;
    // For so long a role is good once all have the next.
    told.none_failed(|(read_at, failed_at, _)| failed_at - read_at >= 2000)
}

#[test]
fn a_hundred_rotations_of_two_users_that_take_turns_break_no_login() -> Result<()> {
    let (told, rotations) = under_load("reports-db", "static = [\"turn_a\", \"turn_b\"]")?;
    // The second rotation after a password was read changes it.
    told.none_failed(|(read_at, failed_at, _)| {
        let meanwhile = |(begun, seen): &&(u128, u128)| read_at <= seen && begun <= failed_at;
        rotations.iter().filter(meanwhile).count() > 1
    })
}

/// One user has one password: between its change at the server and the new file a login must fail, and
/// no broker can help that. But nobody who reads the new file is turned away.
#[test]
fn rotations_of_one_user_break_logins_only_until_the_new_file_is_there() -> Result<()> {
    let (told, rotations) = under_load("one-db", "static = [\"one\"]")?;
    for (read_at, failed_at, cause) in &told.failed {
        let mut rotations = rotations.iter();
        ensure!(
            rotations.any(|(begun, seen)| begun <= failed_at && read_at <= seen),
            "it read its files at {read_at} and failed at {failed_at}, in no rotation: {cause}"
        );
        ensure!(cause.contains("password authentication failed"), "{cause}");
    }
    ensure!(
        (told.failed.len() as u64) < told.logins / 2,
        "{}",
        told.failed.len()
    );
    Ok(())
}
