//! The broker under test, with its embedded node.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::bins::{binary, log_path};
use super::docker::Docker;
use super::guard::Guard;
use super::http::Http;
use super::realm::Realm;
use super::temp::TempDir;
use super::wait::{free_port, output, output_with_input, random_text, wait_until};

/// How a broker is started.
#[derive(Debug, Default)]
pub struct BrokerOptions {
    /// The sockets of the engines that its node asks.
    pub engines: Vec<PathBuf>,
    /// More tables for its configuration, such as `[node_link]`.
    pub broker: String,
    /// More lines for the `[node]` table.
    pub node: String,
    /// More lines for the `[oidc]` table.
    pub oidc: String,
    /// More environment variables.
    pub env: Vec<(String, String)>,
}

/// A broker with a state directory of its own; it ends on drop.
#[derive(Debug)]
pub struct Broker {
    realm: &'static Realm,
    process: Option<Guard>,
    env: Vec<(String, String)>,
    log: PathBuf,
    oidc_port: u16,
    engines: Vec<PathBuf>,
    oidc: String,
    tables: String,
    dir: TempDir,
}

impl Broker {
    /// Starts one beside an engine, in the engine's realm, which its node asks.
    ///
    /// # Errors
    /// As for [`Broker::start`].
    pub fn beside(docker: &Docker) -> Result<Self> {
        let engines = vec![docker.socket()];
        Self::start(
            docker.realm(),
            BrokerOptions {
                engines,
                ..BrokerOptions::default()
            },
        )
    }

    /// Starts one in a realm and waits until both sockets answer.
    ///
    /// # Errors
    /// When it has not been built, or is not ready within a minute.
    pub fn start(realm: &'static Realm, options: BrokerOptions) -> Result<Self> {
        let dir = TempDir::new()?;
        for name in ["state", "run", "admin"] {
            std::fs::create_dir(dir.join(name))?;
        }
        let oidc_port = free_port()?;
        let log = log_path(&format!("broker-{}-{}", realm.name(), random_text(6)?))?;
        let mut broker = Self {
            realm,
            process: None,
            env: options.env,
            log,
            oidc_port,
            engines: options.engines,
            oidc: options.oidc,
            tables: options.broker,
            dir,
        };
        broker.configure_node(&options.node)?;
        broker.restart()?;
        Ok(broker)
    }

    /// Writes its configuration anew, with these lines in the `[node]` table, for its next start.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure_node(&self, node: &str) -> Result<()> {
        let port = self.oidc_port;
        let config = format!(
            "state_dir = {:?}\n[admin]\nsocket = {:?}\n\
             [oidc]\nlisten = \"127.0.0.1:{port}\"\nissuer = \"https://localhost:{port}\"\n{}\n\
             [node]\nworkload_socket = {:?}\nengine_sockets = {:?}\n{node}\n{}\n",
            self.state_dir(),
            self.admin_socket(),
            self.oidc,
            self.workload_socket(),
            self.engines,
            self.tables,
        );
        Ok(std::fs::write(self.config_file(), config)?)
    }

    /// Starts it again on the same state, after [`Broker::kill`] or [`Broker::stop`].
    ///
    /// # Errors
    /// As for [`Broker::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        let Some(mut process) = self.process.take() else {
            bail!("the broker does not run")
        };
        wait_until(
            Duration::from_secs(60),
            "the broker's sockets to answer",
            || {
                if process.exited()?.is_some() {
                    return Ok(Some(Err(process.failure("a broker that stays up"))));
                }
                for socket in [self.admin_socket(), self.workload_socket()] {
                    std::os::unix::net::UnixStream::connect(socket)?;
                }
                Ok(Some(Ok(())))
            },
        )?
        .map_err(|error| error.context("starting the broker"))?;
        self.process = Some(process);
        Ok(())
    }

    /// The same, and does not wait until it is ready.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn launch(&mut self) -> Result<()> {
        self.process = None;
        let mut command = self.realm.command(binary("mayfly-broker")?);
        command.arg("--config").arg(self.config_file());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let process = Guard::spawn(&command, &self.log, Signal::SIGTERM, 5)?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    /// When it does not run, or has not ended after 30 seconds.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            bail!("the broker does not run")
        };
        process.signal(signal)?;
        process.wait(Duration::from_secs(30)).map(drop)
    }

    /// Waits for an end that it comes to by itself, and gives its exit status: 128 and the signal when one
    /// ended it.
    ///
    /// # Errors
    /// When it does not run, or still does after `limit`.
    pub fn ends(&mut self, limit: Duration) -> Result<i32> {
        let Some(mut process) = self.process.take() else {
            bail!("the broker does not run")
        };
        let status = process.wait(limit)?;
        status.code().context("the guard was killed")
    }

    /// Its pid, in the host's pid namespace.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<i32> {
        match &self.process {
            Some(process) => Ok(process.pid()),
            None => bail!("the broker does not run"),
        }
    }

    /// All that it logged, over restarts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where it keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.join("admin/admin.sock")
    }

    /// The workload socket.
    pub fn workload_socket(&self) -> PathBuf {
        self.workload_dir().join("workload.sock")
    }

    /// The directory of the workload socket, to mount into containers: a restarted broker's socket
    /// is another file, which a mount of the socket alone would not show.
    pub fn workload_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The address of its OpenID documents, in its realm.
    pub fn oidc_address(&self) -> String {
        format!("127.0.0.1:{}", self.oidc_port)
    }

    /// A client of its admin socket.
    pub fn admin(&self) -> Http {
        Http::new(self.admin_socket())
    }

    /// A client of its workload socket; the test process is in no container.
    pub fn workload(&self) -> Http {
        Http::new(self.workload_socket())
    }

    /// The admin program, pointed at this broker.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn mayfly(&self) -> Result<Command> {
        let mut command = Command::new(binary("mayfly")?);
        command.arg("--socket").arg(self.admin_socket());
        Ok(command)
    }

    /// Runs the admin program and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        output(self.mayfly()?.args(args))
    }

    /// Runs the admin program with `--output json`.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn cli_json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&output(
            self.mayfly()?.args(["--output", "json"]).args(args),
        )?)?)
    }

    /// Applies a configuration: file names with their contents.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&self, files: &[(&str, &str)]) -> Result<String> {
        let dir = TempDir::new()?;
        for (name, content) in files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            std::fs::write(path, content)?;
        }
        output(
            self.mayfly()?
                .args(["apply", "--yes", "-f"])
                .arg(dir.path()),
        )
    }

    /// Runs the admin program with something on its standard input, where secret values come in.
    ///
    /// # Errors
    /// When it fails.
    pub fn cli_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        output_with_input(self.mayfly()?.args(args), input.as_bytes())
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("broker.toml")
    }
}
