//! 1,000 starts, while rotations run as fast as they can: no application runs before its first complete
//! set, or sees a torn one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, Cgroup, Realm, TempDir, binary, random_text, wait_until};

use super::place::{IMAGE, MODEST, SOON, TMPFS, broker, engine, put, run};

const STARTS: usize = 1_000;
/// So many at a time.
const AT_ONCE: usize = 4;
/// How long each reads, in milliseconds.
const READS: &str = "20";
/// Every so many, one reads until it has seen three sets.
const PATIENT: usize = 20;
/// Of an engine, which takes a hundred times as long for each.
const DOCKER_STARTS: usize = 20;

/// A mount namespace's own tmpfs where the secrets go, then uid 1000 without any capability.
const SCRIPT: &str = r#"
    mount -t tmpfs -o "$0" none "$1" && shift &&
    exec setpriv --reuid=1000 --regid=1000 --clear-groups --bounding-set=-all --inh-caps=-all \
        --no-new-privs --pdeathsig=KILL -- "$@""#;

/// What all containers of namespaces share.
struct Programs {
    dir: TempDir,
    socket: PathBuf,
}

impl Programs {
    fn new(broker: &Broker) -> Result<Self> {
        let dir = TempDir::new()?;
        let open =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode));
        // uid 1000 starts them, leaves its word, and finds the socket.
        open(dir.path(), 0o1777)?;
        for name in ["mayfly-shim", "mayfly-sidecar", "mayfly-probe"] {
            std::fs::copy(binary(name)?, dir.join(name))?;
        }
        std::fs::create_dir(dir.join("secrets"))?;
        let socket = broker.workload_socket();
        for above in socket.ancestors().skip(1).take(2) {
            open(above, 0o711)?;
        }
        Ok(Self { dir, socket })
    }

    /// Starts a container whose first process is the shim.
    fn start(&self, cgroup: &Cgroup, sets: &str, word: &Path) -> Result<Child> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new(path("mayfly-probe"));
        command.arg("enter").args(cgroup.dirs()).arg("--");
        command.args(["unshare", "--fork", "--kill-child", "--pid", "--mount"]);
        command.args(["--uts", "--ipc", "--net", "--cgroup", "--"]);
        command.args(["sh", "-c", SCRIPT, TMPFS, &path("secrets")]);
        command.args([&path("mayfly-shim"), "run", "--dir", &path("secrets")]);
        command.args(["--sidecar", "--wait", "pair", "--sidecar-arg", "--socket"]);
        command.arg("--sidecar-arg").arg(&self.socket);
        command.args([
            "--",
            &path("mayfly-probe"),
            "reads",
            &path("secrets"),
            READS,
            sets,
        ]);
        command.arg(word).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        command
            .spawn()
            .context("starting a container of namespaces")
    }

    /// One container from start to end; gives how many sets its application saw.
    fn once(&self, sets: &str) -> Result<usize> {
        let name = format!("mayfly-start-{}", random_text(8)?);
        let cgroup = Cgroup::new(Realm::host(), &name)?;
        let word = self.dir.join(&name);
        let mut child = self.start(&cgroup, sets, &word)?;
        let ended = wait_until(SOON, "the end of a container", || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", output.status);
        let sets = std::fs::read_to_string(&word)?;
        std::fs::remove_file(&word)?;
        ended?;
        Ok(sets.parse()?)
    }
}

/// Rotates for as long as `work` takes; gives how often.
fn while_rotating<T>(broker: &Broker, work: impl FnOnce() -> Result<T>) -> Result<(T, usize)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| -> Result<usize> {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                put(broker)?;
                count += 1;
            }
            Ok(count)
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        let count = rotating
            .join()
            .map_err(|_| anyhow::anyhow!("a thread failed"))??;
        Ok((result?, count))
    })
}

#[test]
fn a_thousand_applications_start_with_a_complete_set_and_see_no_torn_one() -> Result<()> {
    let broker = broker(None, "")?;
    let programs = Programs::new(&broker)?;
    let (started, sets) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let begun = Instant::now();
    let ((), rotations) = while_rotating(&broker, || {
        std::thread::scope(|scope| {
            let work = || -> Result<()> {
                loop {
                    let number = started.fetch_add(1, Ordering::Relaxed);
                    if number >= STARTS {
                        return Ok(());
                    }
                    let least = if number % PATIENT == 0 { "3" } else { "1" };
                    sets.fetch_add(programs.once(least)?, Ordering::Relaxed);
                }
            };
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread failed"))?
            })
        })
    })?;
    let sets = sets.into_inner();
    say!(
        "{STARTS} starts in {:?}, {rotations} rotations, {sets} sets seen",
        begun.elapsed()
    );
    // It would show nothing if none of them had seen a rotation.
    ensure!(sets >= STARTS + 2 * STARTS / PATIENT, "only {sets} sets");
    broker.cli(&["audit", "verify"]).map(drop)
}

#[test]
fn an_engines_containers_do_so_as_well() -> Result<()> {
    let docker = engine()?;
    let broker = broker(Some(docker), "")?;
    let began = Instant::now();
    let application = [
        "--",
        "/bin/mayfly-probe",
        "reads",
        "/run/secrets",
        "200",
        "3",
        "/dev/null",
    ];
    let starts = || -> Result<()> {
        for _ in 0..DOCKER_STARTS / 2 {
            let container = run(docker, &broker, &MODEST, IMAGE, &application)?;
            let status = container.wait()?;
            ensure!(
                status == 0,
                "it ended with {status}: {:?}",
                container.logs()
            );
        }
        Ok(())
    };
    let ((), rotations) = while_rotating(&broker, || {
        std::thread::scope(|scope| {
            let other = scope.spawn(starts);
            starts()?;
            other
                .join()
                .map_err(|_| anyhow::anyhow!("a thread failed"))?
        })
    })?;
    say!(
        "{DOCKER_STARTS} starts in {:?}, {rotations} rotations",
        began.elapsed()
    );
    ensure!(rotations > DOCKER_STARTS);
    Ok(())
}

/// What reads would say so: an application that is started without the shim, before there is anything.
#[test]
fn who_starts_too_early_or_reads_a_torn_set_says_so() -> Result<()> {
    let dir = TempDir::new()?;
    let reads = || mayfly_tests::harness::read_sets(dir.path(), Duration::ZERO, 1);
    ensure!(reads().is_err_and(|error| format!("{error:#}").contains("opening the set")));
    std::fs::create_dir_all(dir.join("..gen/pair"))?;
    std::os::unix::fs::symlink("..gen", dir.join("..data"))?;
    std::fs::write(dir.join("..gen/pair/left"), "a".repeat(24))?;
    ensure!(reads().is_err_and(|error| format!("{error:#}").contains("pair/right")));
    std::fs::write(dir.join("..gen/pair/right"), "b".repeat(24))?;
    ensure!(reads().is_err_and(|error| format!("{error:#}").contains("torn")));
    std::fs::write(dir.join("..gen/pair/right"), "a".repeat(24))?;
    ensure!(reads()? == 1);
    Ok(())
}
