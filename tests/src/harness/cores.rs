//! Core dumps, and where the kernel puts them.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::bins::log_path;
use super::guard::Guard;
use super::temp::TempDir;
use super::wait::wait_until;

const SOON: Duration = Duration::from_secs(30);

/// How the kernel is told to keep a core dump (core(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreKind {
    /// A file, where the process that crashed sees that path. The limits of the process hold.
    File,
    /// Handed to a program, as systemd-coredump and apport have it. Limits do not hold, but for one.
    Program,
}

/// All core dumps of this machine go to a directory of ours, until this is dropped or the test process
/// ends: then `/proc/sys/kernel/core_pattern` is as it was.
#[derive(Debug)]
pub struct Cores {
    dir: TempDir,
    _guard: Guard,
}

/// Sets the pattern, and puts the old one back when it is told to end.
const HOLD: &str = r#"
    pattern=/proc/sys/kernel/core_pattern
    before=$(cat "$pattern")
    sleep infinity & sleeper=$!
    trap 'printf "%s" "$before" >"$pattern"; kill "$sleeper"; exit 0' TERM
    printf "%s" "$1" >"$pattern" && echo "core_pattern: $1"
    wait
"#;

impl Cores {
    /// Takes them.
    ///
    /// # Errors
    /// When the pattern cannot be set: it needs root.
    pub fn take(kind: CoreKind) -> Result<Self> {
        let dir = TempDir::new()?;
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o1777))?;
        let place = dir.path().display();
        let pattern = match kind {
            CoreKind::File => format!("{place}/core.%P"),
            CoreKind::Program => {
                // By its own name only when all of it is there.
                let script = "#!/bin/sh\ncat >\"$1/part.$2\" && mv \"$1/part.$2\" \"$1/core.$2\"\n";
                std::fs::write(dir.join("take"), script)?;
                std::fs::set_permissions(dir.join("take"), PermissionsExt::from_mode(0o755))?;
                format!("|{place}/take {place} %P")
            }
        };
        let log = log_path("core-pattern")?;
        let _ = std::fs::remove_file(&log);
        let mut hold = Command::new("bash");
        hold.args(["-c", HOLD, "hold", &pattern]);
        let guard = Guard::spawn(&hold, &log, Signal::SIGTERM, 5)?;
        wait_until(SOON, "core dumps to come here", || {
            Ok(guard.log().contains(&pattern).then_some(()))
        })
        .with_context(|| guard.log())?;
        let cores = Self { dir, _guard: guard };
        cores.come_here()?;
        Ok(cores)
    }

    /// The dump of a process that has crashed, if one was made. All that crashed before have been
    /// dumped by then, if they are at all.
    ///
    /// # Errors
    /// When dumps do not come here any more.
    pub fn of(&self, pid: i32) -> Result<Option<Vec<u8>>> {
        self.come_here()?;
        let path = self.path(pid);
        let part = self.dir.join(format!("part.{pid}"));
        wait_until(SOON, "all of a core dump", || {
            Ok((!part.try_exists()?).then_some(()))
        })?;
        match path.try_exists()? {
            true => Ok(Some(std::fs::read(path)?)),
            false => Ok(None),
        }
    }

    /// Waits for the dump of a process that crashes.
    ///
    /// # Errors
    /// When there is none after 30 seconds.
    pub fn wait_for(&self, pid: i32) -> Result<Vec<u8>> {
        wait_until(SOON, &format!("a core dump of pid {pid}"), || self.of(pid))
    }

    /// One that nobody protects is dumped here, else the absence of a dump says nothing.
    fn come_here(&self) -> Result<()> {
        let mut sleeper = Command::new("prlimit");
        sleeper.args(["--core=unlimited", "sleep", "60"]);
        let mut sleeper = sleeper.stdin(Stdio::null()).spawn()?;
        let pid = sleeper.id().cast_signed();
        // Not before it is the one that sleeps.
        let comm = format!("/proc/{pid}/comm");
        let asleep = wait_until(SOON, "a process to crash", || {
            Ok((std::fs::read_to_string(&comm)?.trim_end() == "sleep").then_some(()))
        });
        let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGABRT);
        sleeper.wait()?;
        asleep?;
        killed?;
        let path = self.path(pid);
        let dumped = wait_until(SOON, "the core dump of a process that crashed", || {
            Ok(path.try_exists()?.then_some(()))
        });
        if let Err(error) = dumped {
            let found: Vec<_> = std::fs::read_dir(self.dir.path())?.flatten().collect();
            bail!(
                "core dumps do not come to {}: {found:?}: {error:#}",
                self.dir.path().display()
            );
        }
        Ok(std::fs::remove_file(path)?)
    }

    fn path(&self, pid: i32) -> PathBuf {
        self.dir.join(format!("core.{pid}"))
    }
}
