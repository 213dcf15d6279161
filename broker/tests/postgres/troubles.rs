//! A server, or a network, that does not do what it should.

use crate::place::*;
use crate::proxy::Proxy;
use crate::roles::roles;
use crate::server::PostgresServer;
use mayfly_broker::engine::Engine as _;
use mayfly_broker::store::Lease;
use mayfly_wire::Code;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::sleep;

/// Long enough for what had an effect to have it.
const SHORT: Duration = Duration::from_millis(500);

async fn until(what: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < limit, "it did not come to pass");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Has a role made, and gives that up while its statement is on its way.
async fn given_up(place: &Place, proxy: &Proxy, lease: &Lease) {
    let credential = credential(settings(&[CREATE]));
    proxy.hold();
    tokio::select! {
        made = place.engine.create(&credential, lease) => panic!("{made:?}"),
        () = proxy.holds_something() => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_was_given_up_has_no_effect_after_the_revoke() {
    let server = PostgresServer::start(&["fsync=off"]).unwrap();
    let proxy = Proxy::to(server.port()).await;
    let place = Place::new(config(proxy.port), PostgresServer::PASSWORD).await;
    let credential = credential(settings(&[CREATE]));
    place.made(&credential).await;

    // What would happen if nobody revoked it: the statement arrives in the end.
    let (_, first) = place.issue(&credential, &evidence("first")).await.unwrap();
    given_up(&place, &proxy, &first).await;
    assert_eq!(roles(&server), 1);
    proxy.let_go();
    until(|| roles(&server) == 2).await;
    place.engine.revoke(&first).await.unwrap();
    assert_eq!(roles(&server), 1);

    let (_, second) = place.issue(&credential, &evidence("second")).await.unwrap();
    given_up(&place, &proxy, &second).await;
    place.engine.revoke(&second).await.unwrap();
    proxy.let_go();
    sleep(SHORT * 2).await;
    assert_eq!(roles(&server), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_of_an_earlier_process_has_no_effect_after_the_revoke() {
    let server = PostgresServer::start(&["fsync=off"]).unwrap();
    let proxy = Proxy::to(server.port()).await;
    let place = Place::new(config(proxy.port), PostgresServer::PASSWORD).await;
    let credential = credential(settings(&[CREATE]));
    place.made(&credential).await;
    let (_, lease) = place.issue(&credential, &evidence("x")).await.unwrap();
    given_up(&place, &proxy, &lease).await;
    // As far as this one knows, the first process is dead, and its statement is on its way.
    let next = place.next_process(config(server.port()));
    next.engine.revoke(&lease).await.unwrap();
    proxy.let_go();
    sleep(SHORT * 2).await;
    assert_eq!(roles(&server), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_hangs_is_ended_before_its_lease_is_revoked() {
    let server = PostgresServer::start(&["fsync=off"]).unwrap();
    server.psql("CREATE TABLE busy (n int)").unwrap();
    let place = Place::at(&server).await;
    // Longer than a revocation may take.
    let credential = credential(settings(&[CREATE, "SELECT pg_sleep(30), '{{name}}'"]));
    let (_, lease) = place.issue(&credential, &evidence("x")).await.unwrap();
    let sleeps = || {
        let asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        server.psql(asked).unwrap() == "1"
    };
    tokio::select! {
        made = place.engine.create(&credential, &lease) => panic!("{made:?}"),
        () = until(sleeps) => {}
    }
    place.engine.revoke(&lease).await.unwrap();
    assert!(!sleeps());
    assert_eq!(roles(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_used_again() {
    let mut server = PostgresServer::start(&["fsync=off"]).unwrap();
    let place = Place::at(&server).await;
    let credential = credential(settings(&[CREATE]));
    let (_, lease) = place.made(&credential).await;
    server.kill();
    let refused = place.engine.revoke(&lease).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    server.run().unwrap();
    let began = Instant::now();
    while let Err(error) = place.engine.revoke(&lease).await {
        assert!(began.elapsed() < Duration::from_secs(30), "{error}");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(roles(&server), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_accepts_and_never_answers_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let place = Place::new(config(port), "x").await;
    let credential = credential(settings(&[CREATE]));
    let (_, lease) = place.issue(&credential, &evidence("x")).await.unwrap();
    let began = Instant::now();
    let refused = place
        .engine
        .create(&credential, &lease)
        .await
        .err()
        .unwrap();
    assert!(
        refused.to_string().contains("no connection within 5 s"),
        "{refused}"
    );
    assert!(began.elapsed() > Duration::from_secs(4));
    // The next is told at once, but for one that was kept from running until it is tried again.
    let mut said = Vec::new();
    while !said.iter().any(|(at_once, _)| *at_once) {
        assert!(said.len() < 3, "{said:?}");
        let again = Instant::now();
        let refused = place.engine.revoke(&lease).await.err().unwrap().to_string();
        let at_once = refused.contains("next try in") && again.elapsed() < SHORT;
        said.push((at_once, refused));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_an_end_is_not_taken_in() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let message = |kind: u8, body: &[u8]| {
            let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
            [&[kind], &length[..], body].concat()
        };
        // Whoever comes is let in, and each answer is one column with rows that never end.
        let column = [&[0, 1][..], b"x\0", &[0; 18]].concat();
        let row = [&[0, 1, 0, 0, 0x10, 0][..], &[b'7'; 4096]].concat();
        let rows = message(b'D', &row).repeat(16);
        while let Ok((mut client, _)) = listener.accept().await {
            let mut asked = [0; 4096];
            let _ = client.read(&mut asked).await;
            let ready = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
            client.write_all(&ready).await.unwrap();
            let _ = client.read(&mut asked).await;
            let mut sent = client.write_all(&message(b'T', &column)).await;
            while sent.is_ok() {
                sent = client.write_all(&rows).await;
            }
        }
    });
    let place = Place::new(config(port), "x").await;
    let credential = credential(settings(&[CREATE]));
    let (_, lease) = place.issue(&credential, &evidence("x")).await.unwrap();
    let refused = place.engine.create(&credential, &lease).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("beyond all limits"), "{refused}");
}
