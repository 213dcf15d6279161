//! Containers that start in a few milliseconds, for tests that need hundreds of them: namespaces and
//! a cgroup of their own as [`Bare`](super::Bare) has, on the machine's files, and one process.

use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup::Cgroup;
use super::realm::Realm;
use super::wait::{random_text, wait_until};

/// uid 1000, no capabilities, no_new_privs; the program brings its own seccomp filter.
const MODEST: [&str; 9] = [
    "setpriv",
    "--reuid=1000",
    "--regid=1000",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--no-new-privs",
    "--pdeathsig=KILL",
    "--",
];

/// A small container. It ends on drop, and when its standard input does: with the test process.
#[derive(Debug)]
pub struct Small {
    parent: Child,
    line: Option<ChildStdin>,
    pid: i32,
    id: u64,
    // Removed last.
    _cgroup: Cgroup,
}

impl Small {
    /// Starts one that runs `probe ARGS…` as its first process. The probe must be where uid 1000 finds
    /// it, and must end when its standard input does.
    ///
    /// # Errors
    /// When it is not up within 30 seconds: it needs root.
    pub fn run(probe: &Path, args: &[&str]) -> Result<Self> {
        let cgroup = Cgroup::new(Realm::host(), &format!("mayfly-small-{}", random_text(8)?))?;
        let mut command = Command::new(probe);
        command.arg("enter").args(cgroup.dirs()).arg("--");
        command.args(["unshare", "--fork", "--pid", "--mount"]);
        command.args(["--uts", "--ipc", "--net", "--cgroup", "--"]);
        command.args(MODEST).arg(probe).args(args);
        // One version of unshare complains of a signal mask that it misreads.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut parent = command.spawn().context("starting a small container")?;
        let line = parent.stdin.take();
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        let pid = wait_until(Duration::from_secs(30), "a small container", || {
            let text = std::fs::read_to_string(&children)?;
            Ok(text
                .split_whitespace()
                .next()
                .and_then(|pid| pid.parse().ok()))
        })?;
        Ok(Self {
            parent,
            line,
            pid,
            id: cgroup.id()?,
            _cgroup: cgroup,
        })
    }

    /// The pid of its only process, in the host's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The id of its cgroup.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Kills its process, and with it all of it, and does not wait.
    ///
    /// # Errors
    /// When it is dead already.
    pub fn kill(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).context("killing a small container")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(self.line.take());
        // Not reaped yet, so that its pid is nobody else's.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = self.parent.wait();
    }
}
