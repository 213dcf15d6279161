//! Engines with many containers, and containers that an engine stumbles over.

use std::time::{Duration, Instant};

use super::harness::{Node, Told, container};
use super::stand_in::{
    EARLIER, Engine, FAILS, HANGS, ID, LATER, attested, first_pid, honest, inspected, named,
};
use mayfly_wire::Assurance;

/// Another container's id.
fn other(number: usize) -> String {
    format!("{number:064x}")
}

/// The list of an engine's containers, in this order.
fn list(ids: impl Iterator<Item = String>) -> String {
    let ids: Vec<String> = ids.map(|id| format!(r#"{{"Id":"{id}"}}"#)).collect();
    format!("[{}]", ids.join(","))
}

/// Attests it as its sidecar would be, which comes again when the engine is unavailable. Says how
/// often it was told so.
fn at_last(node: &Node, told: &mut Told) -> (Assurance, usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    for times in 0.. {
        let (_stream, peer) = node.connected(told);
        match node.attest(&peer) {
            Ok(attested) => return (attested.evidence.assurance, times),
            Err(error) => assert_eq!(error.reason, "engine_unavailable", "{error}"),
        }
        assert!(Instant::now() < deadline, "unavailable {times} times");
    }
    unreachable!("the deadline ends it")
}

#[test]
fn a_container_behind_many_others_does_not_pass_for_one_without_an_engine() {
    let (_cgroup, mut told) = container("nameless");
    let mut usual = honest(ID, first_pid(&mut told), LATER);
    let engine = Engine::new(move |path| {
        if path.starts_with("/containers/json") {
            let ids = (0..600).map(other).chain([ID.to_owned()]);
            // As Docker does: `limit` counts from the newest.
            let limit = path.split_once("limit=").map(|(_, limit)| limit.parse());
            return Some(list(ids.take(limit.map_or(usize::MAX, Result::unwrap))));
        }
        usual(path)
    });
    assert_eq!(at_last(&engine.node(), &mut told).0, Assurance::Inspected);
}

#[test]
fn a_look_that_takes_too_long_is_no_answer_and_goes_on_the_next_time() {
    let (_cgroup, mut told) = container("nameless");
    let mut usual = honest(ID, first_pid(&mut told), LATER);
    let engine = Engine::new(move |path| {
        if path.starts_with("/containers/json") {
            return Some(list((0..60).map(other).chain([ID.to_owned()])));
        }
        if path.starts_with("/containers/0") {
            std::thread::sleep(Duration::from_millis(50));
        }
        usual(path)
    });
    let (assurance, unavailable) = at_last(&engine.node(), &mut told);
    assert_eq!(assurance, Assurance::Inspected);
    assert!(unavailable >= 1);
}

#[test]
fn a_container_that_starts_right_after_a_look_is_looked_for() {
    let engine = Engine::new(|path| {
        path.starts_with("/containers/json")
            .then(|| "[]".to_owned())
    });
    let node = engine.node();
    let (_bare, mut bare) = container("bare");
    assert_eq!(attested(&node, &mut bare).assurance, Assurance::Kernel);
    let (_cgroup, mut told) = container("nameless");
    engine.says(honest(ID, first_pid(&mut told), LATER));
    assert_eq!(attested(&node, &mut told).assurance, Assurance::Inspected);
}

/// Then all seem younger than their containers.
#[test]
fn after_the_clock_was_set_many_are_still_found_at_once() {
    let mut containers: Vec<_> = (0..4).map(|_| container("nameless")).collect();
    let mut pids = Vec::new();
    for (_, told) in &mut containers {
        pids.push(first_pid(told));
    }
    let mut usual = honest(ID, 0, EARLIER);
    let engine = Engine::new(move |path| {
        if path.starts_with("/containers/json") {
            return Some(list((0..pids.len()).map(other)));
        }
        let mut numbered = pids.iter().enumerate();
        let asked = numbered.find(|(at, _)| path == format!("/containers/{}/json", other(*at)));
        match asked {
            Some((at, pid)) => Some(inspected(&other(at), *pid, EARLIER)),
            None => usual(path),
        }
    });
    let (_, last) = containers.last_mut().unwrap();
    // One after the other, they would take longer than one look may. A node is as quick as in the best of
    // three tries.
    let at_once = (0..3).any(|_| {
        let node = engine.node();
        let start = Instant::now();
        let (assurance, unavailable) = at_last(&node, last);
        assert_eq!(assurance, Assurance::Inspected);
        unavailable == 0 && start.elapsed() < Duration::from_millis(2900)
    });
    assert!(at_once);
}

#[test]
fn a_container_that_an_engine_stumbles_over_does_not_keep_another_out() {
    for stumbles in [FAILS, HANGS] {
        let (_bad, mut bad, _) = named(&other(1));
        let (_cgroup, mut told, pid) = named(ID);
        let mut usual = honest(ID, pid, LATER);
        let engine = Engine::new(move |path| {
            if path.contains(&other(1)) {
                return Some(stumbles.to_owned());
            }
            usual(path)
        });
        let node = engine.node();
        for _ in 0..2 {
            let (_stream, peer) = node.connected(&mut bad);
            let error = node.attest(&peer).unwrap_err();
            assert_eq!(error.reason, "engine_unavailable", "{error}");
        }
        let start = Instant::now();
        assert_eq!(attested(&node, &mut told).assurance, Assurance::Inspected);
        // The time that an answer is waited for.
        assert!(start.elapsed() < Duration::from_secs(2), "{stumbles}");
        // Once the engine has come over it, so has the container.
        engine.says(|path| (path == "/containers/json").then(|| "[]".to_owned()));
        assert_eq!(at_last(&node, &mut bad).0, Assurance::Kernel, "{stumbles}");
    }
}

#[test]
fn connections_of_one_container_ask_about_it_once() {
    let (_cgroup, mut told, pid) = named(ID);
    let mut usual = honest(ID, pid, LATER);
    let engine = Engine::new(move |path| {
        std::thread::sleep(Duration::from_millis(20));
        usual(path)
    });
    let node = engine.node();
    let peers: Vec<_> = (0..10).map(|_| node.connected(&mut told)).collect();
    std::thread::scope(|scope| {
        for (_, peer) in &peers {
            scope.spawn(|| node.attest(peer).unwrap());
        }
    });
    // Twice about the container, once each for the engine's kind and the image.
    assert_eq!(engine.asked(), 4);
}
