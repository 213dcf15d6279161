//! Who gets what, once, and only with a record.

use crate::harness::*;
use mayfly_wire::audit::Event;
use mayfly_wire::session::{Layout, ServerMessage};
use mayfly_wire::{Code, Posture};

#[tokio::test]
async fn each_service_gets_its_own_and_nothing_else() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.put("web/key", "thyme").await;
    world.apply(two_services()).await;
    for (service, name, value) in [
        ("orders", "orders-db", "sesame"),
        ("web", "web-key", "thyme"),
    ] {
        let mut client = world.connect(&evidence(service, 1)).await.unwrap();
        let bundle = client.bundle().await;
        assert_eq!(bundle.generation, 1);
        assert_eq!(bundle.credentials.len(), 1);
        let given = &bundle.credentials[0];
        assert_eq!(given.layout, Layout::Value);
        // Two thirds of ten minutes.
        let renewed_in = given.renews_at - bundle.now;
        assert!((390_000..=400_000).contains(&renewed_in), "{renewed_in}");
        assert_eq!(client.open(&bundle)[&format!("{name}/value")], value);
    }
    let want = Some(vec!["web-key".parse().unwrap()]);
    let other = world.connect_for(&evidence("orders", 1), want, false).await;
    assert_eq!(code(other), Code::Denied);
    let denied = world
        .until(|event| matches!(event, Event::Denied { .. }))
        .await;
    let Event::Denied {
        credential,
        policies,
        ..
    } = denied
    else {
        unreachable!()
    };
    assert_eq!(credential.unwrap().as_str(), "web-key");
    assert!(
        policies.is_empty(),
        "nothing permits it, and nothing forbids it"
    );
    let granted = world
        .broker
        .nodes
        .granted(NODE, &evidence("web", 1))
        .await
        .unwrap();
    assert_eq!(granted.credentials.len(), 1);
}

#[tokio::test]
async fn a_bad_container_is_denied_on_a_record_that_says_why() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    let mut privileged = evidence("orders", 1);
    privileged.init.host_pid_namespace = Some(true);
    privileged.peer.seccomp_mode = None;
    assert_eq!(code(world.connect(&privileged).await), Code::Denied);
    let event = world
        .until(|event| matches!(event, Event::Denied { .. }))
        .await;
    let Event::Denied {
        who,
        credential,
        policies,
    } = event
    else {
        unreachable!()
    };
    assert_eq!((who.name.as_str(), credential), ("shop-orders-1", None));
    assert_eq!(policies, ["baseline-host-pid", "baseline-seccomp"]);

    let name = "orders-db".parse().unwrap();
    let explained = world
        .broker
        .door
        .explain(&ROOT, "shop-orders-1", &name)
        .await
        .unwrap();
    assert!(!explained.allowed);
    let id = privileged.workload.id();
    let short = world.broker.door.explain(&ROOT, &id[..6], &name).await;
    assert_eq!(short.unwrap().summary, explained.summary);
    assert!(
        explained.summary.contains("seccomp filter"),
        "{}",
        explained.summary
    );
    assert!(
        explained
            .decided_by
            .iter()
            .all(|policy| policy.effect == "forbid")
    );

    let nothing = mayfly_wire::Evidence {
        peer: Posture::default(),
        init: Posture::default(),
        ..evidence("orders", 2)
    };
    assert_eq!(code(world.connect(&nothing).await), Code::Denied);
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
async fn requests_at_once_and_again_give_one_lease() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world
        .apply(desired(
            vec![kv("orders-db", "orders/db", 600), jwt("token", 600)],
            &[permit("orders-db", "orders"), permit("token", "orders")],
        ))
        .await;
    let evidence = evidence("orders", 1);
    let connect = async || {
        let mut client = world.connect_for(&evidence, None, true).await.unwrap();
        let bundle = client.bundle().await;
        let opened = client.open(&bundle);
        assert!(client.next().await.is_none(), "a session for once ends");
        (
            bundle.credentials[0].lease.clone(),
            bundle.credentials[1].lease.clone(),
            opened,
        )
    };
    let (a, b, c, d) = tokio::join!(connect(), connect(), connect(), connect());
    assert!(
        a == b && b == c && c == d,
        "the same leases, and the same token"
    );
    assert_eq!(a, connect().await);
    assert_eq!(
        world.broker.door.leases(&ROOT, &ALL).await.unwrap().len(),
        2
    );
    let issued = |wanted: bool| {
        let records = world.records().into_iter();
        let fits = |event: &Event| matches!(event, Event::Issued { again, .. } if *again == wanted);
        records.filter(fits).count()
    };
    assert_eq!((issued(false), issued(true)), (2, 8));
}

#[tokio::test]
async fn what_an_engine_cannot_make_is_missing_until_it_can() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.apply(two_services()).await;
    let mut client = world.connect(&evidence("orders", 1)).await.unwrap();
    let bundle = client.bundle().await;
    assert!(bundle.credentials.is_empty());
    assert_eq!(bundle.missing[0].refusal.code, Code::NotFound);
    world
        .until(|event| matches!(event, Event::Failed { .. }))
        .await;
    world.put("orders/db", "sesame").await;
    let bundle = client.bundle().await;
    assert!(bundle.missing.is_empty());
    assert_eq!(client.open(&bundle)["orders-db/value"], "sesame");
}

#[tokio::test]
async fn a_changed_value_is_pushed_to_its_holders_alone() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.put("web/key", "thyme").await;
    world.apply(two_services()).await;
    let mut orders = world.connect(&evidence("orders", 1)).await.unwrap();
    let mut web = world.connect(&evidence("web", 2)).await.unwrap();
    let first = orders.bundle().await;
    web.bundle().await;
    let start = std::time::Instant::now();
    assert_eq!(world.put("orders/db", "poppy").await, 2);
    let second = orders.bundle().await;
    println!("put to bundle: {:?}", start.elapsed());
    assert_eq!(second.generation, 2);
    assert_eq!(second.credentials[0].lease, first.credentials[0].lease);
    assert_eq!(orders.open(&second)["orders-db/value"], "poppy");
    orders.ack(2).await;
    world
        .until(|event| matches!(event, Event::Acknowledged { generation: 2, .. }))
        .await;
    let pushed = world
        .until(|event| matches!(event, Event::Pushed { version: 2, .. }))
        .await;
    assert!(
        matches!(pushed, Event::Pushed { sessions: 1, .. }),
        "{pushed:?}"
    );
    world
        .until(|event| matches!(event, Event::Renewed { .. }))
        .await;
    assert!(
        web.session.down.try_recv().is_err(),
        "it does not concern the other"
    );
    let (sessions, acknowledged) = world.broker.hub.of(&evidence("orders", 1).workload);
    assert_eq!((sessions, acknowledged), (1, Some(2)));
}

#[tokio::test]
async fn without_a_record_nothing_leaves() {
    let dir = Dir::new();
    let disk = dir.0.join("disk");
    std::fs::create_dir(&disk).unwrap();
    let _mounted = SmallDisk::mount(&disk);
    let audit = format!(
        "[audit]\nfile = {:?}",
        disk.join("audit.jsonl").display().to_string()
    );
    let world = World::with(&dir.0, &audit).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    let filler = disk.join("filler");
    let full = std::fs::write(&filler, vec![0; 1 << 20]);
    assert!(full.is_err(), "the disk must be full for this test");
    // What is left of the last page takes a few records still.
    let mut refused = false;
    for number in 0..100 {
        match world.connect(&evidence("orders", number)).await {
            Ok(_) => {}
            Err(refusal) => {
                assert_eq!(refusal.code, Code::Unavailable);
                refused = true;
                break;
            }
        }
    }
    assert!(refused, "a full disk must stop it");
    let issued = world
        .records()
        .into_iter()
        .filter(|e| matches!(e, Event::Issued { .. }))
        .count();
    std::fs::remove_file(&filler).unwrap();
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let leases = loop {
        match world.broker.door.leases(&ROOT, &ALL).await {
            Ok(leases) => break leases.len(),
            Err(_) if std::time::Instant::now() < limit => {}
            Err(refusal) => panic!("{refusal}"),
        }
    };
    assert_eq!(leases, issued, "a lease for each record, and no other");
}

/// A tmpfs of 64 KiB. Needs root, as the broker does.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path) -> Self {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=64k"))
            .expect("this test mounts a tmpfs and needs root");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_session_that_does_not_drain_is_dropped() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "v0").await;
    world.apply(two_services()).await;
    let mut slow = world.connect(&evidence("orders", 1)).await.unwrap();
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut number = 0;
    while world.broker.hub.count() > 0 {
        number += 1;
        assert!(
            std::time::Instant::now() < limit,
            "it has its session after {number} values that it did not read"
        );
        world.put("orders/db", &format!("v{number}")).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let mut seen = 0;
    while let Some(message) = slow.next().await {
        assert!(matches!(
            message,
            ServerMessage::Hello { .. } | ServerMessage::Bundle(_)
        ));
        seen += 1;
    }
    assert!(seen <= 8, "{seen} messages waited");
}

#[tokio::test]
async fn a_hello_that_makes_no_sense_is_refused() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.apply(two_services()).await;
    let (_, public) = mayfly_wire::sealed::generate();
    let mut bad = request(&evidence("orders", 1), None, false, public);
    bad.hello.protocol = 2;
    assert_eq!(
        code(world.broker.nodes.session(NODE, bad.clone()).await),
        Code::BadRequest
    );
    bad.hello.protocol = 1;
    bad.hello.want = Some(vec!["orders-db".parse().unwrap(); 257]);
    assert_eq!(
        code(world.broker.nodes.session(NODE, bad.clone()).await),
        Code::BadRequest
    );
    bad.hello.want = None;
    bad.hello.public_key = serde_json::from_str("\"AAAA\"").unwrap();
    assert_eq!(
        code(world.broker.nodes.session(NODE, bad).await),
        Code::BadRequest
    );
    let records = world.records();
    assert!(
        !records
            .iter()
            .any(|event| matches!(event, Event::Issued { .. }))
    );
}

/// Prints what a session costs the broker: `make bench` measures it with attestation, this without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cost_of_sessions() {
    const SESSIONS: u64 = 2000;
    const AT_ONCE: u64 = 64;
    let dir = Dir::new();
    let world = std::sync::Arc::new(World::open(&dir.0).await);
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    for round in ["new leases", "the same again"] {
        let start = std::time::Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for part in 0..AT_ONCE {
            let world = std::sync::Arc::clone(&world);
            tasks.spawn(async move {
                for number in (part..SESSIONS).step_by(AT_ONCE as usize) {
                    let evidence = evidence("orders", number);
                    let mut client = world.connect_for(&evidence, None, true).await.unwrap();
                    assert_eq!(client.bundle().await.credentials.len(), 1);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let rate = SESSIONS as f64 / start.elapsed().as_secs_f64();
        println!("sessions with {round}: {rate:.0} a second");
    }
    assert_eq!(world.broker.door.lease_count().await.unwrap(), SESSIONS);
}
