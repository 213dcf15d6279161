//! `mayfly dev run` and the demo: they work, again and again, and leave nothing, also when interrupted.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{TempDir, binary, output, wait_until};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(30);

/// What starts the tests may ignore Ctrl-C, and what is born to ignore it may never hear of it.
fn interruptible(program: &Path) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=INT,TERM").arg(program);
    command
}

/// The demo, with temporary files in a directory of its own.
fn demo(tmp: &Path) -> Result<Command> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo/run");
    let mut command = interruptible(&script);
    let bin = binary("mayfly")?;
    command
        .env("TMPDIR", tmp)
        .env("MAYFLY_BIN", bin.parent().context("no directory")?);
    Ok(command)
}

/// Processes, mounts and cgroups of a run whose files are in `dir`.
fn left(dir: &Path, cgroups: &str) -> Result<Vec<String>> {
    let mark = dir.to_str().context("a path that is no text")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let of = |file| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let (line, environment) = (of("cmdline"), of("environ"));
        if line.contains(mark) || environment.contains(mark) {
            found.push(format!("process {}", line.replace('\0', " ")));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(mark))
            .map(str::to_owned),
    );
    found.extend(
        cgroups_named(Path::new("/sys/fs/cgroup"), cgroups, 0)
            .iter()
            .map(|path| format!("cgroup {}", path.display())),
    );
    found.extend(
        std::fs::read_dir(dir)?
            .flatten()
            .map(|entry| format!("file {}", entry.path().display())),
    );
    Ok(found)
}

fn cgroups_named(dir: &Path, name: &str, depth: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with(name) {
            found.push(entry.path());
        }
        if depth < 3 {
            found.extend(cgroups_named(&entry.path(), name, depth + 1));
        }
    }
    found
}

fn nothing_left(dir: &Path, cgroups: &str) -> Result<()> {
    wait_until(SOON, "nothing to be left", || {
        let found = left(dir, cgroups)?;
        ensure!(found.is_empty(), "left: {found:#?}");
        Ok(Some(()))
    })
}

#[test]
fn the_demo_works_three_times_in_a_row_and_leaves_nothing() -> Result<()> {
    let tmp = TempDir::new()?;
    for round in 1..=3 {
        let said = output(&mut demo(tmp.path())?).with_context(|| format!("round {round}"))?;
        ensure!(
            said.lines().last() == Some("demo: ok"),
            "round {round}: {said}"
        );
        nothing_left(tmp.path(), "demo-").with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// Interrupts a demo that has printed a line with this beginning, and then went on for a while. Says no if
/// it was over before, because this was kept from running.
fn interrupt(signal: Signal, group: bool, line: &str, pause: Duration) -> Result<bool> {
    let tmp = TempDir::new()?;
    let mut demo = demo(tmp.path())?
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // Held until it has ended: a closed one would end it too.
    let mut said = BufReader::new(demo.stdout.take().context("no output")?);
    let mut last = String::new();
    while !last.starts_with(line) {
        last.clear();
        ensure!(said.read_line(&mut last)? > 0, "it never said {line:?}");
    }
    std::thread::sleep(pause);
    let pid = Pid::from_raw(i32::try_from(demo.id())?);
    if group {
        killpg(pid, signal)?;
    } else {
        kill(pid, signal)?;
    }
    let status = wait_until(SOON, "the demo to end", || Ok(demo.try_wait()?))?;
    nothing_left(tmp.path(), "demo-")?;
    let interrupted = status.code() == Some(128 + signal as i32);
    ensure!(interrupted || status.success(), "{status}");
    Ok(interrupted)
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing() -> Result<()> {
    // The broker starts in step 1, the containers in step 3. After step 4 it goes too fast for a busy
    // machine to interrupt it in time.
    let moments = [
        ("Mayfly", 0),
        ("1.", 0),
        ("1.", 40),
        ("3.", 0),
        ("3.", 15),
        ("3.", 30),
        ("3.", 60),
        ("4.", 0),
    ];
    for (line, milliseconds) in moments {
        for (signal, group) in [
            (Signal::SIGINT, false),
            (Signal::SIGINT, true),
            (Signal::SIGTERM, false),
        ] {
            let moment = || format!("{signal}, group: {group}, {milliseconds} ms after {line:?}");
            let pause = Duration::from_millis(milliseconds);
            let mut tries = 0;
            while !interrupt(signal, group, line, pause).with_context(moment)? {
                tries += 1;
                ensure!(tries < 5, "never interrupted, {}", moment());
            }
        }
    }
    Ok(())
}

#[test]
fn dev_run_gives_secrets_to_a_command_and_leaves_nothing() -> Result<()> {
    let (secrets, at, mayfly) = (TempDir::new()?, TempDir::new()?, binary("mayfly")?);
    std::fs::write(secrets.join("api-key"), "the key")?;
    // Of this test process alone: one that was killed before may have left a cgroup.
    let ours = format!("e2e-{}-", std::process::id());
    let run = |name: &str, script: &str| {
        let name = format!("{ours}{name}");
        let mut command = interruptible(&mayfly);
        command.args(["dev", "run", "--at"]).arg(at.join("dev"));
        command.arg("--secrets").arg(secrets.path());
        command.args(["--name", &name, "--no-network", "--", "sh", "-c", script]);
        command
    };
    let said = output(&mut run("one", "cat /run/secrets/api-key; id -u; env"))?;
    ensure!(said.starts_with("the key"), "{said}");
    ensure!(
        said.matches("the key").count() == 1,
        "it is in the environment too: {said}"
    );
    let status = run("two", "exit 7").stderr(Stdio::null()).status()?;
    ensure!(status.code() == Some(7), "{status}");
    nothing_left(at.path(), &ours)?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut running = run("three", "echo up; exec sleep 60")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut first = [0; 3];
        std::io::Read::read_exact(&mut running.stdout.take().context("no output")?, &mut first)?;
        kill(Pid::from_raw(i32::try_from(running.id())?), signal)?;
        wait_until(SOON, "dev run to end", || Ok(running.try_wait()?))?;
        if signal == Signal::SIGKILL {
            // Nobody was left to clear up after it; nothing runs all the same.
            wait_until(SOON, "the container to be gone", || {
                let found = left(at.path(), "no-such-cgroup")?;
                ensure!(
                    !found.iter().any(|what| what.starts_with("process")),
                    "{found:#?}"
                );
                Ok(Some(()))
            })?;
            // The next of that name takes over the cgroup, and clears it away. The broker's tmpfs waits
            // for somebody to unmount it, so that nothing in it is lost.
            output(&mut run("three", "true"))?;
            let mounts = std::fs::read_to_string("/proc/self/mounts")?;
            let at = at.path().to_str().context("a path that is no text")?;
            for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
                if mount.starts_with(at) {
                    output(Command::new("umount").arg(mount))?;
                    std::fs::remove_dir(mount)?;
                }
            }
        }
        nothing_left(at.path(), &ours).with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}
