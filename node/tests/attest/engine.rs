//! What a container engine says, and when it is not believed.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use super::harness::{Node, Told, container, id_of, unique};
use super::stand_in::{
    DIGEST, EARLIER, Engine, ID, LATER, Says, attested, first_pid, honest, inspected, named,
};
use mayfly_wire::evidence::Settings;
use mayfly_wire::{Assurance, Code};

#[test]
fn metadata_is_bound_and_asked_for_once() {
    let (cgroup, mut told, pid) = named(ID);
    let engine = Engine::new(honest(ID, pid, LATER));
    let node = engine.node();
    let evidence = attested(&node, &mut told);
    assert_eq!(evidence.assurance, Assurance::Inspected);
    assert_eq!(evidence.workload.cgroup_id, id_of(&cgroup));
    let found = evidence.container.clone().unwrap();
    assert_eq!(
        (
            found.engine.as_str(),
            found.id.as_str(),
            found.name.as_str()
        ),
        ("docker", ID, "orders")
    );
    assert_eq!(found.image.config_digest, DIGEST);
    assert_eq!(found.image.reference, "shop/orders:latest");
    assert_eq!(
        found.image.repo_digests.into_iter().collect::<Vec<_>>(),
        ["shop/orders@sha256:bb"]
    );
    assert_eq!(found.compose_service.as_deref(), Some("orders"));
    assert_eq!(
        found.settings,
        Settings {
            privileged: Some(false),
            granted_capabilities: Some(vec!["sys_ptrace".to_owned()]),
            ..Settings::default()
        }
    );
    assert_eq!(evidence.display_name(), "orders");
    let asked = engine.asked();
    // From now on it lies, and nobody asks.
    engine.says(|_| None);
    assert_eq!(attested(&node, &mut told), evidence);
    assert_eq!(engine.asked(), asked);
}

#[test]
fn a_container_without_an_id_in_its_cgroups_name_is_found_among_all() {
    let (cgroup, mut told) = container("nameless");
    let engine = Engine::new(honest(ID, first_pid(&mut told), LATER));
    let evidence = attested(&engine.node(), &mut told);
    assert_eq!(evidence.assurance, Assurance::Inspected);
    assert_eq!(evidence.workload.cgroup_id, id_of(&cgroup));
}

#[test]
fn a_cgroup_named_after_a_victims_id_does_not_get_its_metadata() {
    let (_victims, mut victim, pid) = named(ID);
    let engine = Engine::new(honest(ID, pid, LATER));
    let node = engine.node();
    // Its own cgroup has the name; and one inside of its own.
    let (_own, mut attacker, _) = named(ID);
    let (outer, mut nested) = container("nested");
    let inner = outer.inside(&format!("docker-{ID}.scope"));
    for directory in inner.directories() {
        nested.tell(&format!("move {}", directory.display()));
    }
    for attacker in [&mut attacker, &mut nested] {
        let evidence = attested(&node, attacker);
        assert_eq!(
            (evidence.assurance, &evidence.container),
            (Assurance::Kernel, &None)
        );
    }
    assert_eq!(attested(&node, &mut victim).assurance, Assurance::Inspected);
}

#[test]
fn the_outermost_known_container_wins() {
    const INNER: &str = "bb1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";
    let (outer, mut told, pid) = named(ID);
    let (_victims, mut victim, victims_pid) = named(INNER);
    let (mut one, mut other) = (honest(ID, pid, LATER), honest(INNER, victims_pid, LATER));
    let engine = Engine::new(move |path| one(path).or_else(|| other(path)));
    let node = engine.node();
    assert_eq!(attested(&node, &mut victim).container.unwrap().id, INNER);
    let inner = outer.inside(INNER);
    for directory in inner.directories() {
        told.tell(&format!("move {}", directory.display()));
    }
    let evidence = attested(&node, &mut told);
    assert_eq!(evidence.container.unwrap().id, ID);
    assert_eq!(evidence.workload.cgroup_id, id_of(&outer));
}

/// One that runs inside of it is its own affair.
#[test]
fn a_container_within_a_container_is_the_outer_ones() {
    const INNER: &str = "bb1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";
    let (outer, _told, pid) = named(ID);
    let inner = outer.inside(INNER);
    let namespace = format!("--pid=/proc/{pid}/ns/pid");
    let mut nested = Told::start(&inner, &["nsenter", &namespace, "unshare", "--mount"]);
    let (mut one, mut other) = (
        honest(ID, pid, LATER),
        honest(INNER, first_pid(&mut nested), LATER),
    );
    let engine = Engine::new(move |path| one(path).or_else(|| other(path)));
    let evidence = attested(&engine.node(), &mut nested);
    assert_eq!(evidence.container.unwrap().id, ID);
    assert_eq!(evidence.workload.cgroup_id, id_of(&outer));
    assert_eq!(evidence.companion, None);
}

#[test]
fn an_answer_about_another_container_is_none() {
    let (_cgroup, mut told, pid) = named(ID);
    let other = DIGEST.trim_start_matches("sha256:");
    let engine = Engine::new(move |path| {
        (path == format!("/containers/{ID}/json")).then(|| inspected(other, pid, LATER))
    });
    let evidence = attested(&engine.node(), &mut told);
    assert_eq!(evidence.assurance, Assurance::Kernel);
}

#[test]
fn an_engine_that_lies_or_raves_is_not_believed() {
    let cases: [(&str, Says); 5] = [
        (
            "another id",
            Box::new(|path| {
                path.starts_with("/containers/4")
                    .then(|| inspected(DIGEST, 1, LATER))
            }),
        ),
        ("a stopped container", Box::new(honest(ID, 0, LATER))),
        (
            "our own pid",
            Box::new(honest(ID, std::process::id(), LATER)),
        ),
        ("no such pid", Box::new(honest(ID, 999_999_999, LATER))),
        ("no such container", Box::new(|_| None)),
    ];
    for (what, says) in cases {
        let (_cgroup, mut told, _) = named(ID);
        let engine = Engine::new(says);
        let evidence = attested(&engine.node(), &mut told);
        assert_eq!(
            (evidence.assurance, evidence.container),
            (Assurance::Kernel, None),
            "{what}"
        );
    }
}

#[test]
fn a_container_that_changes_meanwhile_is_not_bound() {
    for later in ["pid", "start", "image", "settings"] {
        let (_cgroup, mut told, pid) = named(ID);
        let mut count = 0;
        let mut usual = honest(ID, pid, LATER);
        let engine = Engine::new(move |path| {
            let answer = usual(path)?;
            count += u32::from(path.ends_with(&format!("{ID}/json")));
            // Every other time, so that no two answers in a row agree.
            Some(match (count % 2 == 0, later) {
                (false, _) => answer,
                (true, "pid") => answer.replace(&format!("\"Pid\":{pid}"), "\"Pid\":0"),
                (true, "start") => answer.replace("2999", "3000"),
                (true, "settings") => answer.replace("\"Privileged\":false", "\"Privileged\":true"),
                (true, _) => answer.replace("sha256:aa", "sha256:ab"),
            })
        });
        let evidence = attested(&engine.node(), &mut told);
        assert_eq!(evidence.assurance, Assurance::Kernel, "{later}");
    }
}

/// A container has died, a process in a cgroup of its name has got its pid, and the engine has not
/// noticed yet.
#[test]
fn a_process_younger_than_its_container_waits_for_the_engine_to_notice() {
    let (_cgroup, mut told, pid) = named(ID);
    let asked = Instant::now();
    let mut usual = honest(ID, pid, EARLIER);
    let engine = Engine::new(move |path| {
        let noticed = asked.elapsed() > Duration::from_millis(500);
        usual(path).filter(|_| !(noticed && path.contains(ID)))
    });
    let node = engine.node();
    assert_eq!(attested(&node, &mut told).assurance, Assurance::Kernel);
    // Or the host's clock was set since, and the engine still says the same.
    engine.says(honest(ID, pid, EARLIER));
    let node = engine.node();
    let start = Instant::now();
    assert_eq!(attested(&node, &mut told).assurance, Assurance::Inspected);
    assert!(start.elapsed() > Duration::from_millis(900));
}

#[test]
fn behind_an_engine_that_gives_no_answer_nobody_passes_for_a_bare_container() {
    for answer in ["{".repeat(100_000), " ".repeat(9 << 20)] {
        let (_cgroup, mut told, _) = named(ID);
        let engine = Engine::new(move |_| Some(answer.clone()));
        refused(&engine.node(), &mut told);
    }
}

fn refused(node: &Node, told: &mut Told) {
    let (_stream, peer) = node.connected(told);
    let error = node.attest(&peer).unwrap_err();
    assert_eq!(error.reason, "engine_unavailable", "{error}");
    assert_eq!(error.code(), Code::Unavailable);
}

#[test]
fn an_engine_that_is_not_there_is_no_engine() {
    let path = std::env::temp_dir().join(unique("absent"));
    let node = Node::with_engines(&[], vec![path.clone()]);
    let (_cgroup, mut told, _) = named(ID);
    // The second time it is not asked.
    for _ in 0..2 {
        assert_eq!(attested(&node, &mut told).assurance, Assurance::Kernel);
    }
    drop(UnixListener::bind(&path).unwrap());
    let node = Node::with_engines(&[], vec![path.clone()]);
    assert_eq!(attested(&node, &mut told).assurance, Assurance::Kernel);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_silent_engine_costs_its_time_a_few_times() {
    let path = std::env::temp_dir().join(unique("silent"));
    let _listener = UnixListener::bind(&path).unwrap();
    let node = Node::with_engines(&[], vec![path.clone()]);
    // The fourth finds it left alone, and so does who comes for another time. All are there before, because
    // it is not left alone for ever.
    let asking = [(1, true), (1, false), (2, true), (3, true), (4, false)];
    let mut containers = asking.map(|(number, _)| named(&format!("{number:064x}")));
    for ((number, asks), (_, told, _)) in asking.into_iter().zip(&mut containers) {
        let start = Instant::now();
        refused(&node, told);
        let took = start.elapsed();
        // It is given two seconds for an answer.
        let most = Duration::from_secs(if asks { 15 } else { 2 });
        assert!(took < most, "{number}: {took:?}");
    }
    std::fs::remove_file(&path).unwrap();
}
