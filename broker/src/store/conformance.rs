//! What every store must do. Each backend runs all of it, from its own way to open one.

use super::{
    Claim, Configuration, KvRow, Lease, LeaseState, Op, Source, Store, StoreError, Workload,
};
use crate::audit::{Head, HeadCell};
use crate::testing::evidence;
use mayfly_wire::LeaseId;
use std::sync::Arc;

/// One backend.
pub trait Backend {
    /// Opens the same store again and again; a new one at first. Nothing else has it open.
    fn open(&self) -> Arc<dyn Store>;
}

pub fn lease(number: u64, workload: u64, credential: &str) -> Lease {
    let evidence = evidence(workload);
    Lease {
        id: LeaseId::from_random(u128::from(number).to_be_bytes()),
        workload: evidence.workload.clone(),
        credential: credential.parse().unwrap(),
        engine: mayfly_wire::EngineKind::Kv,
        node: evidence.node.clone(),
        name: evidence.display_name(),
        state: LeaseState::Active,
        issued_at: 1_000,
        expires_at: 10_000 + number,
        due_at: 10_000 + number,
        reason: String::new(),
        attempts: 0,
        problem: String::new(),
        source: Source::Kv {
            path: "orders/db".parse().unwrap(),
            version: 1,
        },
    }
}

fn kv_row(path: &str, version: u64, sealed: Option<&[u8]>) -> KvRow {
    KvRow {
        path: path.parse().unwrap(),
        version,
        created_at: 5 * version,
        fields: match sealed {
            Some(_) => vec!["password".parse().unwrap(), "username".parse().unwrap()],
            None => vec![],
        },
        sealed: sealed.map(<[u8]>::to_vec),
    }
}

fn is_conflict(result: Result<(), StoreError>) -> bool {
    matches!(result, Err(StoreError::Conflict(_)))
}

fn is_not_found(result: Result<(), StoreError>) -> bool {
    matches!(result, Err(StoreError::NotFound(_)))
}

pub async fn run(backend: &dyn Backend) {
    values(&*backend.open()).await;
    leases(&*backend.open()).await;
    the_rest(&*backend.open()).await;
    states(&*backend.open()).await;
    super::revoked::conformance::run(backend).await;
    units(&*backend.open()).await;
    head(backend).await;
    concurrent(backend).await;
}

async fn values(store: &dyn Store) {
    let path = || "orders/db".parse().unwrap();
    assert_eq!(store.kv(path(), None).await.unwrap(), None);
    assert!(is_conflict(
        store
            .commit(vec![Op::KvPut(kv_row("orders/db", 2, Some(b"x")))])
            .await
    ));
    let rows = [
        kv_row("orders/db", 1, Some(b"one")),
        kv_row("orders/db", 2, Some(b"two")),
        kv_row("orders/db", 3, None),
        kv_row("a", 1, Some(b"")),
    ];
    for row in &rows {
        store.commit(vec![Op::KvPut(row.clone())]).await.unwrap();
        assert!(is_conflict(
            store.commit(vec![Op::KvPut(row.clone())]).await
        ));
    }
    assert_eq!(
        store.kv(path(), None).await.unwrap().as_ref(),
        Some(&rows[2])
    );
    for (version, row) in [
        (1, Some(&rows[0])),
        (2, Some(&rows[1])),
        (0, None),
        (4, None),
    ] {
        let found = store.kv(path(), Some(version)).await.unwrap();
        assert_eq!(found.as_ref(), row);
    }
    assert_eq!(store.kv(path(), Some(u64::MAX)).await.unwrap(), None);
    let history = store.kv_history(path()).await.unwrap();
    let seen: Vec<_> = history
        .iter()
        .map(|row| (row.version, row.deleted, row.fields.len()))
        .collect();
    assert_eq!(seen, [(1, false, 2), (2, false, 2), (3, true, 0)]);
    let list = store.kv_list().await.unwrap();
    let seen: Vec<_> = list
        .iter()
        .map(|row| (row.path.as_str(), row.version, row.deleted))
        .collect();
    assert_eq!(seen, [("a", 1, false), ("orders/db", 3, true)]);
}

async fn leases(store: &dyn Store) {
    let (one, two, three) = (lease(1, 7, "a"), lease(2, 7, "b"), lease(3, 8, "a"));
    for lease in [&one, &two, &three] {
        let unit = vec![Op::LeaseInsert(lease.clone())];
        store.commit(unit.clone()).await.unwrap();
        assert!(is_conflict(store.commit(unit).await));
    }
    // No second lease for (workload, credential), whatever its id; none of the same id.
    let second = Op::LeaseInsert(lease(9, 7, "a"));
    assert!(is_conflict(store.commit(vec![second.clone()]).await));
    assert!(is_conflict(
        store.commit(vec![Op::LeaseInsert(lease(1, 99, "z"))]).await
    ));

    assert_eq!(
        store.lease(one.id.clone()).await.unwrap().as_ref(),
        Some(&one)
    );
    let found = store.lease_of(one.workload.clone(), one.credential.clone());
    assert_eq!(found.await.unwrap().as_ref(), Some(&one));
    let none = store.lease_of(one.workload.clone(), "z".parse().unwrap());
    assert_eq!(none.await.unwrap(), None);
    assert_eq!(
        store.leases_of(one.workload.clone()).await.unwrap(),
        [one.clone(), two.clone()]
    );
    assert_eq!(
        store.leases_on("a".parse().unwrap()).await.unwrap().len(),
        2
    );
    let counts = store.lease_counts().await.unwrap();
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [2, 1]);
    assert_eq!(
        store.leases(None, 2).await.unwrap(),
        [one.clone(), two.clone()]
    );
    assert_eq!(
        store.leases(Some(two.id.clone()), 9).await.unwrap(),
        [three]
    );

    let mut changed = two.clone();
    changed.state = LeaseState::Revoking;
    (changed.expires_at, changed.due_at) = (5, 6);
    (changed.attempts, changed.problem) = (3, "no answer".into());
    changed.reason = "died".into();
    // One of every kind of source is read as it was written; the last stays.
    for source in [
        Source::Sealed(b"token".to_vec()),
        Source::Shared { version: 4 },
        Source::Account {
            connection: "shop".parse().unwrap(),
            account: "orders_1".into(),
            sealed: b"fields".to_vec(),
        },
    ] {
        changed.source = source;
        let unit = vec![Op::LeaseUpdate(changed.clone())];
        store.commit(unit).await.unwrap();
        let found = store.lease(two.id.clone()).await.unwrap();
        assert_eq!(found.as_ref(), Some(&changed));
    }
    // What identifies it stays as it is.
    let mut given = changed.clone();
    given.credential = "other".parse().unwrap();
    given.engine = mayfly_wire::EngineKind::Jwt;
    store.commit(vec![Op::LeaseUpdate(given)]).await.unwrap();
    assert_eq!(
        store.lease(two.id.clone()).await.unwrap(),
        Some(changed.clone())
    );
    assert!(is_not_found(
        store.commit(vec![Op::LeaseUpdate(lease(50, 7, "c"))]).await
    ));

    assert_eq!(store.next_due(vec![]).await.unwrap(), Some(6));
    let at = || vec!["shop".parse().unwrap()];
    assert_eq!(store.next_due(at()).await.unwrap(), Some(10_001));
    let claim = |now, most, except| {
        let until = 20_000;
        store.claim_due(Claim {
            now,
            until,
            most,
            except,
        })
    };
    assert_eq!(claim(5, 9, vec![]).await.unwrap(), []);
    assert_eq!(claim(10_000, 9, at()).await.unwrap(), []);
    let first = claim(10_003, 1, vec![]).await.unwrap();
    changed.due_at = 20_000;
    assert_eq!(first, [changed.clone()]);
    // Nobody gets it a second time before it is due again.
    assert_eq!(claim(10_001, 9, vec![]).await.unwrap().len(), 1);
    assert_eq!(claim(u64::MAX, 2, vec![]).await.unwrap().len(), 2);
    let unit = vec![
        Op::LeaseDue(changed.id.clone(), 7),
        Op::LeaseDue(LeaseId::from_random([8; 16]), 7),
    ];
    store.commit(unit).await.unwrap();
    changed.due_at = 7;
    let revoking = store.leases_in(LeaseState::Revoking).await.unwrap();
    assert_eq!(revoking, [changed.clone()]);
    assert_eq!(store.leases_in(LeaseState::Planned).await.unwrap(), []);
    assert_eq!(store.leases_in(LeaseState::Active).await.unwrap().len(), 2);

    // One that must end makes room for another, and cannot come back beside it.
    let heir = lease(11, 7, "b");
    let unit = vec![Op::LeaseInsert(heir.clone())];
    store.commit(unit).await.unwrap();
    let found = store.lease_of(heir.workload.clone(), heir.credential.clone());
    assert_eq!(found.await.unwrap().as_ref(), Some(&heir));
    assert_eq!(
        store.leases_of(heir.workload.clone()).await.unwrap().len(),
        3
    );
    let mut back = changed.clone();
    back.state = LeaseState::Planned;
    assert!(is_conflict(store.commit(vec![Op::LeaseUpdate(back)]).await));

    let end = || vec![Op::LeaseEnd(one.id.clone(), 2_000)];
    store.commit(end()).await.unwrap();
    assert!(is_not_found(store.commit(end()).await));
    assert_eq!(store.lease(one.id.clone()).await.unwrap(), None);
    store.commit(vec![second]).await.unwrap();
}

/// No state is skipped, whoever asks for it.
async fn states(store: &dyn Store) {
    let source = Source::Account {
        connection: "shop".parse().unwrap(),
        account: "orders_1".into(),
        sealed: b"fields".to_vec(),
    };
    let in_state = |number: u64, state| Lease {
        state,
        source: source.clone(),
        ..lease(100 + number, 77, "a")
    };
    let all = [
        LeaseState::Planned,
        LeaseState::Active,
        LeaseState::Retiring,
        LeaseState::Revoking,
    ];
    for state in all.into_iter().skip(1) {
        let unit = vec![Op::LeaseInsert(in_state(1, state))];
        assert!(is_conflict(store.commit(unit).await));
    }
    // Every way to its end, and at each step everything that cannot be next.
    let mut number: u64 = 1;
    for way in [vec![0, 3], vec![0, 1, 3], vec![0, 1, 2, 3]] {
        number += 1;
        let unit = vec![Op::LeaseInsert(in_state(number, all[0]))];
        store.commit(unit).await.unwrap();
        for (at, next) in way.iter().zip(way.iter().skip(1)) {
            let end = vec![Op::LeaseEnd(in_state(number, all[0]).id, 2_000)];
            assert!(is_conflict(store.commit(end).await));
            for wrong in all.into_iter().filter(|to| !all[*at].may_become(*to)) {
                let unit = vec![Op::LeaseUpdate(in_state(number, wrong))];
                assert!(is_conflict(store.commit(unit).await));
            }
            let unit = vec![Op::LeaseUpdate(in_state(number, all[*next]))];
            store.commit(unit).await.unwrap();
        }
        let end = vec![Op::LeaseEnd(in_state(number, all[0]).id, 2_000)];
        store.commit(end).await.unwrap();
    }

    // One is planned beside the active one, and takes its place in one unit; a second is neither
    // planned nor active beside it.
    let insert = |number| vec![Op::LeaseInsert(in_state(number, LeaseState::Planned))];
    let update = |number, state| Op::LeaseUpdate(in_state(number, state));
    store.commit(insert(20)).await.unwrap();
    let active = vec![update(20, LeaseState::Active)];
    store.commit(active).await.unwrap();
    store.commit(insert(21)).await.unwrap();
    assert!(is_conflict(store.commit(insert(22)).await));
    let alone = vec![update(21, LeaseState::Active)];
    assert!(is_conflict(store.commit(alone).await));
    let both = vec![
        update(20, LeaseState::Retiring),
        update(21, LeaseState::Active),
    ];
    store.commit(both).await.unwrap();
    let of = store.lease_of(evidence(77).workload, "a".parse().unwrap());
    assert_eq!(of.await.unwrap().unwrap().id, in_state(21, all[1]).id);
}

async fn the_rest(store: &dyn Store) {
    let key = evidence(7).workload;
    assert_eq!(store.workload(key.clone()).await.unwrap(), None);
    let mut workload = Workload {
        evidence: evidence(7),
        seen_at: 1,
    };
    for seen_at in [1, 2] {
        workload.seen_at = seen_at;
        let unit = vec![Op::WorkloadPut(Box::new(workload.clone()))];
        store.commit(unit).await.unwrap();
        assert_eq!(
            store.workload(key.clone()).await.unwrap(),
            Some(workload.clone())
        );
    }
    let of = |node: &str, after| store.workloads(Some(node.to_owned()), after, 2);
    assert_eq!(of("node-1", None).await.unwrap(), [workload.clone()]);
    assert_eq!(of("node-2", None).await.unwrap(), []);
    let numbers = [8, 9, 10];
    let more = numbers.map(|number| {
        let evidence = evidence(number);
        let seen_at = 1;
        Op::WorkloadPut(Box::new(Workload { evidence, seen_at }))
    });
    store.commit(more.into()).await.unwrap();
    for pages in [Some("node-1".to_owned()), None] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store.workloads(pages.clone(), after, 2).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.evidence.workload.clone());
            found.extend(
                page.into_iter()
                    .map(|one| one.evidence.workload.to_string()),
            );
        }
        assert!(found.len() == 4 && found.is_sorted(), "{found:?}");
    }
    let counts = store.workload_counts().await.unwrap();
    assert_eq!(counts, [("node-1".to_owned(), 4)].into());
    let live = lease(9_000, 9, "living");
    let holder = vec![Op::WorkloadRemove(live.workload.clone())];
    let of_it = live.workload.clone();
    store
        .commit(vec![Op::LeaseInsert(live.clone())])
        .await
        .unwrap();
    store.commit(holder.clone()).await.unwrap();
    let known = store.workload(of_it.clone()).await.unwrap();
    assert!(known.is_some(), "it holds a lease");
    let mut both = vec![Op::LeaseEnd(live.id, 2_000)];
    both.extend(holder);
    store.commit(both).await.unwrap();
    assert_eq!(store.workload(of_it).await.unwrap(), None);
    let removals = numbers.map(|number| Op::WorkloadRemove(evidence(number).workload));
    store.commit(removals.into()).await.unwrap();
    let remove = || vec![Op::WorkloadRemove(key.clone())];
    store.commit(remove()).await.unwrap();
    store.commit(remove()).await.unwrap();

    assert_eq!(store.configuration().await.unwrap(), None);
    let configuration = |number| Configuration {
        number,
        json: format!("{{\"n\":{number}}}"),
    };
    let put = |number| store.commit(vec![Op::ConfigPut(configuration(number))]);
    assert!(is_conflict(put(2).await));
    put(1).await.unwrap();
    assert!(is_conflict(put(1).await));
    put(2).await.unwrap();
    assert_eq!(store.configuration().await.unwrap(), Some(configuration(2)));

    assert_eq!(store.meta("x".into()).await.unwrap(), None);
    for value in [b"one".to_vec(), vec![]] {
        let unit = vec![Op::MetaPut("x".into(), value.clone())];
        store.commit(unit).await.unwrap();
        assert_eq!(store.meta("x".into()).await.unwrap(), Some(value));
    }
    let keys = |prefix: &str| store.meta_keys(prefix.to_owned());
    assert_eq!(keys("x").await.unwrap(), ["x"]);
    assert!(keys("x/").await.unwrap().is_empty());
    for _ in 0..2 {
        let unit = vec![Op::MetaRemove("x".into())];
        store.commit(unit).await.unwrap();
    }
    assert_eq!(store.meta("x".into()).await.unwrap(), None);
}

async fn units(store: &dyn Store) {
    let good = lease(100, 100, "a");
    let unit = vec![
        Op::LeaseInsert(good.clone()),
        Op::MetaPut("y".into(), b"y".to_vec()),
        Op::LeaseEnd(LeaseId::from_random([9; 16]), 2_000),
    ];
    assert!(is_not_found(store.commit(unit).await));
    assert_eq!(store.lease(good.id).await.unwrap(), None);
    assert_eq!(store.meta("y".into()).await.unwrap(), None);
}

async fn head(backend: &dyn Backend) {
    let head = Head {
        seq: 41,
        hash: "ab".repeat(32),
    };
    let store = backend.open();
    store.keep_head(HeadCell::of(head.clone()));
    store.commit(vec![]).await.unwrap();
    drop(store);
    let store = backend.open();
    assert_eq!(store.opened_with_head(), Some(head.clone()));
    // What it was opened with stays until it hears of another.
    store.commit(vec![]).await.unwrap();
    drop(store);
    assert_eq!(backend.open().opened_with_head(), Some(head));
}

/// Of many that insert the same lease at once, one wins; others are not harmed by those that fail; and all
/// is there after opening again.
async fn concurrent(backend: &dyn Backend) {
    let store = backend.open();
    let tasks: Vec<_> = (0..64)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let contended = lease(1_000 + number, 5_000, "contended");
                let own = lease(2_000 + number, 6_000 + number, "own");
                let won = store.commit(vec![Op::LeaseInsert(contended)]).await;
                store.commit(vec![Op::LeaseInsert(own)]).await.unwrap();
                won
            })
        })
        .collect();
    let mut wins = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => wins += 1,
            Err(error) => assert!(is_conflict(Err(error))),
        }
    }
    assert_eq!(wins, 1);
    drop(store);
    let store = backend.open();
    let counts = store.lease_counts().await.unwrap();
    assert_eq!(counts[&"contended".parse().unwrap()], 1);
    assert_eq!(counts[&"own".parse().unwrap()], 64);
}
