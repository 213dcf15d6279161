//! A broker with one credential of two fields, which are always equal, and containers that have it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mayfly_tests::harness::{Broker, BrokerOptions, Container, Docker, Image, Realm, random_text};

use crate::e2e::resilience::app::ALL;

pub const SOON: Duration = Duration::from_secs(30);
pub const IMAGE: &str = "starts:app";
/// With a shell, for applications that a test writes.
pub const SHELL_IMAGE: &str = "starts:shell";

const CREDENTIAL: &str = "[credential.pair]\nengine = \"kv\"\npath = \"pair\"\nttl = \"10m\"\n";
/// As docs/sidecar.md declares it.
pub const TMPFS: &str = "size=1m,uid=1000,gid=1000,mode=0750,noexec,nosuid,nodev,noswap";

/// No privilege at all.
pub const MODEST: [&str; 4] = [
    "--user=1000:1000",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
];

/// A broker of the machine's own realm, or beside an engine.
pub fn broker(docker: Option<&Docker>, policy: &str) -> Result<Broker> {
    let options = BrokerOptions {
        engines: docker.iter().map(|docker| docker.socket()).collect(),
        ..BrokerOptions::default()
    };
    let broker = Broker::start(docker.map_or(Realm::host(), Docker::realm), options)?;
    let policy = if policy.is_empty() { ALL } else { policy };
    broker.apply(&[("access.cedar", policy), ("credentials.toml", CREDENTIAL)])?;
    put(&broker)?;
    Ok(broker)
}

/// Gives the credential another value, and says which.
pub fn put(broker: &Broker) -> Result<String> {
    let value = random_text(24)?;
    let coded = STANDARD.encode(&value);
    let body = format!("{{\"fields\":{{\"left\":\"{coded}\",\"right\":\"{coded}\"}}}}");
    let json = [("content-type", "application/json")];
    let reply = broker.admin().request("PUT", "/v1/kv/pair", &json, body)?;
    ensure!(reply.status.is_success(), "{}", reply.text());
    Ok(value)
}

/// The engine, with both images.
pub fn engine() -> Result<&'static Docker> {
    let docker = Docker::host()?;
    Image::with_sidecar()?.load(docker, IMAGE)?;
    Image::with_sidecar()?
        .busybox()?
        .load(docker, SHELL_IMAGE)?;
    Ok(docker)
}

/// Starts a container whose entrypoint is the shim with a sidecar; `shim` are its options, `--`, and the
/// application.
pub fn run<'a>(
    docker: &'a Docker,
    broker: &Broker,
    options: &[&str],
    image: &str,
    shim: &[&str],
) -> Result<Container<'a>> {
    let socket = format!(
        "--volume={}:/run/mayfly:ro",
        broker.workload_dir().display()
    );
    let secrets = format!(
        "--mount=type=volume,dst=/run/secrets,volume-nocopy,volume-driver=local,volume-opt=type=tmpfs,\
         volume-opt=device=tmpfs,\"volume-opt=o={TMPFS}\""
    );
    let start = [&socket, &secrets, "--entrypoint=/bin/mayfly-shim"];
    let run = [image, "run", "--sidecar", "--wait", "pair"];
    docker
        .run([&start, options, &run, shim].concat())
        .context("starting a container with the shim")
}
