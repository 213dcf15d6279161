//! A container whose application attacks, and others that do.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, Container, Docker, Image, example, random_text, wait_until};
use serde_json::Value;

use super::super::attacks::SECRETS;

const IMAGE: &str = "isolation:app";
pub const SOON: Duration = Duration::from_secs(30);
/// Without the engine's filter: what is denied, the kernel denies by what we did.
const SETTINGS: [&str; 2] = ["--read-only", "--security-opt=seccomp=unconfined"];
const ACCESS: &str = r#"
@id("all")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue", resource);

@id("without-seccomp") @lifts("baseline-seccomp")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue", resource);
"#;
const CREDENTIALS: &str = r#"
[credential.credential]
engine = "kv"
path = "isolation/credential"
ttl = "15m"
"#;
/// Attacks all that it sees, whenever there is no report of that.
const APPLICATION: &str = "while :; do [ -e /tmp/report ] || { { isolation_attack all; \
    isolation_attack sockets; keyring_attack leave x y; keyring_attack take x; } >/tmp/new; \
    mv /tmp/new /tmp/report; }; sleep 0.05; done";

/// Who is who in the victim's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// It starts as the application's user, and all in it are that user.
    One,
    /// It starts as root, and its shim gives the sidecar a user of its own.
    Two,
}

impl Users {
    /// The application's.
    pub const APPLICATION: &str = "1000:1000";

    /// The sidecar's and the shim's.
    pub fn sidecar(self) -> &'static str {
        match self {
            Self::One => Self::APPLICATION,
            Self::Two => "65529:1000",
        }
    }

    /// What the engine is told, and what the shim.
    fn options(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::One => (&["--user=1000:1000", "--cap-drop=ALL"], &[]),
            Self::Two => (&[], &["--user=1000:1000", "--drop-caps"]),
        }
    }
}

/// One container with the shim, the sidecar and an application, and the secret that it holds.
pub struct Scene {
    pub docker: &'static Docker,
    pub broker: Broker,
    pub victim: Container<'static>,
    pub users: Users,
    pub secret: String,
}

impl Scene {
    pub fn new(users: Users) -> Result<Self> {
        let docker = Docker::host()?;
        Image::with_sidecar()?
            .busybox()?
            .program(&example("isolation_attack")?, "isolation_attack")?
            .program(&example("keyring_attack")?, "keyring_attack")?
            .load(docker, IMAGE)?;
        let broker = Broker::beside(docker)?;
        let secret = random_text(40)?;
        broker.cli_with_input(&["kv", "put", "isolation/credential", "-"], &secret)?;
        broker.apply(&[("access.cedar", ACCESS), ("credentials.toml", CREDENTIALS)])?;
        let workload = format!(
            "--volume={}:/run/mayfly:ro",
            broker.workload_dir().display()
        );
        let options = ["--tmpfs=/tmp:mode=1777", SECRETS, &workload];
        let (engine, shim) = users.options();
        let start = [IMAGE, "/bin/mayfly-shim", "run", "--sidecar"];
        let application = ["--", "sh", "-c", APPLICATION];
        let command = [&start, shim, &application].concat();
        let victim = docker.run([&SETTINGS[..], engine, &options, &command].concat())?;
        let scene = Self {
            docker,
            broker,
            victim,
            users,
            secret,
        };
        let file = scene.file("run/secrets/credential")?;
        wait_until(SOON, "the victim's secret", || {
            Ok((std::fs::read_to_string(&file)? == scene.secret).then_some(()))
        })
        .with_context(|| scene.victim.logs().unwrap_or_default())?;
        // They are who they should be, or what follows says nothing.
        for (program, user) in [
            ("mayfly-sidecar", users.sidecar()),
            ("mayfly-shim", users.sidecar()),
            ("sh", Users::APPLICATION),
        ] {
            let found = user_of(scene.pids(program)?[0])?;
            ensure!(found == user, "{program} is {found}, expected {user}");
        }
        Ok(scene)
    }

    /// A file of the victim's, as root of the host sees it.
    fn file(&self, name: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!(
            "/proc/{}/root/{name}",
            self.victim.pid()?
        )))
    }

    /// What an attack by the application comes to that begins now, as lines of JSON.
    pub fn attack_of_the_application(&self) -> Result<Vec<Value>> {
        let file = self.file("tmp/report")?;
        let report = || {
            wait_until(SOON, "the application's attack", || {
                Ok(Some(lines(&std::fs::read_to_string(&file)?)?))
            })
        };
        report()?;
        std::fs::remove_file(&file)?;
        report()
    }

    /// What another container, whose first process is of this user, comes to.
    pub fn attack_of_another(
        &self,
        user: &str,
        options: &[&str],
        attack: &[&str],
    ) -> Result<Vec<Value>> {
        let run = ["run", "--rm", "--cap-drop=ALL", "--user", user];
        let words = [&run, &SETTINGS[..], options, &[IMAGE], attack].concat();
        lines(&self.docker.cli(words)?)
    }

    /// The pids on the host of the victim's processes of this name.
    pub fn pids(&self, name: &str) -> Result<Vec<i32>> {
        let (cgroup, _) = self.victim.cgroup()?;
        let root = self.docker.realm().cgroup_v2()?;
        let procs = root
            .join(cgroup.trim_start_matches('/'))
            .join("cgroup.procs");
        let procs = std::fs::read_to_string(procs)?;
        let mut found = Vec::new();
        for pid in procs.lines() {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if comm.trim_end() == name {
                found.push(pid.parse()?);
            }
        }
        ensure!(!found.is_empty(), "{name} is not among {procs:?}");
        Ok(found)
    }
}

/// The uid and gid that a process has in every way (proc_pid_status(5)).
fn user_of(pid: i32) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let id = |name: &str| -> Result<String> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let ids: Vec<&str> = line.context("no ids")?.split_whitespace().collect();
        ensure!(ids.iter().all(|id| *id == ids[0]), "{name} {ids:?}");
        Ok(ids[0].to_owned())
    };
    Ok(format!("{}:{}", id("Uid:")?, id("Gid:")?))
}

fn lines(text: &str) -> Result<Vec<Value>> {
    let lines = text.lines().map(serde_json::from_str);
    lines
        .collect::<Result<_, _>>()
        .with_context(|| text.to_string())
}
