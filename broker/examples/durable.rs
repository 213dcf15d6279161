//! How fast records and leases become durable, alone and together, and how the number of leases tells.
//! Prints JSON lines. An optional argument is the directory to write in.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use anyhow::Context as _;
use mayfly_broker::audit::{AuditKey, AuditLog, Opening};
use mayfly_broker::clock::SystemClock;
use mayfly_broker::store::{Claim, Lease, LeaseState, Op, Source, SqliteStore, Store};
use mayfly_broker::unseal::KeyFile;
use mayfly_wire::audit::Event;
use mayfly_wire::{LeaseId, WorkloadKey};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FOR: Duration = Duration::from_secs(2);

fn lease(number: u128) -> anyhow::Result<Lease> {
    Ok(Lease {
        id: LeaseId::from_random(
            number
                .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c)
                .to_be_bytes(),
        ),
        workload: WorkloadKey {
            boot_id: "6d0ea4ad-9a1c-4b53-8a4e-7d8f5a1d6f10".to_owned(),
            cgroup_id: u64::try_from(number)?,
            pidns_id: 4_026_532_001,
        },
        credential: "orders-db".parse()?,
        engine: mayfly_wire::EngineKind::Kv,
        node: "node-1".to_owned(),
        name: "shop-orders-1".to_owned(),
        state: LeaseState::Active,
        issued_at: 1,
        expires_at: u64::try_from(number)?,
        due_at: u64::try_from(number)?,
        reason: String::new(),
        attempts: 0,
        problem: String::new(),
        source: Source::Kv {
            path: "orders/db".parse()?,
            version: 1,
        },
    })
}

/// Runs `work` from `callers` tasks at once, and prints how many a second and how long one takes.
async fn measure<F, W>(figure: &str, callers: u128, work: W) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send,
    W: Fn(u128) -> F + Send + Sync + 'static,
{
    let work = Arc::new(work);
    let until = Instant::now() + FOR;
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let work = work.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    let from = Instant::now();
                    work(caller * 10_000_000 + times.len() as u128).await?;
                    times.push(from.elapsed());
                }
                anyhow::Ok(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).map(Duration::as_micros);
    let (median, p99) = (
        at(50).context("nothing ran")?,
        at(99).context("nothing ran")?,
    );
    println!(
        "{{\"figure\": \"{figure}.{callers}\", \"median\": {median}, \"p99\": {p99}, \"n\": {}, \
         \"unit\": \"us\", \"per_second\": {}}}",
        times.len(),
        times.len() as u64 / FOR.as_secs()
    );
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let base = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("mayfly-durable-{}", std::process::id()));
    let result = run(&dir).await;
    std::fs::remove_dir_all(&dir)?;
    result
}

async fn run(dir: &std::path::Path) -> anyhow::Result<()> {
    std::fs::create_dir(dir)?;
    let key = KeyFile::new(dir.join("root.key"));
    let open = || SqliteStore::open(&dir.join("state"), &key).map(Arc::new);
    let store = open()?;
    let opening = Opening {
        path: dir.join("audit.jsonl"),
        key: AuditKey::derive(&store.keys())?,
        known: None,
        accept_loss: false,
    };
    let audit = Arc::new(AuditLog::open(opening, Arc::new(SystemClock))?);
    store.keep_head(audit.head());
    let event = || Event::Started {
        version: "0".to_owned(),
    };
    for callers in [1, 8, 64] {
        let audit = audit.clone();
        measure("audit_append", callers, move |_| {
            let audit = audit.clone();
            async move { Ok(audit.append(event()).await.map(|_| ())?) }
        })
        .await?;
    }
    for callers in [1, 8, 64] {
        let store = store.clone();
        measure("lease_commit", callers, move |number| {
            let store = store.clone();
            async move {
                let lease = lease(callers * 1_000_000_000 + number)?;
                Ok(store.commit(vec![Op::LeaseInsert(lease)]).await?)
            }
        })
        .await?;
    }
    // All that one new lease costs the disk: look whether there is one, record, commit.
    for total in [100, 100_000] {
        fill(store.as_ref(), total).await?;
        for callers in [1, 64] {
            let (store, audit) = (store.clone(), audit.clone());
            measure(
                &format!("issue_with_{total}_leases"),
                callers,
                move |number| {
                    let (store, audit) = (store.clone(), audit.clone());
                    async move {
                        let lease =
                            lease(total * 1_000_000_000 + callers * 100_000_000_000 + number)?;
                        let (workload, name) = (lease.workload.clone(), lease.credential.clone());
                        store.lease_of(workload, name).await?;
                        audit.append(event()).await?;
                        Ok(store.commit(vec![Op::LeaseInsert(lease)]).await?)
                    }
                },
            )
            .await?;
        }
    }
    fill(store.as_ref(), 100_000).await?;
    let from = Instant::now();
    let expiring = store
        .claim_due(Claim {
            now: 1_000,
            until: 2_000,
            most: 1_000,
            except: Vec::new(),
        })
        .await?
        .len();
    println!("leases_expiring: {expiring} in {:?}", from.elapsed());
    let from = Instant::now();
    store.lease_counts().await?;
    println!("lease_counts: {:?}", from.elapsed());
    drop(store);
    let from = Instant::now();
    let _store = open()?;
    println!("open and check 100000 leases: {:?}", from.elapsed());
    let status = std::fs::read_to_string("/proc/self/status")?;
    let resident = status.lines().find(|line| line.starts_with("VmRSS"));
    println!("{}", resident.unwrap_or_default());
    Ok(())
}

/// Ends leases or adds some, until there are `total`.
async fn fill(store: &SqliteStore, total: u128) -> anyhow::Result<()> {
    let count = || async {
        let counts = store.lease_counts().await?;
        anyhow::Ok(u128::from(counts.values().sum::<u64>()))
    };
    while count().await? > total {
        let most = u32::try_from((count().await? - total).min(1000))?;
        let some = store.leases(None, most).await?;
        let ends = some.into_iter().map(|lease| Op::LeaseEnd(lease.id, 0));
        store.commit(ends.collect()).await?;
    }
    let have = count().await?;
    for from in (have..total).step_by(1000) {
        let numbers = from..total.min(from + 1000);
        let leases = numbers.map(|number| Ok(Op::LeaseInsert(lease(number + 1)?)));
        store.commit(leases.collect::<anyhow::Result<_>>()?).await?;
    }
    Ok(())
}
