//! The broker killed at each single step, and the target failing at each: what is left is settled.

use super::fuse::At;
use super::target::{Mode, Target, account};
use super::world::*;
use crate::clock::{Clock, Mark, SystemClock};
use crate::store::{LeaseState, Op};
use crate::testing::TempDir;
use mayfly_wire::Code;
use mayfly_wire::admin::{LeaseFilter, PolicyFile, Revoke, Rotate};
use mayfly_wire::audit::Event;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// As far as something gets: what the end of the broker, or a target that hangs, leaves without an answer
/// is given up.
async fn cut<T>(world: &World, work: impl Future<Output = T>) -> Option<T> {
    let given_up = async {
        let limit = Instant::now() + Duration::from_secs(20);
        while world.fuse.as_ref().is_some_and(|fuse| !fuse.is_blown()) && Instant::now() < limit {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(120)).await;
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = given_up => None,
    }
}

/// Everything that can happen to leases.
async fn live(world: &World) {
    cut(world, world.connect(1)).await;
    cut(world, world.connect(2)).await;
    let rotate = Rotate {
        credentials: vec!["db".parse().unwrap()],
        all: false,
    };
    if let Some(Ok(progress)) = cut(world, world.door.rotate(&ROOT, rotate)).await {
        cut(world, end(progress)).await;
    }
    let revoke = Revoke {
        which: LeaseFilter {
            workload: Some(evidence(2).display_name()),
            ..LeaseFilter::default()
        },
        all: false,
        forget: false,
    };
    if let Some(Ok(progress)) = cut(world, world.door.revoke(&ROOT, revoke)).await {
        cut(world, end(progress)).await;
    }
    cut(world, world.died(1)).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// One run of a broker, from its start until it is killed where it stands.
fn run(
    dir: &Arc<TempDir>,
    target: &Arc<Target>,
    at: Option<At>,
    work: impl AsyncFnOnce(&World),
) -> bool {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (dir, target) = (Arc::clone(dir), Arc::clone(target));
    let blown = runtime.block_on(async {
        let world = World::open(dir, target, Arc::new(SystemClock), at).await;
        work(&world).await;
        world.fuse.as_ref().is_some_and(|fuse| fuse.is_blown())
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    blown
}

async fn begin(world: &World) {
    world.put("key").await;
    world.apply(vec![db("db", 600), kv("key", 600)]).await;
}

/// A broker that starts afterwards, and hears of the dead from their node.
async fn settle(world: &World) {
    world.died(1).await.unwrap();
    world.settled().await;
    let left = world.leases().await;
    let of_the_dead = left.iter().filter(|lease| lease.workload == key(1));
    assert_eq!(of_the_dead.count(), 0);
}

#[test]
fn killed_at_any_commit_everything_is_settled_afterwards() {
    let mut number = 0;
    loop {
        let mut blown = false;
        // Two commits are of the start itself.
        for at in [At::Before(number + 2), At::After(number + 2)] {
            println!("killed {at:?}");
            let (dir, target) = (Arc::new(TempDir::new()), Target::new());
            run(&dir, &target, None, begin);
            blown |= run(&dir, &target, Some(at), live);
            run(&dir, &target, None, settle);
        }
        if !blown {
            break;
        }
        number += 1;
    }
    println!("killed at each of {number} commits");
    assert!(number >= 12, "expected more steps than {number}");
}

#[test]
fn whatever_the_target_does_nothing_is_left_behind() {
    let modes = [Mode::Down, Mode::Refuses, Mode::Hangs, Mode::DoesAndHangs];
    for mode in modes {
        for (creates, revokes) in [(mode, Mode::Well), (Mode::Well, mode), (mode, mode)] {
            println!("creates: {creates:?}, revokes: {revokes:?}");
            let (dir, target) = (Arc::new(TempDir::new()), Target::new());
            run(&dir, &target, None, async |world: &World| {
                begin(world).await;
                world.target.creates(creates);
                world.target.revokes(revokes);
                live(world).await;
            });
            // The broker is killed in the middle of it, and the target comes to itself.
            target.creates(Mode::Well);
            target.revokes(Mode::Well);
            run(&dir, &target, None, settle);
        }
    }
}

/// A broker that ends between a configuration and the leases that it makes anew would otherwise renew
/// them by the settings of before, for as long as their workloads live.
#[test]
fn what_an_apply_left_to_be_done_is_done_at_the_next_start() {
    let (dir, target) = (Arc::new(TempDir::new()), Target::new());
    run(&dir, &target, None, async |world| {
        begin(world).await;
        world.connect(1).await.unwrap().bundle().await;
        let left = Op::MetaPut("anew".into(), br#"{"db":1,"gone":1}"#.to_vec());
        world.store.commit(vec![left]).await.unwrap();
    });
    let before: Vec<_> = target.accounts().into_keys().collect();
    assert_eq!(before.len(), 1);
    run(&dir, &target, None, async |world| {
        let limit = Instant::now() + Duration::from_secs(20);
        let is_done = async || {
            let active = world.leases().await.into_iter().any(|lease| {
                lease.credential.as_str() == "db"
                    && lease.state == LeaseState::Active
                    && !before.contains(&account(&lease.id))
            });
            active && world.store.meta("anew".to_owned()).await.unwrap().is_none()
        };
        while !is_done().await {
            assert!(Instant::now() < limit, "{:#?}", world.leases().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        settle(world).await;
    });
}

/// A clock as it is after somebody set it.
struct Set {
    uptime: u64,
    now: u64,
}

impl Clock for Set {
    fn now_ms(&self) -> u64 {
        self.now
    }

    fn mark(&self) -> Option<Mark> {
        Some(Mark {
            boot_id: "boot".into(),
            uptime: self.uptime,
            now: self.now,
        })
    }
}

/// A lease follows a clock that was set once, though the broker is killed right after that is on disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_leases_follow_the_clock_none_is_longer_for_it() {
    const THEN: u64 = 1_800_000_000_000;
    const LATER: u64 = THEN + 1_000_000_000;
    let (dir, target) = (Arc::new(TempDir::new()), Target::new());
    let open = |uptime, now, at| {
        let clock = Arc::new(Set { uptime, now });
        World::open(Arc::clone(&dir), Arc::clone(&target), clock, at)
    };
    let world = open(0, THEN, None).await;
    world.put("key").await;
    world.apply(vec![kv("key", 600)]).await;
    let want = Some(vec!["key".parse().unwrap()]);
    world.session(1, want, true).await.unwrap();
    assert_eq!(world.leases().await[0].expires_at, THEN + 600_000);
    drop(world);
    let killed = open(200_000, LATER, Some(At::After(1)));
    assert!(timeout(Duration::from_secs(1), killed).await.is_err());
    let world = open(300_000, LATER + 100_000, None).await;
    assert_eq!(world.leases().await[0].expires_at, LATER + 400_000);
}

/// The record names the policies that allow it: of so many it is longer than a record may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_cannot_go_on_record_is_given_to_nobody_and_removed() {
    let world = World::new().await;
    let mut many = desired(vec![db("db", 600), db("db-2", 600)]);
    let policies = (0..2_600).map(|number| {
        format!(
            "@id(\"{number:-<99}\") permit (principal is Mayfly::Workload, action == \
             Mayfly::Action::\"issue\", resource == Mayfly::Credential::\"db\");\n"
        )
    });
    many.policies.push(PolicyFile {
        file: "many.cedar".into(),
        text: policies.collect(),
    });
    world.try_apply(many).await.unwrap();
    let mut client = world.connect(1).await.unwrap();
    let bundle = client.bundle().await;
    assert_eq!(missing(&bundle), [("db", Code::Unavailable)]);
    // What was made beside it is none the worse for it.
    assert_eq!(names(&bundle), ["db-2"]);
    until("both were made", || world.target.made() > 1).await;
    world.settled().await;
    assert_eq!(world.target.accounts().len(), 1);
    let issued = || {
        let events = world.records().into_iter().filter_map(|event| match event {
            Event::Issued { credential, .. } => Some(credential.to_string()),
            _ => None,
        });
        events.collect::<Vec<_>>()
    };
    assert_eq!(issued(), ["db-2"]);
    let ends = world.ends();
    assert!(ends.iter().all(|reason| reason == "never issued") && !ends.is_empty());

    world.apply(vec![db("db", 600), db("db-2", 600)]).await;
    assert_eq!(names(&client.bundle().await), ["db", "db-2"]);
    world.settled().await;
    assert_eq!(issued(), ["db-2", "db"]);
}
