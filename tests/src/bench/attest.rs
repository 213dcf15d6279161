//! What attesting one peer takes, by the node's own library in this process: from the accepted
//! connection to complete evidence, with no container engine to ask.

use std::os::unix::net::UnixListener;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mayfly_node::attest::{AttestConfig, Attestor};

use super::place::{options_with, run_inside};
use super::report::Better;
use super::{Options, Report};
use crate::harness::TempDir;

pub fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let count = options.samples(5000, 1000);
    let dir = TempDir::new()?;
    let socket = dir.join("attest.sock");
    let listener = UnixListener::bind(&socket)?;
    // Anyone in a container may connect.
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let attestor = Attestor::new(AttestConfig {
        node: "bench".into(),
        ..AttestConfig::default()
    })?;
    attestor.listener_options(&listener)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let job = ["connect", "/run/mayfly/attest.sock", &count.to_string()];
    let container = run_inside(&options_with(dir.path())?, &job)?;
    let workload = container.cgroup().id()?;
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let (stream, _) = listener.accept().context("accepting")?;
        let begun = Instant::now();
        let peer = attestor.connected(&stream)?;
        let attested = runtime.block_on(attestor.attest(&peer))?;
        samples.push(begun.elapsed().as_secs_f64() * 1e6);
        ensure!(
            attested.evidence.workload.cgroup_id == workload,
            "someone else was attested"
        );
    }
    report.add("attest", samples, "us", Better::Less)
}
