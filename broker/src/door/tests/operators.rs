//! What operators take away and make anew.

use super::target::Mode;
use super::world::*;
use crate::door::lanes::Task;
use crate::engine::EngineError;
use crate::store::Op;
use mayfly_wire::admin::{LeaseFilter, Revoke, Rotate};
use mayfly_wire::audit::Event;
use mayfly_wire::session::ServerMessage;
use mayfly_wire::{Code, Refusal};
use std::time::{Duration, Instant};

fn everything() -> Revoke {
    Revoke {
        which: LeaseFilter::default(),
        all: true,
        forget: false,
    }
}

fn code<T>(result: Result<T, Refusal>) -> Option<Code> {
    result.err().map(|refusal| refusal.code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_revoked_is_lost_until_the_next_session_or_rotation() {
    let world = World::new().await;
    world.put("key").await;
    world.apply(vec![db("db", 600), kv("key", 600)]).await;
    let mut client = world.connect(1).await.unwrap();
    let bundle = client.bundle().await;
    let db = &bundle.credentials[0];
    let revoke = Revoke {
        which: LeaseFilter {
            lease: Some(db.lease.clone()),
            ..LeaseFilter::default()
        },
        all: false,
        forget: false,
    };
    let done = end(world.door.revoke(&ROOT, revoke).await.unwrap()).await;
    assert_eq!((done.done, done.failed, done.total), (1, 0, 1));
    assert!(world.target.accounts().is_empty());
    let message = client.next().await;
    let Some(ServerMessage::Withdraw { names: gone }) = message else {
        panic!("found {message:?}")
    };
    assert_eq!(gone, std::slice::from_ref(&db.name));
    let bundle = client.bundle().await;
    assert_eq!(names(&bundle), ["key"]);
    assert_eq!(missing(&bundle), [("db", Code::Denied)]);
    world.hub.wake_all();
    client.is_quiet(Duration::from_millis(100)).await;
    assert_eq!(world.target.made(), 1);

    let mut next = world.connect(1).await.unwrap();
    assert_eq!(names(&next.bundle().await), ["db", "key"]);
    assert_eq!(names(&client.bundle().await), ["db", "key"]);
    world.settled().await;
    assert_eq!(world.ends(), ["revoked"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_once_is_as_new_as_the_next_session() {
    let world = World::new().await;
    world.put("key").await;
    world.apply(vec![kv("key", 600)]).await;
    let want = || Some(vec!["key".parse().unwrap()]);
    let mut open = world.connect(1).await.unwrap();
    open.bundle().await;
    end(world.door.revoke(&ROOT, everything()).await.unwrap()).await;
    assert_eq!(missing(&open.bundle().await), [("key", Code::Denied)]);
    let mut once = world.session(1, want(), true).await.unwrap();
    assert_eq!(names(&once.bundle().await), ["key"]);
    world.hub.wake_all();
    open.is_quiet(Duration::from_millis(100)).await;
}

/// Whoever types a short name that no workload has must not end the leases of all whose ids begin so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_id_ends_the_leases_of_one_workload_alone() {
    let world = World::new().await;
    world.put("key").await;
    world.apply(vec![kv("key", 600)]).await;
    // Two of seventeen begin with the same of sixteen digits.
    for number in 0..17 {
        world.connect(number).await.unwrap();
    }
    let ids: Vec<String> = (0..17).map(|number| key(number).id()).collect();
    let begins = |digit: &str| ids.iter().filter(|id| id.starts_with(digit)).count();
    let digit = ids
        .iter()
        .map(|id| &id[..1])
        .find(|digit| begins(digit) > 1);
    let of = |asked: &str| Revoke {
        which: LeaseFilter {
            workload: Some(asked.to_owned()),
            ..LeaseFilter::default()
        },
        all: false,
        forget: false,
    };
    let refused = world.door.revoke(&ROOT, of(digit.unwrap())).await;
    assert_eq!(code(refused), Some(Code::Conflict));
    assert_eq!(world.leases().await.len(), 17);
    let done = end(world.door.revoke(&ROOT, of(&ids[0])).await.unwrap()).await;
    assert_eq!((done.done, done.total), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_revoked_by_one_command() {
    let world = World::new().await;
    world.put("key").await;
    world.apply(vec![db("db", 600), kv("key", 600)]).await;
    for number in 0..300 {
        world.connect(number).await.unwrap();
    }
    assert_eq!(world.target.accounts().len(), 300);
    let some = Revoke {
        all: false,
        ..everything()
    };
    assert_eq!(
        code(world.door.revoke(&ROOT, some).await),
        Some(Code::BadRequest)
    );
    let from = Instant::now();
    let done = end(world.door.revoke(&ROOT, everything()).await.unwrap()).await;
    println!("600 leases revoked in {:?}", from.elapsed());
    assert_eq!((done.done, done.failed, done.total), (600, 0, 600));
    assert!(world.target.accounts().is_empty());
    assert!(world.leases().await.is_empty());
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_ended_is_forgotten_on_record() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    world.connect(1).await.unwrap();
    world.target.revokes(Mode::Down);
    let done = end(world.door.revoke(&ROOT, everything()).await.unwrap()).await;
    assert_eq!((done.done, done.failed), (0, 1));
    assert!(done.problems[0].ends_with("it is down"), "{done:?}");
    let stuck = LeaseFilter {
        stuck: true,
        ..LeaseFilter::default()
    };
    assert_eq!(world.door.leases(&ROOT, &stuck).await.unwrap().len(), 1);
    assert_eq!(world.door.stuck_count().await.unwrap(), 1);
    let forget = Revoke {
        which: stuck,
        all: false,
        forget: true,
    };
    let done = end(world.door.revoke(&ROOT, forget).await.unwrap()).await;
    assert_eq!((done.done, done.failed), (1, 0));
    assert!(world.leases().await.is_empty());
    assert_eq!(world.door.stuck_count().await.unwrap(), 0);
    assert_eq!(world.ends(), ["forgotten"]);
    let who = |event: &Event| {
        matches!(event, Event::Operator { operator, action, .. }
            if operator == "uid:0" && action == "lease.forget")
    };
    assert!(world.records().iter().any(who));
}

/// A target that is down is asked a few things only: what waits behind them is stuck as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_target_that_is_down_is_stuck() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    world.connect(1).await.unwrap();
    let lease = world.leases().await.remove(0);
    let lane = world.door.lanes.of(&"shop".parse().unwrap());
    let pass = lane.enter(Task::Upkeep).ok().unwrap();
    let down = async { Err::<(), _>(EngineError::Unavailable("no route".into())) };
    assert!(pass.call(down).await.is_err());
    let later = lease.expires_at;
    let ending = Op::LeaseUpdate(lease.must_end("died", later));
    world.store.commit(vec![ending]).await.unwrap();
    let stuck = LeaseFilter {
        stuck: true,
        ..LeaseFilter::default()
    };
    let told = world.door.leases(&ROOT, &stuck).await.unwrap();
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].attempts, told[0].problem.as_deref()),
        (0, Some("no route"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_leases_of_a_credential_are_made_anew() {
    let world = World::new().await;
    world.put("key").await;
    world.apply(vec![db("db", 600), kv("key", 600)]).await;
    let mut clients = Vec::new();
    for number in 0..50 {
        let mut client = world.connect(number).await.unwrap();
        let generation = client.bundle().await.generation;
        client.ack(generation).await;
        clients.push(client);
    }
    let rotate = |name: &str| Rotate {
        credentials: vec![name.parse().unwrap()],
        all: false,
    };
    let refused = world.door.rotate(&ROOT, rotate("key")).await;
    assert_eq!(code(refused), Some(Code::BadRequest));
    let refused = world.door.rotate(&ROOT, rotate("none")).await;
    assert_eq!(code(refused), Some(Code::NotFound));
    let done = end(world.door.rotate(&ROOT, rotate("db")).await.unwrap()).await;
    assert_eq!((done.done, done.failed, done.total), (50, 0, 50));
    for client in &mut clients {
        let bundle = client.bundle().await;
        assert_eq!(names(&bundle), ["db", "key"]);
        client.ack(bundle.generation).await;
    }
    until("the old ones are gone", || {
        world.target.accounts().len() == 50
    })
    .await;
    world.settled().await;
    assert_eq!(world.target.made(), 100);

    world.target.creates(Mode::Refuses);
    let done = end(world.door.rotate(&ROOT, rotate("db")).await.unwrap()).await;
    assert_eq!((done.done, done.failed), (0, 50));
    world.settled().await;
    assert_eq!(world.target.accounts().len(), 50, "the old ones stay");
}
