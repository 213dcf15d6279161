//! Who a peer is found to be, and what it cannot pretend.

use super::harness::{Cgroup, NAMESPACES, Node, Told, container, dies, id_of, unique};
use mayfly_wire::{Assurance, Evidence};

fn attested(node: &Node, told: &mut Told) -> Evidence {
    let (_stream, peer) = node.connected(told);
    node.attest(&peer).unwrap().evidence
}

#[test]
fn a_container_of_bare_namespaces_is_attested() {
    let node = Node::new(&[]);
    let (cgroup, mut told) = container("bare");
    let (_stream, peer) = node.connected(&mut told);
    let evidence = node.attest(&peer).unwrap().evidence;
    assert_eq!(evidence.assurance, Assurance::Kernel);
    assert!(evidence.lacking.is_empty());
    assert_eq!(evidence.node, "test");
    assert_eq!(evidence.workload.boot_id, node.attestor.boot_id());
    assert_eq!(evidence.workload.cgroup_id, id_of(&cgroup));
    let name = cgroup.v2().file_name().unwrap().to_str().unwrap();
    assert_eq!(evidence.cgroup_path.as_deref(), Some(&*format!("/{name}")));
    assert_eq!(evidence.display_name(), name);
    assert!(evidence.container.is_none() && evidence.companion.is_none());
    assert_eq!(evidence.own_namespaces, Some(true));
    assert_eq!(evidence.init_pid, peer.pid());
    let posture = &evidence.peer;
    assert_eq!(posture.uid, Some(0));
    assert_eq!(posture.host_pid_namespace, Some(false));
    assert_eq!(posture.host_mount_namespace, Some(false));
    assert_eq!(posture.host_network_namespace, Some(false));
    assert_eq!(posture.host_user_namespace, Some(true));
    assert_eq!(posture.host_cgroup_namespace, Some(true));
    // It could have mounted anything.
    assert_eq!(
        (posture.read_only_root, &posture.engine_sockets),
        (None, &None)
    );
    assert_eq!(evidence.init, evidence.peer);
    // All of it again, and another container is another workload.
    assert_eq!(node.attest(&peer).unwrap().evidence, evidence);
    let (_other, mut other) = container("bare");
    assert_ne!(attested(&node, &mut other).workload, evidence.workload);
}

#[test]
fn a_cgroup_named_after_a_victim_changes_nothing() {
    let node = Node::new(&[]);
    let (victims, mut victim) = container("victim");
    let victim = attested(&node, &mut victim);
    let name = victims.v2().file_name().unwrap().to_str().unwrap();
    let (outer, mut attacker) = container("attacker");
    let before = attested(&node, &mut attacker);
    let inner = outer.inside(name);
    for directory in inner.directories() {
        attacker.tell(&format!("move {}", directory.display()));
    }
    let after = attested(&node, &mut attacker);
    assert_eq!(after.workload, before.workload);
    assert_ne!(after.workload, victim.workload);
    assert_ne!(after.cgroup_path, victim.cgroup_path);
    // One that does it before it is ever seen is not the victim either.
    let (outer, mut early) = container("early");
    let inner = outer.inside(name);
    for directory in inner.directories() {
        early.tell(&format!("move {}", directory.display()));
    }
    let early = attested(&node, &mut early);
    assert_ne!(early.workload.cgroup_id, victim.workload.cgroup_id);
    assert_ne!(early.workload.pidns_id, victim.workload.pidns_id);
}

#[test]
fn a_nested_pid_namespace_is_the_outer_ones() {
    let node = Node::new(&[]);
    let cgroup = Cgroup::new("nested");
    let inner = ["unshare", "--pid", "--fork", "--kill-child"];
    let mut told = Told::start(&cgroup, &[&NAMESPACES[..], &inner, &inner].concat());
    let (_stream, peer) = node.connected(&mut told);
    let evidence = node.attest(&peer).unwrap().evidence;
    assert_ne!(evidence.init_pid, peer.pid());
    let first = mayfly_kernel::pidfd::Pidfd::open(evidence.init_pid).unwrap();
    // From ours inward: its pid in its own namespace, which is the outermost below ours.
    assert_eq!(first.pids().unwrap(), [evidence.init_pid, 1]);
    let namespace = first.namespace(mayfly_kernel::ns::Kind::Pid).unwrap();
    assert_eq!(evidence.workload.pidns_id, namespace.id().unwrap());
    assert_eq!(evidence.own_namespaces, Some(true));
}

/// A first process that is in a user namespace of its own before anyone sees it: there it may mount
/// what it likes, and then give up what shows that it could.
#[test]
fn mounts_do_not_count_in_a_user_namespace_that_the_container_made() {
    let node = Node::new(&[]);
    let cgroup = Cgroup::new("nested-user");
    let nested = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "setpriv",
        "--bounding-set=-sys_admin",
    ];
    let mut told = Told::start(&cgroup, &[&NAMESPACES[..], &nested].concat());
    let evidence = attested(&node, &mut told);
    // All else is as an honest container's.
    assert_eq!(evidence.own_namespaces, Some(true));
    let bounding = evidence.init.bounding_capabilities.as_ref().unwrap();
    assert!(!bounding.contains(&"sys_admin".to_owned()));
    assert_eq!(
        (evidence.init.read_only_root, &evidence.init.engine_sockets),
        (None, &None)
    );
}

#[test]
fn leaving_its_namespaces_after_connecting_is_seen() {
    for kinds in ["mount", "user", "user mount"] {
        let node = Node::new(&[]);
        let (_cgroup, mut told) = container("leaver");
        let (_stream, peer) = node.connected(&mut told);
        let before = node.attest(&peer).unwrap().evidence;
        assert_eq!(before.own_namespaces, Some(true));
        told.tell(&format!("unshare {kinds}"));
        let after = node.attest(&peer).unwrap().evidence;
        assert_eq!(after.own_namespaces, Some(false), "{kinds}");
        assert_eq!(after.workload, before.workload);
    }
}

#[test]
fn a_peer_that_has_exited_is_refused() {
    let node = Node::new(&[]);
    let (_cgroup, mut told) = container("exited");
    let (_stream, peer) = node.connected(&mut told);
    told.tell(&format!("connect {}", node.path().display()));
    assert!(peer.alive());
    told.kill();
    dies(&peer);
    let refused = node.attest(&peer).unwrap_err();
    assert_eq!(refused.reason, "peer_exited");
    assert_eq!(refused.pid, Some(peer.pid()));
    assert!(!peer.alive());
    // It had connected once more.
    let (_stream, late) = node.accept();
    assert_eq!(late.unwrap_err().reason, "peer_exited");
}

#[test]
fn a_process_of_the_host_is_refused() {
    let node = Node::new(&[]);
    let cgroup = Cgroup::new("host");
    let mut told = Told::start(&cgroup, &[]);
    let (_stream, peer) = node.connected(&mut told);
    let refused = node.attest(&peer).unwrap_err();
    assert_eq!(refused.reason, "not_a_container");
    let path = format!("/{}", cgroup.v2().file_name().unwrap().to_str().unwrap());
    assert_eq!(refused.cgroup_path, Some(path));
}

#[test]
fn a_companion_speaks_for_the_container_whose_pid_namespace_it_shares() {
    let node = Node::new(&[]);
    let (application, mut told) = container("application");
    let (_stream, peer) = node.connected(&mut told);
    let served = node.attest(&peer).unwrap().evidence;
    let sidecar = Cgroup::new("sidecar");
    let namespace = format!("--pid=/proc/{}/ns/pid", served.init_pid);
    let words = ["nsenter", &namespace, "unshare", "--mount", "--net"];
    let mut companion = Told::start(&sidecar, &words);
    let evidence = attested(&node, &mut companion);
    assert_eq!(evidence.workload, served.workload);
    assert_eq!(evidence.workload.cgroup_id, id_of(&application));
    assert_eq!(evidence.init_pid, served.init_pid);
    assert_eq!(evidence.companion.unwrap().cgroup_id, id_of(&sidecar));
    // Nobody knows what the companion's container began with.
    assert_eq!(evidence.own_namespaces, None);
    assert_eq!(evidence.peer.memory_limit, None);
}

/// Without CAP_SYS_ADMIN, as containers are.
const MODEST: [&str; 3] = [
    "setpriv",
    "--bounding-set=-sys_admin",
    "--inh-caps=-sys_admin",
];

#[test]
fn mounts_count_where_they_cannot_be_forged() {
    let node = Node::new(&[]);
    let cgroup = Cgroup::new("modest");
    let mut told = Told::start(&cgroup, &[&NAMESPACES[..], &MODEST].concat());
    let (_stream, peer) = node.connected(&mut told);
    let evidence = node.attest(&peer).unwrap().evidence;
    assert_eq!(evidence.peer.read_only_root, Some(false));
    assert_eq!(evidence.peer.engine_sockets.as_deref(), Some(&[][..]));
    let bounding = evidence.peer.bounding_capabilities.unwrap();
    assert!(!bounding.contains(&"sys_admin".to_owned()));
    assert!(bounding.contains(&"sys_chroot".to_owned()));
}

/// chroot(2), which containers may call, changes what mountinfo shows: into a mounted directory, even
/// what it shows as the root.
#[test]
fn a_changed_root_makes_mounts_unknown() {
    let node = Node::new(&[]);
    let cgroup = Cgroup::new("chroot");
    let other = std::env::temp_dir().join(unique("root"));
    std::fs::create_dir(&other).unwrap();
    let mounted = format!(
        "mount -t tmpfs -o ro none {} && exec setpriv --bounding-set=-sys_admin \"$0\"",
        other.display()
    );
    let words = [&NAMESPACES[..], &["sh", "-c", &mounted]].concat();
    let mut told = Told::start(&cgroup, &words);
    let (_stream, peer) = node.connected(&mut told);
    assert_eq!(
        node.attest(&peer).unwrap().evidence.peer.read_only_root,
        Some(false)
    );
    told.tell(&format!("chroot {}", other.display()));
    // What it now sees is a read-only root without any engine's socket.
    let posture = node.attest(&peer).unwrap().evidence.peer;
    assert_eq!(
        (posture.read_only_root, posture.engine_sockets),
        (None, None)
    );
    std::fs::remove_dir(&other).unwrap();
}

#[test]
fn an_engines_socket_is_seen_under_any_name_and_in_any_directory() {
    let directory = std::env::temp_dir().join(unique("engine"));
    std::fs::create_dir(&directory).unwrap();
    // One by its name; one that only this node knows as an engine's.
    let named = directory.join("docker.sock");
    let known = directory.join("odd");
    for path in [&named, &known] {
        std::os::unix::net::UnixListener::bind(path).unwrap();
    }
    let node = Node::with_engines(&[], vec![known.clone()]);
    let target = std::env::temp_dir().join(unique("target"));
    std::fs::write(&target, "").unwrap();
    let shown = |mounts: &str| {
        let cgroup = Cgroup::new("socket");
        let script = format!("{mounts} exec setpriv --bounding-set=-sys_admin \"$0\"");
        let mut told = Told::start(&cgroup, &[&NAMESPACES[..], &["sh", "-c", &script]].concat());
        attested(&node, &mut told).peer.engine_sockets.unwrap()
    };
    let ends = |found: &[String], name: &str| found.len() == 1 && found[0].ends_with(name);
    let (at, dir) = (target.display(), directory.display());
    // The whole filesystem is there, and with it the socket that the node knows.
    assert!(ends(&shown(""), "/odd"));
    let covered = format!("mount -t tmpfs none {dir} &&");
    assert_eq!(shown(&covered), Vec::<String>::new());
    let renamed = format!("mount --bind {} {at} && {covered}", named.display());
    assert!(ends(&shown(&renamed), "/docker.sock"));
    let moved = format!("mount --bind {dir} /mnt && {covered}");
    assert!(ends(&shown(&moved), "/odd"));
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::remove_file(&target).unwrap();
}

#[test]
fn limits_are_the_cgroups() {
    let node = Node::new(&[]);
    let (cgroup, mut told) = container("limits");
    let (_stream, peer) = node.connected(&mut told);
    let before = node.attest(&peer).unwrap().evidence.peer;
    assert_eq!(
        (before.memory_limit, before.pids_limit),
        (Some(u64::MAX), Some(u64::MAX))
    );
    for directory in cgroup.directories() {
        for (file, limit) in [
            ("memory.max", "67108864"),
            ("memory.limit_in_bytes", "67108864"),
            ("pids.max", "77"),
        ] {
            let file = directory.join(file);
            if file.exists() {
                std::fs::write(file, limit).unwrap();
            }
        }
    }
    let after = node.attest(&peer).unwrap().evidence.peer;
    assert_eq!(
        (after.memory_limit, after.pids_limit),
        (Some(67_108_864), Some(77))
    );
}
