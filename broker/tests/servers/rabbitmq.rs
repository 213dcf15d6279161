//! The `rabbitmq` engine against RabbitMQ.

use crate::server::{Kind, Server};
use crate::support::{Held, Place, connection, credential, give, issue, revoke, silent, with_tls};
use mayfly_broker::engine::Engine;
use mayfly_broker::engine::fixed::SetPassword as _;
use mayfly_broker::engine::rabbitmq::Rabbitmq;
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::engine::{RabbitmqPermission, RabbitmqSettings};
use mayfly_wire::{EngineConfig, EngineKind, Secret};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn root(server: &Server, path: &str) -> String {
    server.ask_as_root(path).unwrap()
}

fn queue() -> CredentialConfig {
    let permission = RabbitmqPermission {
        configure: String::new(),
        write: "^orders".to_owned(),
        read: ".*".to_owned(),
    };
    credential(EngineConfig::Rabbitmq(RabbitmqSettings {
        connection: "shop".parse().unwrap(),
        permissions: [("/".to_owned(), permission)].into(),
        tags: vec!["monitoring".to_owned()],
        amqp_port: Some(5999),
    }))
}

fn engine(place: &Place) -> Rabbitmq {
    let (store, keys, connections, clock) = place.parts();
    Rabbitmq::new(store, keys, connections, clock)
}

fn users(server: &Server) -> String {
    root(server, "users?columns=name")
}

fn logs_in(server: &Server, held: &Held) -> bool {
    server
        .ask(held.field("username"), held.field("password"), "whoami")
        .unwrap()
        .ends_with(" 200")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq() {
    let server = Server::start(Kind::Rabbitmq).unwrap();
    let place = Place::new(connection(EngineKind::Rabbitmq, server.port(1))).await;
    a_user_lives_from_create_to_revoke(&server, &engine(&place)).await;
    what_was_given_up_has_no_effect_afterwards(&server, &place).await;
    what_an_earlier_process_left_has_no_effect_afterwards(&server, &place).await;
    what_the_server_refuses_leaves_nothing(&server, &engine(&place)).await;
    the_brokers_own_password_is_rotated(&server, &place).await;
    over_tls(&server).await;
    a_server_that_never_answers_is_told_of_in_time().await;
}

async fn a_user_lives_from_create_to_revoke(server: &Server, engine: &Rabbitmq) {
    let credential = queue();
    engine.check(&credential).unwrap();
    let held = issue(engine, &credential).await;
    let (name, password) = (held.field("username"), held.field("password"));
    assert!(!logs_in(server, &held));
    engine.create(&credential, &held.lease).await.unwrap();
    assert!(logs_in(server, &held));
    assert_eq!(
        held.field("uri"),
        format!("amqp://{name}:{password}@127.0.0.1:5999/%2F")
    );
    assert_eq!(held.field("vhost"), "/");
    let permissions = root(server, &format!("users/{name}/permissions"));
    assert!(
        permissions.contains(r#""write":"^orders""#),
        "{permissions}"
    );
    let stored = root(server, &format!("users/{name}"));
    assert!(!stored.contains(password), "{stored}");
    let again = engine.reissue(&credential, &held.lease).await.unwrap();
    assert_eq!(
        again.fields[&"password".parse().unwrap()].expose(),
        password.as_bytes()
    );

    let mut client = Amqp::connect(server, name, password).unwrap();
    engine.revoke(&held.lease).await.unwrap();
    assert!(!logs_in(server, &held));
    assert!(
        client.is_closed_within(Duration::from_secs(30)),
        "its connection goes on"
    );
    assert!(Amqp::connect(server, name, password).is_err());
    engine.revoke(&held.lease).await.unwrap();
    assert!(!users(server).contains(name));
}

/// As much of AMQP 0-9-1 as logging in takes.
struct Amqp(TcpStream);

impl Amqp {
    fn connect(server: &Server, user: &str, password: &str) -> Result<Self, String> {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port(0))).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
        let mut client = Self(stream);
        client.frame(10)?;
        let short = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let long = |text: &[u8]| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat();
        let response = [b"\0", user.as_bytes(), b"\0", password.as_bytes()].concat();
        let start_ok = [long(b""), short("PLAIN"), long(&response), short("en_US")].concat();
        client.send(11, &start_ok);
        let tune = client.frame(30)?;
        client.send(31, &tune);
        client.send(40, &[short("/"), vec![0, 0]].concat());
        client.frame(41)?;
        Ok(client)
    }

    /// A method of the class `connection`.
    fn send(&mut self, method: u8, arguments: &[u8]) {
        let payload = [&[0, 10, 0, method], arguments].concat();
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&[1, 0, 0][..], &length, &payload, &[0xCE]].concat();
        let _ = self.0.write_all(&frame);
    }

    fn frame(&mut self, method: u8) -> Result<Vec<u8>, String> {
        let read = |stream: &mut TcpStream, length: usize| {
            let mut bytes = vec![0; length];
            let done = stream.read_exact(&mut bytes);
            done.map(|()| bytes).map_err(|error| error.to_string())
        };
        let header = read(&mut self.0, 7)?;
        let length = u32::from_be_bytes(header[3..7].try_into().unwrap());
        let payload = read(&mut self.0, usize::try_from(length).unwrap() + 1)?;
        if payload[..4] != [0, 10, 0, method] {
            return Err(format!("expected method {method}, found {payload:?}"));
        }
        Ok(payload[4..payload.len() - 1].to_vec())
    }

    fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.0.set_read_timeout(Some(limit)).unwrap();
        // Its last words, if it has any, are `connection.close`.
        match self.frame(50) {
            Ok(_) => true,
            Err(error) => error.contains("end of file") || error.contains("fill whole buffer"),
        }
    }
}

async fn what_was_given_up_has_no_effect_afterwards(server: &Server, place: &Place) {
    let (engine, credential) = (engine(place), queue());
    revoke(&engine, &give(&engine, &credential).await.lease).await;
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
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!users(server).contains(held.field("username")));
}

async fn what_an_earlier_process_left_has_no_effect_afterwards(server: &Server, place: &Place) {
    let credential = queue();
    let earlier = engine(place);
    revoke(&earlier, &give(&earlier, &credential).await.lease).await;
    let held = issue(&earlier, &credential).await;
    // A runtime of its own ends with all that it runs, as a process does.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.unwrap();
    let lease = held.lease.clone();
    let other = Arc::new(engine(place));
    let (warm, warm_lease) = (
        Arc::clone(&other),
        give(other.as_ref(), &credential).await.lease,
    );
    runtime
        .spawn(async move { warm.revoke(&warm_lease).await })
        .await
        .unwrap()
        .unwrap();
    server.signal("STOP").unwrap();
    runtime.spawn(async move {
        let _ = other.create(&queue(), &lease).await;
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    runtime.shutdown_background();
    let later = engine(place);
    let ((), ()) = tokio::join!(revoke(&later, &held.lease), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.signal("CONT").unwrap();
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!users(server).contains(held.field("username")));
}

async fn what_the_server_refuses_leaves_nothing(server: &Server, engine: &Rabbitmq) {
    let mut credential = queue();
    let EngineConfig::Rabbitmq(settings) = &mut credential.engine else {
        panic!()
    };
    let permission = settings.permissions.remove("/").unwrap();
    settings
        .permissions
        .insert("a/../%2F?x#y".to_owned(), permission);
    engine.check(&credential).unwrap();
    let held = issue(engine, &credential).await;
    let refused = engine
        .create(&credential, &held.lease)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("vhost"), "{refused}");
    engine.revoke(&held.lease).await.unwrap();
    assert!(!users(server).contains(held.field("username")));
}

async fn the_brokers_own_password_is_rotated(server: &Server, place: &Place) {
    let (engine, name) = (engine(place), "shop".parse().unwrap());
    engine.rotate_root(&name, 0).await.unwrap();
    assert!(root(server, "whoami").ends_with(" 401"));
    let held = give(&engine, &queue()).await;
    revoke(&engine, &held.lease).await;
    let known = Secret::from(Server::PASSWORD.to_owned());
    engine.set_password(&name, "broker", &known).await.unwrap();
    place
        .connections
        .set_password(&name, &known, crate::support::now())
        .await
        .unwrap();
    assert!(root(server, "whoami").ends_with(" 200"));
}

async fn over_tls(server: &Server) {
    let config = with_tls(connection(EngineKind::Rabbitmq, server.port(2)), server);
    let place = Place::new(config).await;
    let engine = engine(&place);
    let held = give(&engine, &queue()).await;
    assert!(held.field("uri").starts_with("amqps://"));
    assert!(logs_in(server, &held));
    revoke(&engine, &held.lease).await;
    assert!(!logs_in(server, &held));
}

async fn a_server_that_never_answers_is_told_of_in_time() {
    let (_listener, port) = silent();
    let place = Place::new(connection(EngineKind::Rabbitmq, port)).await;
    let engine = engine(&place);
    let held = issue(&engine, &queue()).await;
    let began = Instant::now();
    let late = engine
        .create(&queue(), &held.lease)
        .await
        .unwrap_err()
        .to_string();
    assert!(late.contains("no connection within 5 s"), "{late}");
    assert!(began.elapsed() < Duration::from_secs(20));
}
