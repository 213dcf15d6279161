//! The `mysql` engine against MariaDB.

use crate::server::{Kind, Server};
use crate::support::{Held, Place, connection, credential, give, issue, revoke, silent, with_tls};
use mayfly_broker::engine::Engine;
use mayfly_broker::engine::fixed::SetPassword as _;
use mayfly_broker::engine::mysql::Mysql;
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::engine::SqlSettings;
use mayfly_wire::{EngineConfig, EngineKind, Secret};
use std::process::Command;
use std::time::{Duration, Instant};

fn root(server: &Server, sql: &str) -> String {
    server.ask_as_root(sql).unwrap()
}

fn settings() -> SqlSettings {
    SqlSettings {
        connection: "shop".parse().unwrap(),
        create: Vec::new(),
        renew: Vec::new(),
        revoke: Vec::new(),
        heir: None,
        fixed: Vec::new(),
        rotate_every: None,
        password: None,
    }
}

fn with(change: impl FnOnce(&mut SqlSettings)) -> CredentialConfig {
    let mut settings = settings();
    change(&mut settings);
    credential(EngineConfig::Mysql(settings))
}

fn created_by(statements: &[&str]) -> CredentialConfig {
    let statements = statements.iter().map(|text| (*text).to_owned()).collect();
    with(|settings| settings.create = statements)
}

fn orders() -> CredentialConfig {
    created_by(&[
        "CREATE USER {{name}}@'%' IDENTIFIED BY {{password}}",
        "GRANT SELECT, INSERT ON shop.* TO {{name}}@'%'",
    ])
}

fn engine(place: &Place) -> Mysql {
    let (store, keys, connections, clock) = place.parts();
    Mysql::new(store, keys, connections, clock)
}

fn ask(server: &Server, held: &Held, sql: &str) -> String {
    server
        .ask(held.field("username"), held.field("password"), sql)
        .unwrap()
}

fn users(server: &Server) -> String {
    root(server, "SELECT User FROM mysql.user")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql() {
    let server = Server::start(Kind::Mariadb).unwrap();
    root(
        &server,
        "CREATE TABLE shop.orders (id INT); INSTALL SONAME 'auth_ed25519'",
    );
    let mut config = connection(EngineKind::Mysql, server.port(0));
    config.database = Some("shop".to_owned());
    let place = Place::new(config).await;
    a_user_lives_from_create_to_revoke(&server, &engine(&place)).await;
    users_prove_themselves_by_what_the_statement_says(&server, &engine(&place)).await;
    users_of_any_host_are_removed(&server, &engine(&place)).await;
    the_operators_own_statements_remove_a_user(&server, &engine(&place)).await;
    the_server_can_be_told_when_a_user_ends(&server, &engine(&place)).await;
    what_was_given_up_has_no_effect_afterwards(&server, &place).await;
    what_an_earlier_process_left_has_no_effect_afterwards(&server, &place).await;
    what_waits_for_a_lock_in_the_server_is_ended(&server, &place).await;
    locks_that_others_take_are_in_nobodys_way(&server, &engine(&place)).await;
    what_the_server_refuses_leaves_nothing(&server, &engine(&place)).await;
    static_users_take_turns(&server, &engine(&place)).await;
    the_brokers_own_password_is_rotated(&server, &place).await;
    over_tls(&server).await;
    a_server_that_never_answers_is_told_of_in_time().await;
    no_password_is_in_the_log(&server);
}

/// Every password that was given to somebody, for the last test.
static GIVEN: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

async fn made(engine: &Mysql, credential: &CredentialConfig) -> Held {
    engine.check(credential).unwrap();
    let held = give(engine, credential).await;
    GIVEN
        .lock()
        .unwrap()
        .push(held.field("password").to_owned());
    held
}

fn no_password_is_in_the_log(server: &Server) {
    let log = std::fs::read(server.dir().join("general.log")).unwrap();
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("CREATE USER `mf_"), "the log is not there");
    let given = GIVEN.lock().unwrap();
    assert!(given.len() > 5);
    for password in given.iter() {
        assert!(!log.contains(password.as_str()));
    }
}

async fn a_user_lives_from_create_to_revoke(server: &Server, engine: &Mysql) {
    let credential = orders();
    engine.check(&credential).unwrap();
    let held = issue(engine, &credential).await;
    assert!(
        ask(server, &held, "SELECT 1").contains("Access denied"),
        "before it is made"
    );
    let held = made(engine, &credential).await;
    let (name, password) = (held.field("username"), held.field("password"));
    assert!(name.len() <= 32, "{name}");
    assert_eq!(ask(server, &held, "SELECT COUNT(*) FROM shop.orders"), "0");
    assert!(ask(server, &held, "DROP TABLE shop.orders").contains("denied"));
    let port = server.port(0);
    assert_eq!(
        held.field("uri"),
        format!("mysql://{name}:{password}@127.0.0.1:{port}/shop")
    );
    let again = engine.reissue(&credential, &held.lease).await.unwrap();
    assert_eq!(
        again.fields[&"password".parse().unwrap()].expose(),
        password.as_bytes()
    );
    engine.extend(&credential, &held.lease).await.unwrap();

    let mut sleeper = Command::new("mariadb")
        .args([
            "--no-defaults",
            "-h",
            "127.0.0.1",
            "-P",
            &port.to_string(),
            "-u",
            name,
        ])
        .args(["-e", "SELECT SLEEP(60)"])
        .env("MYSQL_PWD", password)
        .spawn()
        .unwrap();
    wait_for_sleeper(server);
    engine.revoke(&held.lease).await.unwrap();
    assert!(ask(server, &held, "SELECT 1").contains("Access denied"));
    let limit = Instant::now() + Duration::from_secs(30);
    while sleeper.try_wait().unwrap().is_none() {
        assert!(Instant::now() < limit, "its connection goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    engine.revoke(&held.lease).await.unwrap();
    assert!(!users(server).contains("mf_"));
}

/// Waits until a client has begun to sleep in the server.
fn wait_for_sleeper(server: &Server) {
    let count =
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP%'";
    let limit = Instant::now() + Duration::from_secs(20);
    while root(server, count) != "1" {
        assert!(Instant::now() < limit, "no client came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn users_prove_themselves_by_what_the_statement_says(server: &Server, engine: &Mysql) {
    for (clause, plugin) in [
        ("VIA ed25519 USING {{password}}", "ed25519"),
        (
            "VIA mysql_native_password USING '{{password}}'",
            "mysql_native_password",
        ),
        ("BY PASSWORD {{password}}", "mysql_native_password"),
    ] {
        let statement = format!("CREATE USER {{{{name}}}}@'%' IDENTIFIED {clause}");
        let held = made(engine, &created_by(&[&statement])).await;
        assert_eq!(ask(server, &held, "SELECT 1"), "1", "{clause}");
        let used = format!(
            "SELECT plugin FROM mysql.user WHERE User = '{}'",
            held.field("username")
        );
        assert_eq!(root(server, &used), plugin);
        revoke(engine, &held.lease).await;
    }
    let weak = created_by(&["CREATE USER {{name}} IDENTIFIED BY PASSWORD('{{password}}')"]);
    assert!(
        engine
            .check(&weak)
            .unwrap_err()
            .contains("IDENTIFIED BY {{password}}")
    );
}

async fn users_of_any_host_are_removed(server: &Server, engine: &Mysql) {
    let credential = created_by(&[
        "CREATE USER {{name}}@'127.0.0.1' IDENTIFIED BY {{password}}",
        "CREATE USER {{name}}@'10.%' IDENTIFIED BY {{password}}",
    ]);
    let held = made(engine, &credential).await;
    assert_eq!(ask(server, &held, "SELECT 1"), "1");
    revoke(engine, &held.lease).await;
    assert!(!users(server).contains("mf_"));
}

async fn the_operators_own_statements_remove_a_user(server: &Server, engine: &Mysql) {
    let mut credential = orders();
    let EngineConfig::Mysql(settings) = &mut credential.engine else {
        panic!()
    };
    settings.revoke = vec!["DROP USER {{name}}@'%'".to_owned()];
    let held = made(engine, &credential).await;
    engine.revoke(&held.lease).await.unwrap();
    // Which fails now, and is not needed.
    engine.revoke(&held.lease).await.unwrap();
    let EngineConfig::Mysql(settings) = &mut credential.engine else {
        panic!()
    };
    settings.revoke = vec!["REVOKE ALL PRIVILEGES, GRANT OPTION FROM {{name}}@'%'".to_owned()];
    let held = made(engine, &credential).await;
    let still = engine.revoke(&held.lease).await.unwrap_err().to_string();
    assert!(still.contains("still there"), "{still}");
    let locked = ask(server, &held, "SELECT 1");
    assert!(locked.contains("account is locked"), "{locked}");
    root(
        server,
        &format!("DROP USER '{}'@'%'", held.field("username")),
    );
}

async fn the_server_can_be_told_when_a_user_ends(server: &Server, engine: &Mysql) {
    let mut credential = orders();
    credential.ttl_seconds = 5;
    let EngineConfig::Mysql(settings) = &mut credential.engine else {
        panic!()
    };
    settings.create.push(
        "CREATE EVENT shop.{{name}} ON SCHEDULE AT {{expiration}} DO DROP USER IF EXISTS {{name}}@'%'"
            .to_owned(),
    );
    let held = made(engine, &credential).await;
    assert_eq!(ask(server, &held, "SELECT 1"), "1");
    let limit = Instant::now() + Duration::from_secs(30);
    while ask(server, &held, "SELECT 1") == "1" {
        assert!(Instant::now() < limit, "the server does not end it");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    revoke(engine, &held.lease).await;
}

async fn what_was_given_up_has_no_effect_afterwards(server: &Server, place: &Place) {
    let (engine, credential) = (engine(place), orders());
    revoke(&engine, &made(&engine, &credential).await.lease).await;
    let held = issue(&engine, &credential).await;
    server.signal("STOP").unwrap();
    let given_up = engine.create(&credential, &held.lease);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), given_up)
            .await
            .is_err()
    );
    let ((), ()) = tokio::join!(revoke(&engine, &held.lease), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.signal("CONT").unwrap();
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!users(server).contains("mf_"));
}

async fn what_an_earlier_process_left_has_no_effect_afterwards(server: &Server, place: &Place) {
    let credential = orders();
    let earlier = engine(place);
    revoke(&earlier, &made(&earlier, &credential).await.lease).await;
    for round in 0..5 {
        let held = issue(&earlier, &credential).await;
        let given_up = earlier.create(&credential, &held.lease);
        // Each time it has come a little farther.
        let (_, ()) = tokio::join!(
            tokio::time::timeout(Duration::from_micros(300 * round), given_up),
            async { server.signal("STOP").unwrap() }
        );
        let later = engine(place);
        let ((), ()) = tokio::join!(revoke(&later, &held.lease), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            server.signal("CONT").unwrap();
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!users(server).contains("mf_"), "round {round}");
    }
}

/// The statement has reached the server, which does not get on with it.
async fn what_waits_for_a_lock_in_the_server_is_ended(server: &Server, place: &Place) {
    let engine = engine(place);
    let mut holder = Command::new("mariadb")
        .args([
            "--no-defaults",
            "-h",
            "127.0.0.1",
            "-P",
            &server.port(0).to_string(),
        ])
        .args([
            "-u",
            Server::ROOT,
            "-e",
            "LOCK TABLES shop.orders WRITE; SELECT SLEEP(60)",
        ])
        .args(["-D", "shop"])
        .env("MYSQL_PWD", Server::PASSWORD)
        .spawn()
        .unwrap();
    wait_for_sleeper(server);
    let credential = created_by(&[
        "INSERT INTO shop.orders VALUES (1)",
        "CREATE USER {{name}}@'%' IDENTIFIED BY {{password}}",
    ]);
    let held = issue(&engine, &credential).await;
    let given_up = engine.create(&credential, &held.lease);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), given_up)
            .await
            .is_err()
    );
    // Whoever waits for the lock does so for a minute.
    let began = Instant::now();
    engine.revoke(&held.lease).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20));
    let _ = holder.kill();
    let _ = holder.wait();
    root(server, "DO SLEEP(0.2)");
    assert!(!users(server).contains("mf_"));
}

/// Who is logged in may take any lock, and wait for it with as many connections as it likes.
async fn locks_that_others_take_are_in_nobodys_way(server: &Server, engine: &Mysql) {
    root(server, "CREATE USER thief@'%' IDENTIFIED BY 'x'");
    root(server, "CREATE USER app_x@'%' IDENTIFIED BY 'x'");
    let held = made(engine, &orders()).await;
    let mut thieves = Vec::new();
    for name in [held.field("username"), "mf app_x", "mf broker"] {
        for _ in 0..3 {
            let script = format!("SELECT GET_LOCK('{name}', 60); SELECT SLEEP(60)");
            let thief = Command::new("mariadb")
                .args(["--no-defaults", "-h", "127.0.0.1", "-u", "thief"])
                .args(["-P", &server.port(0).to_string(), "-e", &script])
                .env("MYSQL_PWD", "x")
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn();
            thieves.push(thief.unwrap());
        }
    }
    let waiting = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = 'thief' \
        AND INFO LIKE 'SELECT %'";
    let limit = Instant::now() + Duration::from_secs(20);
    while root(server, waiting) != "9" {
        assert!(Instant::now() < limit, "they do not come");
        std::thread::sleep(Duration::from_millis(20));
    }
    let began = Instant::now();
    engine.revoke(&held.lease).await.unwrap();
    let credential = with(|settings| settings.fixed = vec!["app_x".to_owned()]);
    let fixed = issue(engine, &credential).await;
    assert_eq!(ask(server, &fixed, "SELECT 1"), "1");
    assert!(began.elapsed() < Duration::from_secs(20));
    for mut thief in thieves {
        let _ = thief.kill();
        let _ = thief.wait();
    }
}

async fn what_the_server_refuses_leaves_nothing(server: &Server, engine: &Mysql) {
    let credential = created_by(&[
        "CREATE USER {{name}}@'%' IDENTIFIED BY {{password}}",
        "GRANT SELECT ON nonsense",
    ]);
    let held = issue(engine, &credential).await;
    let refused = engine
        .create(&credential, &held.lease)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("(1064)"), "{refused}");
    engine.revoke(&held.lease).await.unwrap();
    assert!(!users(server).contains("mf_"));
}

async fn static_users_take_turns(server: &Server, engine: &Mysql) {
    root(
        server,
        "CREATE USER app_a@'%' IDENTIFIED BY 'x'; CREATE USER app_b@'127.%' IDENTIFIED VIA ed25519 USING PASSWORD('x')",
    );
    let credential = with(|settings| {
        settings.fixed = vec!["app_a@%".to_owned(), "app_b".to_owned()];
    });
    engine.check(&credential).unwrap();
    let mut before: Option<Held> = None;
    for user in ["app_a", "app_b", "app_a", "app_b"] {
        let held = issue(engine, &credential).await;
        GIVEN
            .lock()
            .unwrap()
            .push(held.field("password").to_owned());
        assert_eq!(held.field("username"), user);
        assert_eq!(ask(server, &held, "SELECT 1"), "1");
        // The one that was given before is good until the next rotation.
        if let Some(before) = before {
            assert_eq!(ask(server, &before, "SELECT 1"), "1");
        }
        before = Some(held);
        assert!(
            engine
                .rotate(&credential, crate::support::now())
                .await
                .unwrap()
        );
    }
}

async fn the_brokers_own_password_is_rotated(server: &Server, place: &Place) {
    let (engine, name) = (engine(place), "shop".parse().unwrap());
    engine.rotate_root(&name, 0).await.unwrap();
    assert!(root(server, "SELECT 1").contains("Access denied"));
    let held = made(&engine, &orders()).await;
    revoke(&engine, &held.lease).await;
    let known = Secret::from(Server::PASSWORD.to_owned());
    engine
        .set_password(&name, Server::ROOT, &known)
        .await
        .unwrap();
    place
        .connections
        .set_password(&name, &known, crate::support::now())
        .await
        .unwrap();
    assert_eq!(root(server, "SELECT 1"), "1");
}

async fn over_tls(server: &Server) {
    let config = connection(EngineKind::Mysql, server.port(0));
    root(server, "ALTER USER broker@'%' REQUIRE SSL");
    let place = Place::new(with_tls(config.clone(), server)).await;
    let engine = engine(&place);
    let held = made(&engine, &orders()).await;
    revoke(&engine, &held.lease).await;

    // An authority that nobody here knows.
    let mut stranger = with_tls(config, server);
    stranger.ca_pem = None;
    let place = Place::new(stranger).await;
    let engine = self::engine(&place);
    let held = issue(&engine, &orders()).await;
    let refused = engine
        .create(&orders(), &held.lease)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("certificate"), "{refused}");
}

async fn a_server_that_never_answers_is_told_of_in_time() {
    let (_listener, port) = silent();
    let place = Place::new(connection(EngineKind::Mysql, port)).await;
    let engine = engine(&place);
    let held = issue(&engine, &orders()).await;
    let began = Instant::now();
    let late = engine
        .create(&orders(), &held.lease)
        .await
        .unwrap_err()
        .to_string();
    assert!(late.contains("no connection within 5 s"), "{late}");
    assert!(began.elapsed() < Duration::from_secs(20));
}
