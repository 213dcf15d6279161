//! Roles that live as long as a lease.

use crate::place::*;
use crate::server::PostgresServer;
use mayfly_broker::engine::Engine as _;
use mayfly_broker::store::Source;
use mayfly_wire::connection::Tls;
use std::process::Stdio;

#[tokio::test(flavor = "multi_thread")]
async fn a_role_lives_as_long_as_its_lease_and_no_log_has_its_password() {
    let server = PostgresServer::start(&["fsync=off", "log_statement=all"]).unwrap();
    server
        .psql("CREATE TABLE orders (n int); CREATE ROLE app; GRANT SELECT ON orders TO app")
        .unwrap();
    let place = Place::at(&server).await;
    let credential = credential(settings(&[CREATE, "GRANT app TO \"{{name}}\""]));
    place.engine.check(&credential).unwrap();

    let (holder, mut lease) = place.made(&credential).await;
    assert!(
        holder.user().starts_with("mf_orders_db_shop_orders_1_"),
        "{}",
        holder.user()
    );
    assert_eq!(holder.0["type"], "postgresql");
    let counted = server.psql_as(
        holder.user(),
        holder.password(),
        "SELECT count(*) FROM orders",
    );
    assert_eq!(counted.unwrap(), "0");
    let uri = std::process::Command::new("psql")
        .args(["-X", "-A", "-t", "-c", "SELECT 1", &holder.0["uri"]])
        .output();
    assert_eq!(uri.unwrap().stdout, b"1\n");

    // The server ends it by itself a little after the lease.
    let left = |user: &str| -> f64 {
        let asked = format!(
            "SELECT extract(epoch FROM rolvaliduntil - now()) FROM pg_roles WHERE rolname = '{user}'"
        );
        server.psql(&asked).unwrap().parse().unwrap()
    };
    let seconds = left(holder.user());
    assert!((300.0..340.0).contains(&seconds), "{seconds}");
    lease.expires_at += 100_000;
    place.engine.extend(&credential, &lease).await.unwrap();
    // Not for longer than one lease, whatever the clock says.
    assert!((300.0..340.0).contains(&left(holder.user())));

    // The same again, from what the lease holds, also in another process.
    let next = place.next_process(config(server.port()));
    let again = Holder::of(&next.engine.reissue(&credential, &lease).await.unwrap());
    assert_eq!(again.0, holder.0);

    place.engine.revoke(&lease).await.unwrap();
    assert!(!holder.gets_in(&server));
    assert_eq!(roles(&server), 0);
    place.engine.revoke(&lease).await.unwrap();

    let log = server.log().unwrap();
    assert!(log.contains(&format!("CREATE ROLE \"{}\"", holder.user())));
    assert!(log.contains("SCRAM-SHA-256$4096:"));
    assert!(!log.contains(holder.password()));
    let Source::Account { sealed, .. } = &lease.source else {
        panic!("a role is an account")
    };
    let needle = holder.password().as_bytes();
    assert!(!sealed.windows(needle.len()).any(|window| window == needle));
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_ends_sessions_and_what_the_role_owns_stays() {
    let server = PostgresServer::start(&["fsync=off"]).unwrap();
    server
        .psql("CREATE TABLE t (n int); CREATE ROLE keeper")
        .unwrap();
    let place = Place::at(&server).await;
    let credential = credential(settings(&[
        CREATE,
        "GRANT ALL ON SCHEMA public, t TO {{name}}",
    ]));
    // A statement that is wrong makes nothing at all.
    let (_, broken) = place.issue(&credential, &evidence("x")).await.unwrap();
    let refused = place
        .engine
        .create(&credential, &broken)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("the server says"), "{refused}");
    // It is up: only this credential has a problem.
    let refused = place
        .engine
        .create(&credential, &broken)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), mayfly_wire::Code::BadRequest);
    assert_eq!(roles(&server), 0);
    place.engine.revoke(&broken).await.unwrap();

    let mut settings = settings(&[
        CREATE,
        "GRANT ALL ON SCHEMA public TO {{name}}",
        "GRANT ALL ON t TO {{name}}",
        "GRANT keeper TO {{name}}",
    ]);
    settings.heir = Some("keeper".to_owned());
    let credential = crate::place::credential(settings);
    place.engine.check(&credential).unwrap();
    let (holder, lease) = place.made(&credential).await;
    let mut session = Input::of(&server, holder.user(), holder.password());
    session.say("CREATE TABLE mine AS SELECT 7 AS n; BEGIN; LOCK TABLE mine, t;");

    place.engine.revoke(&lease).await.unwrap();
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE usesysid NOT IN (SELECT oid FROM pg_roles)";
    assert_eq!(server.psql(sessions).unwrap(), "0");
    assert_eq!(roles(&server), 0);
    assert!(session.was_ended());
    let kept = "SELECT n, tableowner FROM mine, pg_tables WHERE tablename = 'mine'";
    assert_eq!(server.psql(kept).unwrap(), "7|keeper");
}

/// As docs/engines.md says that it is to be made.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_no_superuser_can_do_all_of_it() {
    let server = PostgresServer::start(&["fsync=off"]).unwrap();
    for statement in [
        "CREATE ROLE orders_rw; GRANT CREATE ON SCHEMA public TO orders_rw; CREATE ROLE reports LOGIN",
        "CREATE ROLE mayfly LOGIN CREATEROLE PASSWORD 'm'",
        "GRANT pg_signal_backend TO mayfly",
        "GRANT orders_rw TO mayfly WITH ADMIN OPTION",
    ] {
        server.psql(statement).unwrap();
    }
    let mut account = config(server.port());
    account.username = "mayfly".to_owned();
    let place = Place::new(account, "m").await;
    let mut own = settings(&[CREATE, "GRANT orders_rw TO {{name}}"]);
    own.heir = Some("orders_rw".to_owned());
    let granted = credential(own);
    let (holder, mut lease) = place.made(&granted).await;
    let table = "CREATE TABLE mine AS SELECT 7 AS n";
    server
        .psql_as(holder.user(), holder.password(), table)
        .unwrap();
    let mut psql = server.client(holder.user(), holder.password()).unwrap();
    psql.args(["-c", "SELECT pg_sleep(60)"])
        .stderr(Stdio::null());
    let mut session = psql.spawn().unwrap();
    lease.expires_at += 1000;
    place.engine.extend(&granted, &lease).await.unwrap();
    place.engine.revoke(&lease).await.unwrap();
    assert!(!session.wait().unwrap().success());
    assert_eq!(roles(&server), 0);
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'mine'";
    assert_eq!(server.psql(owner).unwrap(), "orders_rw");

    let mut fixed = settings(&[]);
    fixed.fixed = vec!["reports".to_owned()];
    let (issued, _) = place
        .issue(&credential(fixed), &evidence("x"))
        .await
        .unwrap();
    assert!(Holder::of(&issued).gets_in(&server));
    place.engine.rotate_root(&connection(), 1).await.unwrap();
    place.made(&granted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_own_statements_revoke_and_renew() {
    let server = PostgresServer::start(&["fsync=off"]).unwrap();
    let place = Place::at(&server).await;
    server.psql("CREATE TABLE seen (what text)").unwrap();
    let mut own = settings(&[CREATE]);
    own.renew = vec!["INSERT INTO seen VALUES ('renewed {{name}}'); ALTER ROLE {{name}} VALID UNTIL {{expiration}}".to_owned()];
    own.revoke = vec![
        "DROP ROLE {{name}}".to_owned(),
        "INSERT INTO seen VALUES ('{{name}}')".to_owned(),
    ];
    let credential = credential(own);
    place.engine.check(&credential).unwrap();
    let (holder, lease) = place.made(&credential).await;
    place.engine.extend(&credential, &lease).await.unwrap();
    place.engine.revoke(&lease).await.unwrap();
    assert_eq!(roles(&server), 0);
    let user = holder.user();
    assert_eq!(
        server.psql("SELECT * FROM seen").unwrap(),
        format!("renewed {user}\n{user}")
    );
    // Nothing is there any more, and that is all right, though DROP ROLE does not think so.
    place.engine.revoke(&lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_workload_says_of_itself_is_not_executed() {
    let server = PostgresServer::start(&["fsync=off"]).unwrap();
    server.psql("CREATE TABLE t (n int)").unwrap();
    let place = Place::at(&server).await;
    let credential = credential(settings(&[CREATE]));
    for name in [
        "\"; DROP TABLE t; --",
        "'); DROP TABLE t; --",
        "$$; DROP TABLE t; $$",
        "{{password}}",
        "\\'; DROP TABLE t",
        "\u{202e}\u{0}\n",
        &"é".repeat(1000),
    ] {
        let (issued, lease) = place.issue(&credential, &evidence(name)).await.unwrap();
        place.engine.create(&credential, &lease).await.unwrap();
        let holder = Holder::of(&issued);
        assert!(holder.gets_in(&server));
        assert!(
            holder
                .user()
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        );
        place.engine.revoke(&lease).await.unwrap();
    }
    assert_eq!(server.psql("SELECT count(*) FROM t").unwrap(), "0");
    assert_eq!(roles(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_right_are_refused() {
    let place = Place::new(config(1), "x").await;
    let one = |change: fn(&mut mayfly_wire::engine::SqlSettings)| {
        let mut settings = settings(&[CREATE]);
        change(&mut settings);
        place.engine.check(&credential(settings)).unwrap_err()
    };
    for (problem, found) in [
        (one(|s| s.create.clear()), "expected statements in create"),
        (
            one(|s| s.create[0].push_str(" {{label.team}}")),
            "create, statement 1: expected {{name}}",
        ),
        (
            one(|s| s.create[0] = "CREATE ROLE {{name}} PASSWORD {{password}}".into()),
            "{{expiration}}",
        ),
        (
            one(|s| s.revoke.push("SELECT 1".into())),
            "revoke: expected {{name}}",
        ),
        (
            one(|s| s.renew.push("SELECT {{password}}, {{name}}".into())),
            "renew, statement 1",
        ),
        (
            one(|s| s.heir = Some("a\"; DROP ROLE b; --".into())),
            "heir: expected a role's name",
        ),
        (
            one(|s| {
                s.heir = Some("a".into());
                s.revoke.push("DROP ROLE {{name}}".into())
            }),
            "none beside revoke",
        ),
        (
            one(|s| s.fixed.push("a".into())),
            "either static, or create",
        ),
        (
            one(|s| s.rotate_every = Some("1h".parse().unwrap())),
            "rotate_every",
        ),
        (
            one(|s| {
                s.create.clear();
                s.fixed = vec!["a".into(), "a".into()]
            }),
            "two different",
        ),
        (
            one(|s| {
                s.create.clear();
                s.fixed = vec!["a\0".into()]
            }),
            "1 to 63 bytes",
        ),
        (
            one(|s| {
                s.password = Some(mayfly_wire::engine::PasswordPolicy {
                    length: 10,
                    symbols: String::new(),
                })
            }),
            "22 to 128",
        ),
    ] {
        assert!(problem.contains(found), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_certificate_and_name_are_checked() {
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let mut server = PostgresServer::start(&["fsync=off"]).unwrap();
    server.put("tls.crt", made.pem().as_bytes()).unwrap();
    server
        .put("tls.key", key.serialize_pem().as_bytes())
        .unwrap();
    let dir = server.socket_dir().display().to_string();
    server.configure(&[
        "ssl=on",
        &format!("ssl_cert_file={dir}/tls.crt"),
        &format!("ssl_key_file={dir}/tls.key"),
    ]);
    let hba = server.data().join("pg_hba.conf");
    std::fs::write(
        &hba,
        "hostssl all all 127.0.0.1/32 scram-sha-256\nhostnossl all all 127.0.0.1/32 reject\n",
    )
    .unwrap();
    server.kill();
    server.run().unwrap();

    let mut settings_of = config(server.port());
    settings_of.tls = Tls::Verify;
    settings_of.ca_pem = Some(made.pem());
    let place = Place::new(settings_of.clone(), PostgresServer::PASSWORD).await;
    let credential = credential(settings(&[CREATE]));
    let (holder, lease) = place.made(&credential).await;
    assert_eq!(holder.0["sslmode"], "verify-full");
    assert!(holder.gets_in(&server));
    place.engine.revoke(&lease).await.unwrap();

    // Of another authority, for another name, and without TLS.
    let other = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let other = other
        .self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap();
    let mut stranger = settings_of.clone();
    stranger.ca_pem = Some(other.pem());
    let mut name = settings_of.clone();
    name.host = "localhost".to_owned();
    let mut plain = settings_of.clone();
    plain.tls = Tls::Off;
    for wrong in [stranger, name, plain] {
        let place = Place::new(wrong, PostgresServer::PASSWORD).await;
        let (_, lease) = place.issue(&credential, &evidence("x")).await.unwrap();
        let refused = place
            .engine
            .create(&credential, &lease)
            .await
            .err()
            .unwrap();
        assert_eq!(refused.code(), mayfly_wire::Code::Unavailable, "{refused}");
    }
    assert_eq!(roles(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_grants_on_the_same_table_do_not_disturb_each_other() {
    let server = PostgresServer::start(&["fsync=off"]).unwrap();
    server.psql("CREATE TABLE t (n int)").unwrap();
    // No lock that a workload can take is in the way of those who try again.
    let mut thief = Input::of(&server, PostgresServer::ROOT, PostgresServer::PASSWORD);
    thief.say("SELECT pg_advisory_lock(1835104614, 1886352244);");
    let place = std::sync::Arc::new(Place::at(&server).await);
    let credential = credential(settings(&[CREATE, "GRANT SELECT ON t TO {{name}}"]));
    let tasks: Vec<_> = (0..40)
        .map(|_| {
            let (place, credential) = (place.clone(), credential.clone());
            tokio::spawn(async move {
                let (_, lease) = place.made(&credential).await;
                place.engine.revoke(&lease).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(roles(&server), 0);
}

pub fn roles(server: &PostgresServer) -> usize {
    let count = server.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'mf\\_%'");
    count.unwrap().parse().unwrap()
}
