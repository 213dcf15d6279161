//! What each command does.

pub mod audit;
pub mod audit_text;
pub mod kv;
pub mod node;
pub mod plan;
pub mod secret_input;
pub mod view;

use crate::args::{Args, Command};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::Out;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the command. `default_socket` is what the environment says, if it says anything.
pub fn run(args: Args, default_socket: Option<PathBuf>) -> Result<ExitCode, Failure> {
    let out = Out {
        format: args.output,
    };
    let socket = args
        .socket
        .or(default_socket)
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
            Command::Leases(args) => view::leases(&client, out, &args).await,
            Command::Audit { command } => audit::run(&client, out, command).await,
            Command::Node { command } => node::run(&client, out, command).await,
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
