//! A PostgreSQL server that is killed, or stopped, with all its processes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{PostgresServer, wait_until};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What the broker's roles are called.
const ROLES: &str = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'mf\\_%'";

pub struct Server(pub PostgresServer);

impl Server {
    pub fn start() -> Result<Self> {
        Ok(Self(PostgresServer::start(&["fsync=off"])?))
    }

    /// The roles that the broker has made.
    pub fn roles(&self) -> Result<BTreeSet<String>> {
        let text = self.0.psql(ROLES)?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// SIGKILL to the first process and to all others, so that nobody can clean up.
    pub fn kill(&mut self) -> Result<()> {
        let killed = self.signal(Signal::SIGKILL)?;
        // What held its life line.
        self.0.kill();
        // The next one does not start while any of them still holds its memory.
        wait_until(
            Duration::from_secs(20),
            "the end of what was killed",
            || {
                let there = |pid: &&i32| stat(**pid).is_ok_and(|(state, _)| state != "Z");
                let left: Vec<_> = killed.iter().filter(there).collect();
                ensure!(left.is_empty(), "{left:?} are left");
                Ok(Some(()))
            },
        )
    }

    pub fn restart(&mut self) -> Result<()> {
        Ok(self.0.run()?)
    }

    /// From now on the kernel accepts connections, and nobody answers.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP).map(drop)
    }

    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT).map(drop)
    }

    /// Gives whom it was sent to.
    fn signal(&self, signal: Signal) -> Result<Vec<i32>> {
        let file = self.0.data().join("postmaster.pid");
        let text = std::fs::read_to_string(&file).context("the server's pid")?;
        let first = text.lines().next().context("no pid")?.parse()?;
        // Stopped first: it makes no other process meanwhile.
        send(first, Signal::SIGSTOP)?;
        wait_until(Duration::from_secs(20), "a stopped server", || {
            Ok((stat(first)?.0 == "T").then_some(()))
        })?;
        let mut all = vec![first];
        for entry in std::fs::read_dir("/proc")?.flatten() {
            if let Ok(pid) = entry.file_name().to_string_lossy().parse()
                && stat(pid).is_ok_and(|(_, parent)| parent == first)
            {
                send(pid, signal)?;
                all.push(pid);
            }
        }
        send(first, signal)?;
        Ok(all)
    }
}

fn send(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        // It ended by itself, as sessions do.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("sending {signal} to {pid}")),
    }
}

/// State and parent of a process (proc(5), /proc/pid/stat).
fn stat(pid: i32) -> Result<(String, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(") ").context("no end of its name")?;
    let mut fields = rest.split(' ');
    let state = fields.next().context("no state")?.to_owned();
    let parent = fields.next().context("no parent")?.parse()?;
    Ok((state, parent))
}
