//! Broker and database server killed at any moment while containers come and go: when all has settled,
//! the roles in the server are those of the leases, exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Bare, BareOptions, Broker, PostgresServer, Realm, binary, wait_until};

use super::postgres::{broker, server};
use crate::e2e::resilience::crashes::{on_record, random_number};

/// Kills, unless `MAYFLY_KILLS` says how many.
const KILLS: usize = 9;
/// Containers that come and go at the same time.
const CHURN: usize = 4;
/// Waits between attempts grow to half a minute on both sides of the pool.
const SETTLED: Duration = Duration::from_secs(90);

/// A container that wants a role, with no more to do.
fn container(workload_dir: &Path) -> Result<Bare> {
    let mut options = BareOptions::default().bind(workload_dir, "run/mayfly");
    for program in ["mayfly-shim", "mayfly-sidecar"] {
        options = options.bind(&binary(program)?, &format!("mf/{program}"));
    }
    let command = [
        "/mf/mayfly-shim",
        "run",
        "--sidecar",
        "--sidecar-arg",
        "--want",
        "--sidecar-arg",
        "orders-db",
        "--",
        "sleep",
        "600",
    ];
    Bare::run(Realm::host(), &options, &command)
}

/// Containers come, live for a moment, and go.
fn churn(workload_dir: &Path, stop: &AtomicBool, count: &AtomicU32) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let container = container(workload_dir)?;
        let life = u64::try_from(random_number()? % 400)?;
        std::thread::sleep(Duration::from_millis(life));
        container.kill()?;
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn kill_one(broker: &mut Broker, server: &mut PostgresServer) -> Result<()> {
    let which = random_number()? % 4;
    if which != 0 {
        broker.kill()?;
    }
    if which == 0 || which == 1 {
        server.kill();
        std::thread::sleep(Duration::from_millis(u64::try_from(
            random_number()? % 300,
        )?));
        server.run()?;
    }
    if which != 0 {
        broker.restart()?;
    }
    Ok(())
}

fn roles(server: &PostgresServer) -> Result<BTreeSet<String>> {
    let names = server.psql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'mf\\_%'")?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Each lease's role, and its id.
fn leases(broker: &Broker) -> Result<BTreeMap<String, String>> {
    let leases = broker.cli_json(&["leases"])?;
    let leases = leases.as_array().context("no list of leases")?;
    let both = leases.iter().map(|lease| {
        ensure!(lease["state"] == "active", "not settled: {lease}");
        let text = |key: &str| lease[key].as_str().map(str::to_owned);
        text("account").zip(text("lease")).context("no account")
    });
    both.collect()
}

#[test]
fn after_kills_at_any_moment_the_roles_are_those_of_the_leases() -> Result<()> {
    let mut server = server(&[])?;
    let mut broker = broker(&server)?;
    let kills = match std::env::var("MAYFLY_KILLS") {
        Ok(text) => text.parse().context("MAYFLY_KILLS: expected a number")?,
        Err(_) => KILLS,
    };
    let workload_dir = broker.workload_dir();
    let staying = [container(&workload_dir)?, container(&workload_dir)?];
    let (start, count, mut done) = (Instant::now(), AtomicU32::new(0), 0);
    while done < kills {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let (dir, stop, count) = (&workload_dir, &stop, &count);
            let churners: Vec<_> = (0..CHURN)
                .map(|_| scope.spawn(move || churn(dir, stop, count)))
                .collect();
            let killed = (|| -> Result<()> {
                for _ in 0..3 {
                    let wait = u64::try_from(random_number()? % 1000)?;
                    std::thread::sleep(Duration::from_millis(wait));
                    kill_one(&mut broker, &mut server)?;
                    done += 1;
                }
                Ok(())
            })();
            stop.store(true, Ordering::Relaxed);
            for churner in churners {
                let churned = churner.join();
                churned.map_err(|_| anyhow::anyhow!("a churner panicked"))??;
            }
            killed
        })?;
        let settled = wait_until(SETTLED, "roles and leases to be the same", || {
            let (roles, leases) = (roles(&server)?, leases(&broker)?);
            ensure!(
                roles.iter().eq(leases.keys()),
                "roles {roles:?}, leases {leases:?}"
            );
            Ok((leases.len() == staying.len()).then_some(leases))
        });
        let leases = settled.with_context(|| format!("after {done} kills"))?;
        let record = on_record(&broker)?;
        for lease in leases.values() {
            let counts = record.get(lease);
            ensure!(
                counts == Some(&(1, 0)),
                "{lease} began and ended so often: {counts:?}"
            );
        }
    }
    println!(
        "{done} kills, {} containers, {:?}",
        count.load(Ordering::Relaxed),
        start.elapsed()
    );
    ensure!(
        count.load(Ordering::Relaxed) > 0,
        "no container came and went"
    );
    broker.cli(&["audit", "verify"]).map(drop)
}
