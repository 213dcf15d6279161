//! A container under test: our shim, our sidecar, and an application that does what a test says.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use mayfly_tests::harness::{
    Bare, BareOptions, Broker, Realm, TempDir, binary, output, wait_until,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

pub const SOON: Duration = Duration::from_secs(30);

/// Lets every container have every credential.
pub const ALL: &str = r#"@id("all")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue", resource);
"#;

/// A token of each algorithm.
pub const TOKENS: &str = r#"
[credential.token-ed]
engine = "jwt"
algorithm = "EdDSA"
audience = ["https://api.example"]
subject = "{name}"
ttl = "10m"
[credential.token-es]
engine = "jwt"
algorithm = "ES256"
audience = ["https://api.example"]
subject = "{name}"
ttl = "10m"
"#;

/// Who holds what: (workload, credential) to the lease's id.
pub type Leases = BTreeMap<(String, String), String>;

/// Runs each line that it is given.
const SHELL: &str = r#"while :; do read -r line </ctl/in && eval "$line" >/ctl/out 2>&1; done"#;

/// One container. Its first process is the shim, and the application below it is a shell.
pub struct App {
    bare: Bare,
    dir: TempDir,
}

impl App {
    /// Starts one with a sidecar, whose socket is in `workload_dir`, and waits for its shell.
    pub fn start(workload_dir: &Path, cgroup: &str) -> Result<Self> {
        Self::run(workload_dir, cgroup, &["--sidecar"], &[])
    }

    /// Starts one whose sidecar asks for these alone, joined by commas.
    pub fn wanting(workload_dir: &Path, names: &str) -> Result<Self> {
        Self::wanting_beside(workload_dir, names, &[])
    }

    /// The same, whose shell starts as soon as it has those that it needs.
    pub fn needing(workload_dir: &Path, names: &str, needs: &str) -> Result<Self> {
        let shim = [
            "--sidecar",
            "--sidecar-arg",
            "--want",
            "--sidecar-arg",
            names,
            "--wait",
            needs,
        ];
        Self::run(workload_dir, "", &shim, &[])
    }

    /// As [`App::wanting`], with more of the host's directories inside, which it can write to.
    pub fn wanting_beside(
        workload_dir: &Path,
        names: &str,
        binds: &[(&Path, &str)],
    ) -> Result<Self> {
        let want = ["--sidecar-arg", "--want", "--sidecar-arg", names];
        Self::run(
            workload_dir,
            "",
            &[&["--sidecar"], &want[..]].concat(),
            binds,
        )
    }

    fn run(
        workload_dir: &Path,
        cgroup: &str,
        shim: &[&str],
        binds: &[(&Path, &str)],
    ) -> Result<Self> {
        let dir = TempDir::new()?;
        std::fs::create_dir(dir.join("ctl"))?;
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        std::fs::set_permissions(dir.join("ctl"), Permissions::from_mode(0o755))?;
        for name in ["in", "out"] {
            let path = dir.join("ctl").join(name);
            mkfifo(&path, Mode::from_bits_truncate(0o666))?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        }
        let mut options = BareOptions::default()
            .bind(workload_dir, "run/mayfly")
            .bind(&dir.join("ctl"), "ctl");
        options.cgroup = cgroup.to_string();
        for (from, to) in binds {
            let bind = (from.to_path_buf(), (*to).to_string(), true);
            options.binds.push(bind);
        }
        for program in ["mayfly-shim", "mayfly-sidecar", "mayfly-probe"] {
            options = options.bind(&binary(program)?, &format!("mf/{program}"));
        }
        let start = ["/mf/mayfly-shim", "run"];
        let command = [&start, shim, &["--", "bash", "-c", SHELL]].concat();
        let bare = Bare::run(Realm::host(), &options, &command)?;
        let app = Self { bare, dir };
        app.tell("echo up")?;
        Ok(app)
    }

    pub fn bare(&self) -> &Bare {
        &self.bare
    }

    /// Has the application's shell run a line, and gives what that printed.
    pub fn tell(&self, line: &str) -> Result<String> {
        let (input, result) = (self.dir.join("ctl/in"), self.dir.join("ctl/out"));
        let line = format!("{line}\n");
        // A fifo waits for its other side: in a thread, so that a container that ended is an error.
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let said = (|| -> Result<String> {
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(input)?
                    .write_all(line.as_bytes())?;
                let mut text = String::new();
                std::fs::File::open(result)?.read_to_string(&mut text)?;
                Ok(text)
            })();
            let _ = done.send(said);
        });
        wait.recv_timeout(SOON).with_context(|| {
            format!(
                "the application does not answer; its processes: {:#?}; its log:\n{}",
                self.processes(),
                self.bare.logs()
            )
        })?
    }

    /// Kills it, and waits until it is gone.
    pub fn end(&mut self) -> Result<()> {
        self.bare.kill()?;
        self.bare.wait(SOON).map(drop)
    }

    /// What its processes are doing, for the message of a test that fails.
    fn processes(&self) -> Vec<String> {
        let procs = std::fs::read_to_string(self.bare.cgroup().v2().join("cgroup.procs"));
        let read = |pid: &str, file| {
            std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
        };
        let about = |pid: &str| {
            let files = ["comm", "wchan", "syscall", "cmdline"].map(|file| read(pid, file));
            format!("{pid}: {files:?}")
        };
        procs.unwrap_or_default().lines().map(about).collect()
    }

    /// The pids of its processes of this name.
    pub fn pids(&self, name: &str) -> Result<Vec<i32>> {
        let procs = std::fs::read_to_string(self.bare.cgroup().v2().join("cgroup.procs"))?;
        let named = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| name.starts_with(comm.trim_end()))
        };
        let pids = procs.lines().filter(named).map(str::parse);
        Ok(pids.collect::<Result<_, _>>()?)
    }

    pub fn sidecar(&self) -> Result<i32> {
        wait_until(SOON, "the sidecar", || {
            Ok(self.pids("mayfly-sidecar")?.pop())
        })
    }

    /// Where a file of it is, seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.bare.pid())).join(inside.trim_start_matches('/'))
    }

    /// The published value.
    pub fn secret(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path("run/secrets").join(name);
        std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Waits until a published value is this one.
    pub fn wait_for_secret(&self, name: &str, value: &[u8], limit: Duration) -> Result<()> {
        wait_until(limit, &format!("the new value of {name}"), || {
            let found = self.secret(name)?;
            Ok((found == value).then_some(()))
        })
        .with_context(|| self.bare.logs())
    }
}

/// Configures kv credentials of these names, each from the path `e2e/NAME`.
pub fn kv_credentials(broker: &Broker, names: &[String], more: &str) -> Result<()> {
    let mut toml = more.to_string();
    for name in names {
        toml.push_str(&format!(
            "[credential.{name}]\nengine = \"kv\"\npath = \"e2e/{name}\"\nttl = \"10m\"\n"
        ));
    }
    broker.apply(&[("credentials.toml", &toml), ("all.cedar", ALL)])?;
    Ok(())
}

/// Stores a value byte for byte.
pub fn put(broker: &Broker, name: &str, value: &[u8]) -> Result<()> {
    let dir = TempDir::new()?;
    std::fs::write(dir.join("value"), value)?;
    let mut command = broker.mayfly()?;
    command.args(["kv", "put", &format!("e2e/{name}")]);
    output(command.arg(dir.join("value"))).map(drop)
}

/// The active leases. Two for one pair are an error.
pub fn leases(broker: &Broker) -> Result<Leases> {
    let mut found = BTreeMap::new();
    for lease in broker
        .cli_json(&["leases"])?
        .as_array()
        .context("no list of leases")?
    {
        let text = |key: &str| {
            lease[key]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("no {key} in {lease}"))
        };
        let workload = lease["workload"].to_string();
        let before = found.insert((workload, text("credential")?), text("lease")?);
        anyhow::ensure!(before.is_none(), "two leases for one pair: {lease}");
    }
    Ok(found)
}
