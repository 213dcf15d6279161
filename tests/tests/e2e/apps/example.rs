//! deploy/examples/compose, as an operator copies it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{
    Broker, Compose, Docker, Image, TempDir, output, random_text, wait_until,
};

use super::examples;

const SOON: Duration = Duration::from_secs(30);

/// Where things are on this machine.
const HERE: &str = r#"
services:
  orders: &here
    network_mode: none
    volumes: ["SOCKET:/run/mayfly:ro"]
  reports:
    network_mode: none
  reports-sidecar: *here
"#;
/// Where a machine binds its controllers to v1, pure v2 has no limits that could be demanded.
const NO_LIMITS: &str = r#"
@id("no-limits-here") @lifts("hardened-limits")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue", resource);
"#;

#[test]
fn the_compose_example_gives_each_service_its_own_alone() -> Result<()> {
    let docker = Docker::host()?;
    // What `make images` makes is seen in `images`; here it need not be made again.
    let sidecar = Image::with_sidecar()?.setting("ENTRYPOINT [\"/bin/mayfly-sidecar\"]");
    for (image, tag) in [
        (sidecar, "localhost/mayfly/sidecar"),
        (Image::scratch()?.busybox()?, "busybox"),
    ] {
        // With its owner, the engine would give it to the volume.
        fs::remove_dir(image.root().join("run/secrets"))?;
        image.load(docker, tag)?;
    }
    let broker = Broker::beside(docker)?;

    let dir = TempDir::new()?;
    let mut copy = std::process::Command::new("cp");
    copy.arg("--recursive").arg(examples().join("compose/."));
    output(copy.arg(dir.path()))?;
    let here = HERE.replace("SOCKET", &broker.workload_dir().display().to_string());
    fs::write(dir.join("here.yaml"), here)?;
    let config = dir.join("config");
    if docker.realm().cgroup_v1("pids")?.is_none() {
        fs::write(config.join("here.cedar"), NO_LIMITS)?;
    }
    broker.cli(&["apply", "--yes", "-f", &config.display().to_string()])?;
    let secrets = [random_text(24)?, random_text(24)?];
    for (path, secret) in ["orders/db", "reports/db"].iter().zip(&secrets) {
        broker.cli_with_input(&["kv", "put", path, "-"], secret)?;
    }

    let compose = Compose::of(docker, dir, &["compose.yaml", "here.yaml"])?;
    let why = || format!("{:?}", compose.cli(&["logs"]));
    for (service, secret) in ["orders", "reports"].iter().zip(&secrets) {
        let container = compose.service(service)?;
        let path = format!("/run/secrets/{service}-db");
        let found = wait_until(SOON, &path, || container.exec(&["cat", &path]).map(Some));
        ensure!(found.with_context(why)? == *secret, "{service} has another");
        let names = container.exec(&["ls", "/run/secrets"])?;
        ensure!(names == format!("{service}-db"), "{service} has {names}");
    }
    let name = &compose.service("orders")?.inspect()?["Name"];
    let name = name.as_str().unwrap_or_default().trim_start_matches('/');
    let own = broker.cli(&["explain", name, "orders-db"])?;
    let other = broker.cli(&["explain", name, "reports-db"])?;
    ensure!(own.contains("gets orders-db"), "{own}");
    ensure!(other.contains("does not get reports-db"), "{other}");
    Ok(())
}
