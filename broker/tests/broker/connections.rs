//! Connections, as operators see and set them.

use crate::harness::*;
use mayfly_wire::admin::{ConnectionSecret, Desired, SecretText};
use mayfly_wire::audit::Event;
use mayfly_wire::connection::Tls;
use mayfly_wire::{Code, ConnectionConfig, EngineKind, Secret};

fn shop(host: &str, tls: Tls) -> ConnectionConfig {
    ConnectionConfig {
        name: "shop".parse().unwrap(),
        engine: EngineKind::Postgres,
        host: host.to_owned(),
        port: None,
        username: "mayfly".to_owned(),
        database: None,
        tls,
        ca_pem: None,
        public_host: None,
        max_connections: None,
        scram_iterations: None,
    }
}

fn with(connections: Vec<ConnectionConfig>, policies: &[String]) -> Desired {
    Desired {
        connections,
        ..desired(Vec::new(), policies)
    }
}

fn password(text: &str) -> ConnectionSecret {
    ConnectionSecret {
        password: SecretText::encode(&Secret::from(text.to_owned())),
    }
}

#[tokio::test]
async fn a_password_is_taken_kept_and_never_told() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let name = "shop".parse().unwrap();
    let door = &world.broker.door;
    let early = door.connection_set(&ROOT, &name, &password("x")).await;
    assert_eq!(code(early), Code::NotFound);
    let plan = world
        .apply(with(vec![shop("localhost", Tls::Off)], &[]))
        .await;
    assert_eq!(plan.changes[0].kind, "connection");
    let listed = door.connections(&ROOT).await.unwrap();
    assert!(!listed[0].has_password);
    let empty = door.connection_set(&ROOT, &name, &password("")).await;
    assert_eq!(code(empty), Code::BadRequest);
    let given = password("open sesame");
    let set = door.connection_set(&ROOT, &name, &given).await.unwrap();
    assert!(set.has_password);
    world.stop().await;

    let world = World::open(&dir.0).await;
    let listed = world.broker.door.connections(&ROOT).await.unwrap();
    assert!(listed[0].has_password, "it stands after a restart");
    let records = world.records();
    let acts = records.iter().filter(
        |event| matches!(event, Event::Operator { action, allowed: true, .. } if action == "connection.set"),
    );
    assert_eq!(acts.count(), 1, "the empty one was refused before");
    let files = ["store.db", "store.db-wal", "audit.jsonl"];
    for file in files.map(|file| dir.0.join("state").join(file)) {
        let bytes = std::fs::read(&file).unwrap_or_default();
        let found = bytes.windows(11).any(|bytes| bytes == b"open sesame");
        assert!(!found, "{}", file.display());
    }
}

#[tokio::test]
async fn setting_one_goes_through_policy() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let forbid = "@id(\"sealed\") forbid (principal is Mayfly::Operator, action == \
                  Mayfly::Action::\"connection_set\", resource) when { resource.engine == \
                  \"postgres\" };";
    let connections = vec![shop("localhost", Tls::Off)];
    world.apply(with(connections, &[forbid.to_owned()])).await;
    let name = "shop".parse().unwrap();
    let given = password("x");
    let set = world.broker.door.connection_set(&ROOT, &name, &given);
    assert_eq!(code(set.await), Code::Denied);
    let listed = world.broker.door.connections(&ROOT).await.unwrap();
    assert!(!listed[0].has_password);
}

#[tokio::test]
async fn a_connection_that_anybody_could_listen_to_is_refused() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let refusal = world
        .try_apply(with(vec![shop("db.example", Tls::Off)], &[]), None)
        .await
        .unwrap_err();
    assert!(
        refusal.message.contains("connection shop: tls: expected"),
        "{}",
        refusal.message
    );
    for host in ["127.0.0.1", "::1", "/run/postgresql"] {
        world.apply(with(vec![shop(host, Tls::Off)], &[])).await;
    }
    world
        .apply(with(vec![shop("db.example", Tls::Verify)], &[]))
        .await;
}
