//! A container whose application attacks, and others that do.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, Container, Docker, Image, example, random_text, wait_until};
use serde_json::Value;

use super::super::attacks::SECRETS;

const IMAGE: &str = "isolation:app";
pub const SOON: Duration = Duration::from_secs(10);
/// Modest, and without the engine's filter: what is denied, the kernel denies by what we did.
const SETTINGS: [&str; 4] = [
    "--user=1000:1000",
    "--cap-drop=ALL",
    "--read-only",
    "--security-opt=seccomp=unconfined",
];
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
/// Attacks all that it sees, again and again.
const APPLICATION: &str = "while :; do isolation_attack all >/tmp/new; mv /tmp/new /tmp/report; \
    sleep 0.3; done";

/// One container with the shim, the sidecar and an application, and the secret that it holds.
pub struct Scene {
    pub docker: &'static Docker,
    pub broker: Broker,
    pub victim: Container<'static>,
    pub secret: String,
}

impl Scene {
    pub fn new() -> Result<Self> {
        let docker = Docker::host()?;
        Image::with_sidecar()?
            .busybox()?
            .program(&example("isolation_attack")?, "isolation_attack")?
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
        let command = [
            "/bin/mayfly-shim",
            "run",
            "--sidecar",
            "--",
            "sh",
            "-c",
            APPLICATION,
        ];
        let victim = docker.run([&SETTINGS[..], &options, &[IMAGE], &command].concat())?;
        let scene = Self {
            docker,
            broker,
            victim,
            secret,
        };
        let file = scene.file("run/secrets/credential")?;
        wait_until(SOON, "the victim's secret", || {
            Ok((std::fs::read_to_string(&file)? == scene.secret).then_some(()))
        })
        .with_context(|| scene.victim.logs().unwrap_or_default())?;
        Ok(scene)
    }

    /// A file of the victim's, as root of the host sees it.
    fn file(&self, name: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!(
            "/proc/{}/root/{name}",
            self.victim.pid()?
        )))
    }

    /// What the application's next whole attack came to, as lines of JSON.
    pub fn attack_of_the_application(&self) -> Result<Vec<Value>> {
        let file = self.file("tmp/report")?;
        // One that began before now says nothing of now.
        let _ = std::fs::remove_file(&file);
        wait_until(SOON, "the application's attack", || {
            Ok(Some(lines(&std::fs::read_to_string(&file)?)?))
        })
    }

    /// What another container of the same uid comes to.
    pub fn attack_of_another(&self, options: &[&str], attack: &[&str]) -> Result<Vec<Value>> {
        let run = ["run", "--rm"];
        let command = [&[IMAGE, "/bin/isolation_attack"], attack].concat();
        let words = [&run, &SETTINGS[..], options, &command].concat();
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

fn lines(text: &str) -> Result<Vec<Value>> {
    let lines = text.lines().map(serde_json::from_str);
    lines
        .collect::<Result<_, _>>()
        .with_context(|| text.to_string())
}
