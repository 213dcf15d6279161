//! One container of an engine.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::cgroup::cgroup_of;
use super::docker::Docker;
use super::wait::wait_until;

/// A container. One that [`Docker::run`] started is removed on drop; one of a compose project goes
/// with its project.
#[derive(Debug)]
pub struct Container<'a> {
    docker: &'a Docker,
    id: String,
    owned: bool,
}

impl<'a> Container<'a> {
    pub(super) fn new(docker: &'a Docker, id: String, owned: bool) -> Self {
        Self { docker, id, owned }
    }

    /// The engine that runs it.
    pub fn docker(&self) -> &'a Docker {
        self.docker
    }

    /// Its 64-digit id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the engine tells of it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn inspect(&self) -> Result<Value> {
        self.docker.inspect(&self.id)
    }

    /// The pid of its init, in the host's pid namespace.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<i32> {
        let pid = self
            .inspect()?
            .pointer("/State/Pid")
            .and_then(Value::as_i64)
            .unwrap_or(0);
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
        pid.with_context(|| format!("container {} does not run: {:?}", self.id, self.logs()))
    }

    /// The path and the id of its v2 cgroup.
    ///
    /// # Errors
    /// When it does not run.
    pub fn cgroup(&self) -> Result<(String, u64)> {
        cgroup_of(self.docker.realm(), self.pid()?)
    }

    /// Runs a command in it and gives what it printed.
    ///
    /// # Errors
    /// When the command fails.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        self.docker.cli([&["exec", &self.id], command].concat())
    }

    /// What its processes printed so far, both streams, in order.
    ///
    /// # Errors
    /// When the engine does not give it.
    pub fn logs(&self) -> Result<String> {
        let mut logs = self.docker.client();
        let done = logs
            .args(["logs", &self.id])
            .output()
            .context("starting docker logs")?;
        Ok(String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
    }

    /// Waits until its logs hold a text, and gives them.
    ///
    /// # Errors
    /// When they do not within `limit`; the logs are in the message.
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Result<String> {
        let what = format!("{text:?} in the logs of container {}", self.id);
        wait_until(limit, &what, || {
            let logs = self.logs()?;
            if logs.contains(text) {
                Ok(Some(logs))
            } else {
                anyhow::bail!("logs:\n{logs}")
            }
        })
    }

    /// Kills all of it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self) -> Result<()> {
        self.docker.cli(["kill", &self.id]).map(drop)
    }

    /// Waits for its end and gives its exit status.
    ///
    /// # Errors
    /// When the engine does not say.
    pub fn wait(&self) -> Result<i32> {
        let status = self.docker.cli(["wait", &self.id])?;
        status
            .parse()
            .with_context(|| format!("docker wait said {status:?}"))
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if self.owned {
            let _ = self.docker.cli(["rm", "--force", "--volumes", &self.id]);
        }
    }
}
