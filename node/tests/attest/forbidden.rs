//! What replaces each facility that a kernel may lack is as safe.

use std::collections::HashSet;

use super::harness::{Cgroup, NAMESPACES, Node, Told, container, id_of, receive};
use mayfly_wire::Facility;

/// Each alone, and all at once: the oldest kernel.
fn cases() -> Vec<Vec<Facility>> {
    let alone = Facility::ALL.iter().map(|facility| vec![*facility]);
    alone.chain([Facility::ALL.to_vec()]).collect()
}

#[test]
fn each_facility_has_another_way_that_finds_the_same() {
    let (cgroup, mut told) = container("same");
    let (other, mut stranger) = container("stranger");
    let expected = {
        let node = Node::new(&[]);
        let (_stream, peer) = node.connected(&mut told);
        node.attest(&peer).unwrap().evidence
    };
    for forbidden in cases() {
        let node = Node::new(&forbidden);
        let (_stream, peer) = node.connected(&mut told);
        let evidence = node.attest(&peer).unwrap().evidence;
        let lacking: Vec<Facility> = evidence.lacking.iter().copied().collect();
        assert_eq!(lacking, forbidden);
        assert_eq!(node.attestor.facilities_lacking(), evidence.lacking);
        assert_eq!(evidence.init_pid, expected.init_pid);
        assert_eq!(evidence.init_start_time, expected.init_start_time);
        assert_eq!(evidence.cgroup_path, expected.cgroup_path, "{forbidden:?}");
        assert_eq!(evidence.peer, expected.peer, "{forbidden:?}");
        assert_eq!(evidence.own_namespaces, Some(true));
        let by_v2 = !forbidden.contains(&Facility::CgroupV2);
        assert_eq!(evidence.workload.cgroup_id == id_of(&cgroup), by_v2);
        let by_id = !forbidden.contains(&Facility::NsGetId);
        assert_eq!(
            evidence.workload.pidns_id == expected.workload.pidns_id,
            by_id
        );
        let (_stream, peer) = node.connected(&mut stranger);
        let evidence = node.attest(&peer).unwrap().evidence;
        assert_eq!(evidence.workload.cgroup_id == id_of(&other), by_v2);
        assert_ne!(evidence.init_pid, expected.init_pid);
    }
}

#[test]
fn leaving_its_namespaces_is_seen_without_each() {
    for forbidden in cases() {
        let node = Node::new(&forbidden);
        let (_cgroup, mut told) = container("leaver");
        let (_stream, peer) = node.connected(&mut told);
        let before = node.attest(&peer).unwrap().evidence;
        told.tell("unshare user mount");
        let after = node.attest(&peer).unwrap().evidence;
        assert_eq!(after.own_namespaces, Some(false), "{forbidden:?}");
        assert_eq!(after.workload, before.workload);
    }
}

#[test]
fn a_nested_pid_namespace_is_the_outer_ones_without_each() {
    for forbidden in cases() {
        let node = Node::new(&forbidden);
        let cgroup = Cgroup::new("nested");
        let inner = ["unshare", "--pid", "--fork", "--kill-child"];
        let mut told = Told::start(&cgroup, &[&NAMESPACES[..], &inner].concat());
        let (_stream, peer) = node.connected(&mut told);
        let evidence = node.attest(&peer).unwrap().evidence;
        let first = mayfly_kernel::pidfd::Pidfd::open(evidence.init_pid).unwrap();
        assert_eq!(
            first.pids().unwrap(),
            [evidence.init_pid, 1],
            "{forbidden:?}"
        );
    }
}

/// The kernel uses the inode of a mount namespace that is gone for another one.
#[test]
fn recycled_inodes_fool_nobody() {
    const TRIES: usize = 2000;
    // That this kernel does so at once: leaving a namespace frees its inode, and the next but one has
    // it, unless another process of the machine took it.
    let (_cgroup, mut control) = container("control");
    let mut seen = HashSet::new();
    for _ in 0..TRIES {
        control.tell("recycle 1");
        seen.extend(control.tell("inode mnt"));
    }
    println!("{TRIES} mount namespaces had {} inodes", seen.len());
    assert!(
        seen.len() < TRIES,
        "this kernel does not recycle: the test shows nothing"
    );
    for forbidden in [vec![], vec![Facility::NsGetId], Facility::ALL.to_vec()] {
        let node = Node::new(&forbidden);
        let (_cgroup, mut told) = container("recycler");
        told.tell("recycle 1");
        let (_stream, peer) = node.connected(&mut told);
        assert_eq!(
            node.attest(&peer).unwrap().evidence.own_namespaces,
            Some(true)
        );
        for _ in 0..TRIES / 4 {
            told.tell("recycle 1");
            let after = node.attest(&peer).unwrap().evidence;
            assert_eq!(after.own_namespaces, Some(false), "{forbidden:?}");
        }
        told.tell(&format!("recycle {TRIES}"));
        let after = node.attest(&peer).unwrap().evidence;
        assert_eq!(after.own_namespaces, Some(false), "{forbidden:?}");
    }
}

#[test]
fn without_so_peerpidfd_the_peer_must_echo_a_nonce_itself() {
    let node = Node::new(&[Facility::SoPeerpidfd]);
    let (_cgroup, mut told) = container("nonce");
    let (stream, peer) = node.connecting(&mut told);
    let peer = peer.unwrap();
    let nonce = peer.nonce().unwrap().to_owned();
    assert_eq!(nonce.len(), 32);
    assert_eq!(node.attest(&peer).unwrap_err().reason, "peer_unproven");
    told.tell("send 00000000000000000000000000000000");
    let (text, received) = receive(&stream);
    assert_eq!(
        peer.prove(&text, &received).unwrap_err().reason,
        "peer_unproven"
    );
    // Another process of the same container has the connection, and the nonce.
    told.tell(&format!("spawn printf {nonce}; exec sleep 60"));
    let (text, received) = receive(&stream);
    assert_eq!(
        peer.prove(&text, &received).unwrap_err().reason,
        "peer_unproven"
    );
    assert!(!peer.is_proven());
    told.tell(&format!("send {nonce}"));
    let (text, received) = receive(&stream);
    peer.prove(&text, &received).unwrap();
    assert!(node.attest(&peer).is_ok());
    // No two connections have the same.
    let (_stream, again) = node.connecting(&mut told);
    assert_ne!(again.unwrap().nonce().unwrap(), nonce);
}

/// The connector dies, its child keeps the connection, and someone else gets its pid.
#[test]
fn a_pid_that_is_used_again_gives_nothing_away() {
    for forbidden in [vec![], vec![Facility::SoPeerpidfd], Facility::ALL.to_vec()] {
        let node = Node::new(&forbidden);
        let cgroup = Cgroup::new("attacker");
        let mut attacker = Told::start(&cgroup, &[]);
        attacker.tell(&format!("connect {}", node.path().display()));
        attacker.tell("spawn read nonce < /dev/null; exec sleep 60");
        let pid = attacker.pid();
        attacker.kill();
        let victims = Cgroup::new("victim");
        let victim = Told::with_pid(&victims, pid);
        let (_stream, peer) = node.accept();
        match peer {
            Err(refused) => assert_eq!(refused.reason, "peer_exited", "{forbidden:?}"),
            // By its pid it is the victim: which did not send the nonce.
            Ok(peer) => {
                assert!(forbidden.contains(&Facility::SoPeerpidfd));
                assert_eq!(peer.pid(), victim.pid());
                assert_eq!(node.attest(&peer).unwrap_err().reason, "peer_unproven");
            }
        }
    }
}
