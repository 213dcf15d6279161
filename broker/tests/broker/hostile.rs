//! Callers that give up halfway, nodes that speak for others, containers that keep asking.

use crate::harness::*;
use mayfly_broker::admin::{About, Admin, listen};
use mayfly_broker::config::Config;
use mayfly_broker::run::Options;
use mayfly_wire::admin::Apply;
use mayfly_wire::audit::Event;
use mayfly_wire::link::{NodeEvent, SessionUpdate, Unpublished};
use mayfly_wire::session::ServerMessage;
use mayfly_wire::{Code, CredentialName, Evidence, PublishFailure, PublishFault};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

#[tokio::test]
async fn a_stolen_node_gets_nothing_under_the_key_of_anothers_workload() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world
        .apply(desired(
            vec![jwt("token", 600)],
            &[permit("token", "orders")],
        ))
        .await;
    let evidence = evidence("orders", 1);
    let mut client = world.connect(&evidence).await.unwrap();
    client.bundle().await;
    let forged = Evidence {
        node: "n2".into(),
        ..evidence.clone()
    };
    let (_, public) = mayfly_wire::sealed::generate();
    let request = request(&forged, None, true, public);
    let nodes = &world.broker.nodes;
    world.heartbeat(false).await;
    let stolen = nodes.session("n2", request).await;
    assert_eq!(code(stolen), Code::NotAttested);
    let leases = world.broker.door.leases(&ROOT, &ALL).await.unwrap();
    assert!(leases.len() == 1 && leases[0].workload == evidence.workload);
    let refused = |event: &Event| matches!(event, Event::NodeRefused { node, .. } if node == "n2");
    world.until(refused).await;
}

#[tokio::test]
async fn a_node_that_was_renamed_makes_its_own_leases() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world
        .apply(desired(
            vec![jwt("token", 600)],
            &[permit("token", "orders")],
        ))
        .await;
    let evidence = evidence("orders", 1);
    let mut client = world.connect(&evidence).await.unwrap();
    let before = client.bundle().await;
    drop(client);
    // Nobody has heard of the old name since the broker started.
    let renamed = Evidence {
        node: "n2".into(),
        ..evidence
    };
    let (_, public) = mayfly_wire::sealed::generate();
    let request = request(&renamed, None, true, public);
    world.broker.nodes.session("n2", request).await.unwrap();
    let leases = world.broker.door.leases(&ROOT, &ALL).await.unwrap();
    assert_eq!(leases.len(), 1);
    assert_ne!(leases[0].lease, before.credentials[0].lease);
}

#[tokio::test]
async fn a_death_while_a_lease_is_on_its_way_to_the_disk_ends_it() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    for number in 0..150 {
        let evidence = evidence("orders", number);
        let patience = Duration::from_micros(number * 40);
        // A node does not wait for the answer once its peer is dead.
        let _ = timeout(patience, world.connect(&evidence)).await;
        let workload = evidence.workload.clone();
        let died = NodeEvent::Died { workload };
        world.broker.nodes.event(NODE, died).await.unwrap();
    }
    // What was on its way has had its time, and what came of it is ended.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let leases = world.broker.door.leases(&ROOT, &ALL).await.unwrap().len();
        let sessions = world.broker.hub.count();
        if (leases, sessions) == (0, 0) {
            break;
        }
        assert!(
            Instant::now() < limit,
            "the dead hold {leases} leases and {sessions} sessions"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_worse_process_takes_nothing_from_the_one_that_holds_it() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    let good = evidence("orders", 1);
    let mut client = world.connect(&good).await.unwrap();
    let first = client.bundle().await;
    let mut worse = good.clone();
    worse.peer.seccomp_mode = Some(0);
    assert_eq!(code(world.connect(&worse).await), Code::Denied);
    assert_eq!(
        world.broker.door.leases(&ROOT, &ALL).await.unwrap().len(),
        1
    );
    world.put("orders/db", "poppy").await;
    let second = client.bundle().await;
    assert_eq!(second.credentials[0].lease, first.credentials[0].lease);
    // A container that became worse loses what it holds.
    let mut fallen = good;
    fallen.init.seccomp_mode = Some(0);
    assert_eq!(code(world.connect(&fallen).await), Code::Denied);
    assert!(
        world
            .broker
            .door
            .leases(&ROOT, &ALL)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_container_that_keeps_asking_for_what_it_does_not_get_fills_no_disk() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    let names = (0..255).map(|number| format!("no-{number}"));
    let names = names.chain(["orders-db".to_owned()]);
    let want: Vec<CredentialName> = names.map(|name| name.parse().unwrap()).collect();
    for _ in 0..4 {
        let want = Some(want.clone());
        let asked = world.connect_for(&evidence("orders", 1), want, true).await;
        let bundle = asked.unwrap().bundle().await;
        assert_eq!((bundle.credentials.len(), bundle.missing.len()), (1, 255));
    }
    let records = world.records().into_iter();
    let denied = records.filter(|event| matches!(event, Event::Denied { .. }));
    let denied = denied.count();
    assert!((255..=300).contains(&denied), "{denied} records");
}

#[tokio::test]
async fn an_operator_who_hangs_up_leaves_no_act_halfway() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let socket = dir.0.join("admin/admin.sock");
    let listener = listen(&socket).unwrap();
    let admin = Arc::new(Admin {
        door: Arc::clone(&world.broker.door),
        hub: Arc::clone(&world.broker.hub),
        nodes: Arc::clone(&world.broker.nodes),
        pki: Arc::clone(&world.broker.pki),
        about: About {
            started: Instant::now(),
            state_dir: String::new(),
            embedded_node: None,
            workload_socket: None,
            issuer: String::new(),
        },
    });
    let (stopper, stop) = watch::channel(false);
    let serving = tokio::spawn(admin.serve(listener, stop));
    for number in 0..60 {
        let desired = desired(vec![kv("orders-db", "orders/db", 600 + number)], &[]);
        let body = Apply {
            desired,
            base: None,
        };
        let body = serde_json::to_vec(&body).unwrap();
        let head = format!(
            "POST /v1/apply HTTP/1.1\r\nhost: m\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        tokio::time::sleep(Duration::from_micros(number * 100)).await;
        drop(stream);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    // What stands is what is stored, so another one can take its place.
    world.try_apply(two_services(), None).await.unwrap();
    stopper.send_replace(true);
    serving.await.unwrap();
}

#[tokio::test]
async fn a_loss_of_records_is_accepted_once() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    world.stop().await;
    let state = dir.0.join("state");
    let audit = state.join("audit.jsonl");
    let text = std::fs::read_to_string(&audit).unwrap();
    let first = text.split_inclusive('\n').next().unwrap();
    std::fs::write(&audit, first).unwrap();
    let config = format!("state_dir = {:?}", state.display().to_string());
    let config = Config::parse(&config).unwrap();
    let open = async |accept_audit_loss| {
        let opened = open(&config, Options { accept_audit_loss }).await;
        opened.map(drop).map_err(|error| error.to_string())
    };
    assert!(
        open(false)
            .await
            .unwrap_err()
            .contains("--accept-audit-loss")
    );
    open(true).await.unwrap();
    open(false).await.unwrap();
}

#[tokio::test]
async fn a_sidecar_that_cannot_publish_is_on_record_until_it_can() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.apply(two_services()).await;
    world.put("orders/db", "one").await;
    let orders = evidence("orders", 1);
    let report = |evidence: &Evidence, generation| {
        NodeEvent::PublishFailed(Box::new(Unpublished {
            evidence: evidence.clone(),
            failure: PublishFailure {
                generation,
                code: PublishFault::Symlink,
                detail: "a symlink to \"/etc\"".into(),
            },
        }))
    };
    let failing = async || {
        let known = world.broker.door.workloads(&ROOT).await.unwrap();
        let failing = known.into_iter().filter_map(|known| known.failure);
        failing
            .map(|failure| failure.generation)
            .collect::<Vec<_>>()
    };
    let nodes = &world.broker.nodes;
    let stolen = nodes.event("n2", report(&orders, 0)).await;
    assert_eq!(code(stolen), Code::NotAttested);
    assert!(failing().await.is_empty());

    // Without a session, and so without a lease.
    nodes.event(NODE, report(&orders, 0)).await.unwrap();
    let recorded = |event: &Event| {
        matches!(event, Event::PublishFailed { who, failure }
            if who.workload == orders.workload && failure.code == PublishFault::Symlink)
    };
    assert_eq!(world.records().iter().filter(|e| recorded(e)).count(), 1);
    assert_eq!(failing().await, [0]);

    let mut client = world.connect(&orders).await.unwrap();
    let bundle = client.bundle().await;
    client.ack(bundle.generation).await;
    world
        .until(|event| matches!(event, Event::Acknowledged { .. }))
        .await;
    assert!(failing().await.is_empty());

    // One that keeps reporting does not fill the log, and is heard no longer when it is dead.
    let mut refused = 0;
    for _ in 0..50 {
        let noted = nodes.event(NODE, report(&orders, 1)).await;
        refused += usize::from(matches!(noted, Err(why) if why.code == Code::TooMany));
    }
    assert_eq!(refused, 41);
    assert_eq!(world.records().iter().filter(|e| recorded(e)).count(), 10);
    assert_eq!(failing().await, [1]);
    let died = NodeEvent::Died {
        workload: orders.workload.clone(),
    };
    nodes.event(NODE, died).await.unwrap();
    assert!(failing().await.is_empty());
    let late = nodes.event(NODE, report(&orders, 1)).await;
    assert_eq!(code(late), Code::NotAttested);
}

async fn tell(client: &Client, evidence: &Evidence) {
    let update = SessionUpdate::Changed(Box::new(evidence.clone()));
    client.session.up.send(update).await.unwrap();
}

#[tokio::test]
async fn a_workload_that_becomes_weak_loses_what_it_holds() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.apply(two_services()).await;
    world.put("orders/db", "one").await;
    let good = evidence("orders", 1);
    let mut client = world.connect(&good).await.unwrap();
    client.bundle().await;

    // A change that policy does not mind: nothing is sent, and the latest is known.
    let mut other = good.clone();
    other.init.uid = Some(2000);
    tell(&client, &other).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let known = world.broker.door.workloads(&ROOT).await.unwrap();
        if known[0].evidence.init.uid == Some(2000) {
            break;
        }
        assert!(Instant::now() < deadline, "the new evidence is not known");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(client.session.down.try_recv().is_err());
    assert_eq!(
        world.broker.door.leases(&ROOT, &ALL).await.unwrap().len(),
        1
    );

    let mut weak = good.clone();
    weak.init.effective_capabilities = Some(vec!["sys_admin".into()]);
    tell(&client, &weak).await;
    let names = vec!["orders-db".parse().unwrap()];
    assert_eq!(client.next().await, Some(ServerMessage::Withdraw { names }));
    match client.next().await {
        Some(ServerMessage::Refused(refusal)) => assert_eq!(refusal.code, Code::Denied),
        other => panic!("expected a refusal, found {other:?}"),
    }
    assert!(client.next().await.is_none());
    assert!(
        world
            .broker
            .door
            .leases(&ROOT, &ALL)
            .await
            .unwrap()
            .is_empty()
    );
    let ended =
        |event: &Event| matches!(event, Event::Ended { reason, .. } if reason == "withdrawn");
    world.until(ended).await;
    world
        .until(|event| matches!(event, Event::Denied { policies, .. } if !policies.is_empty()))
        .await;
}

#[tokio::test]
async fn new_evidence_of_another_workload_ends_the_session() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.apply(two_services()).await;
    world.put("orders/db", "one").await;
    world.put("web/key", "two").await;
    let mut client = world.connect(&evidence("orders", 1)).await.unwrap();
    client.bundle().await;
    tell(&client, &evidence("web", 2)).await;
    assert!(client.next().await.is_none());
    let refused = |event: &Event| matches!(event, Event::NodeRefused { refusal, .. } if refusal.reason == "another_node");
    world.until(refused).await;
    let leases = world.broker.door.leases(&ROOT, &ALL).await.unwrap();
    assert!(
        leases
            .iter()
            .all(|lease| lease.credential.as_str() == "orders-db")
    );
}
