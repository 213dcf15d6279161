//! Leases from their plan to their end.

use super::target::{Mode, account};
use super::world::*;
use crate::door::lanes::Task;
use crate::store::{LeaseState, Op};
use mayfly_wire::LeaseId;
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::audit::Event;
use mayfly_wire::session::ServerMessage;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_lives_and_dies_with_its_workload() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    let mut client = world.connect(1).await.unwrap();
    let bundle = client.bundle().await;
    assert_eq!(names(&bundle), ["db"]);
    let lease = world.leases().await.remove(0);
    assert_eq!(lease.state, LeaseState::Active);
    let there = world.target.accounts();
    assert_eq!(there, [(account(&lease.id), lease.expires_at)].into());
    // One record, though the session is given a lease that exists when its bundle is made.
    let issued = |event: &&Event| matches!(event, Event::Issued { .. });
    let records = world.records();
    let records: Vec<_> = records.iter().filter(issued).collect();
    assert!(matches!(records[..], [Event::Issued { again: false, .. }]));

    // A session that comes again gets the same, on record as such.
    let mut second = world.connect(1).await.unwrap();
    assert_eq!(second.bundle().await.credentials[0].lease, lease.id);
    assert_eq!(world.target.made(), 1);

    let from = Instant::now();
    world.died(1).await.unwrap();
    until("it is gone", || world.target.accounts().is_empty()).await;
    println!("death to account gone: {:?}", from.elapsed());
    world.settled().await;
    assert_eq!(world.ends(), ["died"]);
    assert!(!world.died(1).await.unwrap(), "nothing is left to die");
    assert!(world.connect(1).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_extended_at_its_target_first() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    world.target.extends(Mode::Down);
    let mut client = world.connect(1).await.unwrap();
    let first = client.bundle().await;
    let lease = world.leases().await.remove(0);
    is_due(&world, &lease.id).await;
    let lane = world.door.lanes.of(&"shop".parse().unwrap());
    until("its target was asked", || !lane.is_prompt()).await;
    // The target did not extend it, so nobody was told that it is longer.
    assert_eq!(world.leases().await[0].expires_at, lease.expires_at);
    world.target.extends(Mode::Well);
    let second = client.bundle().await;
    assert_eq!(second.credentials[0].lease, first.credentials[0].lease);
    let expires_at = second.credentials[0].expires_at;
    assert!(expires_at > lease.expires_at);
    let there = world.target.accounts();
    assert!(there[&account(&lease.id)] >= expires_at);
    world.settled().await;
}

/// Makes a lease due, long before its end.
async fn is_due(world: &World, lease: &LeaseId) {
    let due = Op::LeaseDue(lease.clone(), 0);
    world.store.commit(vec![due]).await.unwrap();
    world.door.hint(0);
}

/// Whoever renews a lease does not end it, so nobody who ends it leaves it to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_lease_does_not_wait_for_its_renewal() {
    let world = World::new().await;
    world.put("key").await;
    world.apply(vec![db("db", 600), kv("key", 600)]).await;
    let mut client = world.connect(1).await.unwrap();
    let lease = client.bundle().await.credentials.remove(0).lease;
    world.target.extends(Mode::Hangs);
    is_due(&world, &lease).await;
    let open = || world.target.open.load(Ordering::SeqCst);
    until("it is being extended", || open() == 1).await;
    world.apply(vec![kv("key", 600)]).await;
    until("it is gone", || world.target.accounts().is_empty()).await;
    assert_eq!(open(), 1, "its renewal hangs still");
    world.target.extends(Mode::Well);
    world.settled().await;
    assert_eq!(world.ends(), ["withdrawn"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_its_longest_a_lease_gives_way_and_goes_once_its_holders_use_the_new() {
    let world = World::new().await;
    let mut config = db("db", 600);
    config.max_ttl_seconds = Some(600);
    config.grace_seconds = Some(6000);
    world.apply(vec![config]).await;
    let mut first = world.connect(1).await.unwrap();
    let mut second = world.connect(1).await.unwrap();
    let old = first.bundle().await;
    first.ack(old.generation).await;
    let generation = second_of(&mut second).await;
    second.ack(generation).await;
    is_due(&world, &old.credentials[0].lease).await;
    let new = first.bundle().await;
    let (old, new) = (&old.credentials[0], &new);
    assert_ne!(new.credentials[0].lease, old.lease);
    let state = |leases: Vec<crate::store::Lease>| {
        let mut states: Vec<_> = leases.iter().map(|lease| lease.state.as_str()).collect();
        states.sort_unstable();
        states
    };
    assert_eq!(state(world.leases().await), ["active", "retiring"]);
    assert_eq!(world.target.accounts().len(), 2);

    // One holder uses the new one, the other has not said so.
    first.ack(new.generation).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let lease = world.store.lease(old.lease.clone()).await.unwrap().unwrap();
    assert_eq!(lease.due_at, old.expires_at, "its grace ends with its life");
    let generation = second_of(&mut second).await;
    second.ack(generation).await;
    until("the old one is gone", || {
        !world.target.accounts().contains_key(&account(&old.lease))
    })
    .await;
    world.settled().await;
    assert_eq!(world.ends(), ["replaced"]);
}

async fn second_of(client: &mut Client) -> u64 {
    client.bundle().await.generation
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_word_from_its_holders_it_goes_when_its_grace_ends() {
    let world = World::new().await;
    let mut config = db("db", 600);
    config.grace_seconds = Some(1);
    world.apply(vec![config]).await;
    let mut client = world.connect(1).await.unwrap();
    let old = client.bundle().await.credentials.remove(0).lease;
    let rotate = mayfly_wire::admin::Rotate {
        credentials: vec!["db".parse().unwrap()],
        all: false,
    };
    let from = Instant::now();
    let done = end(world.door.rotate(&ROOT, rotate).await.unwrap()).await;
    assert_eq!((done.done, done.failed), (1, 0));
    assert_ne!(client.bundle().await.credentials[0].lease, old);
    until("the old one is gone", || {
        !world.target.accounts().contains_key(&account(&old))
    })
    .await;
    assert!(from.elapsed() >= Duration::from_secs(1));
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_shared_is_pushed_to_all_who_hold_it() {
    let world = World::new().await;
    world.apply(vec![db("static-db", 600)]).await;
    let mut one = world.connect(1).await.unwrap();
    let mut two = world.connect(2).await.unwrap();
    let lease = one.bundle().await.credentials.remove(0).lease;
    two.bundle().await;
    let rotate = mayfly_wire::admin::Rotate {
        credentials: Vec::new(),
        all: true,
    };
    let done = end(world.door.rotate(&ROOT, rotate).await.unwrap()).await;
    assert_eq!((done.done, done.total), (1, 1));
    let again = one.bundle().await;
    assert_eq!((again.generation, &again.credentials[0].lease), (2, &lease));
    assert_eq!(two.bundle().await.generation, 2);
    assert_eq!(world.target.made(), 0);
    world.died(1).await.unwrap();
    world.settled().await;
    assert_eq!(world.leases().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_configured_no_longer_is_taken_back() {
    let world = World::new().await;
    world.put("key").await;
    world.apply(vec![db("db", 600), kv("key", 600)]).await;
    let mut client = world.connect(1).await.unwrap();
    assert_eq!(names(&client.bundle().await), ["db", "key"]);
    world.apply(vec![kv("key", 600)]).await;
    let message = client.next().await;
    assert!(matches!(message, Some(ServerMessage::Withdraw { .. })));
    assert_eq!(names(&client.bundle().await), ["key"]);
    until("it is gone", || world.target.accounts().is_empty()).await;
    world.settled().await;
    assert_eq!(world.ends(), ["withdrawn"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_stays_while_leases_have_accounts_there() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    world.connect(1).await.unwrap();
    let mut none = desired(Vec::new());
    none.connections.clear();
    let refused = world.try_apply(none.clone()).await.unwrap_err();
    assert_eq!(refused.code, mayfly_wire::Code::Conflict);
    // Under the same name the accounts would be looked for at another server, and not be found there.
    let mut elsewhere = desired(vec![db("db", 600)]);
    elsewhere.connections[0].host = "127.0.0.2".into();
    let refused = world.try_apply(elsewhere.clone()).await.unwrap_err();
    assert_eq!(refused.code, mayfly_wire::Code::Conflict);
    let mut port = desired(vec![db("db", 600)]);
    port.connections[0].port = Some(5555);
    let refused = world.try_apply(port).await.unwrap_err();
    assert_eq!(refused.code, mayfly_wire::Code::Conflict);

    world.died(1).await.unwrap();
    world.settled().await;
    let kept = [
        Op::MetaPut("connection/shop".into(), vec![1]),
        Op::MetaPut("root/shop".into(), vec![1]),
    ];
    world.store.commit(kept.into()).await.unwrap();
    world.apply(vec![db("db", 601)]).await;
    let password = || world.store.meta("connection/shop".to_owned());
    assert!(password().await.unwrap().is_some(), "it is the same server");
    world.try_apply(elsewhere).await.unwrap();
    assert!(password().await.unwrap().is_none(), "another would be told");
    let begun = world.store.meta("root/shop".to_owned()).await.unwrap();
    assert!(begun.is_none(), "another would be told");
    world.try_apply(none).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_users_are_nobody_elses() {
    use mayfly_wire::admin::EngineConfig;
    let world = World::new().await;
    let fixed = |name: &str, at: &str, users: &[&str]| CredentialConfig {
        engine: EngineConfig::Postgres(
            serde_json::from_value(serde_json::json!({"connection": at, "static": users})).unwrap(),
        ),
        ..db(name, 600)
    };
    let twice = vec![
        fixed("one", "shop", &["app_a", "app_b"]),
        fixed("two", "shop", &["app_b"]),
    ];
    let refused = world.try_apply(desired(twice)).await.unwrap_err();
    assert!(refused.to_string().contains("app_b"), "{refused}");
    let own = vec![fixed("one", "shop", &["broker"])];
    let refused = world.try_apply(desired(own)).await.unwrap_err();
    assert!(refused.to_string().contains("own account"), "{refused}");
    let good = vec![
        fixed("one", "shop", &["app_a"]),
        fixed("two", "other", &["app_a"]),
    ];
    world.try_apply(desired(good)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_that_cannot_be_kept_are_refused() {
    let world = World::new().await;
    for (most, grace, problem) in [
        (Some(599), None, "max_ttl"),
        (None, Some(u64::MAX), "grace"),
    ] {
        let config = CredentialConfig {
            max_ttl_seconds: most,
            grace_seconds: grace,
            ..db("db", 600)
        };
        let refused = world.try_apply(desired(vec![config])).await.unwrap_err();
        assert_eq!(refused.code, mayfly_wire::Code::BadRequest);
        assert!(refused.to_string().contains(problem), "{refused}");
    }
    let config = CredentialConfig {
        max_ttl_seconds: Some(600),
        ..db("db", 600)
    };
    world.try_apply(desired(vec![config])).await.unwrap();
}

/// A lease that can be extended no more and is in no session when it is due is left to end. Who comes back
/// to it before must be given the next one while it is still good, not once it has expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_to_a_lease_that_was_left_to_end_is_given_another() {
    let world = World::new().await;
    let mut config = db("db", 600);
    config.max_ttl_seconds = Some(600);
    world.apply(vec![config]).await;
    let mut client = world.connect(1).await.unwrap();
    let old = client.bundle().await.credentials.remove(0).lease;
    drop(client);
    until("it has no session", || world.hub.count() == 0).await;
    is_due(&world, &old).await;
    loop {
        let lease = world.store.lease(old.clone()).await.unwrap().unwrap();
        if lease.due_at >= lease.expires_at {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut client = world.connect(1).await.unwrap();
    assert_eq!(client.bundle().await.credentials[0].lease, old);
    let next = client.bundle().await;
    assert_ne!(next.credentials[0].lease, old);
    let replaced = world.store.lease(old).await.unwrap().unwrap();
    assert_eq!(replaced.state, LeaseState::Retiring);
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_stays_while_something_is_being_made_there() {
    let world = World::new().await;
    world.apply(vec![db("db", 600)]).await;
    let mut elsewhere = desired(vec![db("db", 600)]);
    elsewhere.connections[0].host = "127.0.0.2".into();
    let lane = world.door.lanes.of(&"shop".parse().unwrap());
    // Of this nothing is on disk yet.
    let making = lane.enter(Task::Create).ok().unwrap();
    let refused = world.try_apply(elsewhere.clone()).await.unwrap_err();
    assert_eq!(refused.code, mayfly_wire::Code::Conflict);
    drop(making);
    world.try_apply(elsewhere).await.unwrap();
    assert!(lane.enter(Task::Create).is_ok());
}

/// What a configuration does not grant any more ends though the broker ended right after it was stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_apply_left_to_be_judged_is_judged_at_the_next_start() {
    let world = World::new().await;
    world.put("key").await;
    world.apply(vec![kv("key", 600)]).await;
    let want = Some(vec!["key".parse().unwrap()]);
    world.session(1, want, true).await.unwrap();
    let mut none = desired(vec![kv("key", 600)]);
    none.policies.clear();
    world.try_apply(none).await.unwrap();
    assert_eq!(world.leases().await.len(), 1);
    world.door.resume().await.unwrap();
    let limit = Instant::now() + Duration::from_secs(20);
    while world
        .store
        .meta("judge".to_owned())
        .await
        .unwrap()
        .is_some()
    {
        assert!(Instant::now() < limit, "never judged");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(world.leases().await.is_empty());
    assert_eq!(world.ends(), ["withdrawn"]);
}
