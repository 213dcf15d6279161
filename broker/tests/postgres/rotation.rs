//! Passwords that change: of static users, and the broker's own.

use crate::place::*;
use crate::proxy::Proxy;
use crate::server::PostgresServer;
use mayfly_broker::engine::Engine as _;
use mayfly_broker::store::Source;
use mayfly_wire::admin::CredentialConfig;
use std::time::Duration;
use tokio::time::sleep;

fn fixed(users: &[&str]) -> CredentialConfig {
    let mut settings = settings(&[]);
    settings.fixed = users.iter().map(|user| (*user).to_owned()).collect();
    settings.rotate_every = Some("1h".parse().unwrap());
    credential(settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn static_users_are_taken_over_and_rotated() {
    let server = PostgresServer::start(&["fsync=off", "log_statement=all"]).unwrap();
    server
        .psql("CREATE ROLE reports LOGIN; CREATE ROLE \"odd \"\"one\" LOGIN; CREATE ROLE b LOGIN")
        .unwrap();
    let place = Place::at(&server).await;
    for users in [&["reports"][..], &["odd \"one", "b"]] {
        let mut credential = fixed(users);
        credential.name = users[users.len() - 1].parse().unwrap();
        place.engine.check(&credential).unwrap();
        let (issued, lease) = place.issue(&credential, &evidence("x")).await.unwrap();
        let first = Holder::of(&issued);
        assert!(first.gets_in(&server));
        assert_eq!(lease.source, Source::Shared { version: 1 });
        let due = place.engine.rotates_at(&credential).await.unwrap().unwrap();
        assert_eq!(due, lease.issued_at + 3_600_000);

        assert!(place.engine.rotate(&credential, due).await.unwrap());
        let next = place.next_process(config(server.port()));
        let again = next.engine.reissue(&credential, &lease).await.unwrap();
        assert_eq!(again.source, Source::Shared { version: 2 });
        let second = Holder::of(&again);
        assert!(second.gets_in(&server));
        assert_eq!(first.gets_in(&server), users.len() == 2);
        // Its end takes nothing from the others.
        place.engine.revoke(&lease).await.unwrap();
        assert!(second.gets_in(&server));
        let log = server.log().unwrap();
        assert!(!log.contains(first.password()) && !log.contains(second.password()));
    }
    assert!(
        !place
            .engine
            .rotate(&credential(settings(&[CREATE])), 1)
            .await
            .unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_rotation_nobody_but_the_broker_knows_the_root_password() {
    let mut server = PostgresServer::start(&["fsync=off", "log_statement=all"]).unwrap();
    server
        .psql("CREATE ROLE watcher SUPERUSER LOGIN PASSWORD 'w'")
        .unwrap();
    let place = Place::at(&server).await;
    let credential = credential(settings(&[CREATE]));
    place.made(&credential).await;
    place.engine.rotate_root(&connection(), 1).await.unwrap();
    assert!(server.psql("SELECT 1").is_err());
    let (holder, _) = place.made(&credential).await;
    assert!(holder.gets_in(&server));
    let known = place.connections.password(&connection()).await.unwrap();
    let known = String::from_utf8(known.expose().to_vec()).unwrap();
    assert!(!server.log().unwrap().contains(&known));
    place.engine.rotate_root(&connection(), 1).await.unwrap();
    let after = place.connections.password(&connection()).await.unwrap();
    assert_ne!(after.expose(), known.as_bytes());

    // Interrupted: the server has it, and the broker does not know yet.
    let proxy = Proxy::to(server.port()).await;
    place.connections.configure(&[config(proxy.port)]);
    place.made(&credential).await;
    proxy.hold_answers();
    let (name, old) = (connection(), after.expose().to_vec());
    let old = String::from_utf8(old).unwrap();
    let server_has_it = async {
        while server
            .psql_as(PostgresServer::ROOT, &old, "SELECT 1")
            .is_ok()
        {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        rotated = place.engine.rotate_root(&name, 1) => panic!("{rotated:?}"),
        () = server_has_it => {}
    }
    let next = place.next_process(config(server.port()));
    let (holder, _) = next.made(&credential).await;
    assert!(holder.gets_in(&server));
    let finished = next.connections.password(&connection()).await.unwrap();
    assert_ne!(finished.expose(), after.expose());

    // Interrupted: the server has not heard of it.
    server.kill();
    assert!(next.engine.rotate_root(&connection(), 1).await.is_err());
    server.run().unwrap();
    let last = next.next_process(config(server.port()));
    last.made(&credential).await;
    last.engine.rotate_root(&connection(), 1).await.unwrap();
    last.made(&credential).await;
    let rotated = last.connections.password(&connection()).await.unwrap();
    assert_ne!(rotated.expose(), finished.expose());
}
