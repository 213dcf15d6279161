//! Containers that share with others what usually tells them apart: a pid namespace, or a cgroup of v2.

use super::harness::{Cgroup, NAMESPACES, Node, Told, id_of, pass, receive};
use super::stand_in::{Engine, ID, LATER, attested, first_pid, honest, named};
use mayfly_wire::{Assurance, Facility};

const OTHER: &str = "cc1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";

/// A container in the pid namespace of another.
fn companion(name: &str, pid: u32) -> (Cgroup, Told) {
    let cgroup = Cgroup::new(name);
    let namespace = format!("--pid=/proc/{pid}/ns/pid");
    let words = ["nsenter", &namespace, "unshare", "--mount", "--net"];
    let told = Told::start(&cgroup, &words);
    (cgroup, told)
}

#[test]
fn a_companion_in_a_container_of_its_own_is_named() {
    let (application, mut told, pid) = named(ID);
    let (sidecar, mut companion) = companion(&format!("docker-{OTHER}.scope"), pid);
    let companions_pid = first_pid(&mut companion);
    let (mut one, mut other) = (honest(ID, pid, LATER), honest(OTHER, companions_pid, LATER));
    let engine = Engine::new(move |path| one(path).or_else(|| other(path)));
    let node = engine.node();
    let (_stream, peer) = node.connected(&mut companion);
    let evidence = node.attest(&peer).unwrap().evidence;
    assert_eq!(evidence.container.unwrap().id, ID);
    assert_eq!(evidence.workload.cgroup_id, id_of(&application));
    assert_eq!(evidence.init_pid, pid);
    let found = evidence.companion.unwrap();
    assert_eq!(found.cgroup_id, id_of(&sidecar));
    assert_eq!(found.container.unwrap().id, OTHER);
    // Its own container's first process tells where it began.
    assert_eq!(evidence.own_namespaces, Some(true));
    companion.tell("unshare mount");
    let evidence = node.attest(&peer).unwrap().evidence;
    assert_eq!(evidence.own_namespaces, Some(false));
    // The application itself is the same workload, without a companion.
    let own = attested(&node, &mut told);
    assert_eq!((own.workload, own.companion), (evidence.workload, None));
}

#[test]
fn a_companion_may_not_send_on_a_connection_of_the_container_that_it_serves() {
    let (_application, mut told, pid) = named(ID);
    let (_sidecar, mut companion) = companion("companion", pid);
    let engine = Engine::new(honest(ID, pid, LATER));
    let node = engine.node();
    // Both are known by now: the application by its engine, the companion as none of its containers.
    assert_eq!(attested(&node, &mut told).assurance, Assurance::Inspected);
    assert!(attested(&node, &mut companion).companion.is_some());
    for companions in [false, true] {
        let (from, to) = match companions {
            false => (&mut told, &mut companion),
            true => (&mut companion, &mut told),
        };
        let (stream, peer) = node.connected(from);
        let number = pass(from, to);
        to.tell(&format!(
            "run (sh -c 'printf hello; exec sleep 60' >&{number} 2>/dev/null </dev/null &)"
        ));
        let (_, received) = receive(&stream);
        let refused = node.attestor.check_sender(&peer, &received).unwrap_err();
        assert_eq!(refused.reason, "sender_in_other_container");
    }
}

/// Where a runtime uses cgroups v1 alone, its containers stay in the v2 cgroup of the service that
/// started them: the first that asks has it, and no other is taken for that one.
#[test]
fn a_cgroup_that_containers_share_gives_nobody_anothers_metadata() {
    let service = Cgroup::new("service");
    let mut containers = [ID, OTHER].map(|id| {
        let own = service.inside(id);
        let v1 = own.directories().iter();
        let joined: String = v1
            .filter(|directory| !directory.join("cgroup.events").exists())
            .map(|directory| format!("echo $$ > {}/cgroup.procs; ", directory.display()))
            .collect();
        let joined = format!("{joined} exec \"$@\"");
        let words = [&["sh", "-c", &joined, "sh"][..], &NAMESPACES].concat();
        let mut told = Told::start(&service, &words);
        let pid = first_pid(&mut told);
        (id, told, pid, own)
    });
    let (first, second) = (containers[0].2, containers[1].2);
    let (mut one, mut other) = (honest(ID, first, LATER), honest(OTHER, second, LATER));
    let engine = Engine::new(move |path| match path {
        path if path.starts_with("/containers/json") => {
            Some(format!(r#"[{{"Id":"{ID}"}},{{"Id":"{OTHER}"}}]"#))
        }
        path => one(path).or_else(|| other(path)),
    });
    let node = engine.node();
    let told = containers.iter_mut().map(|(_, told, _, _)| told);
    let outcomes: Vec<_> = told
        .map(|told| {
            let (_stream, peer) = node.connected(told);
            let outcome = node.attest(&peer);
            outcome.map(|attested| attested.evidence.container.map(|found| found.id))
        })
        .collect();
    assert!(
        matches!(&outcomes[0], Ok(Some(id)) if id == ID),
        "{outcomes:?}"
    );
    assert!(
        matches!(&outcomes[1], Err(error) if error.reason == "ambiguous_container"),
        "{outcomes:?}"
    );
    // A node that is told to do without v2 tells them apart by v1.
    let node = Node::with_engines(&[Facility::CgroupV2], vec![engine.path.clone()]);
    for (id, told, _, _) in &mut containers {
        assert_eq!(attested(&node, told).container.unwrap().id, *id);
    }
}
