//! What each command does.

pub mod audit;
pub mod audit_text;
pub mod authority;
pub mod connection;
pub mod kv;
pub mod leases;
pub mod node;
pub mod plan;
pub mod progress;
pub mod secret_input;
pub mod terminal;
pub mod view;

use crate::args::{Args, Command};
use crate::client::Client;
use crate::dev::{self, programs::Programs};
use crate::failure::Failure;
use crate::output::Out;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the process environment says. It is read in `main` alone.
pub struct Environment {
    /// `MAYFLY_ADMIN_SOCKET`
    pub socket: Option<PathBuf>,
    /// `PATH`
    pub path: OsString,
}

/// Runs the command.
pub fn run(args: Args, environment: Environment) -> Result<ExitCode, Failure> {
    let out = Out {
        format: args.output,
    };
    // `dev run` makes a pid namespace, after which this process can start no thread and one child
    // only: it does its own waiting.
    if let Command::Dev(dev) = args.command {
        return dev::run(dev, out, &Programs::new(environment.path));
    }
    // What passes through must not reach the swap. Where the limit does not allow that, it is here for a
    // moment only. Not for `dev`, whose container's first process gives up what makes it possible.
    let _ = mayfly_kernel::memory::lock_all();
    let socket = args
        .socket
        .or(environment.socket)
        .unwrap_or_else(|| mayfly_wire::admin::SOCKET.into());
    let client = Client::new(socket);
    block_on(async {
        match args.command {
            Command::Status => view::status(&client, out).await,
            Command::Plan(args) => plan::plan(&client, out, &args).await,
            Command::Apply(args) => plan::apply(&client, out, &args).await,
            Command::Policy { command } => plan::policy(&client, out, command).await,
            Command::Kv { command } => kv::run(&client, out, command).await,
            Command::Workloads => view::workloads(&client, out).await,
            Command::Explain(args) => view::explain(&client, out, &args).await,
            Command::Leases(args) => leases::leases(&client, out, args).await,
            Command::Revoke(args) => leases::revoke(&client, out, args).await,
            Command::Rotate(args) => leases::rotate(&client, out, args).await,
            Command::Connection { command } => connection::run(&client, out, command).await,
            Command::Authority { command } => authority::run(&client, out, command).await,
            Command::Audit { command } => audit::run(&client, out, command).await,
            Command::Node { command } => node::run(&client, out, command).await,
            Command::Dev(_) => Ok(()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Runs one future to its end, on this thread alone.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::doing("cannot start the event loop"))?
        .block_on(future)
}
