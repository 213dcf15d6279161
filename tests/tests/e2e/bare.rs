//! Containers of namespaces and cgroups alone.

use std::time::Duration;

use anyhow::Result;
use mayfly_tests::harness::{Bare, BareOptions, Realm, TempDir, cgroup_of, output};

const SOON: Duration = Duration::from_secs(30);

fn realms() -> Result<[&'static Realm; 2]> {
    Ok([Realm::host(), Realm::pure_v2()?])
}

fn namespaces(pid: &str) -> Result<Vec<String>> {
    let kinds = ["pid", "mnt", "uts", "ipc", "net", "cgroup"];
    let read = |kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    Ok(kinds
        .iter()
        .map(|kind| read(*kind).map(|link| format!("{link:?}")))
        .collect::<Result<_, _>>()?)
}

#[test]
fn it_has_namespaces_and_a_cgroup_of_its_own() -> Result<()> {
    for realm in realms()? {
        let options = BareOptions::default();
        let bare = Bare::run(
            realm,
            &options,
            &["sh", "-c", "echo up as $$; exec sleep 60"],
        )?;
        bare.wait_for_log("up as 1\n", SOON)?;
        let (ours, theirs) = (namespaces("self")?, namespaces(&bare.pid().to_string())?);
        for (mine, its) in ours.iter().zip(&theirs) {
            assert_ne!(mine, its);
        }
        let (_, id) = cgroup_of(realm, bare.pid())?;
        assert_eq!(id, bare.cgroup().id()?);
        assert!(id > 1);
        let inside = output(bare.command("cat").arg("/proc/self/cgroup"))?;
        assert!(inside.lines().any(|line| line == "0::/"), "{inside}");
    }
    Ok(())
}

#[test]
fn its_posture_is_as_asked() -> Result<()> {
    let status = |options: &BareOptions| {
        let bare = Bare::run(
            Realm::host(),
            options,
            &["cat", "/proc/1/status", "/proc/1/mounts"],
        )?;
        bare.wait_for_log("/run/secrets", SOON)
    };
    let modest = status(&BareOptions::default())?;
    for part in [
        "Uid:\t1000\t",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "tmpfs / tmpfs ro",
    ] {
        assert!(modest.contains(part), "{part} is missing: {modest}");
    }
    let secrets = modest
        .lines()
        .find(|line| line.contains(" /run/secrets "))
        .unwrap_or_default();
    assert!(
        secrets.contains("noswap") && secrets.contains("uid=1000"),
        "{secrets}"
    );

    let strong = BareOptions {
        uid: 0,
        capabilities: true,
        no_new_privs: false,
        read_only: false,
        ..BareOptions::default()
    };
    let strong = status(&strong)?;
    for part in ["Uid:\t0\t", "NoNewPrivs:\t0", "tmpfs / tmpfs rw"] {
        assert!(strong.contains(part), "{part} is missing: {strong}");
    }
    assert!(!strong.contains("CapBnd:\t0000000000000000"), "{strong}");
    Ok(())
}

#[test]
fn what_is_bound_into_it_is_there() -> Result<()> {
    let dir = TempDir::new()?;
    std::fs::write(dir.join("file"), "bound")?;
    let options = BareOptions::default().bind(dir.path(), "run/mayfly");
    let bare = Bare::run(
        Realm::host(),
        &options,
        &["cat", "/run/mayfly/file", "/etc/passwd"],
    )?;
    let logs = bare.wait_for_log("bound", SOON)?;
    assert!(!logs.contains("daemon"), "the host's own users: {logs}");
    Ok(())
}

#[test]
fn it_ends_with_its_status_when_killed_and_when_dropped() -> Result<()> {
    for realm in realms()? {
        let options = BareOptions::default();
        let mut ended = Bare::run(realm, &options, &["sh", "-c", "exit 7"])?;
        assert_eq!(ended.wait(SOON)?, 7);

        let mut killed = Bare::run(realm, &options, &["sleep", "60"])?;
        killed.kill()?;
        assert_eq!(killed.wait(SOON)?, 137);

        let dropped = Bare::run(realm, &options, &["sh", "-c", "sleep 60 & sleep 60"])?;
        let (pid, cgroup) = (dropped.pid(), dropped.cgroup().v2().to_path_buf());
        drop(dropped);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(!cgroup.exists(), "{} is left", cgroup.display());
    }
    Ok(())
}
