//! Deaths are told, once each and soon.

use std::time::{Duration, Instant};

use super::harness::{Node, SOON, container, dies, runtime};
use mayfly_node::death::DeathWatch;
use mayfly_wire::link::Watched;
use mayfly_wire::{Facility, WorkloadKey};
use tokio::sync::mpsc::UnboundedReceiver;

async fn told(dead: &mut UnboundedReceiver<WorkloadKey>) -> Option<WorkloadKey> {
    tokio::time::timeout(SOON, dead.recv()).await.ok().flatten()
}

async fn silent(dead: &mut UnboundedReceiver<WorkloadKey>) -> bool {
    tokio::time::timeout(Duration::from_millis(50), dead.recv())
        .await
        .is_err()
}

#[test]
fn a_death_is_told_once_and_soon() {
    runtime().block_on(async {
        let node = Node::new(&[]);
        let (watch, mut dead) = DeathWatch::new();
        let mut times = Vec::new();
        for _ in 0..20 {
            let (_cgroup, mut process) = container("mortal");
            let (_stream, peer) = node.connected(&mut process);
            let attested = node.attestor.attest(&peer).await.unwrap();
            let key = attested.death.workload().clone();
            assert_eq!(key, attested.evidence.workload);
            watch.watch(attested.death);
            watch.watch(node.attestor.attest(&peer).await.unwrap().death);
            assert_eq!(watch.len(), 1);
            assert!(silent(&mut dead).await);
            let pidfd = mayfly_kernel::pidfd::Pidfd::open(peer.pid()).unwrap();
            let start = Instant::now();
            pidfd.send_signal(9).unwrap();
            assert_eq!(told(&mut dead).await, Some(key));
            times.push(start.elapsed());
            assert!(watch.is_empty());
        }
        assert!(silent(&mut dead).await);
        times.sort();
        println!("kill to told: median {:?}, most {:?}", times[10], times[19]);
    });
}

#[test]
fn a_workload_is_found_again_after_the_node_was_started_anew() {
    runtime().block_on(async {
        let before = Node::new(&[]);
        let (_cgroup, mut process) = container("resumed");
        let (_stream, peer) = before.connected(&mut process);
        let evidence = before.attestor.attest(&peer).await.unwrap().evidence;
        let good = Watched {
            workload: evidence.workload.clone(),
            init_pid: evidence.init_pid,
            init_start_time: evidence.init_start_time,
        };
        let node = Node::new(&[]);
        let (watch, mut dead) = DeathWatch::new();
        watch.resume(&node.attestor, &good);
        watch.resume(&node.attestor, &good);
        assert!(silent(&mut dead).await);
        assert_eq!(watch.len(), 1);
        // Whatever does not fit is dead.
        let other = |change: fn(&mut Watched)| {
            let mut other = good.clone();
            change(&mut other);
            other
        };
        for wrong in [
            other(|it| it.workload.boot_id.push('0')),
            other(|it| it.workload.cgroup_id += 1),
            other(|it| it.workload.pidns_id += 1),
        ] {
            watch.resume(&node.attestor, &wrong);
            assert_eq!(told(&mut dead).await, Some(wrong.workload));
        }
        watch.unwatch(&good.workload);
        for wrong in [
            other(|it| it.init_start_time += 1),
            other(|it| it.init_pid = std::process::id()),
            other(|it| it.init_pid = u32::MAX),
        ] {
            watch.resume(&node.attestor, &wrong);
            assert_eq!(told(&mut dead).await, Some(wrong.workload));
        }
        watch.resume(&node.attestor, &good);
        assert!(silent(&mut dead).await);
        process.kill();
        assert_eq!(told(&mut dead).await, Some(good.workload.clone()));
        watch.resume(&node.attestor, &good);
        assert_eq!(told(&mut dead).await, Some(good.workload));
    });
}

/// Such as one that only asked who it is.
#[test]
fn nothing_is_kept_of_who_died_unwatched() {
    let node = Node::new(&[Facility::NsGetId]);
    let (_cgroup, mut process) = container("unwatched");
    let (_stream, peer) = node.connected(&mut process);
    drop(node.attest(&peer).unwrap());
    let keeps = || !format!("{:?}", node.attestor).contains("bare: {}");
    node.attestor.let_go_of_the_dead();
    assert!(keeps(), "it lives");
    process.kill();
    dies(&peer);
    assert!(keeps());
    node.attestor.let_go_of_the_dead();
    assert!(!keeps());
}
