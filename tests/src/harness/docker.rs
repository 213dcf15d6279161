//! A container engine of our own.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::bins::log_path;
use super::container::Container;
use super::guard::Guard;
use super::realm::Realm;
use super::wait::{output, random_text, wait_until};

/// A `dockerd` with everything of its own: data, sockets, cgroup parent. It has no bridge network:
/// run containers with `--network none` or `--network host`. With `--runtime=trimmed`, containers get
/// the capabilities of those that they are to have that this machine has: see `runtime.sh`.
#[derive(Debug)]
pub struct Docker {
    realm: &'static Realm,
    dir: PathBuf,
    engine: Guard,
}

impl Docker {
    /// The engine on the machine's own cgroups that all tests of this process share.
    ///
    /// # Errors
    /// When it does not start: that needs root, and what `tests/setup` installs.
    pub fn host() -> Result<&'static Self> {
        static HOST: OnceLock<Result<Docker, String>> = OnceLock::new();
        shared(&HOST, || Ok(Realm::host()))
    }

    /// The engine on pure cgroup v2 that all tests of this process share.
    ///
    /// # Errors
    /// As for [`Docker::host`].
    pub fn pure_v2() -> Result<&'static Self> {
        static PURE: OnceLock<Result<Docker, String>> = OnceLock::new();
        shared(&PURE, Realm::pure_v2)
    }

    /// Both shared engines, for what must hold on both.
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn both() -> Result<[&'static Self; 2]> {
        Ok([Self::host()?, Self::pure_v2()?])
    }

    /// Starts one more engine, which ends when it is dropped.
    ///
    /// # Errors
    /// When it is not ready within two minutes.
    pub fn start(realm: &'static Realm) -> Result<Self> {
        let id = random_text(8)?;
        let dir = std::env::temp_dir().join(format!("mayfly-docker-{id}"));
        for name in ["", "client"] {
            std::fs::create_dir(dir.join(name)).context("making the engine's directory")?;
        }
        let runtime = dir.join("runtime");
        std::fs::write(&runtime, include_str!("runtime.sh"))?;
        std::fs::set_permissions(&runtime, PermissionsExt::from_mode(0o755))?;
        let mut command = realm.command("bash");
        command.args(["-c", include_str!("dockerd.sh"), "dockerd"]);
        command.arg(&dir).arg(format!("mayfly-docker-{id}"));
        let log = log_path(&format!("dockerd-{}", realm.name()))?;
        let _ = std::fs::remove_file(&log);
        let engine = Guard::spawn(&command, &log, Signal::SIGTERM, 40)?;
        let mut docker = Self { realm, dir, engine };
        let ready = wait_until(Duration::from_secs(120), "dockerd to answer", || {
            if docker.engine.exited()?.is_some() {
                return Ok(Some(Err(docker.engine.failure("dockerd to stay up"))));
            }
            docker.cli(["version"]).map(|_| Some(Ok(())))
        });
        ready.and_then(|inner| inner).map_err(|error| {
            error.context(docker.engine.failure("a container engine that is ready"))
        })?;
        Ok(docker)
    }

    /// The realm that it runs in.
    pub fn realm(&self) -> &'static Realm {
        self.realm
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// A command whose program runs in the engine's realm, so that it sees the same cgroups.
    pub fn command(&self, program: &str) -> Command {
        self.realm.command(program)
    }

    /// The docker client, speaking to this engine and reading none of the user's settings.
    pub fn client(&self) -> Command {
        self.client_of("docker")
    }

    /// Another program that is pointed at this engine as the docker client is.
    pub fn client_of(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command
            .env("DOCKER_CONFIG", self.dir.join("client"))
            .env("DOCKER_BUILDKIT", "0");
        command
            .env_remove("DOCKER_CONTEXT")
            .env_remove("COMPOSE_FILE");
        command
    }

    /// Runs the docker client and gives what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn cli<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        output(self.client().args(args))
    }

    /// Starts a container in the background: `docker run --detach --network none ARGS…`, where the
    /// arguments are further options, the image, and its command. It is removed on drop.
    ///
    /// # Errors
    /// When it does not start.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Container<'_>> {
        let id = output(
            self.client()
                .args(["run", "--detach", "--network", "none"])
                .args(args),
        )?;
        // The client may print warnings before the id.
        let id = id
            .lines()
            .last()
            .context("docker run printed no id")?
            .to_string();
        Ok(Container::new(self, id, true))
    }

    /// What the engine tells of a container.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn inspect(&self, container: &str) -> Result<Value> {
        let all: Value = serde_json::from_str(&self.cli(["container", "inspect", container])?)?;
        all.get(0)
            .cloned()
            .with_context(|| format!("nothing known of container {container}"))
    }

    /// Where the engine keeps its things; for tests that look at them.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn shared(
    slot: &'static OnceLock<Result<Docker, String>>,
    realm: impl FnOnce() -> Result<&'static Realm>,
) -> Result<&'static Docker> {
    let started = slot.get_or_init(|| {
        realm()
            .and_then(Docker::start)
            .map_err(|error| format!("{error:#}"))
    });
    started
        .as_ref()
        .map_err(|error| anyhow!("no container engine: {error}"))
}
