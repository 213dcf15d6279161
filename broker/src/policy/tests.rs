//! What the judge says of containers good, bad, unknown and hostile.

mod settings;

use super::{Decision, Judge};
use mayfly_wire::admin::{CredentialConfig, Desired, EngineConfig, PolicyFile};
use mayfly_wire::evidence::{Assurance, Companion, Container, Image, Settings};
use mayfly_wire::{Evidence, Posture, WorkloadKey};
use std::collections::{BTreeMap, BTreeSet};

fn posture() -> Posture {
    let none = Some(Vec::new());
    Posture {
        uid: Some(1000),
        gid: Some(1000),
        host_pid_namespace: Some(false),
        effective_capabilities: none.clone(),
        permitted_capabilities: none.clone(),
        bounding_capabilities: Some(vec!["net_bind_service".into()]),
        no_new_privs: Some(true),
        seccomp_mode: Some(2),
        read_only_root: Some(true),
        engine_sockets: none,
        memory_limit: Some(64 << 20),
        pids_limit: Some(100),
        ..Posture::default()
    }
}

/// What an engine says of a container that was started without an option.
fn plain() -> Settings {
    Settings {
        privileged: Some(false),
        granted_capabilities: Some(Vec::new()),
        seccomp: Some("default".into()),
        ..Settings::default()
    }
}

fn evidence() -> Evidence {
    Evidence {
        workload: WorkloadKey {
            boot_id: "b".into(),
            cgroup_id: 7,
            pidns_id: 9,
        },
        node: "n1".into(),
        assurance: Assurance::Inspected,
        lacking: BTreeSet::new(),
        cgroup_path: Some("/docker/abc".into()),
        container: Some(Container {
            engine: "docker".into(),
            id: "abc".into(),
            name: "shop-orders-1".into(),
            image: Image {
                config_digest: "sha256:1".into(),
                ..Image::default()
            },
            labels: BTreeMap::from([("team".into(), "shop".into())]),
            compose_project: Some("shop".into()),
            compose_service: Some("orders".into()),
            settings: plain(),
        }),
        companion: None,
        own_namespaces: Some(true),
        peer: posture(),
        init: posture(),
        init_pid: 1,
        init_start_time: 1,
    }
}

fn desired(policies: &str) -> Desired {
    let credential = |name: &str| CredentialConfig {
        name: name.parse().unwrap(),
        ttl_seconds: 60,
        max_ttl_seconds: None,
        grace_seconds: None,
        engine: EngineConfig::Kv {
            path: name.parse().unwrap(),
        },
    };
    Desired {
        connections: Vec::new(),
        credentials: vec![credential("orders-db"), credential("other")],
        policies: vec![PolicyFile {
            file: "p.cedar".into(),
            text: policies.into(),
        }],
        hardened: false,
    }
}

const ORDERS: &str = r#"
@id("orders")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue",
        resource == Mayfly::Credential::"orders-db")
when { principal has container.compose_service && principal.container.compose_service == "orders" };
"#;

fn judge(desired: &Desired) -> Judge {
    Judge::new(desired).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn decide(judge: &Judge, evidence: &Evidence, credential: &str) -> Decision {
    let subject = judge.subject(evidence).unwrap();
    judge.issue(&subject, &credential.parse().unwrap())
}

fn denied_by(decision: &Decision) -> Vec<&str> {
    assert!(!decision.allowed, "{decision:?}");
    decision.policies.iter().map(String::as_str).collect()
}

#[test]
fn each_gets_its_own_and_nothing_else() {
    let judge = judge(&desired(ORDERS));
    let decision = decide(&judge, &evidence(), "orders-db");
    assert!(decision.allowed, "{decision:?}");
    assert_eq!(decision.policies, ["orders"]);
    assert!(denied_by(&decide(&judge, &evidence(), "other")).is_empty());
    assert!(denied_by(&decide(&judge, &evidence(), "not-configured")).is_empty());
    let mut other = evidence();
    other.container.as_mut().unwrap().compose_service = Some("web".into());
    assert!(denied_by(&decide(&judge, &other, "orders-db")).is_empty());
}

#[test]
fn nothing_is_granted_without_a_policy() {
    let judge = judge(&desired(""));
    assert!(denied_by(&decide(&judge, &evidence(), "orders-db")).is_empty());
}

/// Each way to break the baseline, for either process, and the rule that answers.
#[test]
fn the_baseline_forbids_what_is_bad_and_what_is_unknown() {
    type Change = fn(&mut Posture);
    let changes: [(&str, Change); 15] = [
        ("baseline-host-pid", |p| p.host_pid_namespace = Some(true)),
        ("baseline-host-pid", |p| p.host_pid_namespace = None),
        ("baseline-engine-socket", |p| {
            p.engine_sockets = Some(vec!["/run/docker.sock".into()]);
        }),
        ("baseline-engine-socket", |p| p.engine_sockets = None),
        ("baseline-sys-admin", |p| {
            p.effective_capabilities = Some(vec!["sys_admin".into()])
        }),
        ("baseline-sys-admin", |p| {
            p.permitted_capabilities = Some(vec!["sys_admin".into()])
        }),
        ("baseline-sys-admin", |p| {
            p.bounding_capabilities = Some(vec!["sys_admin".into()])
        }),
        ("baseline-sys-admin", |p| p.effective_capabilities = None),
        ("baseline-sys-ptrace", |p| {
            p.bounding_capabilities = Some(vec!["sys_ptrace".into()])
        }),
        ("baseline-sys-ptrace", |p| p.permitted_capabilities = None),
        ("baseline-privileged", |p| p.bounding_capabilities = None),
        ("baseline-seccomp", |p| p.seccomp_mode = Some(0)),
        ("baseline-seccomp", |p| p.seccomp_mode = Some(1)),
        ("baseline-seccomp", |p| p.seccomp_mode = None),
        ("baseline-privileged", |p| {
            let all = [
                "sys_admin",
                "sys_module",
                "sys_rawio",
                "sys_boot",
                "net_admin",
            ];
            let all = all.into_iter().chain(["dac_read_search", "sys_ptrace"]);
            p.bounding_capabilities = Some(all.map(str::to_owned).collect());
        }),
    ];
    let judge = judge(&desired(ORDERS));
    for (rule, change) in changes {
        let (mut peer, mut init) = (evidence(), evidence());
        change(&mut peer.peer);
        change(&mut init.init);
        for evidence in [peer, init] {
            let decision = decide(&judge, &evidence, "orders-db");
            assert!(denied_by(&decision).contains(&rule), "{rule}: {decision:?}");
        }
    }
    for own in [None, Some(false)] {
        let evidence = Evidence {
            own_namespaces: own,
            ..evidence()
        };
        let decision = decide(&judge, &evidence, "orders-db");
        assert_eq!(denied_by(&decision), ["baseline-namespaces"]);
    }
    let nothing_known = Evidence {
        peer: Posture::default(),
        init: Posture::default(),
        own_namespaces: None,
        container: None,
        cgroup_path: None,
        ..evidence()
    };
    let decision = decide(&judge, &nothing_known, "orders-db");
    assert_eq!(denied_by(&decision).len(), 7, "{decision:?}");
}

#[test]
fn the_hardened_rules_stand_when_switched_on() {
    type Change = fn(&mut Evidence);
    let changes: [(&str, Change); 9] = [
        ("hardened-non-root", |e| e.init.uid = Some(0)),
        ("hardened-non-root", |e| e.peer.uid = None),
        ("hardened-read-only-root", |e| {
            e.init.read_only_root = Some(false)
        }),
        ("hardened-no-new-privs", |e| e.peer.no_new_privs = None),
        ("hardened-capabilities", |e| {
            e.init.bounding_capabilities = Some(vec!["chown".into()]);
        }),
        ("hardened-limits", |e| e.init.memory_limit = Some(u64::MAX)),
        ("hardened-limits", |e| e.init.pids_limit = None),
        ("hardened-image", |e| e.container = None),
        ("hardened-image", |e| {
            e.container.as_mut().unwrap().image.config_digest = String::new();
        }),
    ];
    let any = r#"@id("any") permit (principal is Mayfly::Workload,
        action == Mayfly::Action::"issue", resource);"#;
    let soft = judge(&desired(any));
    let hard = judge(&Desired {
        hardened: true,
        ..desired(any)
    });
    assert!(decide(&hard, &evidence(), "orders-db").allowed);
    for (rule, change) in changes {
        let mut evidence = evidence();
        change(&mut evidence);
        assert!(decide(&soft, &evidence, "orders-db").allowed, "{rule}");
        assert_eq!(denied_by(&decide(&hard, &evidence, "orders-db")), [rule]);
    }
}

/// Where it may make cgroups, a container can end its path with anybody's name.
#[test]
fn a_cgroup_named_after_a_container_is_not_it() {
    let named = judge(&desired(
        r#"
@id("by-name")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue",
        resource == Mayfly::Credential::"orders-db")
when { principal.name == "shop-orders-1" };
"#,
    ));
    assert!(decide(&named, &evidence(), "orders-db").allowed);
    let mut bare = evidence();
    bare.assurance = Assurance::Kernel;
    bare.container = None;
    bare.cgroup_path = Some("/user.slice/mine/shop-orders-1".into());
    assert!(!decide(&named, &bare, "orders-db").allowed);
}

#[test]
fn a_lift_takes_one_rule_from_one_pair_and_grants_nothing() {
    let lift = r#"
@id("lift-host-pid") @lifts("baseline-host-pid")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue",
        resource == Mayfly::Credential::"orders-db")
when { principal.name == "shop-orders-1" };
"#;
    let both = judge(&desired(&format!("{ORDERS}{lift}")));
    let mut agent = evidence();
    agent.peer.host_pid_namespace = Some(true);
    let decision = decide(&both, &agent, "orders-db");
    assert!(decision.allowed, "{decision:?}");
    assert_eq!(decision.policies, ["lift-host-pid", "orders"]);
    assert_eq!(
        denied_by(&decide(&both, &agent, "other")),
        ["baseline-host-pid"]
    );
    // A rule that is not lifted still stands.
    agent.peer.seccomp_mode = Some(0);
    assert_eq!(
        denied_by(&decide(&both, &agent, "orders-db")),
        ["baseline-seccomp"]
    );
    agent.peer.seccomp_mode = Some(2);
    agent.container.as_mut().unwrap().name = "someone-else".into();
    assert_eq!(
        denied_by(&decide(&both, &agent, "orders-db")),
        ["baseline-host-pid"]
    );
    // Where nothing is broken, a lift is not named; alone, it grants nothing.
    assert_eq!(decide(&both, &evidence(), "orders-db").policies, ["orders"]);
    let alone = judge(&desired(lift));
    assert!(denied_by(&decide(&alone, &evidence(), "orders-db")).is_empty());
}

#[test]
fn a_forbid_of_the_operator_wins() {
    let judge = judge(&desired(&format!(
        "{ORDERS}@id(\"no\") forbid (principal is Mayfly::Workload, action, resource) when {{ \
         principal.node == \"n1\" }};"
    )));
    assert_eq!(denied_by(&decide(&judge, &evidence(), "orders-db")), ["no"]);
}

#[test]
fn an_error_while_judging_is_a_denial() {
    // Nine quintillion overflows, which no validator can see.
    let judge = judge(&desired(&format!(
        "{ORDERS}@id(\"overflow\") forbid (principal is Mayfly::Workload, action, resource) when \
         {{ principal.assurance_rank + 9223372036854775807 == 0 }};"
    )));
    assert_eq!(
        denied_by(&decide(&judge, &evidence(), "orders-db")),
        ["overflow"]
    );
}

#[test]
fn labels_are_tags_and_hostile_strings_are_only_strings() {
    let team = r#"@id("team") permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue", resource)
        when { principal.hasTag("team") && principal.getTag("team") == "shop" };"#;
    let judge = judge(&desired(team));
    assert!(decide(&judge, &evidence(), "orders-db").allowed);
    let hostile = [
        "\" || true || \"",
        "shop\n@id(\"x\") permit(principal, action, resource);",
        "shop\0",
        "sh\u{202e}op",
        "ＳＨＯＰ",
        "",
        &"shop".repeat(25_000),
    ];
    for text in hostile {
        let mut evidence = evidence();
        let container = evidence.container.as_mut().unwrap();
        container.labels.insert("team".into(), text.into());
        container.labels.insert(text.into(), "shop".into());
        container.name = text.into();
        container.compose_service = Some(text.into());
        container.image.reference = text.into();
        evidence.cgroup_path = Some(text.into());
        evidence.peer.lsm_label = Some(text.into());
        evidence.peer.engine_sockets = None;
        assert_eq!(
            denied_by(&decide(&judge, &evidence, "orders-db")),
            ["baseline-engine-socket"]
        );
        evidence.peer.engine_sockets = Some(Vec::new());
        assert!(
            !decide(&judge, &evidence, "orders-db").allowed,
            "{text:.20}"
        );
    }
    let mut flood = evidence();
    let labels = &mut flood.container.as_mut().unwrap().labels;
    labels.extend((0..300).map(|number| (format!("l{number}"), "x".to_owned())));
    assert!(
        !decide(&judge, &flood, "orders-db").allowed,
        "too many labels are none"
    );
}

/// Who restricts operators by the table in the docs must find every action there.
#[test]
fn the_docs_name_each_action_and_what_it_is_done_to() {
    let docs = include_str!("../../../docs/policy.md");
    let (_, table) = docs.split_once("## Operators").unwrap();
    let schema = super::parse::builtin().unwrap().validator.schema();
    let actions: Vec<_> = schema.actions().collect();
    assert!(actions.len() > 15, "{}", actions.len());
    for action in actions {
        let name = action.id().unescaped();
        if name == "issue" {
            continue;
        }
        let row = table.lines().find(|row| row.contains(&format!("`{name}`")));
        let row = row.unwrap_or_else(|| panic!("{name} is not in docs/policy.md"));
        for resource in schema.resources_for_action(action).unwrap() {
            assert!(row.contains(&format!("`{resource}`")), "{name}: {row}");
        }
    }
}

/// The types that [`super::entity`] gives are the ones that the schema promises.
#[test]
fn entities_conform_to_the_schema() {
    let schema = super::parse::builtin().unwrap().validator.schema();
    let mut full = evidence();
    full.companion = Some(Companion {
        cgroup_id: 3,
        container: full.container.clone(),
    });
    full.init.host_user_namespace = Some(false);
    full.init.seccomp_filters = Some(1);
    full.init.memory_limit = Some(u64::MAX);
    let bare = Evidence {
        container: None,
        cgroup_path: None,
        own_namespaces: None,
        peer: Posture::default(),
        ..evidence()
    };
    let credential = &desired("").credentials[0];
    let entities = [
        super::entity::workload(&full).unwrap(),
        super::entity::credential(credential).unwrap(),
        super::entity::operator(0, true).unwrap(),
        super::entity::broker().unwrap(),
        super::entity::kv_path("a/b").unwrap(),
        super::entity::node("n").unwrap(),
    ];
    cedar_policy::Entities::from_entities(entities, Some(schema)).unwrap();
    let bare = [super::entity::workload(&bare).unwrap()];
    cedar_policy::Entities::from_entities(bare, Some(schema)).unwrap();
}

#[test]
fn operators_are_judged_too() {
    let forbid = r#"@id("no-reading") forbid (principal is Mayfly::Operator,
        action == Mayfly::Action::"kv_get", resource);"#;
    let judge = judge(&desired(forbid));
    let root = super::entity::operator(0, true).unwrap();
    let user = super::entity::operator(1000, false).unwrap();
    let path = || super::entity::kv_path("orders/db").unwrap();
    assert_eq!(
        judge.operator(&root, "kv_put", path()).policies,
        ["baseline-owner"]
    );
    assert_eq!(
        denied_by(&judge.operator(&root, "kv_get", path())),
        ["no-reading"]
    );
    assert!(denied_by(&judge.operator(&user, "kv_put", path())).is_empty());
}

#[test]
fn a_policy_for_a_credential_that_is_not_there_is_a_misspelling() {
    let text = ORDERS.replace("orders-db", "order-db");
    let problems = Judge::new(&desired(&text)).err().unwrap();
    assert!(problems[0].message.contains("order-db"), "{problems:?}");
    assert_eq!(
        (problems[0].file.as_str(), problems[0].line),
        ("p.cedar", Some(2))
    );
}

/// Prints what a decision costs: `cargo test --release -p mayfly-broker --lib cost -- --nocapture`.
#[test]
fn cost_of_decisions() {
    let mut many = desired("");
    many.credentials = (0..100)
        .map(|number| CredentialConfig {
            name: format!("c{number}").parse().unwrap(),
            ttl_seconds: 60,
            max_ttl_seconds: None,
            grace_seconds: None,
            engine: EngineConfig::Kv {
                path: "a".parse().unwrap(),
            },
        })
        .collect();
    let texts = (0..100).map(|number| {
        ORDERS
            .replace("orders-db", &format!("c{number}"))
            .replace("@id(\"orders\")", &format!("@id(\"p{number}\")"))
    });
    many.policies[0].text = texts.collect();
    let judge = judge(&many);
    let names: Vec<_> = many
        .credentials
        .iter()
        .map(|credential| &credential.name)
        .collect();
    let time = |count: usize| {
        let rounds = 200_u32;
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            let subject = judge.subject(&evidence()).unwrap();
            let granted = names
                .iter()
                .take(count)
                .filter(|name| judge.issue(&subject, name).allowed);
            assert_eq!(granted.count(), count);
        }
        start.elapsed() / rounds
    };
    let (one, hundred) = (time(1), time(100));
    println!("one decision {one:?}, a hundred {hundred:?}");
    assert!(one.as_millis() < 20, "one decision took {one:?}");
}
