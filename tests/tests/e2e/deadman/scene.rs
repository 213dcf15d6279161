//! A broker whose node owns volumes, and containers whose sidecars are to fail.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mayfly_tests::harness::{
    Broker, BrokerOptions, Container, Docker, Guard, Image, TempDir, log_path, random_text,
    wait_until,
};
use mayfly_wire::audit::Chain;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A lease's life, and what it may take on a busy machine until all has happened that follows its end.
const TTL: &str = "5s";
pub const SOON: Duration = Duration::from_secs(25);
const IMAGE: &str = "deadman:app";

/// Ends by itself with 7 when it is asked to.
const APP: &str = "trap 'exit 7' TERM; while :; do sleep 0.1; done";

const MODEST: [&str; 4] = [
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--user=1000:1000",
    "--read-only",
];
/// A tmpfs that is the container's alone.
const PRIVATE: &str = "--mount=type=volume,dst=/run/secrets,volume-driver=local,\
    volume-opt=type=tmpfs,volume-opt=device=tmpfs,\
    \"volume-opt=o=size=1m,uid=1000,gid=1000,mode=0700,noexec,nosuid,nodev,noswap\"";

const ALL: &str = r#"@id("all")
permit (principal is Mayfly::Workload, action == Mayfly::Action::"issue", resource);
"#;

/// What stands in each `sidecar.toml`.
pub const REMOVE_AND_KEEP: &str = r#"
only_outputs = true
[[output]]
credential = "short"
file = "short"
format = "raw"
[[output]]
credential = "kept"
file = "conf/kept"
format = "raw"
on_expiry = "keep-stale"
max_stale = "1h"
[[output]]
credential = "long"
file = "long"
format = "raw"
"#;
/// The same for one that is not to run without it, with the application where `[application]` says.
pub fn stop(process: &str) -> String {
    format!(
        r#"
only_outputs = true
[application]
process = {process:?}
[[output]]
credential = "short"
file = "short"
format = "raw"
on_expiry = "stop-application"
"#
    )
}

/// Containers of one application: its own, and its companion's if it has one.
pub struct App {
    pub container: Container<'static>,
    companion: Option<Container<'static>>,
}

pub struct Scene {
    docker: &'static Docker,
    pub broker: Broker,
    pub secret: String,
    // Ends before the directories go: unmounts.
    _volumes: Guard,
    dir: TempDir,
}

impl Scene {
    /// A node with volumes of these names.
    pub fn new(volumes: &[&str]) -> Result<Self> {
        let docker = Docker::host()?;
        Image::with_sidecar()?.busybox()?.load(docker, IMAGE)?;
        let dir = TempDir::new()?;
        fs::write(dir.join("offset"), "0")?;
        let unmount = "trap 'umount -l \"$0\"/*; exit' TERM; while :; do sleep 0.2; done";
        let mut holder = docker.command("bash");
        holder.args(["-c", unmount]).arg(dir.join("volumes"));
        let log = log_path(&format!("volumes-{}", random_text(6)?))?;
        let holder = Guard::spawn(&holder, &log, Signal::SIGTERM, 5)?;
        let options = BrokerOptions {
            engines: vec![docker.socket()],
            broker: format!("[test]\nclock_offset_file = {:?}", dir.join("offset")),
            node: node(&dir, volumes, "1m"),
            ..BrokerOptions::default()
        };
        let broker = Broker::start(docker.realm(), options)?;
        let secret = random_text(24)?;
        broker.cli_with_input(&["kv", "put", "deadman", "-"], &secret)?;
        let of = |name: &str, ttl: &str| {
            format!("[credential.{name}]\nengine = \"kv\"\npath = \"deadman\"\nttl = {ttl:?}\n")
        };
        let credentials = [of("short", TTL), of("kept", TTL), of("long", "10m")].concat();
        broker.apply(&[("credentials.toml", &credentials), ("all.cedar", ALL)])?;
        Ok(Self {
            docker,
            broker,
            secret,
            _volumes: holder,
            dir,
        })
    }

    /// Configures the volumes with another size, for the broker's next start.
    pub fn resize(&self, volumes: &[&str], size: &str) -> Result<()> {
        self.broker.configure_node(&node(&self.dir, volumes, size))
    }

    /// Sets the broker's time of day ahead.
    pub fn ahead(&self, seconds: u32) -> Result<()> {
        Ok(fs::write(self.dir.join("offset"), seconds.to_string())?)
    }

    /// Where a volume is on the host.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.dir.join("volumes").join(name)
    }

    /// A directory of the host's, for what a container must not reach.
    pub fn outside(&self) -> PathBuf {
        self.dir.join("outside")
    }

    /// Shim, sidecar and application in one container, on a tmpfs of its own.
    pub fn inside(&self, name: &str, config: &str) -> Result<App> {
        let command = [
            "/bin/mayfly-shim",
            "run",
            "--sidecar",
            "--",
            "/bin/sh",
            "-c",
            APP,
        ];
        let container = self.run(name, config, &[PRIVATE], &command)?;
        let app = App {
            container,
            companion: None,
        };
        self.published(&app)?;
        Ok(app)
    }

    /// An application that knows nothing, with a volume of the node's, and its companion.
    pub fn beside(&self, name: &str, config: &str) -> Result<App> {
        let volume = format!("{}:/run/secrets", self.volume(name).display());
        let read_only = format!("--volume={volume}:ro");
        let writable = format!("--volume={volume}");
        let container = self.run(name, config, &[&read_only], &["/bin/sh", "-c", APP])?;
        let join = format!("--pid=container:{}", container.id());
        let command = ["/bin/mayfly-sidecar"];
        let beside = format!("{name}-sidecar");
        let companion = self.run(&beside, config, &[&writable, &join], &command)?;
        let app = App {
            container,
            companion: Some(companion),
        };
        self.published(&app)?;
        Ok(app)
    }

    /// Somebody with a volume, and no sidecar at all.
    pub fn alone(&self, volume: &str, script: &str) -> Result<Container<'static>> {
        let mount = format!("--volume={}:/run/secrets", self.volume(volume).display());
        self.run(volume, "", &[&mount], &["/bin/sh", "-c", script])
    }

    fn run(
        &self,
        name: &str,
        config: &str,
        options: &[&str],
        command: &[&str],
    ) -> Result<Container<'static>> {
        let dir = self.config_of(name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("sidecar.toml"), config)?;
        let own = [
            format!("--name=deadman-{name}"),
            format!(
                "--volume={}:/run/mayfly:ro",
                self.broker.workload_dir().display()
            ),
            format!("--volume={}:/etc/mayfly:ro", dir.display()),
        ];
        let own = own.each_ref().map(String::as_str);
        let args = [&MODEST[..], &own, options, &[IMAGE], command].concat();
        self.docker.run(args)
    }

    fn config_of(&self, name: &str) -> PathBuf {
        self.dir.join(format!("config-{name}"))
    }

    /// Makes the next sidecar of this application refuse to start.
    pub fn break_config(&self, name: &str) -> Result<()> {
        let file = self.config_of(name).join("sidecar.toml");
        Ok(fs::write(file, "[[output]]\nno = 'sense'\n")?)
    }

    fn published(&self, app: &App) -> Result<()> {
        wait_until(SOON, "the first set", || {
            let value = fs::read_to_string(app.path("short")?)?;
            Ok((value == self.secret).then_some(()))
        })
        .with_context(|| app.logs())
    }

    /// Waits for a record, and checks that the chain holds.
    pub fn on_record(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_until(SOON, &format!("a record: {what}"), || {
            let text = fs::read_to_string(self.broker.state_dir().join("audit.jsonl"))?;
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            let mut chain = Chain::default();
            for line in text[..whole].lines() {
                chain.follow(line)?;
                let record: Value = serde_json::from_str(line)?;
                if is_it(&record["event"]) {
                    return Ok(Some(record["event"].clone()));
                }
            }
            let tail: Vec<_> = text[..whole].lines().rev().take(12).collect();
            bail!(
                "the last records: {tail:#?}\nthe log: {}",
                self.broker.log()
            )
        })
    }

    /// A record that the node did this in a volume, to an item.
    pub fn node_did(&self, act: &str, volume: &str, item: &str) -> Result<Value> {
        self.on_record(&format!("{act} of {item} in {volume}"), |event| {
            let report = &event["report"];
            let items = report["items"].as_array();
            event["type"] == "overdue"
                && report["act"] == act
                && report["volume"] == volume
                && items.is_some_and(|items| items.iter().any(|found| found == item))
        })
    }

    /// A record that the workload said this of an item.
    pub fn workload_said(&self, code: &str, app: &App, item: &str) -> Result<Value> {
        let workload = app.workload()?;
        self.on_record(&format!("{code} of {item} by {workload}"), |event| {
            let detail = event["failure"]["detail"].as_str().unwrap_or_default();
            event["type"] == "publish_failed"
                && event["failure"]["code"] == code
                && event["who"]["workload"]["cgroup_id"] == workload
                && detail.contains(item)
        })
    }
}

fn node(dir: &TempDir, volumes: &[&str], size: &str) -> String {
    let mut text = format!("volumes_dir = {:?}\n", dir.join("volumes"));
    for name in volumes {
        text.push_str(&format!(
            "[[node.volume]]\nname = {name:?}\nsize = {size:?}\nuid = 1000\ngid = 1000\nmode = \"0750\"\n"
        ));
    }
    text
}

impl App {
    /// Where a published file is, seen from outside.
    pub fn path(&self, file: &str) -> Result<PathBuf> {
        let pid = self.container.pid()?;
        Ok(format!("/proc/{pid}/root/run/secrets/{file}").into())
    }

    /// The id of its cgroup, by which records name it.
    fn workload(&self) -> Result<u64> {
        Ok(self.container.cgroup()?.1)
    }

    /// Opens a file now, to see later what became of its content.
    pub fn hold(&self, file: &str) -> Result<File> {
        let path = self.path(file)?;
        // Whose sidecar was kept from running may be without it for a moment.
        wait_until(SOON, &format!("{file} to be there"), || {
            Ok(Some(File::open(&path)?))
        })
    }

    /// The sidecar's pid.
    pub fn sidecar(&self) -> Result<Pid> {
        let holder = self.companion.as_ref().unwrap_or(&self.container);
        let (cgroup, _) = holder.cgroup()?;
        let own = format!("0::{cgroup}\n");
        for entry in fs::read_dir("/proc")?.flatten() {
            let of = |file| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if of("comm").trim_end() == "mayfly-sidecar" && of("cgroup").contains(&own) {
                return Ok(Pid::from_raw(pid));
            }
        }
        bail!("no sidecar in {cgroup}")
    }

    pub fn freeze(&self) -> Result<()> {
        Ok(kill(self.sidecar()?, Signal::SIGSTOP)?)
    }

    /// Kills the sidecar alone.
    pub fn kill_sidecar(&self) -> Result<()> {
        Ok(kill(self.sidecar()?, Signal::SIGKILL)?)
    }

    pub fn thaw(&self) -> Result<()> {
        Ok(kill(self.sidecar()?, Signal::SIGCONT)?)
    }

    /// Waits until the file is gone, and the name that leads to it leads nowhere.
    pub fn gone(&self, file: &str) -> Result<()> {
        let path = self.path(file)?;
        wait_until(SOON, &format!("{file} to be gone"), || {
            Ok((!path.exists()).then_some(()))
        })
        .with_context(|| self.logs())
    }

    pub fn logs(&self) -> String {
        let of = |container: &Container<'_>| container.logs().unwrap_or_default();
        let beside = self.companion.as_ref().map(of).unwrap_or_default();
        format!(
            "the container:\n{}\nits companion:\n{beside}",
            of(&self.container)
        )
    }
}
