//! `mayfly-broker`: configuration, then [`mayfly_broker::run`], until it is told to stop.

use anyhow::Context as _;
use clap::Parser;
use mayfly_broker::config::{Config, EXAMPLE, Log, LogFormat};
use mayfly_broker::run::{Options, run};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Secrets pass through this process: what is freed is zeroed.
#[global_allocator]
static HEAP: mayfly_kernel::alloc::Zeroing = mayfly_kernel::alloc::Zeroing::new();

/// Exit status for a configuration that is not as expected (sysexits.h, EX_USAGE).
const BAD_CONFIG: u8 = 64;

/// Issues credentials to containers, each for as long as that container lives.
#[derive(Parser)]
#[command(version, after_help = format!("Example of FILE:\n\n{EXAMPLE}"))]
struct Args {
    /// The broker's configuration, in TOML
    #[arg(long, value_name = "FILE", default_value = "/etc/mayfly/broker.toml")]
    config: PathBuf,
    /// Check the configuration, and do nothing else
    #[arg(long)]
    check: bool,
    /// Start although audit records are missing; that they are goes on record
    #[arg(long)]
    accept_audit_loss: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match Config::read(&args.config) {
        Ok(config) => config,
        Err(error) => return fail(&error.to_string(), BAD_CONFIG),
    };
    if let Err(error) = start_log(&config.log) {
        return fail(
            &format!("{}: log.level: {error}", args.config.display()),
            BAD_CONFIG,
        );
    }
    if args.check {
        return ExitCode::SUCCESS;
    }
    let options = Options {
        accept_audit_loss: args.accept_audit_loss,
    };
    match serve(config, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}"), 1),
    }
}

fn fail(message: &str, status: u8) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "mayfly-broker: {message}");
    ExitCode::from(status)
}

fn start_log(log: &Log) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::builder().parse(&log.level)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn serve(config: Config, options: Options) -> anyhow::Result<()> {
    mayfly_kernel::memory::forbid_core_dumps().context("core dumps cannot be forbidden")?;
    mayfly_kernel::memory::forbid_reading_by_others()
        .context("others cannot be kept from reading this process's memory")?;
    // Root keys stand in locked memory anyhow; this is for all the rest.
    let memory_locked = mayfly_kernel::memory::lock_all().is_ok();
    tracing::info!(memory_locked, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime does not start")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        run(config, options, shutdown)
            .await
            .map_err(anyhow::Error::from)
    })
}
