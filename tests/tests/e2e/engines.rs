//! The container engines that the other suites use.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mayfly_tests::harness::{Compose, Docker, Image, binary, output, wait_until};

fn busybox(docker: &Docker) -> Result<String> {
    Image::scratch()?.busybox()?.load(docker, "engines:busybox")
}

#[test]
fn an_engine_runs_containers_in_cgroups_of_their_own() -> Result<()> {
    for docker in Docker::both()? {
        busybox(docker)?;
        let one = docker.run(["engines:busybox", "sleep", "60"])?;
        let two = docker.run(["--user", "1000", "engines:busybox", "sleep", "60"])?;
        let ((path, id), (other_path, other_id)) = (one.cgroup()?, two.cgroup()?);
        assert!(path.ends_with(one.id()), "{path}");
        assert!(other_path.ends_with(two.id()), "{other_path}");
        // 1 is the root: a runtime that does not use the v2 hierarchy leaves all processes there.
        assert!(id > 1 && other_id > 1 && id != other_id, "{id} {other_id}");
        assert_eq!(two.exec(&["id", "-u"])?, "1000");
    }
    Ok(())
}

#[test]
fn each_engine_has_the_cgroups_of_its_realm() -> Result<()> {
    let version = |docker: &Docker| docker.cli(["info", "--format", "{{.CgroupVersion}}"]);
    let docker = Docker::pure_v2()?;
    assert_eq!(version(docker)?, "2");
    assert_eq!(docker.realm().cgroup_v1("pids")?, None);

    let docker = Docker::host()?;
    let v1 = docker.realm().cgroup_v1("pids")?.is_some();
    assert_eq!(version(docker)?, if v1 { "1" } else { "2" });
    Ok(())
}

#[test]
fn a_program_run_in_the_realm_sees_its_cgroups_and_the_hosts_pids() -> Result<()> {
    for docker in Docker::both()? {
        let mounts = output(docker.command("cat").arg("/proc/mounts"))?;
        let has_v1 = mounts
            .lines()
            .any(|line| line.split(' ').nth(2) == Some("cgroup"));
        assert_eq!(has_v1, docker.realm().cgroup_v1("pids")?.is_some());

        let mut child = docker.command("sleep").arg("60").spawn()?;
        let comm = format!("/proc/{}/comm", child.id());
        let started = wait_until(Duration::from_secs(30), "sleep to be run", || {
            Ok((std::fs::read_to_string(&comm)? == "sleep\n").then_some(()))
        });
        child.kill()?;
        child.wait()?;
        started?;
    }
    Ok(())
}

#[test]
fn an_image_of_one_static_program_runs() -> Result<()> {
    let probe = binary("mayfly-probe")?;
    for docker in Docker::both()? {
        let image = Image::scratch()?.program(&probe, "app")?;
        image
            .setting(r#"ENTRYPOINT ["/bin/app", "say", "hello"]"#)
            .setting("USER 1000:1000")
            .load(docker, "engines:one")?;
        let container = docker.run(["--read-only", "--cap-drop=ALL", "engines:one"])?;
        container.wait_for_log("hello", Duration::from_secs(30))?;
        container.kill()?;
        assert_eq!(container.wait()?, 137);
    }
    Ok(())
}

#[test]
fn a_retag_moves_the_name_and_leaves_the_digest() -> Result<()> {
    let docker = Docker::host()?;
    let first = Image::scratch()?
        .busybox()?
        .setting("LABEL v=1")
        .load(docker, "engines:tag")?;
    let container = docker.run(["engines:tag", "sleep", "60"])?;
    let second = Image::scratch()?
        .busybox()?
        .setting("LABEL v=2")
        .load(docker, "engines:tag")?;
    assert_ne!(first, second);
    let inspect = container.inspect()?;
    assert_eq!(inspect["Image"], first.as_str());
    assert_eq!(inspect["Config"]["Image"], "engines:tag");
    docker.cli(["tag", &first, "engines:other"])?;
    let tagged = docker.cli(["image", "inspect", "--format", "{{.Id}}", "engines:other"])?;
    assert_eq!(tagged, first);
    Ok(())
}

#[test]
fn compose_labels_its_services_and_shares_tmpfs_volumes() -> Result<()> {
    const SERVICES: &str = r#"
  writer:
    image: engines:busybox
    command: [sh, -c, "echo written > /run/secrets/it && sleep 60"]
    user: "1000:1000"
    network_mode: none
    volumes: ["secrets:/run/secrets"]
  reader:
    image: engines:busybox
    command: [sleep, "60"]
    user: "1000:1000"
    network_mode: none
    pid: "service:writer"
    volumes: ["secrets:/run/secrets:ro"]
"#;
    for docker in Docker::both()? {
        busybox(docker)?;
        let compose = Compose::up(docker, SERVICES, &["secrets"])?;
        for name in ["writer", "reader"] {
            let labels = compose.service(name)?.inspect()?["Config"]["Labels"].clone();
            assert_eq!(labels["com.docker.compose.project"], compose.project());
            assert_eq!(labels["com.docker.compose.service"], name);
        }
        let reader = compose.service("reader")?;
        let text = wait_until(Duration::from_secs(30), "the shared file", || {
            reader.exec(&["cat", "/run/secrets/it"]).map(Some)
        })?;
        assert_eq!(text, "written");
        let mounts = compose.service("writer")?.exec(&["cat", "/proc/mounts"])?;
        let mount = mounts.lines().find(|line| line.contains(" /run/secrets "));
        let mount = mount.context("no mount at /run/secrets")?;
        for option in ["tmpfs", "noswap", "nosuid", "nodev", "noexec", "uid=1000"] {
            assert!(mount.contains(option), "{option} is missing: {mount}");
        }
    }
    Ok(())
}

#[test]
fn an_engine_that_is_dropped_leaves_nothing() -> Result<()> {
    let docker = Docker::start(Docker::host()?.realm())?;
    busybox(&docker)?;
    let container = docker.run(["engines:busybox", "sleep", "60"])?;
    let (dir, pid) = (docker.dir().to_path_buf(), container.pid()?);
    let cgroup = docker
        .realm()
        .cgroup_v2()?
        .join(container.cgroup()?.0.trim_start_matches('/'));
    assert!(cgroup.exists());
    std::mem::forget(container);
    let start = Instant::now();
    drop(docker);
    assert!(start.elapsed() < Duration::from_secs(40));
    assert!(!dir.exists(), "{} is left", dir.display());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(
        !cgroup.parent().context("no parent")?.exists(),
        "{} is left",
        cgroup.display()
    );
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    assert!(!mounts.contains(&dir.display().to_string()), "{mounts}");
    Ok(())
}
