//! Who a peer is found to be.

use super::harness::{Cgroup, NAMESPACES, Node, Told, container};
use mayfly_kernel::cgroup;
use mayfly_wire::Assurance;
use std::fs::File;

#[test]
fn a_container_of_bare_namespaces_is_attested() {
    let node = Node::new(&[]);
    let (cgroup, mut told) = container("bare");
    let (_stream, peer) = node.connected(&mut told);
    let evidence = node.attest(&peer).unwrap().evidence;
    println!("{evidence:#?}");
    assert_eq!(evidence.assurance, Assurance::Kernel);
    assert!(evidence.lacking.is_empty());
    let id = cgroup::id(File::open(cgroup.v2()).unwrap()).unwrap();
    assert_eq!(evidence.workload.cgroup_id, id);
    assert_eq!(evidence.own_namespaces, Some(true));
    assert_eq!(evidence.init_pid, peer.pid());
}
