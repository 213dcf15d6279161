//! The broker's root keys: where they stand, and where they do not.

use anyhow::{Context, Result, ensure};
use mayfly_kernel::memory::{Backing, Region};
use mayfly_tests::harness::{Broker, BrokerOptions, Needle, Realm, root_keys, scan_memory};

use super::super::resilience::app::{self, App, SOON};
use super::search::values;

/// What the kernel calls the mappings of memfd_secret(2).
const SECRET: &str = "/secretmem (deleted)";

#[test]
fn root_keys_stand_in_memory_that_not_even_root_reads_and_nowhere_else() -> Result<()> {
    let probe = Region::new(32).context("this test's own secret memory")?;
    ensure!(
        probe.backing() == Backing::Secret,
        "this kernel has no memfd_secret (secretmem.enable=1 on old ones)"
    );
    let mut broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    let values = values(4)?;
    let names: Vec<String> = values.iter().map(|(name, _)| name.clone()).collect();
    // Every use of them: values, leases, tokens, records, the broker's own certificates.
    app::kv_credentials(&broker, &names, app::TOKENS)?;
    for (name, value) in &values {
        app::put(&broker, name, value)?;
    }
    let app = App::start(&broker.workload_dir(), "")?;
    for (name, value) in &values {
        app.wait_for_secret(name, value, SOON)?;
    }
    // The first start made them, and the second unwraps them.
    for start in ["first", "second"] {
        let (key_file, keys) = root_keys(&broker.state_dir())?;
        let mut needles = Needle::forms("key file", &key_file);
        for key in &keys {
            needles.extend(Needle::forms("root key", key));
        }
        needles.push(Needle::new("control", b"credential-number-3"));
        let scan = scan_memory(broker.pid()?, &needles)?;
        let (controls, leaks): (Vec<_>, Vec<_>) =
            scan.hits.iter().partition(|hit| hit.needle == "control");
        ensure!(
            !controls.is_empty(),
            "{start} start: the search finds nothing"
        );
        ensure!(leaks.is_empty(), "{start} start: {leaks:#?}");
        let kept = scan
            .unreadable
            .iter()
            .filter(|region| region.ends_with(SECRET));
        ensure!(
            kept.count() == keys.len(),
            "{start} start: expected {} mappings of secret memory among {:#?}",
            keys.len(),
            scan.unreadable
        );
        broker.stop()?;
        broker.restart()?;
        broker.cli(&["kv", "get", "e2e/credential-number-3", "--reveal"])?;
    }
    Ok(())
}
