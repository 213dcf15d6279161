//! Holders that want to stay, or to become more than they are.

use crate::place::*;
use crate::roles::roles;
use crate::server::PostgresServer;
use mayfly_broker::engine::Engine as _;
use mayfly_wire::Code;
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::connection::Tls;
use std::time::{Duration, Instant};

/// One that may make things.
fn maker() -> CredentialConfig {
    credential(settings(&[
        CREATE,
        "GRANT CREATE ON SCHEMA public TO {{name}}",
    ]))
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_holders() {
    let server = PostgresServer::start(&["fsync=off"]).unwrap();
    server.psql("CREATE ROLE keeper").unwrap();
    let place = Place::at(&server).await;
    operators_and_functions_that_fit_better_are_not_run(&server, &place).await;
    what_a_role_owns_never_becomes_the_brokers(&server, &place).await;
    only_a_role_that_the_holder_could_have_given_it_to_is_an_heir(&server, &place).await;
    what_is_in_another_database_keeps_nobody_logged_in(&server, &place).await;
    a_lock_of_somebody_else_keeps_nobody_logged_in(&server, &place).await;
    who_owns_the_database_ends_no_text_of_the_brokers(&server).await;
    rights_that_a_statement_took_are_given_back(&server).await;
    sessions_that_the_broker_may_not_end_keep_nobody_logged_in(&server).await;
    a_session_that_cannot_be_interrupted_holds_up_nobody(&server, &place).await;
    a_socket_needs_no_tls(&server).await;
}

/// The server's own operators take an oid on the right, and a numeric; these would fit better.
async fn operators_and_functions_that_fit_better_are_not_run(
    server: &PostgresServer,
    place: &Place,
) {
    let (holder, lease) = place.made(&maker()).await;
    let plant = |sql: &str| {
        let planted = server.psql_as(holder.user(), holder.password(), sql);
        planted.unwrap()
    };
    plant("CREATE TABLE public.ran (who name, what text); GRANT ALL ON public.ran TO PUBLIC");
    for (name, operator, left, right, result, value) in [
        ("unlike", "<>", "oid", "int", "boolean", "true"),
        (
            "times",
            "*",
            "numeric",
            "int",
            "numeric",
            "$1 * 1000::numeric",
        ),
        ("equal", "=", "oid", "int", "boolean", "true"),
        ("greater", ">", "bigint", "smallint", "boolean", "true"),
    ] {
        plant(&format!(
            "CREATE FUNCTION public.{name}({left}, {right}) RETURNS {result} LANGUAGE plpgsql AS \
             $$BEGIN INSERT INTO public.ran VALUES (current_user, '{name}'); RETURN {value}; END$$; \
             CREATE OPERATOR public.{operator} \
             (FUNCTION = public.{name}, LEFTARG = {left}, RIGHTARG = {right})"
        ));
    }
    // What an operator's statement sets is no matter of ours either.
    let careless = credential(settings(&[CREATE, "SET search_path = public, pg_catalog"]));
    let next = place.next_process(config(server.port()));
    for place in [place, &next] {
        let (_, lease) = place.made(&careless).await;
        place.engine.extend(&careless, &lease).await.unwrap();
        place.engine.revoke(&lease).await.unwrap();
    }
    let ran = "SELECT who, what FROM public.ran";
    assert_eq!(server.psql(ran).unwrap(), "");
    // They do run where the path leads to them.
    server.psql("SELECT 1::oid <> 0").unwrap();
    assert_eq!(server.psql(ran).unwrap(), "postgres|unlike");
    plant("DROP OWNED BY CURRENT_USER");
    server
        .psql(&format!(
            "GRANT CREATE ON SCHEMA public TO {}",
            holder.user()
        ))
        .unwrap();
    place.engine.revoke(&lease).await.unwrap();
    assert_eq!(roles(server), 0);
}

async fn what_a_role_owns_never_becomes_the_brokers(server: &PostgresServer, place: &Place) {
    let (holder, lease) = place.made(&maker()).await;
    let name = holder.user();
    server
        .psql_as(
            name,
            holder.password(),
            "CREATE FUNCTION public.become() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS \
             $$BEGIN CREATE ROLE more CREATEROLE; END$$",
        )
        .unwrap();
    for _ in 0..2 {
        let kept = place.engine.revoke(&lease).await.err().unwrap();
        assert_eq!(kept.code(), Code::BadRequest, "{kept}");
        let kept = kept.to_string();
        assert!(
            kept.contains("it owns 1 object(s) in database postgres"),
            "{kept}"
        );
        assert!(!holder.gets_in(server));
    }
    let owner = "SELECT proowner::regrole FROM pg_proc WHERE proname = 'become'";
    assert_eq!(server.psql(owner).unwrap(), name);
    assert!(
        server
            .psql(&format!("SET ROLE {name}; SELECT become()"))
            .is_err()
    );
    server
        .psql(&format!("REASSIGN OWNED BY {name} TO keeper"))
        .unwrap();
    place.engine.revoke(&lease).await.unwrap();
    assert_eq!(roles(server), 0);
}

async fn only_a_role_that_the_holder_could_have_given_it_to_is_an_heir(
    server: &PostgresServer,
    place: &Place,
) {
    let mut settings = settings(&[CREATE, "GRANT CREATE ON SCHEMA public TO {{name}}"]);
    settings.heir = Some(PostgresServer::ROOT.to_owned());
    let (holder, lease) = place.made(&credential(settings)).await;
    let made = "CREATE VIEW public.seen AS SELECT 1";
    server
        .psql_as(holder.user(), holder.password(), made)
        .unwrap();
    let kept = place.engine.revoke(&lease).await.err().unwrap().to_string();
    assert!(kept.contains("expected the heir postgres"), "{kept}");
    assert!(!holder.gets_in(server));
    server.psql("DROP VIEW public.seen").unwrap();
    let name = holder.user();
    server
        .psql(&format!("DROP OWNED BY {name}; DROP ROLE {name}"))
        .unwrap();
    place.engine.revoke(&lease).await.unwrap();
}

async fn what_is_in_another_database_keeps_nobody_logged_in(
    server: &PostgresServer,
    place: &Place,
) {
    let (holder, lease) = place.made(&credential(settings(&[CREATE]))).await;
    let elsewhere = |user: &str, password: &str, sql: &str| {
        let mut psql = server.client(user, password).unwrap();
        let done = psql.args(["-d", "template1", "-c", sql]).status();
        assert!(done.unwrap().success());
    };
    elsewhere(holder.user(), holder.password(), "SELECT lo_create(0)");
    let session = Input::of(server, holder.user(), holder.password());
    let kept = place.engine.revoke(&lease).await.err().unwrap();
    // It is this one's trouble, not the server's.
    assert_eq!(kept.code(), Code::BadRequest, "{kept}");
    assert!(kept.to_string().contains("template1"), "{kept}");
    assert!(!holder.gets_in(server));
    assert!(session.was_ended());
    let clean = format!("DROP OWNED BY {}", holder.user());
    elsewhere(PostgresServer::ROOT, PostgresServer::PASSWORD, &clean);
    place.engine.revoke(&lease).await.unwrap();
    assert_eq!(roles(server), 0);
}

async fn a_lock_of_somebody_else_keeps_nobody_logged_in(server: &PostgresServer, place: &Place) {
    let (holder, lease) = place.made(&credential(settings(&[CREATE]))).await;
    server
        .psql("CREATE ROLE thief LOGIN PASSWORD 't'; CREATE TABLE stolen (n int); ALTER TABLE stolen OWNER TO thief")
        .unwrap();
    let mut thief = Input::of(server, "thief", "t");
    thief.say(&format!(
        "BEGIN; GRANT SELECT ON stolen TO {};",
        holder.user()
    ));
    // Out before the lock has been waited for.
    let revoked = async {
        let kept = place.engine.revoke(&lease).await;
        (kept.err().unwrap(), Instant::now())
    };
    let locked_out = async {
        while holder.gets_in(server) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Instant::now()
    };
    let ((kept, ended), out) = tokio::join!(revoked, locked_out);
    assert!(out < ended, "locked out after {:?}", out - ended);
    assert_eq!(kept.code(), Code::BadRequest, "{kept}");
    // Statements of an operator's own, too.
    let mut own = settings(&[CREATE]);
    own.revoke = vec!["DROP ROLE {{name}}".to_owned()];
    let (other, other_lease) = place.made(&credential(own)).await;
    thief.say(&format!("GRANT SELECT ON stolen TO {};", other.user()));
    let kept = place.engine.revoke(&other_lease).await.err().unwrap();
    assert_eq!(kept.code(), Code::BadRequest, "{kept}");
    assert!(!other.gets_in(server));
    drop(thief);
    for lease in [lease, other_lease] {
        place.engine.revoke(&lease).await.unwrap();
    }
    assert_eq!(roles(server), 0);
}

/// Settings of a database are its owner's, and count for whoever comes there.
async fn who_owns_the_database_ends_no_text_of_the_brokers(server: &PostgresServer) {
    server
        .psql("CREATE ROLE landlord LOGIN PASSWORD 'l'")
        .unwrap();
    server
        .psql("CREATE DATABASE theirs OWNER landlord")
        .unwrap();
    for setting in [
        "standard_conforming_strings = off",
        // As one name, within the double quotes that it is given; \042 is another.
        "search_path = $$x\\042, \\', true); CREATE ROLE mole SUPERUSER; --$$",
    ] {
        let set = format!("ALTER DATABASE theirs SET {setting}");
        server.psql_as("landlord", "l", &set).unwrap();
    }
    let mut there = config(server.port());
    there.database = Some("theirs".to_owned());
    let place = Place::new(there, PostgresServer::PASSWORD).await;
    let made = credential(settings(&[CREATE]));
    let (_, lease) = place.issue(&made, &evidence("x")).await.unwrap();
    place.engine.create(&made, &lease).await.unwrap();
    let moles = "SELECT count(*) FROM pg_roles WHERE rolname = 'mole'";
    assert_eq!(server.psql(moles).unwrap(), "0");
    place.engine.revoke(&lease).await.unwrap();
}

async fn rights_that_a_statement_took_are_given_back(server: &PostgresServer) {
    let mut one = config(server.port());
    one.max_connections = Some(1);
    let place = Place::new(one, PostgresServer::PASSWORD).await;
    for taken in ["SET ROLE keeper", "SET SESSION AUTHORIZATION keeper"] {
        let (_, lease) = place.made(&credential(settings(&[CREATE, taken]))).await;
        // Over the same connection.
        let (_, next) = place.made(&credential(settings(&[CREATE]))).await;
        for lease in [lease, next] {
            place.engine.revoke(&lease).await.unwrap();
        }
    }
}

/// The broker's account lacks `pg_signal_backend`.
async fn sessions_that_the_broker_may_not_end_keep_nobody_logged_in(server: &PostgresServer) {
    server
        .psql("CREATE ROLE weak LOGIN CREATEROLE PASSWORD 'w'")
        .unwrap();
    let mut weak = config(server.port());
    weak.username = "weak".to_owned();
    let place = Place::new(weak, "w").await;
    let (holder, lease) = place.made(&credential(settings(&[CREATE]))).await;
    let mut session = Input::of(server, holder.user(), holder.password());
    session.say("");
    let kept = place.engine.revoke(&lease).await.err().unwrap();
    assert_eq!(kept.code(), Code::BadRequest, "{kept}");
    assert!(!holder.gets_in(server));
    drop(session);
    let began = Instant::now();
    while let Err(kept) = place.engine.revoke(&lease).await {
        assert!(began.elapsed() < Duration::from_secs(30), "{kept}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_session_that_cannot_be_interrupted_holds_up_nobody(
    server: &PostgresServer,
    place: &Place,
) {
    let plain = credential(settings(&[CREATE]));
    let (holder, lease) = place.made(&plain).await;
    let (_, first) = place.made(&plain).await;
    let (_, second) = place.made(&plain).await;
    let mut stubborn = server.client(holder.user(), holder.password()).unwrap();
    let nested = "count(//*[".repeat(8) + "1" + &"])".repeat(8);
    let endless =
        format!("SELECT xpath('{nested}', ('<a>' || repeat('<b/>', 1000) || '</a>')::xml)");
    let mut stubborn = stubborn.args(["-c", &endless]).spawn().unwrap();
    let at_it = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND state = 'active'",
        holder.user()
    );
    let began = Instant::now();
    while server.psql(&at_it).unwrap() != "1" {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "it does not begin"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Its own removal does not wait for ever, and that of another does not wait at all.
    place.engine.revoke(&lease).await.unwrap();
    assert!(!holder.gets_in(server));
    let left =
        "SELECT count(*) FROM pg_stat_activity WHERE usename IS NULL AND query LIKE '%xpath%'";
    assert_eq!(server.psql(left).unwrap(), "1", "it could be interrupted");
    let mut took = Vec::new();
    for other in [first, second] {
        let began = Instant::now();
        place.engine.revoke(&other).await.unwrap();
        took.push(began.elapsed());
    }
    // Whatever else runs may be in the way of one.
    assert!(
        took.iter().min() < Some(&Duration::from_secs(2)),
        "{took:?}"
    );
    stubborn.kill().unwrap();
    stubborn.wait().unwrap();
}

async fn a_socket_needs_no_tls(server: &PostgresServer) {
    let mut local = config(server.port());
    local.host = server.socket_dir().display().to_string();
    local.tls = Tls::Verify;
    let place = Place::new(local, PostgresServer::PASSWORD).await;
    let (holder, lease) = place.made(&credential(settings(&[CREATE]))).await;
    assert!(!holder.0.contains_key("sslmode"));
    assert!(holder.gets_in(server));
    place.engine.revoke(&lease).await.unwrap();
}
