//! What operators do, and what they may not.

use crate::harness::*;
use mayfly_broker::door::Operator;
use mayfly_wire::Code;
use mayfly_wire::admin::{Desired, PolicyFile};
use mayfly_wire::audit::Event;

#[tokio::test]
async fn a_configuration_that_changed_meanwhile_is_not_overwritten() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let plan = world.broker.door.plan(&ROOT, two_services()).await.unwrap();
    assert_eq!((plan.base, plan.changes.len()), (0, 4));
    world.apply(desired(Vec::new(), &[])).await;
    world
        .try_apply(two_services(), Some(plan.base))
        .await
        .unwrap();
    let again = world
        .try_apply(desired(Vec::new(), &[]), Some(plan.base))
        .await;
    assert_eq!(code(again), Code::Conflict);
    world.stop().await;
    let world = World::open(&dir.0).await;
    assert_eq!(
        world.broker.door.applied().credentials().len(),
        2,
        "it stands after a restart"
    );
}

#[tokio::test]
async fn what_is_wrong_is_told_whole_and_changes_nothing() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let bad = Desired {
        connections: Vec::new(),
        credentials: vec![kv("a", "a", 1), kv("a", "b", 60)],
        policies: vec![PolicyFile {
            file: "x.cedar".into(),
            text: "\npermit (principal, action, resource);".into(),
        }],
        hardened: false,
    };
    let refusal = world.try_apply(bad, None).await.unwrap_err();
    assert_eq!(refusal.code, Code::BadRequest);
    for part in [
        "configured twice",
        "ttl: expected 5 seconds",
        "x.cedar:2: expected @id",
    ] {
        assert!(
            refusal.message.contains(part),
            "{part}: {}",
            refusal.message
        );
    }
    assert_eq!(world.broker.door.applied().number(), 0);
}

#[tokio::test]
async fn a_plan_names_those_whose_leases_it_touches() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    world.apply(two_services()).await;
    let mut clients = Vec::new();
    for number in 1..=7 {
        let mut client = world.connect(&evidence("orders", number)).await.unwrap();
        client.bundle().await;
        clients.push(client);
    }
    let mut other = two_services();
    other.credentials[0].ttl_seconds = 60;
    let plan = world.broker.door.plan(&ROOT, other).await.unwrap();
    let [change] = &plan.changes[..] else {
        panic!("{plan:?}")
    };
    assert_eq!((change.name.as_str(), change.leases), ("orders-db", 7));
    let named = [1, 2, 3, 4, 5].map(|number| format!("shop-orders-{number}"));
    assert_eq!(change.holders, named);
}

#[tokio::test]
async fn nobody_locks_themselves_out() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let forbid = "@id(\"shut\") forbid (principal is Mayfly::Operator, action, resource);";
    let refusal = world
        .try_apply(desired(Vec::new(), &[forbid.to_owned()]), None)
        .await;
    let refusal = refusal.unwrap_err();
    assert!(refusal.message.contains("shut"), "{}", refusal.message);
}

#[tokio::test]
async fn operators_are_held_to_policy_and_on_record() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    world.put("orders/db", "sesame").await;
    let forbid = "@id(\"blind\") forbid (principal is Mayfly::Operator, action == \
                  Mayfly::Action::\"kv_get\", resource) when { resource.path like \"orders/*\" };";
    world.apply(desired(Vec::new(), &[forbid.to_owned()])).await;
    let path = "orders/db".parse().unwrap();
    let refusal = world
        .broker
        .door
        .kv_get(&ROOT, &path, None)
        .await
        .err()
        .unwrap();
    assert_eq!(refusal.code, Code::Denied);
    assert!(refusal.message.contains("blind"), "{}", refusal.message);
    let stranger = Operator {
        uid: 1000,
        owner: false,
    };
    assert_eq!(
        code(world.broker.door.kv_list(&stranger).await),
        Code::Denied
    );
    let denied = |event: &Event| matches!(event, Event::Operator { allowed: false, .. });
    assert_eq!(
        world.records().iter().filter(|event| denied(event)).count(),
        2
    );
    // Nothing was looked up for the one who may not: not even which version it would have been.
    let blind = |event: &Event| {
        matches!(event, Event::Operator { action, allowed: false, version: None, .. }
            if action == "kv.get")
    };
    assert_eq!(world.records().iter().filter(|e| blind(e)).count(), 1);
    world.put("web/key", "open").await;
    let web = "web/key".parse().unwrap();
    let read = world.broker.door.kv_get(&ROOT, &web, None).await.unwrap();
    assert_eq!(read.version, 1);
    let seen = |event: &Event| {
        matches!(event, Event::Operator { action, allowed: true, version: Some(1), .. }
            if action == "kv.get")
    };
    assert_eq!(world.records().iter().filter(|e| seen(e)).count(), 1);
    let nothing = "nothing".parse().unwrap();
    let missing = world.broker.door.kv_get(&ROOT, &nothing, None).await;
    assert_eq!(code(missing), Code::NotFound);
    let put = |event: &Event| {
        matches!(event, Event::Operator { action, version: Some(1), value_hmac: Some(_), .. }
            if action == "kv.put")
    };
    world.until(put).await;
    let text = std::fs::read_to_string(dir.0.join("state/audit.jsonl")).unwrap();
    assert!(!text.contains("sesame"));
    let report = world.broker.door.audit_verify(&ROOT).await.unwrap();
    assert_eq!(report.problem, None);
}
