//! What a container engine keeps of a container: its writable layer, its logs, its metadata, its volumes.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{
    Broker, Container, Docker, Image, Needle, log_path, random_text, scan_bytes, wait_until,
};

use super::super::attacks::SECRETS;
use super::super::resilience::app;
use super::search::Search;

const IMAGE: &str = "residue:app";
const NAME: &str = "credential";
const SOON: Duration = Duration::from_secs(30);

/// Reads its secret now and then, as an application does, and says and keeps what is no secret.
const APPLICATION: &str = "echo said $CANARY; echo kept $CANARY >/tmp/kept; \
    while :; do cat /run/secrets/credential >/dev/null; sleep 0.1; done";

/// Files under a directory that changed since a time, in seconds since the Unix epoch. What is mounted
/// there is not looked into.
fn changed(dir: &Path, since: i64, found: &mut Vec<PathBuf>) -> Result<()> {
    let device = std::fs::metadata(dir)?.dev();
    for entry in std::fs::read_dir(dir)?.flatten() {
        // An engine at work removes things meanwhile.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() && metadata.dev() == device {
            changed(&entry.path(), since, found)?;
        } else if metadata.is_file() && metadata.ctime() >= since {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Where the needles stand in what the engine keeps and tells.
fn kept(container: &Container<'_>, since: i64, needles: &[Needle]) -> Result<Vec<String>> {
    let docker = container.docker();
    let mut files = vec![log_path(&format!("dockerd-{}", docker.realm().name()))?];
    for part in ["data", "exec"] {
        changed(&docker.dir().join(part), since, &mut files)?;
    }
    let mut hits = Vec::new();
    for file in files {
        // Sparse databases of the engine's among them: none is large.
        if let Ok(bytes) = std::fs::read(&file) {
            hits.extend(scan_bytes(&bytes, &file.display().to_string(), needles)?);
        }
    }
    for (what, text) in [
        ("docker logs", container.logs()?),
        ("docker inspect", container.inspect()?.to_string()),
    ] {
        hits.extend(scan_bytes(text.as_bytes(), what, needles)?);
    }
    Ok(hits.into_iter().map(|hit| hit.region).collect())
}

#[test]
fn the_engine_keeps_nothing() -> Result<()> {
    let docker = Docker::host()?;
    Image::with_sidecar()?.busybox()?.load(docker, IMAGE)?;
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)?
        .as_secs()
        .cast_signed();
    let broker = Broker::beside(docker)?;
    app::kv_credentials(&broker, &[NAME.to_string()], "")?;
    let (first, second, canary) = (random_text(40)?, random_text(40)?, random_text(40)?);
    let mut search = Search::of(&[]);
    search.add("the first value", first.as_bytes());
    search.add("the second value", second.as_bytes());
    app::put(&broker, NAME, first.as_bytes())?;

    // With a layer that it can write to.
    let container = docker.run([
        "--user=1000:1000",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        SECRETS,
        &format!(
            "--volume={}:/run/mayfly:ro",
            broker.workload_dir().display()
        ),
        &format!("--env=CANARY={canary}"),
        IMAGE,
        "/bin/mayfly-shim",
        "run",
        "--sidecar",
        "--",
        "/bin/sh",
        "-c",
        APPLICATION,
    ])?;
    let pid = container.pid()?;
    let file = PathBuf::from(format!("/proc/{pid}/root/run/secrets/{NAME}"));
    let holds = |value: &str| {
        wait_until(SOON, "the value in the container", || {
            Ok((std::fs::read_to_string(&file)? == value).then_some(()))
        })
        .with_context(|| container.logs().unwrap_or_default())
    };
    let clean = |when: &str| -> Result<()> {
        let hits = kept(&container, since, search.secrets())?;
        ensure!(hits.is_empty(), "{when}, secrets stand in {hits:#?}");
        let canary = [Needle::new("canary", canary.as_bytes())];
        let found = kept(&container, since, &canary)?;
        for place in ["docker logs", "-json.log", "/tmp/kept"] {
            ensure!(
                found.iter().any(|hit| hit.ends_with(place)),
                "{when}, what the application says and keeps is not found in {place}: {found:#?}"
            );
        }
        let diff = docker.cli(["diff", container.id()])?;
        ensure!(
            diff.contains("/tmp/kept") && !diff.contains("/run/secrets/"),
            "{when}, the layer has changed so:\n{diff}"
        );
        Ok(())
    };
    holds(&first)?;
    clean("after publishing")?;
    app::put(&broker, NAME, second.as_bytes())?;
    holds(&second)?;
    clean("after a rotation")?;
    docker.cli(["stop", "--time=5", container.id()])?;
    clean("after the end")
}
