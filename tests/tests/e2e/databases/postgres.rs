//! Roles of a PostgreSQL server.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, PostgresServer, Realm, wait_until};

use crate::e2e::resilience::app::{ALL, App, SOON};

/// A broker that makes roles at a server, and shares its users in turns.
fn broker(server: &PostgresServer) -> Result<Broker> {
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let port = server.port();
    let credentials = format!(
        r#"
[connection.shop]
engine = "postgres"
host = "127.0.0.1"
port = {port}
username = "postgres"
tls = "off"

[credential.orders-db]
engine = "postgres"
connection = "shop"
ttl = "5m"
create = ["CREATE ROLE {{{{name}}}} LOGIN PASSWORD {{{{password}}}} VALID UNTIL {{{{expiration}}}}"]

[credential.reports-db]
engine = "postgres"
connection = "shop"
ttl = "5m"
static = ["reports_a", "reports_b"]
"#
    );
    broker.apply(&[("shop.toml", &credentials), ("all.cedar", ALL)])?;
    let set = ["connection", "set", "shop"];
    broker.cli_with_input(&set, PostgresServer::PASSWORD)?;
    Ok(broker)
}

fn server(settings: &[&str]) -> Result<PostgresServer> {
    let server = PostgresServer::start(&[&["fsync=off"], settings].concat())?;
    server.psql("CREATE ROLE reports_a LOGIN; CREATE ROLE reports_b LOGIN")?;
    Ok(server)
}

/// User and password, as the application finds them.
fn found(app: &App, credential: &str) -> Result<(String, String)> {
    let read = |field: &str| -> Result<String> {
        Ok(String::from_utf8(
            app.secret(&format!("{credential}/{field}"))?,
        )?)
    };
    // Both of one generation: the directory is swapped as one.
    wait_until(SOON, credential, || {
        let (user, password) = (read("username")?, read("password")?);
        Ok((user == read("username")?).then_some((user, password)))
    })
}

fn gets_in(server: &PostgresServer, (user, password): &(String, String)) -> bool {
    server
        .psql_as(user, password, "SELECT current_user")
        .is_ok_and(|found| found == *user)
}

fn roles(server: &PostgresServer) -> Result<String> {
    Ok(server.psql("SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolname LIKE 'mf\\_%'")?)
}

#[test]
fn a_role_comes_with_its_container_and_goes_with_it() -> Result<()> {
    let server = server(&["log_statement=all"])?;
    let broker = broker(&server)?;
    let mut app = App::wanting(&broker.workload_dir(), "orders-db")?;
    let (user, password) = found(&app, "orders-db")?;
    ensure!(gets_in(&server, &(user.clone(), password.clone())));
    assert_eq!(roles(&server)?, user);
    let uri = String::from_utf8(app.secret("orders-db/uri")?)?;
    assert_eq!(
        uri,
        format!(
            "postgresql://{user}:{password}@127.0.0.1:{}/postgres",
            server.port()
        )
    );

    // A session that stays open, which no client would end.
    let mut session = server.client(&user, &password)?;
    let mut session = session.args(["-c", "SELECT pg_sleep(60)"]).spawn()?;
    wait_until(SOON, "an open session", || {
        let asked = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}'");
        Ok((server.psql(&asked)? == "1").then_some(()))
    })?;
    app.end()?;
    wait_until(SOON, "the role to go", || {
        Ok(roles(&server)?.is_empty().then_some(()))
    })?;
    ensure!(!session.wait()?.success(), "its session went on");

    let log = server.log()?;
    ensure!(log.contains(&user) && log.contains("SCRAM-SHA-256$4096:"));
    ensure!(!log.contains(&password), "the server's log has a password");
    ensure!(
        !broker.log().contains(&password),
        "the broker's log has a password"
    );
    Ok(())
}

#[test]
fn rotations_reach_the_files_and_break_nobody() -> Result<()> {
    let server = server(&[])?;
    let broker = broker(&server)?;
    let app = App::wanting(&broker.workload_dir(), "reports-db")?;
    let mut before = found(&app, "reports-db")?;
    for _ in 0..3 {
        broker.cli(&["rotate", "reports-db"])?;
        let now = wait_until(SOON, "another user in the files", || {
            let now = found(&app, "reports-db")?;
            Ok((now.0 != before.0).then_some(now))
        })?;
        // Whoever read just before the rotation still gets in.
        ensure!(gets_in(&server, &now) && gets_in(&server, &before));
        before = now;
    }
    Ok(())
}

#[test]
fn after_its_rotation_the_brokers_own_password_is_known_to_nobody_else() -> Result<()> {
    let server = server(&[])?;
    let broker = broker(&server)?;
    let app = App::wanting(&broker.workload_dir(), "orders-db,reports-db")?;
    let held = [found(&app, "orders-db")?, found(&app, "reports-db")?];
    broker.cli(&["connection", "rotate", "shop"])?;
    ensure!(
        server.psql("SELECT 1").is_err(),
        "the first root password is still good"
    );
    let other = App::wanting(&broker.workload_dir(), "orders-db")?;
    let fresh = found(&other, "orders-db")?;
    ensure!(fresh != held[0] && gets_in(&server, &fresh));
    ensure!(held.iter().all(|held| gets_in(&server, held)));
    Ok(())
}

#[test]
fn a_server_that_never_answers_delays_only_its_own_credentials() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let credentials = format!(
        r#"
[connection.hangs]
engine = "postgres"
host = "127.0.0.1"
port = {port}
username = "postgres"
tls = "off"
[credential.hangs-db]
engine = "postgres"
connection = "hangs"
ttl = "5m"
create = ["CREATE ROLE {{{{name}}}} LOGIN PASSWORD {{{{password}}}} VALID UNTIL {{{{expiration}}}}"]
[credential.plain]
engine = "kv"
path = "plain"
ttl = "5m"
"#
    );
    broker.apply(&[("hangs.toml", &credentials), ("all.cedar", ALL)])?;
    broker.cli_with_input(&["connection", "set", "hangs"], "x")?;
    broker.cli_with_input(&["kv", "put", "plain"], "a value")?;
    let (mut apps, mut took) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let begun = Instant::now();
        let app = App::needing(&broker.workload_dir(), "hangs-db,plain", "plain")?;
        app.wait_for_secret("plain", b"a value", SOON)?;
        took.push(begun.elapsed());
        ensure!(app.secret("hangs-db/password").is_err());
        apps.push(app);
    }
    // Whatever else runs may be in the way of one; by the server, each would wait for five seconds.
    took.sort();
    ensure!(took[1] < Duration::from_secs(4), "{took:?}");
    let log = wait_until(Duration::from_secs(20), "a word about the server", || {
        let log = broker.log();
        Ok(log.contains("no connection within 5 s").then_some(log))
    })?;
    ensure!(log.contains("hangs"));
    let descriptors = format!("/proc/{}/fd", broker.pid()?);
    let open = std::fs::read_dir(&descriptors)
        .context("its descriptors")?
        .count();
    ensure!(open < 200, "{open} descriptors");
    Ok(())
}
