//! Who sends on a peer's connection.

use super::harness::{Node, Told, container, dies, pass, receive};
use mayfly_wire::Facility;

/// Checks the next message; answers the reason why it is refused.
fn next(
    node: &Node,
    stream: &std::os::unix::net::UnixStream,
    peer: &mayfly_node::attest::Peer,
) -> Option<&'static str> {
    let (_, received) = receive(stream);
    node.attestor
        .check_sender(peer, &received)
        .err()
        .map(|error| error.reason)
}

#[test]
fn the_peer_itself_and_its_container_may_send() {
    let node = Node::new(&[]);
    let (_cgroup, mut told) = container("sender");
    let (stream, peer) = node.connected(&mut told);
    told.tell("send hello");
    assert_eq!(next(&node, &stream, &peer), None);
    told.tell("spawn printf hello; exec sleep 60");
    assert_eq!(next(&node, &stream, &peer), None);
}

#[test]
fn another_container_may_not_send_on_a_connection_that_was_passed_to_it() {
    let node = Node::new(&[]);
    let (_ours, mut connector) = container("connector");
    let (_theirs, mut other) = container("other");
    let (stream, peer) = node.connected(&mut connector);
    let number = pass(&mut connector, &mut other);
    other.tell(&format!("run printf hello >&{number}"));
    let refused = next(&node, &stream, &peer);
    // A sender that is dead already is in no container any more.
    assert!(
        matches!(refused, Some("sender_in_other_container" | "peer_exited")),
        "{refused:?}"
    );
    let (text, mut waiting) = ("printf hello; exec sleep 60", Vec::new());
    waiting.extend(other.tell(&format!(
        "run (sh -c '{text}' >&{number} 2>/dev/null </dev/null &)"
    )));
    assert_eq!(
        next(&node, &stream, &peer),
        Some("sender_in_other_container")
    );
    // The peer itself still may.
    connector.tell("send hello");
    assert_eq!(next(&node, &stream, &peer), None);
}

#[test]
fn a_process_of_the_host_may_not_send_for_a_container_nor_the_other_way() {
    let node = Node::new(&[]);
    let (_cgroup, mut contained) = container("contained");
    let outside = super::harness::Cgroup::new("outside");
    let mut host = Told::start(&outside, &[]);
    let (stream, peer) = node.connected(&mut contained);
    let number = pass(&mut contained, &mut host);
    host.tell(&format!(
        "run (sh -c 'printf hello; exec sleep 60' >&{number} 2>/dev/null </dev/null &)"
    ));
    assert_eq!(
        next(&node, &stream, &peer),
        Some("sender_in_other_container")
    );
    let (stream, peer) = node.connected(&mut host);
    let number = pass(&mut host, &mut contained);
    contained.tell(&format!(
        "run (sh -c 'printf hello; exec sleep 60' >&{number} 2>/dev/null </dev/null &)"
    ));
    assert_eq!(
        next(&node, &stream, &peer),
        Some("sender_in_other_container")
    );
}

#[test]
fn descriptors_are_refused() {
    let node = Node::new(&[]);
    let (_cgroup, mut told) = container("passer");
    let (stream, peer) = node.connected(&mut told);
    told.tell("pass hello");
    assert_eq!(next(&node, &stream, &peer), Some("descriptors_passed"));
}

#[test]
fn nobody_speaks_for_a_peer_that_is_dead() {
    let node = Node::new(&[]);
    let (_cgroup, mut told) = container("dead");
    let (stream, peer) = node.connected(&mut told);
    told.tell("send hello");
    told.kill();
    dies(&peer);
    assert_eq!(next(&node, &stream, &peer), Some("peer_exited"));
}

#[test]
fn without_a_handle_on_the_sender_only_the_peer_itself_may_send() {
    let node = Node::new(&[Facility::ScmPidfd]);
    let (_cgroup, mut told) = container("no-handle");
    let (stream, peer) = node.connected(&mut told);
    told.tell("send hello");
    assert_eq!(next(&node, &stream, &peer), None);
    told.tell("spawn printf hello; exec sleep 60");
    assert_eq!(next(&node, &stream, &peer), Some("sender_unknown"));
}
