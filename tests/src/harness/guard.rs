//! A process that ends with the test, whatever ends the test.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::wait_until;

/// Watches over one process. A pipe from the test process to a small shell is the life line: when
/// it closes, by drop, panic or SIGKILL of the test process, the shell ends the process. (Rust
/// drops no statics, and a parent-death signal fires at the death of a thread, not of a process.)
#[derive(Debug)]
pub struct Guard {
    shell: Child,
    line: Option<ChildStdin>,
    pid: i32,
    log: PathBuf,
    grace: Duration,
}

impl Guard {
    /// Runs `command`, its output appended to `log`. At the end it gets `signal`, and SIGKILL
    /// once `grace_seconds` have passed.
    ///
    /// # Errors
    /// When no process can be started.
    pub fn spawn(
        command: &Command,
        log: &Path,
        signal: Signal,
        grace_seconds: u32,
    ) -> Result<Self> {
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(include_str!("guard.sh")).arg("guard");
        bash.arg(signal.as_str().trim_start_matches("SIG"))
            .arg(grace_seconds.to_string());
        bash.arg(log)
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => bash.env(name, value),
                None => bash.env_remove(name),
            };
        }
        // A group of its own: ^C on the terminal ends the test, and the test's end ends the rest.
        bash.process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut shell = bash.spawn().context("starting bash")?;
        let line = shell.stdin.take();
        let output = shell.stdout.take().context("the guard has no output")?;
        let mut pid = String::new();
        BufReader::new(output)
            .read_line(&mut pid)
            .context("reading the guarded pid")?;
        let pid = pid.trim().parse().with_context(|| {
            format!(
                "the guard did not start {:?}: see {}",
                command.get_program(),
                log.display()
            )
        })?;
        let grace = Duration::from_secs(u64::from(grace_seconds) + 5);
        Ok(Self {
            shell,
            line,
            pid,
            log: log.to_path_buf(),
            grace,
        })
    }

    /// The pid of the guarded process, in the host's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// An error that says what was expected, with the end of the log.
    pub fn failure(&self, expected: &str) -> anyhow::Error {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        anyhow!(
            "expected {expected}; the end of {}:\n{tail}",
            self.log.display()
        )
    }

    /// How it ended, when it has. A process that a signal ended counts as 128 and the signal.
    ///
    /// # Errors
    /// When the guard itself cannot be waited for.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.shell.try_wait().context("waiting for the guard")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("end of pid {}", self.pid);
        wait_until(limit, &what, || Ok(self.shell.try_wait()?))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has already ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid), signal)
            .with_context(|| format!("sending {signal} to pid {}", self.pid))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.line.take());
        if self.wait(self.grace).is_err() {
            let _ = self.shell.kill();
            let _ = self.shell.wait();
        }
    }
}
