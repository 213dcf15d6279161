//! `mayfly-node`: the node of one host among many, whose brokers are elsewhere.

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use mayfly_node::NodeConfig;
use mayfly_node::remote::{BrokerConfig, RemoteBroker};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Nothing that was freed keeps a credential that was asked for in the one-shot form.
#[global_allocator]
static HEAP: mayfly_kernel::alloc::Zeroing = mayfly_kernel::alloc::Zeroing::new();

/// EX_CONFIG is 78 in sysexits(3); this project exits 64 for every mistake of whoever starts it.
const CONFIG_ERROR: u8 = 64;

const EXAMPLE: &str = r#"Example of a configuration file:

  [node]
  name = "host-1"                                 # default: the host's name
  workload_socket = "/run/mayfly/workload/workload.sock"
  engine_sockets = ["/run/docker.sock"]

  [[node.volume]]                                 # a tmpfs at /run/mayfly/volumes/orders
  name = "orders"
  size = "1m"
  uid = 1000
  gid = 1000
  mode = "0750"

  [broker]
  addresses = ["broker-1.example:7443", "broker-2.example:7443"]
  ca = "/etc/mayfly/ca.crt"                       # these three: mayfly node add NAME --out DIR
  certificate = "/etc/mayfly/node.crt"            # carries the node's name
  key = "/etc/mayfly/node.key"

Containers bind-mount the socket's directory, read-only:

  docker run --volume /run/mayfly/workload:/run/mayfly:ro
      --volume /run/mayfly/volumes/orders:/run/secrets ...

The log's level is set by MAYFLY_LOG (info, debug, mayfly_node=debug; default: info).
Exits 64 when the configuration is at fault, 1 when anything else is."#;

/// Attests the containers of this host for brokers elsewhere.
///
/// On a single host, mayfly-broker has its own node, and this program is not needed.
#[derive(Parser)]
#[command(version, after_help = EXAMPLE)]
struct Options {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Form of the log, which goes to standard error.
    #[arg(long, value_enum, default_value = "text")]
    log: LogForm,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogForm {
    /// A line for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    node: NodeConfig,
    broker: BrokerConfig,
}

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { CONFIG_ERROR } else { 0 });
        }
    };
    let filter = std::env::var("MAYFLY_LOG").unwrap_or_else(|_| "info".to_owned());
    log(options.log, &filter);
    let (file, broker) = match configure(&options.config) {
        Ok(configured) => configured,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::from(CONFIG_ERROR);
        }
    };
    match harden().and_then(|()| start(file.node, broker)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log(form: LogForm, filter: &str) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr);
    match form {
        LogForm::Text => log.with_ansi(false).init(),
        LogForm::Json => log.json().init(),
    }
}

fn configure(path: &Path) -> anyhow::Result<(File, RemoteBroker)> {
    let at = || format!("{}", path.display());
    let text = std::fs::read_to_string(path).with_context(at)?;
    let file: File = toml::from_str(&text).with_context(at)?;
    file.node.check().with_context(at)?;
    let broker = RemoteBroker::new(file.broker.clone()).with_context(at)?;
    Ok((file, broker))
}

/// What the node reads of others, and the little that it may hold, stays inside.
fn harden() -> anyhow::Result<()> {
    mayfly_kernel::memory::forbid_core_dumps().context("forbidding core dumps")?;
    mayfly_kernel::memory::forbid_reading_by_others().context("PR_SET_DUMPABLE")?;
    let memory_locked = mayfly_kernel::memory::lock_all().is_ok();
    tracing::info!(memory_locked, "starting");
    Ok(())
}

fn start(config: NodeConfig, broker: RemoteBroker) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
        };
        mayfly_node::run(config, Arc::new(broker), || {}, shutdown).await?;
        Ok(())
    })
}
