use std::sync::Arc;

use super::*;

const BEGAN: Began = Began {
    user: 1,
    mount: 2,
    user_is_outermost: true,
};

/// What was recorded of a container, which is where it began.
fn recorded(name: &str) -> Facts {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
    let read = |file: &str| std::fs::read(format!("{directory}/{name}/{file}")).unwrap();
    let mountinfo = read("mountinfo");
    let mut listed = mounts(&mountinfo).map(Result::unwrap);
    let root_mount = listed
        .find(|mount| *mount.point == *b"/")
        .map(|root| root.id);
    drop(listed);
    Facts {
        status: read("status"),
        mountinfo: Some(Arc::from(mountinfo)),
        root_mount,
        host: vec![(Kind::User, true), (Kind::Pid, false)],
        user: BEGAN.user,
        mount: BEGAN.mount,
        at_root: Some(true),
        ..Facts::default()
    }
}

fn judged(facts: &Facts, began: Option<Began>) -> Posture {
    posture(facts, began, &LimitTexts::default(), Some(&[]))
}

#[test]
fn where_engines_sockets_are_not_known_nobody_is_without_one() {
    let facts = recorded("docker-default");
    let found = posture(&facts, Some(BEGAN), &LimitTexts::default(), None);
    let expected = Posture {
        engine_sockets: None,
        ..judged(&facts, Some(BEGAN))
    };
    assert_eq!(found, expected);
    assert_eq!(found.read_only_root, Some(false));
}

#[test]
fn docker_without_options() {
    let found = judged(&recorded("docker-default"), Some(BEGAN));
    assert_eq!((found.uid, found.gid), (Some(0), Some(0)));
    assert_eq!(found.host_user_namespace, Some(true));
    assert_eq!(found.host_pid_namespace, Some(false));
    assert_eq!(found.host_network_namespace, None);
    let expected = [
        "audit_write",
        "chown",
        "dac_override",
        "fowner",
        "fsetid",
        "kill",
        "mknod",
        "net_bind_service",
        "net_raw",
        "setfcap",
        "setgid",
        "setpcap",
        "setuid",
        "sys_chroot",
    ];
    let expected = Some(expected.map(str::to_owned).to_vec());
    assert_eq!(found.effective_capabilities, expected);
    assert_eq!(found.bounding_capabilities, expected);
    assert_eq!(found.no_new_privs, Some(false));
    assert_eq!(
        (found.seccomp_mode, found.seccomp_filters),
        (Some(2), Some(1))
    );
    assert_eq!(found.read_only_root, Some(false));
    assert_eq!(found.engine_sockets, Some(vec![]));
    assert_eq!((found.secrets_filesystem, found.lsm_label), (None, None));
    assert_eq!((found.memory_limit, found.pids_limit), (None, None));
}

#[test]
fn docker_hardened_but_with_the_engines_socket() {
    let found = judged(&recorded("docker-hardened"), Some(BEGAN));
    assert_eq!(found.uid, Some(1000));
    assert_eq!(found.permitted_capabilities, Some(vec![]));
    assert_eq!(found.no_new_privs, Some(true));
    assert_eq!(found.read_only_root, Some(true));
    assert_eq!(found.secrets_filesystem.as_deref(), Some("tmpfs"));
    // It is mounted as /tmp/renamed.
    assert_eq!(
        found.engine_sockets,
        Some(vec!["/run/docker.sock".to_owned()])
    );
}

/// A fake read-only root, and a bounding set without CAP_SYS_ADMIN: all but the user namespace is as an
/// honest container's.
#[test]
fn forged_mounts_are_unknown() {
    let mut facts = recorded("forged");
    facts.user = 7;
    facts.mount = 8;
    let unknown = |found: Posture| {
        assert!(
            !found
                .bounding_capabilities
                .unwrap()
                .contains(&"sys_admin".to_owned())
        );
        found.read_only_root.is_none()
            && found.engine_sockets.is_none()
            && found.secrets_filesystem.is_none()
    };
    assert!(!in_own_namespaces(&facts, BEGAN));
    assert!(unknown(judged(&facts, Some(BEGAN))));
    assert!(unknown(judged(&facts, None)));
    // It did so before it was first seen: not where its pid namespace was made.
    let began = Began {
        user: 7,
        mount: 8,
        user_is_outermost: false,
    };
    assert!(unknown(judged(&facts, Some(began))));
}

#[test]
fn mounts_are_unknown_in_doubt() {
    let honest = recorded("docker-hardened");
    let with = |change: fn(&mut Facts)| {
        let mut facts = honest.clone();
        change(&mut facts);
        judged(&facts, Some(BEGAN)).read_only_root
    };
    assert_eq!(with(|_| {}), Some(true));
    assert_eq!(with(|facts| facts.at_root = None), None);
    assert_eq!(with(|facts| facts.at_root = Some(false)), None);
    // It was in another root for just as long as that was read.
    assert_eq!(with(|facts| facts.root_mount = Some(1)), None);
    assert_eq!(with(|facts| facts.root_mount = None), None);
    assert_eq!(with(|facts| facts.mount += 1), None);
    assert_eq!(with(|facts| facts.mountinfo = None), None);
    assert_eq!(
        with(|facts| facts.mountinfo = Some(Arc::from(&b"1 2 x\n"[..]))),
        None
    );
    assert_eq!(with(|facts| facts.status = b"Name:\tx\n".to_vec()), None);
    let able = |facts: &mut Facts| {
        let text = String::from_utf8(facts.status.clone()).unwrap();
        let text = text.replace("CapBnd:\t0000000000000000", "CapBnd:\t0000000000200000");
        facts.status = text.into_bytes();
    };
    assert_eq!(with(able), None);
}

#[test]
fn a_name_cannot_make_lines_of_its_own() {
    let text = b"Name:\tUid:\\n\xff\xfe\nUid:\t5\t6\t7\t8\nSeccomp:\t2\n";
    let status = Status::of(text);
    assert_eq!(status.id("Uid:"), Some(6));
    assert_eq!(status.number("Seccomp:"), Some(2));
    assert_eq!(status.number("Seccomp_filters:"), None);
    assert_eq!(status.hexadecimal("CapEff:"), None);
    for empty in [
        &b""[..],
        b"Name:",
        b"Name:\tx\n\xff\n",
        b"x\nUid:\t1\nCapEff:\tzz\n",
    ] {
        let status = Status::of(empty);
        assert_eq!(
            (status.id("Uid:"), status.hexadecimal("CapEff:")),
            (None, None)
        );
    }
}

#[test]
fn limits_and_labels() {
    assert_eq!(limit("max"), Some(UNLIMITED));
    assert_eq!(limit("9223372036854771712"), Some(UNLIMITED));
    assert_eq!(limit("67108864"), Some(67_108_864));
    assert_eq!((limit(""), limit("-1"), limit("x")), (None, None, None));
    assert_eq!(
        label(b"docker-default (enforce)\n").as_deref(),
        Some("docker-default (enforce)")
    );
    assert_eq!(
        label(b"system_u:r:container_t:s0\0").as_deref(),
        Some("system_u:r:container_t:s0")
    );
    assert_eq!(
        (label(b""), label(b"\n"), label(b"\xff")),
        (None, None, None)
    );
    assert_eq!(
        capabilities::names(1 << 21 | 1 << 63),
        ["cap_63", "sys_admin"]
    );
}
