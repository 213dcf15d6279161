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
    assert!((900..2500).contains(&waited.as_millis()), "{waited:?}");
    // Nobody else waits for it.
    let from = Instant::now();
    let mut second = world.connect(2).await.unwrap();
    assert_eq!(names(&second.bundle().await), ["key"]);
    assert!(from.elapsed() < Duration::from_millis(500));
    // Nor does a death.
    let from = Instant::now();
    world.died(2).await.unwrap();
    assert!(from.elapsed() < Duration::from_millis(200));

    world.target.creates(Mode::Well);
    let bundle = first.bundle().await;
    assert_eq!(names(&bundle), ["db", "key"]);
    world.settled().await;
    assert_eq!(world.target.accounts().len(), 1);
    assert_eq!(world.target.open.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_down_is_asked_again_until_it_is_up() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    world.target.creates(Mode::Down);
    let from = Instant::now();
    let mut client = world.connect(1).await.unwrap();
    assert_eq!(missing(&client.bundle().await), [("db", Code::Unavailable)]);
    assert!(from.elapsed() < Duration::from_millis(700));
    let failed = world.records().into_iter().filter_map(|event| match event {
        Event::Failed { reason, .. } => Some(reason),
        _ => None,
    });
    assert_eq!(failed.collect::<Vec<_>>(), ["it is down"]);
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
    tokio::time::sleep(Duration::from_millis(100)).await;
    let lease = world.leases().await.remove(0);
    assert_eq!((lease.attempts, lease.problem.as_str()), (1, "it is down"));
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
    assert_eq!(world.target.open.load(Ordering::SeqCst), 1000);
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
