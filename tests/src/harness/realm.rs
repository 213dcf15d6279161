//! Where things run: on this machine as it is, or where the only cgroups are v2.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;

use super::bins::log_path;
use super::guard::Guard;
use super::wait::wait_until;

/// A view of the machine. Both share its pid namespace, its files and its kernel's cgroups; the
/// pure v2 one has mount and network namespaces of its own. Where the machine binds its controllers
/// to v1, containers in the pure v2 realm have cgroups without limits.
#[derive(Debug)]
pub struct Realm {
    name: &'static str,
    holder: Option<Guard>,
}

impl Realm {
    /// The machine as it is.
    pub fn host() -> &'static Self {
        static HOST: Realm = Realm {
            name: "host",
            holder: None,
        };
        &HOST
    }

    /// A host with pure cgroup v2, whatever this machine has. Made once for a test process.
    ///
    /// # Errors
    /// When the namespaces cannot be made: that needs root.
    pub fn pure_v2() -> Result<&'static Self> {
        static PURE: OnceLock<Result<Realm, String>> = OnceLock::new();
        let made = PURE.get_or_init(|| Self::make().map_err(|error| format!("{error:#}")));
        made.as_ref()
            .map_err(|error| anyhow!("no realm with pure cgroup v2: {error}"))
    }

    fn make() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "bash", "-c", include_str!("realm.sh")]);
        let log = log_path("realm-v2")?;
        let _ = std::fs::remove_file(&log);
        let mut holder = Guard::spawn(&command, &log, Signal::SIGKILL, 0)?;
        wait_until(
            Duration::from_secs(30),
            "a realm with pure cgroup v2",
            || {
                if holder.exited()?.is_some() {
                    return Ok(Some(
                        Err(holder.failure("new mount and network namespaces")),
                    ));
                }
                Ok(holder
                    .log()
                    .lines()
                    .any(|line| line == "ready")
                    .then_some(Ok(())))
            },
        )??;
        Ok(Self {
            name: "v2",
            holder: Some(holder),
        })
    }

    /// A short name for messages and files.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A command whose program runs in this realm. The program must be an absolute path or found in
    /// PATH, and starts in the root directory; its pid is the started process's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(holder) = &self.holder else {
            return Command::new(program);
        };
        let mut command = Command::new("nsenter");
        let namespaces = format!("/proc/{}/ns", holder.pid());
        command
            .arg(format!("--mount={namespaces}/mnt"))
            .arg(format!("--net={namespaces}/net"));
        command.arg("--").arg(program);
        command
    }

    /// The mounted root of the cgroup v2 hierarchy, as a path that works outside the realm too.
    ///
    /// # Errors
    /// When there is none.
    pub fn cgroup_v2(&self) -> Result<PathBuf> {
        let found = self.cgroup_mount(|kind, _| kind == "cgroup2")?;
        found.with_context(|| format!("no cgroup v2 hierarchy in the realm {}", self.name))
    }

    /// The mounted root of the v1 hierarchy with a controller, where there is one.
    ///
    /// # Errors
    /// When the mounts cannot be read.
    pub fn cgroup_v1(&self, controller: &str) -> Result<Option<PathBuf>> {
        self.cgroup_mount(|kind, options| {
            kind == "cgroup" && options.split(',').any(|option| option == controller)
        })
    }

    fn cgroup_mount(&self, wanted: impl Fn(&str, &str) -> bool) -> Result<Option<PathBuf>> {
        let pid = self
            .holder
            .as_ref()
            .map_or_else(|| "self".to_string(), |h| h.pid().to_string());
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts"))?;
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            if let [_, path, kind, options, ..] = fields[..]
                && wanted(kind, options)
            {
                let path = Path::new(path);
                if self.holder.is_none() {
                    return Ok(Some(path.to_path_buf()));
                }
                return Ok(Some(root.join(path.strip_prefix("/").unwrap_or(path))));
            }
        }
        Ok(None)
    }
}
