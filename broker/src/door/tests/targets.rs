//! Targets that hang, are down, or refuse: what they delay, and what they do not.

use super::target::Mode;
use super::world::*;
use crate::door::lock;
use mayfly_wire::Code;
use mayfly_wire::audit::Event;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hangs_delays_its_own_credentials_alone() {
    let world = World::new().await;
    world.put("key").await;
    world.apply(vec![db("db", 600), kv("key", 600)]).await;
    world.target.creates(Mode::Hangs);
    let from = Instant::now();
    let mut first = world.connect(1).await.unwrap();
    let bundle = first.bundle().await;
    assert_eq!(names(&bundle), ["key"]);
    assert_eq!(missing(&bundle), [("db", Code::Unavailable)]);
    let waited = from.elapsed();
    // For a second, and not until the target has had its time.
    assert!((900..8000).contains(&waited.as_millis()), "{waited:?}");
    // Nobody else waits for it, nor does a death; whatever else runs may be in the way of one.
    let mut took = Vec::new();
    for number in 2..5 {
        let from = Instant::now();
        let mut other = world.connect(number).await.unwrap();
        assert_eq!(names(&other.bundle().await), ["key"]);
        let opened = from.elapsed();
        let from = Instant::now();
        world.died(number).await.unwrap();
        took.push((opened, from.elapsed()));
    }
    let (opened, died): (Vec<_>, Vec<_>) = took.into_iter().unzip();
    assert!(
        opened.iter().min() < Some(&Duration::from_millis(500)),
        "{opened:?}"
    );
    assert!(
        died.iter().min() < Some(&Duration::from_millis(200)),
        "{died:?}"
    );

    world.target.creates(Mode::Well);
    let bundle = first.bundle().await;
    assert_eq!(names(&bundle), ["db", "key"]);
    world.settled().await;
    assert_eq!(world.target.accounts().len(), 1);
    assert_eq!(world.target.open.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_down_is_asked_again_until_it_is_up() {
    let mut took: Vec<Duration> = Vec::new();
    let (world, mut client) = loop {
        let world = World::new().await;
        world.apply(vec![db("db", 600)]).await;
        world.target.creates(Mode::Down);
        let from = Instant::now();
        let mut client = world.connect(1).await.unwrap();
        assert_eq!(missing(&client.bundle().await), [("db", Code::Unavailable)]);
        took.push(from.elapsed());
        // Whatever else runs may be in the way of one attempt.
        if took.iter().min() < Some(&Duration::from_millis(700)) {
            break (world, client);
        }
        assert!(took.len() < 3, "{took:?}");
    };
    let failed = world.records().into_iter().filter_map(|event| match event {
        Event::Failed { reason, .. } => Some(reason),
        _ => None,
    });
    let mut failed: Vec<_> = failed.collect();
    failed.dedup();
    assert_eq!(failed, ["it is down"]);
    // A hundred more: they are told at once, and the target is not asked by each.
    let mut others = Vec::new();
    for number in 2..100 {
        others.push(world.connect(number).await.unwrap());
    }
    world.target.creates(Mode::Well);
    assert_eq!(names(&client.bundle().await), ["db"]);
    world.settled().await;
    // What failed was never issued.
    assert!(world.ends().iter().all(|reason| reason == "never issued"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_made_once_waits_and_is_told() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    let want = || Some(vec!["db".parse().unwrap()]);
    world.target.creates(Mode::Hangs);
    let asking = world.session(1, want(), true);
    let well = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        world.target.creates(Mode::Well);
    };
    let (asked, ()) = tokio::join!(asking, well);
    assert_eq!(names(&asked.unwrap().bundle().await), ["db"]);
    world.target.creates(Mode::Refuses);
    let mut refused = world.session(2, want(), true).await.unwrap();
    assert_eq!(missing(&refused.bundle().await), [("db", Code::BadRequest)]);
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_ended_is_tried_until_it_can() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    world.connect(1).await.unwrap();
    world.target.revokes(Mode::Down);
    world.died(1).await.unwrap();
    let limit = Instant::now() + Duration::from_secs(20);
    let mut lease = world.leases().await.remove(0);
    while lease.attempts == 0 {
        assert!(Instant::now() < limit, "never tried");
        tokio::time::sleep(Duration::from_millis(5)).await;
        lease = world.leases().await.remove(0);
    }
    assert_eq!(lease.problem, "it is down");
    assert_eq!(
        (lease.state.as_str(), lease.reason.as_str()),
        ("revoking", "died")
    );
    let told =
        |event: &Event| matches!(event, Event::NotEnded { problem, .. } if problem == "it is down");
    assert!(world.records().iter().any(told));
    assert_eq!(world.target.accounts().len(), 1);
    world.target.revokes(Mode::Well);
    world.settled().await;
    assert_eq!(world.ends(), ["died"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_that_hang_leave_nothing() {
    let world = World::new().await;
    world
        .apply(vec![db("db", 600), db_at("other", "other", 600)])
        .await;
    world.target.creates(Mode::Hangs);
    let mut clients = Vec::new();
    for number in 0..500 {
        let world = &world;
        clients.push(world.connect(number));
    }
    // Two credentials each: a thousand accounts that are never made.
    let clients = crate::door::all(clients).await;
    assert!(clients.iter().all(Result::is_ok));
    until("all of them are asked for", || {
        world.target.open.load(Ordering::SeqCst) == 1000
    })
    .await;
    for number in 0..500 {
        world.died(number).await.unwrap();
    }
    until("the target is asked nothing", || {
        world.target.open.load(Ordering::SeqCst) == 0
    })
    .await;
    world.settled().await;
    assert!(world.leases().await.is_empty() && world.target.accounts().is_empty());
    drop(clients);
    until("every task has ended", || {
        let mut tasks = lock(&world.door.tasks);
        let tasks = tasks.as_mut().unwrap();
        while tasks.try_join_next().is_some() {}
        tasks.is_empty()
    })
    .await;
    until("every session has ended", || world.hub.count() == 0).await;
    // They are free for who comes next.
    world.target.creates(Mode::Well);
    let mut next = world.connect(1000).await.unwrap();
    assert_eq!(names(&next.bundle().await), ["db", "other"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hangs_delays_no_rotation_at_another() {
    let world = World::new().await;
    let both = vec![db("static-a", 600), db_at("static-b", "other", 600)];
    world.apply(both).await;
    world.target.rotates(Mode::Hangs);
    let door = &world.door;
    let rotated = until("it is rotated", || world.target.rotations() > 0);
    let within = async { tokio::time::timeout(Duration::from_secs(8), rotated).await };
    tokio::select! {
        biased;
        done = within => done.expect("expected a rotation at the server that is well"),
        _ = door.rotate_due() => panic!("expected one to hang"),
    }
}

/// As after a broker's start, when everything is due at once: a target has places for some, and the
/// others wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_are_due_at_once_are_all_extended() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    let clients = (0..200).map(|number| world.connect(number));
    let _clients = crate::door::all(clients.collect()).await;
    until("all are made", || world.target.made() == 200).await;
    world.settled().await;
    let leases = world.leases().await;
    world.target.extends(Mode::Hangs);
    let looks = leases.into_iter();
    let looks = looks.map(|lease| world.door.look_at(lease, |_| true, |_| true));
    let looks = crate::door::all(looks.collect());
    let well = async {
        until("its places are taken", || {
            world.target.open.load(Ordering::SeqCst) == 64
        })
        .await;
        world.target.extends(Mode::Well);
    };
    let (looked, ()) = tokio::join!(looks, well);
    let failed = looked.iter().filter(|renewal| renewal.is_err());
    assert_eq!(failed.count(), 0);
}

/// A broker that stops ends what is being made. Who waits for it must not have it made once more beside
/// what is on disk of the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_begun_once_the_door_is_closed() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    world.target.creates(Mode::Hangs);
    let want = || Some(vec!["db".parse().unwrap()]);
    let close = async {
        until("it is being made", || {
            world.target.open.load(Ordering::SeqCst) == 1
        })
        .await;
        world.door.close().await;
    };
    let (asked, ()) = tokio::join!(world.session(1, want(), true), close);
    let bundle = asked.unwrap().bundle().await;
    assert_eq!(missing(&bundle), [("db", Code::Unavailable)]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let failed = |event: &Event| matches!(event, Event::Failed { .. });
    assert!(
        !world.records().iter().any(failed),
        "{:#?}",
        world.records()
    );
    assert_eq!(world.target.open.load(Ordering::SeqCst), 0);
    assert_eq!(
        world.leases().await.len(),
        1,
        "for the next start to settle"
    );
}
