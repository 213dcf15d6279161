//! What an engine says of how it was told to run a container.

use super::{ORDERS, decide, denied_by, desired, evidence, judge, plain, posture};
use mayfly_wire::Evidence;
use mayfly_wire::evidence::{Companion, Container, Settings};

type Change = fn(&mut Settings);

/// With each of these, a container whose processes look harmless gets nothing.
const CHANGES: [(&[&str], Change); 9] = [
    (&["baseline-privileged"], |s| s.privileged = Some(true)),
    (&["baseline-privileged"], |s| s.privileged = None),
    (
        &[
            "baseline-privileged",
            "baseline-sys-admin",
            "baseline-sys-ptrace",
        ],
        |s| s.granted_capabilities = None,
    ),
    (
        &[
            "baseline-privileged",
            "baseline-sys-admin",
            "baseline-sys-ptrace",
        ],
        |s| {
            let all = ["dac_read_search", "net_admin", "sys_admin", "sys_boot"];
            let all = all
                .into_iter()
                .chain(["sys_module", "sys_ptrace", "sys_rawio"]);
            s.granted_capabilities = Some(all.map(str::to_owned).collect());
        },
    ),
    (&["baseline-sys-admin"], |s| {
        s.granted_capabilities = Some(vec!["sys_admin".into()]);
    }),
    (&["baseline-sys-ptrace"], |s| {
        s.granted_capabilities = Some(vec!["net_raw".into(), "sys_ptrace".into()]);
    }),
    (&["baseline-seccomp"], |s| {
        s.seccomp = Some("unconfined".into());
    }),
    (&["baseline-seccomp"], |s| s.seccomp = None),
    // Too many to be told to the judge are unknown.
    (
        &[
            "baseline-privileged",
            "baseline-sys-admin",
            "baseline-sys-ptrace",
        ],
        |s| s.granted_capabilities = Some((0..300).map(|n| n.to_string()).collect()),
    ),
];

#[test]
fn the_engines_word_suffices_to_forbid() {
    let judge = judge(&desired(ORDERS));
    for (rules, change) in CHANGES {
        let mut changed = evidence();
        change(&mut changed.container.as_mut().unwrap().settings);
        let decision = decide(&judge, &changed, "orders-db");
        assert_eq!(denied_by(&decision), rules);
    }
}

#[test]
fn the_engines_word_about_a_companion_suffices_too() {
    let judge = judge(&desired(ORDERS));
    let joined = |settings: Settings| Evidence {
        companion: Some(Companion {
            cgroup_id: 8,
            container: Some(Container {
                engine: "docker".into(),
                id: "def".into(),
                name: "sidecar".into(),
                settings,
                ..Container::default()
            }),
        }),
        ..evidence()
    };
    assert!(decide(&judge, &joined(plain()), "orders-db").allowed);
    for (rules, change) in CHANGES {
        let mut settings = plain();
        change(&mut settings);
        let decision = decide(&judge, &joined(settings), "orders-db");
        assert_eq!(denied_by(&decision), rules);
    }
    // One that no engine knows has no word against it.
    let mut bare = joined(plain());
    bare.companion.as_mut().unwrap().container = None;
    assert!(decide(&judge, &bare, "orders-db").allowed);
}

#[test]
fn the_engines_word_does_not_excuse_what_the_kernel_shows() {
    let judge = judge(&desired(ORDERS));
    let mut worse = evidence();
    worse.peer.seccomp_mode = Some(0);
    worse.init.bounding_capabilities = Some(vec!["sys_admin".into()]);
    let decision = decide(&judge, &worse, "orders-db");
    assert_eq!(
        denied_by(&decision),
        ["baseline-seccomp", "baseline-sys-admin"]
    );
}

#[test]
fn without_an_engine_the_kernels_facts_alone_count() {
    let any = r#"@id("any") permit (principal is Mayfly::Workload,
        action == Mayfly::Action::"issue", resource);"#;
    let judge = judge(&desired(any));
    let bare = Evidence {
        container: None,
        ..evidence()
    };
    assert_eq!(bare.init, posture());
    assert!(decide(&judge, &bare, "orders-db").allowed);
}

#[test]
fn policies_can_ask_for_every_setting() {
    let modest = r#"@id("modest") permit (principal is Mayfly::Workload,
        action == Mayfly::Action::"issue", resource)
        when { principal has container &&
          principal.container.settings has pid_mode && principal.container.settings.pid_mode == "default" &&
          principal.container.settings has ipc_mode && principal.container.settings.ipc_mode == "private" &&
          principal.container.settings has user_mode && principal.container.settings.user_mode != "host" &&
          principal.container.settings has network_mode && principal.container.settings.network_mode == "none" &&
          principal.container.settings has apparmor && principal.container.settings.apparmor == "mine" &&
          principal.container.settings has read_only_root && principal.container.settings.read_only_root &&
          principal.container.settings has devices && principal.container.settings.devices.isEmpty() };"#;
    let judge = judge(&desired(modest));
    let mut full = evidence();
    full.container.as_mut().unwrap().settings = Settings {
        apparmor: Some("mine".into()),
        pid_mode: Some("default".into()),
        ipc_mode: Some("private".into()),
        user_mode: Some("default".into()),
        network_mode: Some("none".into()),
        read_only_root: Some(true),
        devices: Some(Vec::new()),
        ..plain()
    };
    assert!(decide(&judge, &full, "orders-db").allowed);
    let unknown: [Change; 7] = [
        |s| s.apparmor = None,
        |s| s.pid_mode = None,
        |s| s.ipc_mode = None,
        |s| s.user_mode = None,
        |s| s.network_mode = None,
        |s| s.read_only_root = None,
        |s| s.devices = Some(vec!["/dev/kvm".into()]),
    ];
    for change in unknown {
        let mut changed = full.clone();
        change(&mut changed.container.as_mut().unwrap().settings);
        assert!(!decide(&judge, &changed, "orders-db").allowed);
    }
}
