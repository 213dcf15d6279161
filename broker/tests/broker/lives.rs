//! How leases live and end: with their workload, their node, their broker, their policy.

use crate::harness::*;
use mayfly_wire::audit::Event;
use mayfly_wire::link::{Heartbeat, NodeEvent};
use mayfly_wire::session::ServerMessage;
use mayfly_wire::{Code, Evidence};
use std::time::{Duration, Instant};

fn ended(wanted: &'static str) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Ended { reason, .. } if reason == wanted)
}

#[tokio::test]
async fn a_death_ends_leases_and_sessions_at_once() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    let evidence = evidence("orders", 1);
    let mut client = world.connect(&evidence).await.unwrap();
    client.bundle().await;
    let start = Instant::now();
    let died = NodeEvent::Died {
        workload: evidence.workload.clone(),
    };
    world.broker.nodes.event(NODE, died.clone()).await.unwrap();
    println!("death to lease end: {:?}", start.elapsed());
    assert!(
        world
            .broker
            .door
            .leases(&ROOT, &ALL)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(client.next().await.is_none());
    world
        .until(|event| matches!(event, Event::Died { .. }))
        .await;
    world.until(ended("died")).await;
    // Whoever was still on the way in gets nothing, and a second report changes nothing.
    assert_eq!(code(world.connect(&evidence).await), Code::NotAttested);
    world.broker.nodes.event(NODE, died).await.unwrap();
    let deaths = world
        .records()
        .into_iter()
        .filter(|e| matches!(e, Event::Died { .. }))
        .count();
    assert_eq!(deaths, 1);
}

#[tokio::test]
async fn a_restart_keeps_leases_and_asks_the_node_to_watch() {
    let dir = Dir::new();
    let first = World::open(&dir.0).await;
    first.put("orders/db", "sesame").await;
    first.apply(two_services()).await;
    let evidence = evidence("orders", 1);
    let mut client = first.connect(&evidence).await.unwrap();
    let before = client.bundle().await;
    first.stop().await;
    assert!(client.next().await.is_none());

    let second = World::open(&dir.0).await;
    let watched = second.heartbeat(true).await;
    assert!(watched.len() == 1 && watched[0] == evidence.workload);
    assert!(second.heartbeat(false).await.is_empty());
    let mut client = second.connect(&evidence).await.unwrap();
    let after = client.bundle().await;
    assert_eq!(after.credentials[0].lease, before.credentials[0].lease);
    let again = |event: &Event| matches!(event, Event::Issued { again: true, .. });
    second.until(again).await;
    assert_eq!(
        second.broker.door.leases(&ROOT, &ALL).await.unwrap().len(),
        1
    );

    // The host was booted anew: what ran on it is dead.
    let booted = Heartbeat {
        node: NODE.into(),
        boot_id: "other".into(),
        starting: true,
    };
    let watch = second.broker.nodes.heartbeat(NODE, booted).await.unwrap();
    assert!(watch.workloads.is_empty());
    second.until(ended("died")).await;
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn leases_go_on_while_their_node_lives_and_tokens_are_replaced() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world
        .apply(desired(
            vec![kv("orders-db", "orders/db", 9), jwt("token", 9)],
            &[permit("orders-db", "orders"), permit("token", "web")],
        ))
        .await;
    world.heartbeat(true).await;
    let mut orders = world.connect(&evidence("orders", 1)).await.unwrap();
    let mut web = world.connect(&evidence("web", 2)).await.unwrap();
    let silent = Evidence {
        node: "n2".into(),
        ..evidence("orders", 3)
    };
    let (_, public) = mayfly_wire::sealed::generate();
    let request = request(&silent, None, false, public);
    let mut lost = world.broker.nodes.session("n2", request).await.unwrap();

    let (kept, token) = (orders.bundle().await, web.bundle().await);
    let (longer, next) = (orders.bundle().await, web.bundle().await);
    assert_eq!(longer.credentials[0].lease, kept.credentials[0].lease);
    assert!(longer.credentials[0].expires_at > kept.credentials[0].expires_at + 5000);
    assert_ne!(next.credentials[0].lease, token.credentials[0].lease);
    assert_ne!(web.open(&next), web.open(&token));
    world.until(ended("replaced")).await;

    // A node that was never heard of: its lease ends at its own expiry.
    world.until(ended("expired")).await;
    let mut last = None;
    while let Ok(message) = lost.down.try_recv() {
        last = Some(message);
    }
    assert!(last.is_some());
    let names: Vec<_> = world.broker.door.leases(&ROOT, &ALL).await.unwrap();
    assert!(
        names
            .iter()
            .filter(|lease| lease.workload == silent.workload)
            .count()
            <= 1
    );
}

#[tokio::test]
async fn a_policy_that_goes_takes_what_it_granted() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.put("web/key", "thyme").await;
    let both = desired(
        two_services().credentials,
        &[permit("orders-db", "orders"), permit("web-key", "orders")],
    );
    world.apply(both).await;
    let mut client = world.connect(&evidence("orders", 1)).await.unwrap();
    assert_eq!(client.bundle().await.credentials.len(), 2);

    let plan = world.apply(two_services()).await;
    assert_eq!(plan.changes.len(), 2);
    assert_eq!(plan.changes[0].leases, 1, "{plan:?}");
    let message = client.next().await.unwrap();
    let ServerMessage::Withdraw { names } = message else {
        panic!("found {message:?}")
    };
    assert_eq!(names[0].as_str(), "web-key");
    let bundle = client.bundle().await;
    assert_eq!((bundle.generation, bundle.credentials.len()), (2, 1));
    world.until(ended("withdrawn")).await;

    // A session less: what no session holds is looked at too.
    drop(client);
    world.apply(desired(two_services().credentials, &[])).await;
    let door = &world.broker.door;
    assert_eq!(door.leases(&ROOT, &ALL).await.unwrap().len(), 1);
    door.judge_anew();
    let limit = Instant::now() + Duration::from_secs(20);
    while !door.leases(&ROOT, &ALL).await.unwrap().is_empty() {
        assert!(Instant::now() < limit, "it has its lease still");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn when_nothing_is_left_the_session_ends() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    let mut client = world.connect(&evidence("orders", 1)).await.unwrap();
    client.bundle().await;
    world.apply(desired(Vec::new(), &[])).await;
    assert!(matches!(
        client.next().await,
        Some(ServerMessage::Withdraw { .. })
    ));
    let last = client.next().await;
    assert!(matches!(last, Some(ServerMessage::Refused(refusal)) if refusal.code == Code::Denied));
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn a_node_speaks_for_itself_alone() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    let evidence = evidence("orders", 1);
    let mut client = world.connect(&evidence).await.unwrap();
    client.bundle().await;
    let nodes = &world.broker.nodes;
    let (_, public) = mayfly_wire::sealed::generate();
    let stolen = nodes
        .session("thief", request(&evidence, None, false, public))
        .await;
    assert_eq!(code(stolen), Code::NotAttested);
    assert_eq!(
        code(nodes.granted("thief", &evidence).await),
        Code::NotAttested
    );
    let died = NodeEvent::Died {
        workload: evidence.workload.clone(),
    };
    assert_eq!(code(nodes.event("thief", died).await), Code::NotAttested);
    let beat = Heartbeat {
        node: NODE.into(),
        boot_id: "other".into(),
        starting: true,
    };
    assert_eq!(
        code(nodes.heartbeat("thief", beat).await),
        Code::NotAttested
    );
    assert_eq!(
        world.broker.door.leases(&ROOT, &ALL).await.unwrap().len(),
        1
    );
    let refused =
        |event: &Event| matches!(event, Event::NodeRefused { node, .. } if node == "thief");
    assert_eq!(
        world
            .records()
            .iter()
            .filter(|event| refused(event))
            .count(),
        4
    );
}
