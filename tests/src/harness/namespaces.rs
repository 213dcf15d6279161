//! Containers without any engine: namespaces and cgroups, and nothing that could tell of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::bins::log_path;
use super::cgroup::Cgroup;
use super::guard::Guard;
use super::realm::Realm;
use super::temp::TempDir;
use super::wait::{random_text, wait_until};

/// The parent of a container's init: passes on how it ended (unshare(1) itself cannot, of a child
/// that was killed). The first process that it forks is the init.
const PARENT: &str = r#"setpriv --pdeathsig KILL bash -c "$0" bare "$@" & wait $!"#;

/// How a bare container is made. The default is a modest one: uid 1000, no capabilities,
/// no_new_privs, a read-only root. It has no seccomp filter; `mayfly-shim` brings one.
#[derive(Debug, Clone)]
pub struct BareOptions {
    /// The uid and gid of the command.
    pub uid: u32,
    /// Whether the bounding set keeps all capabilities.
    pub capabilities: bool,
    /// Whether the root cannot be written.
    pub read_only: bool,
    /// Whether no_new_privs is set.
    pub no_new_privs: bool,
    /// The mount options of the tmpfs at `/run/secrets`.
    pub secrets: String,
    /// What is mounted into it: where on the host, where inside, and whether writable.
    pub binds: Vec<(PathBuf, String, bool)>,
    /// The name of its cgroup, below the root of each hierarchy; a random one when empty.
    pub cgroup: String,
}

impl Default for BareOptions {
    fn default() -> Self {
        Self {
            uid: 1000,
            capabilities: false,
            read_only: true,
            no_new_privs: true,
            secrets: "size=1m,uid=1000,gid=1000,mode=0750,noexec,nosuid,nodev,noswap".to_string(),
            binds: Vec::new(),
            cgroup: String::new(),
        }
    }
}

impl BareOptions {
    /// Adds something of the host's, read-only.
    pub fn bind(mut self, from: &Path, to: &str) -> Self {
        self.binds.push((from.to_path_buf(), to.to_string(), false));
        self
    }
}

/// A container of namespaces: own pid, mount, uts, ipc, net and cgroup namespaces, and a cgroup in
/// the v2 hierarchy and in v1's pids and memory where there are such. It sees the host's `/usr`,
/// read-only, so that any program of it can run. All of it ends on drop.
#[derive(Debug)]
pub struct Bare {
    parent: Guard,
    pid: i32,
    cgroup: Cgroup,
    _root: TempDir,
}

impl Bare {
    /// Starts one that runs `command` as its process 1.
    ///
    /// # Errors
    /// When it is not up within 30 seconds: it needs root.
    pub fn run(realm: &Realm, options: &BareOptions, command: &[&str]) -> Result<Self> {
        let id = random_text(8)?;
        let name = if options.cgroup.is_empty() {
            format!("mayfly-bare-{id}")
        } else {
            options.cgroup.clone()
        };
        let cgroup = Cgroup::new(realm, &name)?;
        let root = TempDir::new()?;
        let mut privileges = format!("--reuid={0} --regid={0} --clear-groups", options.uid);
        if !options.capabilities {
            privileges.push_str(" --bounding-set=-all --inh-caps=-all");
        }
        if options.no_new_privs {
            privileges.push_str(" --no-new-privs");
        }
        let binds = options.binds.iter().map(|(from, to, writable)| {
            format!(
                "{}|{to}|{}",
                from.display(),
                if *writable { "rw" } else { "ro" }
            )
        });
        let dirs = cgroup.dirs().iter().map(|dir| dir.display().to_string());

        let mut unshare = realm.command("unshare");
        unshare.args([
            "--pid", "--mount", "--uts", "--ipc", "--net", "bash", "-c", PARENT,
        ]);
        unshare.arg(include_str!("namespaces.sh")).args(command);
        unshare
            .env("ROOT", root.path())
            .env("CGROUPS", dirs.collect::<Vec<_>>().join("\n"));
        unshare.env("BINDS", binds.collect::<Vec<_>>().join("\n"));
        unshare
            .env("SECRETS", &options.secrets)
            .env("PRIVILEGES", privileges);
        unshare.env("READ_ONLY", if options.read_only { "yes" } else { "" });

        let log = log_path(&format!("bare-{id}"))?;
        let mut parent = Guard::spawn(&unshare, &log, Signal::SIGKILL, 0)?;
        let pid = wait_until(Duration::from_secs(30), "a bare container", || {
            let text = parent.log();
            if text.lines().any(|line| line == "bare: ready") {
                return Ok(Some(pid_in(&text)));
            }
            Ok(parent
                .exited()?
                .map(|_| Err(parent.failure("a container of namespaces"))))
        })??;
        Ok(Self {
            parent,
            pid,
            cgroup,
            _root: root,
        })
    }

    /// The pid of its init, in the host's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// What its processes printed so far.
    pub fn logs(&self) -> String {
        let log = self.parent.log();
        log.lines()
            .filter(|line| !line.starts_with("bare: "))
            .map(|l| format!("{l}\n"))
            .collect()
    }

    /// Waits until its output holds a text, and gives the output.
    ///
    /// # Errors
    /// When it does not within `limit`; the output is in the message.
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Result<String> {
        wait_until(limit, &format!("{text:?} from a bare container"), || {
            let logs = self.logs();
            if logs.contains(text) {
                Ok(Some(logs))
            } else {
                anyhow::bail!("its output:\n{logs}")
            }
        })
    }

    /// A command that runs inside, as root there, like `docker exec` does.
    pub fn command(&self, program: &str) -> Command {
        let script = r#"
            while read -r dir; do echo 0 >"$dir/cgroup.procs"; done <<<"$1"
            target=$2
            shift 2
            exec nsenter --target "$target" --all -- "$@"
        "#;
        let dirs = self
            .cgroup
            .dirs()
            .iter()
            .map(|dir| dir.display().to_string());
        let mut command = Command::new("bash");
        command.args(["-c", script, "exec", &dirs.collect::<Vec<_>>().join("\n")]);
        command.arg(self.pid.to_string()).arg(program);
        command
    }

    /// Kills its init, and with it all of it.
    ///
    /// # Errors
    /// When it is dead already.
    pub fn kill(&self) -> Result<()> {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).context("killing a bare container")
    }

    /// Waits for its end and gives its exit status, 128 and the signal when one ended it.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<i32> {
        self.parent
            .wait(limit)?
            .code()
            .context("the guard was killed")
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Its init first, so that its parent reaps it. Once the parent is gone the pid may be
        // somebody else's.
        if matches!(self.parent.exited(), Ok(None)) && self.kill().is_ok() {
            let _ = self.wait(Duration::from_secs(30));
        }
    }
}

fn pid_in(log: &str) -> Result<i32> {
    let line = log.lines().find_map(|line| line.strip_prefix("bare: pid "));
    line.and_then(|pid| pid.parse().ok())
        .context("a bare container told no pid")
}
